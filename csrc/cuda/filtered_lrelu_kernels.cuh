// filtered_lrelu. A block makes a tile of outputs of one plane, in shared memory from beginning to end:
//
//   first        the patch of inputs under the tile, bias added                    [ph, pw]
//   second       filtered up along rows                                            [ph, gw]
//   first        filtered up along columns, activated or multiplied by the mask    [gh, gw]
//   second       filtered down along rows                                          [gh, tw]
//   y            filtered down along columns                                       [th, tw]
//
// Neighbouring tiles of the grid overlap by a filter's length, which each computes for itself; of the mask's bytes, each
// writes those of the rows and columns that are its own.
#pragma once

#include "../shared/filtered_lrelu.h"
#include "vec.cuh"

namespace pggan_fast {

struct FilteredLrelu {
  int64_t planes;
  int channels, h, w, gh, gw, oh, ow;
  int up, down, x0, y0, left, top, up_taps, down_taps;
  bool flip;
  double gain, slope, clamp;
  int step, mask_w;              // of the mask: lcm(up, down), bytes of one of its streams
  int th, tw, tiles_y, tiles_x;  // of outputs
  int ph, pw, pgh, pgw;          // patches of the input and of the grid
};

// Values of shared memory: blocks of fp32 need less than 32 KiB, so that two run even on 64 KiB. A tile of 4 outputs
// fits with filters of 24 taps and factors of 4.
template <class A>
constexpr int kFirstValues = sizeof(A) == 8 ? 3200 : 4800;
template <class A>
constexpr int kSecondValues = sizeof(A) == 8 ? 1600 : 2944;

struct FirstStage;
struct SecondStage;
struct Taps;

__host__ __device__ inline int quotient(int a, int b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// Along one axis: the input that a position of the grid first reads, and the tap that multiplies it.
struct FirstInput {
  int input, tap;
  __device__ FirstInput(int position, int up, int pad) {
    input = -quotient(pad - position, up);
    tap = input * up - (position - pad);
  }
};

// writes: a mask; reads: one, instead of an activation.
template <class T, bool reads, bool writes>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    filtered_lrelu_kernel(const T* x, const Acc<T>* bias, const Acc<T>* fu, const Acc<T>* fd, const uint8_t* mask_in,
                          uint8_t* mask_out, T* y, FilteredLrelu g) {
  using A = Acc<T>;
  A* first = shared_array<FirstStage, A, kFirstValues<A>>();
  A* second = shared_array<SecondStage, A, kSecondValues<A>>();
  A* up_filter = shared_array<Taps, A, 2 * kMostTaps + 1>();
  A *down_filter = up_filter + kMostTaps, *added = down_filter + kMostTaps;
  const int thread = threadIdx.x;
  int64_t tile = blockIdx.x;
  const int ox = int(tile % g.tiles_x) * g.tw;
  tile /= g.tiles_x;
  const int oy = int(tile % g.tiles_y) * g.th;
  const int64_t plane = tile / g.tiles_y;
  // The patch of the grid, from a row on that begins a byte of the mask.
  const int gx = ox * g.down - g.left, gy = quotient(oy * g.down - g.top, 4) * 4;
  const int ix = FirstInput(gx, g.up, g.x0).input, iy = FirstInput(gy, g.up, g.y0).input;

  if (thread < g.up_taps) up_filter[thread] = load(fu + (g.flip ? thread : g.up_taps - 1 - thread));
  if (thread < g.down_taps) down_filter[thread] = load(fd + (g.flip ? thread : g.down_taps - 1 - thread));
  if (thread == 0) *added = bias ? load(bias + plane % g.channels) : A(0);
  __syncthreads();
  const T* plane_x = x + plane * g.h * g.w;
  for (int i = thread; i < g.ph * g.pw; i += kThreads) {
    const int row = iy + i / g.pw, column = ix + i % g.pw;
    const bool inside = row >= 0 && row < g.h && column >= 0 && column < g.w;
    first[i] = inside ? A(load(plane_x + int64_t(row) * g.w + column)) + *added : A(0);
  }
  __syncthreads();

  for (int i = thread; i < g.ph * g.pgw; i += kThreads) {
    const int row = i / g.pgw, column = i % g.pgw;
    const FirstInput at(gx + column, g.up, g.x0);
    const A* from = first + row * g.pw + at.input - ix;
    A sum = 0;
    for (int k = at.tap; k < g.up_taps; k += g.up) sum += up_filter[k] * *from++;
    second[i] = A(g.gain) * sum;
  }
  __syncthreads();

  const int64_t mask_plane = plane * ((g.gh + 3) / 4) * g.step * g.mask_w;
  // A thread takes four rows of a column: a byte of the mask.
  for (int i = thread; i < g.pgh / 4 * g.pgw; i += kThreads) {
    const int row = i / g.pgw * 4, column = i % g.pgw, grid_row = gy + row, grid_column = gx + column;
    const bool inside = grid_row >= 0 && grid_row < g.gh && grid_column >= 0 && grid_column < g.gw;
    const int64_t byte = mask_plane + (int64_t(grid_row / 4) * g.step + grid_column % g.step) * g.mask_w +
                         grid_column / g.step;
    unsigned bits = reads && inside ? load(mask_in + byte) : 0;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const FirstInput at(grid_row + r, g.up, g.y0);
      const A* from = second + (at.input - iy) * g.pgw + column;
      A v = 0;
      for (int k = at.tap; k < g.up_taps; k += g.up, from += g.pgw) v += up_filter[k] * *from;
      if (reads) {
        if (bits >> 2 * r & 1) v *= A(g.slope);
        if (bits >> 2 * r & 2) v = 0;
      } else {
        const bool below = v <= 0;
        // A product with a slope of 0 would make NaN of infinity.
        if (below) v = g.slope == 0 ? A(0) : v * A(g.slope);
        const bool clamped = v >= A(g.clamp) || v <= -A(g.clamp);
        if (clamped) v = v > 0 ? A(g.clamp) : -A(g.clamp);
        if (grid_row + r < g.gh) bits |= unsigned(below) << 2 * r | unsigned(clamped) << (2 * r + 1);
      }
      // The grid ends where the second filter's padding begins.
      first[(row + r) * g.pgw + column] = inside && grid_row + r < g.gh ? v : A(0);
    }
    if (writes) {
      const bool last_y = oy + g.th >= g.oh, last_x = ox + g.tw >= g.ow;
      if (inside && (last_y || row < g.th * g.down) && (last_x || column < g.tw * g.down))
        store(mask_out + byte, static_cast<uint8_t>(bits));
    }
  }
  if (writes && ox + g.tw >= g.ow) {
    // Streams that end before the others have bytes of no column.
    const int behind = g.step * g.mask_w - g.gw;
    for (int i = thread; i < g.pgh / 4 * behind; i += kThreads) {
      const int row = i / behind * 4, grid_row = gy + row, column = g.gw + i % behind;
      if (grid_row < g.gh && (oy + g.th >= g.oh || row < g.th * g.down))
        store(mask_out + mask_plane + (int64_t(grid_row / 4) * g.step + column % g.step) * g.mask_w + column / g.step,
              uint8_t(0));
    }
  }
  __syncthreads();

  for (int i = thread; i < g.pgh * g.tw; i += kThreads) {
    const A* from = first + i / g.tw * g.pgw + i % g.tw * g.down;
    A sum = 0;
    for (int k = 0; k < g.down_taps; ++k) sum += down_filter[k] * from[k];
    second[i] = sum;
  }
  __syncthreads();

  T* plane_y = y + plane * g.oh * g.ow;
  for (int i = thread; i < g.th * g.tw; i += kThreads) {
    const int row = oy + i / g.tw, column = ox + i % g.tw;
    if (row >= g.oh || column >= g.ow) continue;
    const A* from = second + (row * g.down - g.top - gy) * g.tw + i % g.tw;
    A sum = 0;
    for (int k = 0; k < g.down_taps; ++k) sum += down_filter[k] * from[k * g.tw];
    store(plane_y + int64_t(row) * g.ow + column, static_cast<T>(sum));
  }
}

}  // namespace pggan_fast
