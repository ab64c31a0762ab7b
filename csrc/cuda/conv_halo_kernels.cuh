// Convolutions of up to 32 channels, channels_last: a block copies a tile of the input and the border that its filters
// reach over, the halo, into shared memory once, and multiplies all taps from there on tensor cores. What follows the
// convolution is done in registers.
#pragma once

#include "conv_halo_tile.cuh"

namespace pggan_fast {

// What is fused with the convolution: the epilogue, with pixel norm; or an activation's gradient on what is read or
// written.
enum class Fused { epilogue, pixel_norm, in_mask, out_mask };

struct HaloConv {
  const void* x;
  const void* weight;  // seen through strides: for channels in and out, rows and columns
  int64_t w_in, w_out, w_h, w_w;
  const float* bias;  // or null
  void* y;
  float* r;    // or null: written with pixel norm
  int* signs;  // or null: written
  int h, w, out_h, out_w;
  int tiles_h, tiles_w, tiles;
  // y = scale * convolution + bias_scale * bias, and where that is not positive, times slope: the activation's slope of
  // positive values is in scale and bias_scale. With pixel norm, which undoes a positive scale, all of it is over scale:
  // sums begin with bias_scale * bias, and `scale` is what the factors are multiplied by.
  float scale, bias_scale, slope, eps;
  const int* mask;  // signs of what is read (in_mask), or taken in the place of those of what is written (out_mask)
};

struct HaloMemory;

// The weights as registers of mma's second operand: [tap][step][pair of 8 output channels][lane][4]. Column c of the
// n-th eight channels is channel c / 2 * kPerThread + 2 n + c % 2: a thread then has neighbouring channels.
template <class T, int CI, int CO, Kind kind>
__device__ inline void load_weights(const HaloConv& a, unsigned* to) {
  using Tile = HaloTile<T, CI, CO, kind>;
  constexpr int kPer = 4 / sizeof(T);
  for (int i = threadIdx.x; i < Tile::kWeightWords; i += kThreads) {
    const int lane = i / 4 % 32, n = i / 128 % (Tile::kBlocksOut / 2) * 2 + i % 4 / 2;
    const int rest = i / (64 * Tile::kBlocksOut), step = rest % Tile::kSteps, tap = rest / Tile::kSteps;
    const int out = lane / 8 * Tile::kPerThread + 2 * n + lane / 4 % 2;
    const int in = step * kDepth<T> + (lane % 4 + i % 2 * 4) * kPer;
    const T* from = static_cast<const T*>(a.weight) + tap / Tile::kSide * a.w_h + tap % Tile::kSide * a.w_w +
                    out * a.w_out + in * a.w_in;
    if constexpr (kPer == 1) {
      to[i] = rounded_to_tf32(to_bits(load(from)));
    } else {
      const T values[2] = {load(from), load(from + a.w_in)};
      memcpy(&to[i], values, sizeof values);
    }
  }
}

// Where a thread writes a pixel: y at its own channels, the others at the pixel.
template <class T>
struct Destination {
  T* y;
  float* r;
  int* signs;
  const int* mask;
  template <int channels>
  __device__ Destination<T> further(int pixels) const {
    return {y + pixels * channels, r + pixels, signs + pixels, mask + pixels};
  }
};

// What follows the convolution at one pixel, up to pixel norm: its channels are in the four threads of a quad, kPer in
// each. The values come with the scale, the bias and the positive slope in them.
template <class T, Fused fused, int kPer>
__device__ inline void activate_pixel(const HaloConv& a, float (&v)[kPer], const Destination<T>& to, bool exists) {
  const int quad = threadIdx.x % 4, first = quad * kPer;
  if constexpr (fused == Fused::out_mask) {
    const unsigned bits = exists ? unsigned(load(to.mask)) >> first : 0;
#pragma unroll
    for (int k = 0; k < kPer; ++k) v[k] *= bits >> k & 1 ? 1.0f : a.slope;
  }
  if constexpr (fused == Fused::epilogue || fused == Fused::pixel_norm) {
    unsigned bits = 0;
#pragma unroll
    for (int k = 0; k < kPer; ++k)
      if (v[k] > 0) bits |= 1u << k;
      else v[k] *= a.slope;
    if (fused == Fused::epilogue && a.signs) {
      bits <<= first;
      bits |= __shfl_xor_sync(~0u, bits, 1);
      bits |= __shfl_xor_sync(~0u, bits, 2);
      if (exists && quad == 0) store(to.signs, int(bits));
    }
  }
}

// Pixel norm of two pixels. Of a quad, even threads sum up the first one's squares and odd threads the second's, and
// the first of each writes the factor that it finds to its `to`.
template <int CO, int kPer>
__device__ inline void norm_pixels(const HaloConv& a, float (&v)[2][kPer], float* to, bool writes) {
  const bool odd = threadIdx.x % 2;
  float sums[2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int k = 0; k < kPer; ++k) sums[half] += v[half][k] * v[half][k];
  float sum = (odd ? sums[1] : sums[0]) + __shfl_xor_sync(~0u, odd ? sums[0] : sums[1], 1);
  sum += __shfl_xor_sync(~0u, sum, 2);
  const float r = approximate_reciprocal_root(sum * (1.0f / CO) + a.eps), others = __shfl_xor_sync(~0u, r, 1);
  const unsigned written[] = {to_bits(a.scale * r)};
  if (writes) store_words(to, written);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float factor = odd == bool(half) ? r : others;
#pragma unroll
    for (int k = 0; k < kPer; ++k) v[half][k] *= factor;
  }
}

