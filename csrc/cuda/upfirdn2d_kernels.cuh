// upfirdn2d. A block makes a tile of outputs: rows and columns of a plane (contiguous), or pixels and some of their
// channels (channels_last). It first loads the filter and the patch of inputs under the tile into shared memory, so
// that every input is read once, and those on the border of two tiles by both.
#pragma once

#include "vec.cuh"

namespace pggan_fast {

struct Upfirdn2d {
  int64_t planes;  // contiguous: N C of one channel, channels_last: N of c
  int h, w, c, oh, ow;
  int upx, upy, downx, downy, x0, y0, fh, fw;
  bool vector, flip;  // f is [fw] along both axes; correlate
  double gain;
  int th, tw, tc;  // of a tile
  int ph, pw;      // of a patch
  int tiles_y, tiles_x, tiles_c;
};

constexpr int kPatchBytes = 24 * 1024;
constexpr int kFilterValues = 1024;

struct Patch;
struct Coefficients;

__host__ __device__ inline int floor_divided(int a, int b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
__host__ __device__ inline int ceil_divided(int a, int b) { return -floor_divided(-a, b); }

// Of an output, along one axis: the first input that a tap multiplies, and which tap that is.
struct FirstTap {
  int input, tap;
  __device__ FirstTap(int output, int up, int down, int pad) {
    const int start = output * down - pad;
    input = ceil_divided(start, up);
    tap = input * up - start;
  }
};

template <class A>
__device__ inline A coefficient(const A* f, const Upfirdn2d& g, int ky, int kx) {
  const int y = g.flip ? ky : g.fh - 1 - ky, x = g.flip ? kx : g.fw - 1 - kx;
  return A(g.gain) * (g.vector ? load(f + y) * load(f + x) : load(f + int64_t(y) * g.fw + x));
}

// up, down and taps: of both axes, or 0 where they are known at run time only.
template <class T, int V, bool channels_last, int up, int down, int taps>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    upfirdn2d_kernel(const T* x, const Acc<T>* f, T* y, Upfirdn2d g) {
  using A = Acc<T>;
  using Raw = typename Word<sizeof(T)>::Type;
  constexpr int kPatchValues = kPatchBytes / sizeof(T);
  Raw* patch = shared_array<Patch, Raw, kPatchValues>();
  A* weights = shared_array<Coefficients, A, kFilterValues>();
  const int upx = up ? up : g.upx, upy = up ? up : g.upy, downx = down ? down : g.downx, downy = down ? down : g.downy;
  const int fh = taps ? taps : g.fh, fw = taps ? taps : g.fw;
  constexpr int kMostTaps = up ? (taps + up - 1) / up : 0;  // of an output, along one axis
  constexpr bool all_have_most = up && taps % (up ? up : 1) == 0;

  int64_t tile = blockIdx.x;
  const int c0 = int(tile % g.tiles_c) * g.tc;
  tile /= g.tiles_c;
  const int ox0 = int(tile % g.tiles_x) * g.tw;
  tile /= g.tiles_x;
  const int oy0 = int(tile % g.tiles_y) * g.th;
  const int64_t plane = tile / g.tiles_y;
  const int first_y = FirstTap(oy0, upy, downy, g.y0).input;
  // Where rows are vectors, the patch begins at one.
  const int first_x = FirstTap(ox0, upx, downx, g.x0).input;
  const int left = channels_last ? first_x : floor_divided(first_x, V) * V;

  for (int i = threadIdx.x; i < fh * fw; i += kThreads) weights[i] = coefficient(f, g, i / fw, i % fw);
  const int across = channels_last ? g.tc / V : g.pw / V,
            vectors = channels_last ? g.ph * g.pw * across : g.ph * across;
  for (int i = threadIdx.x; i < vectors; i += kThreads) {
    const int k = i % across * V, pixel = i / across;
    const int iy = first_y + (channels_last ? pixel / g.pw : pixel), ix = left + (channels_last ? pixel % g.pw : k);
    const int channel = channels_last ? c0 + k : 0;
    Vec<T, V> values{};
    if (iy >= 0 && iy < g.h && ix >= 0 && ix < g.w && channel < g.c)
      values = load_vec<T, V>(x + ((plane * g.h + iy) * g.w + ix) * g.c + channel);
    memcpy(patch + i * V, &values, sizeof values);
  }
  __syncthreads();

  const int columns = channels_last ? g.tw * across : g.tw / V;
  for (int i = threadIdx.x; i < g.th * columns; i += kThreads) {
    const int row = i / columns, k = (channels_last ? i % across : i % columns) * V;
    const int oy = oy0 + row, ox = ox0 + (channels_last ? i % columns / across : k),
              channel = channels_last ? c0 + k : 0;
    if (oy >= g.oh || ox >= g.ow || channel >= g.c) continue;
    A sums[V] = {};
    const FirstTap tap_y(oy, upy, downy, g.y0);
    constexpr int kOutputs = channels_last ? 1 : V;  // along the row
#pragma unroll
    for (int v = 0; v < kOutputs; ++v) {
      const FirstTap tap_x(ox + v, upx, downx, g.x0);
      const int count_y = taps ? kMostTaps : (fh - tap_y.tap + upy - 1) / upy;
      const int count_x = taps ? kMostTaps : (fw - tap_x.tap + upx - 1) / upx;
#pragma unroll
      for (int m = 0; m < count_y; ++m)
#pragma unroll
        for (int n = 0; n < count_x; ++n) {
          if (taps && !all_have_most && (tap_y.tap + m * upy >= fh || tap_x.tap + n * upx >= fw)) continue;
          const A weight = weights[(tap_y.tap + m * upy) * fw + tap_x.tap + n * upx];
          const int pixel = (tap_y.input + m - first_y) * g.pw + tap_x.input + n - left;
          Vec<T, channels_last ? V : 1> values;
          memcpy(&values, patch + (channels_last ? pixel * g.tc + k : pixel), sizeof values);
#pragma unroll
          for (int j = 0; j < (channels_last ? V : 1); ++j) sums[channels_last ? j : v] += weight * A(values.v[j]);
        }
    }
    store_rounded(y + ((plane * g.oh + oy) * g.ow + ox) * g.c + channel, sums);
  }
}

// For filters that shared memory has no room for: a thread makes one output, straight from global memory.
template <class T, bool channels_last>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    upfirdn2d_direct_kernel(const T* x, const Acc<T>* f, T* y, Upfirdn2d g) {
  using A = Acc<T>;
  int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= g.planes * g.oh * g.ow * g.c) return;
  T* to = y + i;
  const int channel = int(i % g.c);
  i /= g.c;
  const int ox = int(i % g.ow);
  i /= g.ow;
  const int oy = int(i % g.oh);
  const int64_t plane = i / g.oh;
  const FirstTap tap_y(oy, g.upy, g.downy, g.y0), tap_x(ox, g.upx, g.downx, g.x0);
  A sum = 0;
  for (int ky = tap_y.tap, iy = tap_y.input; ky < g.fh; ky += g.upy, ++iy) {
    if (iy < 0 || iy >= g.h) continue;
    for (int kx = tap_x.tap, ix = tap_x.input; kx < g.fw; kx += g.upx, ++ix)
      if (ix >= 0 && ix < g.w)
        sum += coefficient(f, g, ky, kx) * A(load(x + ((plane * g.h + iy) * g.w + ix) * g.c + channel));
  }
  store(to, static_cast<T>(sum));
}

}  // namespace pggan_fast
