// The gradient of conv_halo's weight, from the same tiles: the pixels of a segment are what the tensor cores sum over.
#pragma once

#include "conv_halo_kernels.cuh"

namespace pggan_fast {

// dw[channel of a][tap][channel of b] = sum over pixels of a[y, x] b[stride y + ky - 1, stride x + kx - 1]: a is the
// output's gradient and b the input, or where the convolution was transposed, the other way round.
struct HaloWeightGradient {
  const void* a;    // [N, h, w, CA]
  const void* b;    // [N, b_h, b_w, CB]
  const int* mask;  // signs by which a is taken back through an activation
  float* rows;      // [blocks][CA, taps, CB; CA]: each block's sums, and its sums of a
  int h, w, b_h, b_w;
  int tiles_h, tiles_w, tiles;
  float scale, sum_scale, slope;
};

template <class T, int CA, int CB, bool strided>
struct GradientTile {
  static constexpr int kScale = strided ? 2 : 1, kSide = strided ? 4 : 3, kTaps = kSide * kSide;
  static constexpr int kColumns = strided ? 16 : 32, kRows = (strided || CA + CB > 32 ? 16 : 32) / int(sizeof(T));
  static constexpr int kHaloRows = kScale * kRows + 2, kHaloColumns = kScale * kColumns + 2;
  static constexpr int kPitchA = kColumns * CA * sizeof(T), kPitchB = kHaloColumns * CB * sizeof(T);
  // A warp sums 16 x 16 channels, of half the taps where there are 16: what its registers hold.
  static constexpr int kHalves = strided ? 2 : 1, kTapsOfWarp = kTaps / kHalves;
  static constexpr int kQuadrants = CA / 16 * (CB / 16) * kHalves, kGroups = kThreads / 32 / kQuadrants;
  static constexpr int kSums = kTaps * CA * CB, kRow = kSums + CA;
  static constexpr int kBytesA = kRows * kPitchA, kBytes = kBytesA + kHaloRows * kPitchB;
  static constexpr int kShared = kBytes > 4 * kSums ? kBytes : 4 * kSums;
  static_assert(kShared <= 48 * 1024, "the tile does not fit in shared memory");
};

struct GradientTiles;

// How ldmatrix's place is taken in fp32, whose elements it does not transpose: a lane reads two channels of a pixel at
// once, so that rows 8 apart of a, or the two columns that a lane has of b, are neighbouring channels.
template <class T>
__device__ inline int gradient_channel(int index) {
  return sizeof(T) == 2 ? index : index % 8 * 2 + index / 8;
}

// Bytes from a pixel that 8 divides to where this lane reads in fp32, for the first or second half of 8 summed pixels:
// of the 16 lanes that shared memory serves at once no two conflict in b.
template <int CB, class Place>
__device__ inline int gradient_place(const Place& place, int scale, int shift, int block, int half) {
  const int i = threadIdx.x % 4, pair = threadIdx.x % 32 / 4;
  const int pixel = CB == 16 ? i % 2 + i / 2 * 4 + 2 * half : 2 * i + half;
  return place(scale * pixel + shift, 4 * block + pair / 2) + pair % 2 * 8;
}

template <class T, int CA, int CB, bool strided, bool masked>
__global__ void __launch_bounds__(kThreads, 2) conv_halo_weight_gradient_kernel(HaloWeightGradient g) {
#if defined(PGGAN_FAST_CUDA_ON_CPU) || __CUDA_ARCH__ >= 800
  using Tile = GradientTile<T, CA, CB, strided>;
  constexpr HaloPlace<CA * sizeof(T), Tile::kColumns, false> place_a{};
  constexpr HaloPlace<CB * sizeof(T), Tile::kHaloColumns, strided> place_b{};
  uint4* tile_a = shared_array<GradientTiles, uint4, Tile::kShared / 16>();
  uint4* tile_b = tile_a + Tile::kBytesA / 16;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int half = warp % Tile::kHalves, block_b = warp / Tile::kHalves % (CB / 16);
  const int block_a = warp / Tile::kHalves / (CB / 16) % (CA / 16), group = warp / Tile::kQuadrants;
  // The operands are columns of shared memory, so both are loaded transposed: this lane's pixel and chunk in each.
  const int pixel_a = lane % 8 + lane / 16 * 8, chunk_a = 2 * block_a + lane / 8 % 2;
  const int pixel_b = lane % 16, chunk_b = 2 * block_b + lane / 16;
  const SharedAddress base_a = shared_address(tile_a), base_b = shared_address(tile_b);
  constexpr unsigned kOnes = sizeof(T) == 4                                            ? 0x3f800000
                             : std::is_same_v<T, torch::headeronly::BFloat16> ? 0x3f803f80
                                                                              : 0x3c003c00;
  int places_a[2], places_b[Tile::kSide][2];
  if constexpr (sizeof(T) == 4)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      places_a[half] = gradient_place<CB>(place_a, 1, 0, block_a, half);
#pragma unroll
      for (int kx = 0; kx < Tile::kSide; ++kx)
        places_b[kx][half] = gradient_place<CB>(place_b, Tile::kScale, kx, block_b, half);
    }