template <class T, int kPer>
__device__ inline void store_pixel(const float (&v)[kPer], T* to, bool exists) {
  constexpr int kWords = kPer * sizeof(T) / 4 < 4 ? 2 : 4, kPerWord = 4 / sizeof(T);
#pragma unroll
  for (int k = 0; k < kPer; k += kWords * kPerWord) {
    unsigned words[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i)
      if constexpr (kPerWord == 1) words[i] = to_bits(v[k + i]);
      else words[i] = packed_pair<T>(v[k + 2 * i], v[k + 2 * i + 1]);
    if (exists) store_words(to + k, words);
  }
}

template <class T, int CI, int CO, Kind kind, Fused fused>
__global__ void __launch_bounds__(kThreads, 2) conv_halo_kernel(HaloConv a) {
#if defined(PGGAN_FAST_CUDA_ON_CPU) || __CUDA_ARCH__ >= 800
  using Tile = HaloTile<T, CI, CO, kind>;
  constexpr int R = Tile::kRowsOfWarp, NB = Tile::kBlocksOut, kPer = Tile::kPerThread;
  uint4* halo = large_shared_array<HaloMemory, uint4, Tile::kBytes / 16>();
  unsigned* weights = reinterpret_cast<unsigned*>(halo + Tile::kHaloChunks);
  load_weights<T, CI, CO, kind>(a, weights);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int segment = warp % Tile::kSegments * 16, first_row = warp / Tile::kSegments * R;
  float bias[kPer];
#pragma unroll
  for (int k = 0; k < kPer; ++k) bias[k] = a.bias ? a.bias_scale * load(a.bias + lane % 4 * kPer + k) : 0.0f;
  constexpr typename Tile::Place place{};
  const SharedAddress base = shared_address(halo) + first_row * Tile::kScale * Tile::kPitch;
  const uint4* my_weights = reinterpret_cast<const uint4*>(weights) + lane;
  // The operand's rows are 16 pixels from `segment` on: this lane's address for the halo's column offset dx.
  const auto column_of = [&](int dx, int step) {
    return place(Tile::kScale * (segment + lane % 16) + dx, 2 * step + lane / 16);
  };
  // The second operand of one tap: pairs of eight output channels.
  const auto weights_of = [&](uint4(&b)[NB / 2], int tap, int step) {
#pragma unroll
    for (int j = 0; j < NB / 2; ++j) b[j] = my_weights[((tap * Tile::kSteps + step) * (NB / 2) + j) * 32];
  };
  const auto begin = [&](float (&acc)[NB][4]) {
#pragma unroll
    for (int j = 0; j < NB; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[j][i] = fused == Fused::pixel_norm ? bias[2 * j + i % 2] : 0.0f;
  };
  const auto add = [&](float (&acc)[NB][4], const unsigned (&pixels)[4], const uint4(&b)[NB / 2]) {
#pragma unroll
    for (int j = 0; j < NB / 2; ++j) {
      multiply_add<T>(acc[2 * j], pixels, b[j].x, b[j].y);
      multiply_add<T>(acc[2 * j + 1], pixels, b[j].z, b[j].w);
    }
  };

  // Of the two pixels that a quad has, its second thread writes the factor of the further one, and no other than these
  // two threads write any.
  const int odd_apart = fused == Fused::pixel_norm ? lane % 2 * (kind == Kind::transposed ? 16 : 8) : 0;
  const int factor_columns = lane % 4 < 2 ? a.out_w - odd_apart : 0;

  for (unsigned tile = blockIdx.x; tile < unsigned(a.tiles); tile += gridDim.x) {
    const unsigned rest = tile / unsigned(a.tiles_w), n = rest / unsigned(a.tiles_h);
    const int row0 = int(rest - n * a.tiles_h) * Tile::kRows, column0 = int(tile - rest * a.tiles_w) * Tile::kColumns;
    const int64_t in_pixels = int64_t(n) * (a.h * a.w);
    const int64_t out_pixels = int64_t(n) * (a.out_h * a.out_w);
    const Destination<T> image{static_cast<T*>(a.y) + out_pixels * CO + lane % 4 * kPer, a.r + out_pixels + odd_apart,
                               a.signs + out_pixels, a.mask + out_pixels};
    __syncthreads();  // the last tile has been read
    constexpr bool masked = fused == Fused::in_mask;
    HaloCopy<T, CI, Tile::kHaloRows, Tile::kHaloColumns, Tile::kPitch, masked, typename Tile::Place> copy(halo, place);
    copy.begin(static_cast<const T*>(a.x) + in_pixels * CI, a.mask + in_pixels, a.h, a.w, row0 * Tile::kScale - 1,
               column0 * Tile::kScale - 1);
    wait_for_copies();
    copy.finish(a.slope);
    __syncthreads();

    // Sixteen pixels of output row y from column x on, x_step apart.
    const auto finish = [&](float (&acc)[NB][4], int y, int x, int x_step) {
      const int column = x + lane / 4 * x_step;
      const Destination<T> first = image.template further<CO>(y * a.out_w + column);
      const auto exists = [&](int half) { return y < a.out_h && column + 8 * half * x_step < a.out_w; };
      const auto pixel = [&](int half) { return first.template further<CO>(8 * half * x_step); };
      if constexpr (fused == Fused::pixel_norm) {
        float v[2][kPer];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int k = 0; k < kPer; ++k) v[half][k] = acc[k / 2][2 * half + k % 2];
          activate_pixel<T, fused>(a, v[half], pixel(half), exists(half));
        }
        norm_pixels<CO>(a, v, first.r, y < a.out_h && column < factor_columns);
#pragma unroll
        for (int half = 0; half < 2; ++half) store_pixel<T>(v[half], pixel(half).y, exists(half));
      } else {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float v[kPer];
#pragma unroll
          for (int k = 0; k < kPer; ++k) v[k] = acc[k / 2][2 * half + k % 2] * a.scale + bias[k];
          activate_pixel<T, fused>(a, v, pixel(half), exists(half));
          store_pixel<T>(v, pixel(half).y, exists(half));
        }
      }
    };
    if constexpr (kind == Kind::plain) {
      // What is fused wants registers: there fewer rows at a time.
      constexpr bool kSmall = CI + CO == 32 && sizeof(T) == 2;
      constexpr int kFewer = fused == Fused::out_mask                ? (CO == 32 ? 1 : R / 2)
                             : fused == Fused::in_mask && R > 4      ? 4
                             : fused == Fused::pixel_norm && !kSmall ? R / 2
                                                                     : R;
      constexpr int kAtOnce = kFewer > 0 ? kFewer : 1;
#pragma unroll 1
      for (int part = 0; part < R; part += kAtOnce) {
        float acc[kAtOnce][NB][4];
#pragma unroll
        for (int r = 0; r < kAtOnce; ++r) begin(acc[r]);
#pragma unroll
        for (int step = 0; step < Tile::kSteps; ++step)
#pragma unroll
          for (int dx = 0; dx < 3; ++dx) {
            const SharedAddress at = base + column_of(dx, step) + part * Tile::kPitch;
            uint4 b[3][NB / 2];
#pragma unroll
            for (int dy = 0; dy < 3; ++dy) weights_of(b[dy], 3 * dy + dx, step);
#pragma unroll
            for (int row = 0; row < kAtOnce + 2; ++row) {
              unsigned pixels[4];
              load_matrices<false>(pixels, at + row * Tile::kPitch);
            // Row `row` of the halo is under the three taps of as many output rows.
#pragma unroll
              for (int dy = 0; dy < 3; ++dy)
                if (row - dy >= 0 && row - dy < kAtOnce) add(acc[row - dy], pixels, b[dy]);
            }
          }
#pragma unroll
        for (int r = 0; r < kAtOnce; ++r) finish(acc[r], row0 + first_row + part + r, column0 + segment, 1);
      }
    } else if constexpr (kind == Kind::strided) {
      float acc[R][NB][4];
#pragma unroll
      for (int r = 0; r < R; ++r) begin(acc[r]);
#pragma unroll
      for (int step = 0; step < Tile::kSteps; ++step)
#pragma unroll
        for (int dx = 0; dx < 4; ++dx) {
          const SharedAddress at = base + column_of(dx, step);
#pragma unroll
          for (int dy = 0; dy < 4; ++dy) {
            unsigned pixels[4];
            load_matrices<false>(pixels, at + dy * Tile::kPitch);
            uint4 b[NB / 2];
            weights_of(b, 4 * dy + dx, step);
            add(acc[0], pixels, b);
          }
        }
      finish(acc[0], row0 + first_row, column0 + segment, 1);
    } else {
      for (int r = 0; r < R; ++r) {
        float acc[2][2][NB][4];
#pragma unroll
        for (int phase = 0; phase < 4; ++phase) begin(acc[phase / 2][phase % 2]);
        // What pixel norm wants too leaves no registers for the addresses of more steps.
#pragma unroll(Tile::kSteps > 2 ? 1 : Tile::kSteps)
        for (int step = 0; step < Tile::kSteps; ++step)
#pragma unroll
          for (int dx = 0; dx < 3; ++dx) {
            const SharedAddress at = base + column_of(dx, step) + r * Tile::kPitch;
#pragma unroll
            for (int dy = 0; dy < 3; ++dy) {
              unsigned pixels[4];
              load_matrices<false>(pixels, at + dy * Tile::kPitch);
            // Row 2 i + p of the output meets input row i + d at filter row 1 + p - 2 d, d being -1, 0 or 1.
#pragma unroll
              for (int py = 0; py < 2; ++py)
#pragma unroll
                for (int px = 0; px < 2; ++px) {
                  const int ky = 3 + py - 2 * dy, kx = 3 + px - 2 * dx;
                  if (ky < 0 || ky > 3 || kx < 0 || kx > 3) continue;
                  uint4 b[NB / 2];
                  weights_of(b, 4 * ky + kx, step);
                  add(acc[py][px], pixels, b);
                }
            }
          }
#pragma unroll
        for (int py = 0; py < 2; ++py)
#pragma unroll
          for (int px = 0; px < 2; ++px)
            finish(acc[py][px], 2 * (row0 + first_row + r) + py, 2 * (column0 + segment) + px, 2);
      }
    }
  }
#endif
}

}  // namespace pggan_fast