  float acc[Tile::kTapsOfWarp][2][4] = {}, sum[4] = {};
  for (unsigned tile = blockIdx.x; tile < unsigned(g.tiles); tile += gridDim.x) {
    const unsigned rest = tile / unsigned(g.tiles_w), n = rest / unsigned(g.tiles_h);
    const int row0 = int(rest - n * g.tiles_h) * Tile::kRows, column0 = int(tile - rest * g.tiles_w) * Tile::kColumns;
    const int64_t pixels_a = int64_t(n) * (g.h * g.w), pixels_b = int64_t(n) * (g.b_h * g.b_w);
    __syncthreads();  // the last tile has been read
    HaloCopy<T, CA, Tile::kRows, Tile::kColumns, Tile::kPitchA, masked, decltype(place_a)> copy_a(tile_a, place_a);
    HaloCopy<T, CB, Tile::kHaloRows, Tile::kHaloColumns, Tile::kPitchB, false, decltype(place_b)> copy_b(tile_b,
                                                                                                         place_b);
    copy_a.begin(static_cast<const T*>(g.a) + pixels_a * CA, g.mask + pixels_a, g.h, g.w, row0, column0);
    copy_b.begin(static_cast<const T*>(g.b) + pixels_b * CB, nullptr, g.b_h, g.b_w, row0 * Tile::kScale - 1,
                 column0 * Tile::kScale - 1);
    wait_for_copies();
    copy_a.finish(g.slope);
    copy_b.finish(g.slope);
    __syncthreads();

    // Segments of 16 pixels, dealt to the groups of warps.
    constexpr int kSegments = Tile::kColumns / 16;
    for (int i = group; i < Tile::kRows * kSegments; i += Tile::kGroups) {
      const int row = i / kSegments, column = i % kSegments * 16;
      const auto tap_row = [&](int t) { return t / Tile::kSide + half * (Tile::kSide / 2); };
      if constexpr (sizeof(T) == 4) {
        const SharedAddress at_a = base_a + (row * Tile::kPitchA + column * CA * 4);
        const SharedAddress at_b = base_b + (Tile::kScale * row * Tile::kPitchB + column * CB * 4);
#pragma unroll
        for (int first = 0; first < 16; first += 8) {
          unsigned of_pixels_a[4];
#pragma unroll
          for (int k = 0; k < 2; ++k)
            load_pair(of_pixels_a[2 * k], of_pixels_a[2 * k + 1], at_a + (places_a[k] + first * CA * 4));
#pragma unroll
          for (int t = 0; t < Tile::kTapsOfWarp; ++t) {
            unsigned of_pixels_b[2][2];
#pragma unroll
            for (int k = 0; k < 2; ++k)
              load_pair(of_pixels_b[0][k], of_pixels_b[1][k],
                        at_b + (places_b[t % Tile::kSide][k] + tap_row(t) * Tile::kPitchB + first * CB * 4));
#pragma unroll
            for (int j = 0; j < 2; ++j) multiply_add<T>(acc[t][j], of_pixels_a, of_pixels_b[j][0], of_pixels_b[j][1]);
          }
          multiply_add<T>(sum, of_pixels_a, kOnes, kOnes);
        }
      } else {
        unsigned of_pixels_a[4];
        load_matrices<true>(of_pixels_a, base_a + (row * Tile::kPitchA + place_a(column + pixel_a, chunk_a)));
#pragma unroll
        for (int t = 0; t < Tile::kTapsOfWarp; ++t) {
          unsigned of_pixels_b[4];
          load_matrices<true>(of_pixels_b,
                              base_b + ((Tile::kScale * row + tap_row(t)) * Tile::kPitchB +
                                        place_b(Tile::kScale * (column + pixel_b) + t % Tile::kSide, chunk_b)));
          multiply_add<T>(acc[t][0], of_pixels_a, of_pixels_b[0], of_pixels_b[1]);
          multiply_add<T>(acc[t][1], of_pixels_a, of_pixels_b[2], of_pixels_b[3]);
        }
        multiply_add<T>(sum, of_pixels_a, kOnes, kOnes);
      }
    }
  }

  // The groups' sums, in their order, in the place of the tiles.
  float* all = reinterpret_cast<float*>(tile_a);
  for (int turn = 0; turn < Tile::kGroups; ++turn) {
    __syncthreads();
    if (group != turn) continue;
#pragma unroll
    for (int t = 0; t < Tile::kTapsOfWarp; ++t)
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int channel_a = block_a * 16 + gradient_channel<T>(lane / 4 + i / 2 * 8),
                    channel_b = block_b * 16 + gradient_channel<T>(j * 8 + lane % 4 * 2 + i % 2);
          float* at = all + (channel_a * Tile::kTaps + half * Tile::kTapsOfWarp + t) * CB + channel_b;
          *at = turn ? *at + acc[t][j][i] : acc[t][j][i];
        }
  }
  __syncthreads();
  float* row = g.rows + int64_t(blockIdx.x) * Tile::kRow;
  for (int i = threadIdx.x; i < Tile::kSums; i += kThreads) store(row + i, g.scale * all[i]);
  for (int turn = 0; turn < Tile::kGroups; ++turn) {
    __syncthreads();
    if (group == turn && half == 0 && block_b == 0 && lane % 4 == 0)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float* at = all + block_a * 16 + gradient_channel<T>(lane / 4 + i * 8);
        *at = turn ? *at + sum[2 * i] : sum[2 * i];
      }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < CA; i += kThreads) store(row + Tile::kSums + i, g.sum_scale * all[i]);
#endif
}

}  // namespace pggan_fast
