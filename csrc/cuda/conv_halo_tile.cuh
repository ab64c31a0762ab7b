// What the halo-tile kernels share: the sizes of a tile, its layout in shared memory, and how it gets there.
#pragma once

#include "mma.cuh"

namespace pggan_fast {

// plain: 3 x 3. strided: 4 x 4 of stride 2. transposed: its transpose, as four phases of 2 x 2. Padding 1.
enum class Kind { plain, strided, transposed };

// Bytes from the row's start to a chunk of 16 bytes of a pixel of `bytes`. Of eight neighbours that one ldmatrix reads no
// two meet in shared memory: chunks are exchanged by column, and of stride 2 even columns are before odd ones.
template <int bytes, int columns, bool strided>
struct HaloPlace {
  __device__ int operator()(int column, int chunk) const {
    constexpr int kChunks = bytes / 16;
    const int c = strided ? column % 2 * (columns / 2) + column / 2 : column;
    const int turn = kChunks == 2 ? c >> 2 : kChunks == 4 ? c >> 1 : c;
    return c * bytes + (chunk ^ turn % kChunks) * 16;
  }
};

// The sizes of a tile, which is of `rows` x `columns` pixels of the smaller image. A warp takes `kRowsOfWarp` rows of
// 16 pixels at a time, as many as fill 48 KiB of shared memory, or one where the filters leave room for none.
template <class T, int CI, int CO, Kind kind>
struct HaloTile {
  static constexpr bool kStrided = kind == Kind::strided, kTransposed = kind == Kind::transposed;
  static constexpr int kTaps = kind == Kind::plain ? 9 : 16, kSide = kind == Kind::plain ? 3 : 4;
  static constexpr int kPixelBytes = CI * sizeof(T), kChunks = kPixelBytes / 16, kSteps = CI / kDepth<T>;
  static constexpr int kBlocksOut = CO / 8, kPerThread = CO / 4;  // mma's columns; channels of a thread at a pixel
  static constexpr int kColumns = kStrided ? 16 : 32, kSegments = kColumns / 16;
  static constexpr int kRowGroups = kThreads / 32 / kSegments;
  static constexpr int kWeightWords = kTaps * CI * CO * int(sizeof(T)) / 4;
  static constexpr int kScale = kStrided ? 2 : 1;  // of the input over the tile
  static constexpr int halo_bytes(int rows) { return (kScale * rows + 2) * (kScale * kColumns + 2) * kPixelBytes; }
  static constexpr int rows_that_fit() {
    int rows = kStrided ? 1 : kTransposed ? 2 : 64 / CO * 2;
    while (rows > 1 && halo_bytes(rows * kRowGroups) + 4 * kWeightWords > kStaticBytes) rows /= 2;
    return rows;
  }
  static constexpr int kRowsOfWarp = rows_that_fit();
  static constexpr int kRows = kRowsOfWarp * kRowGroups;
  static constexpr int kHaloRows = kScale * kRows + 2, kHaloColumns = kScale * kColumns + 2;
  static constexpr int kHaloChunks = kHaloRows * kHaloColumns * kChunks;
  static constexpr int kPitch = kHaloColumns * kPixelBytes;
  using Place = HaloPlace<kPixelBytes, kHaloColumns, kStrided>;
  static constexpr int kBytes = halo_bytes(kRows) + 4 * kWeightWords;
  static_assert(kBytes <= 80 * 1024, "two tiles do not fit in shared memory");
};

__device__ inline float from_bits(unsigned bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
__device__ inline unsigned to_bits(float value) {
  unsigned bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

template <class T>
__device__ inline float first_of(unsigned pair) {
  if constexpr (std::is_same_v<T, torch::headeronly::BFloat16>) return from_bits(pair << 16);
  T values[2];
  memcpy(values, &pair, sizeof pair);
  return static_cast<float>(values[0]);
}
template <class T>
__device__ inline float second_of(unsigned pair) {
  if constexpr (std::is_same_v<T, torch::headeronly::BFloat16>) return from_bits(pair & 0xffff0000);
  T values[2];
  memcpy(values, &pair, sizeof pair);
  return static_cast<float>(values[1]);
}

// A chunk of 16 bytes taken back through an activation: what is not positive by `bits`, times slope.
template <class T>
__device__ inline void mask_chunk(float slope, unsigned bits, unsigned* chunk) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      if (!(bits >> i & 1)) chunk[i] = to_bits(from_bits(chunk[i]) * slope);
    } else {
      float low = first_of<T>(chunk[i]), high = second_of<T>(chunk[i]);
      if (!(bits >> (2 * i) & 1)) low *= slope;
      if (!(bits >> (2 * i + 1) & 1)) high *= slope;
      chunk[i] = packed_pair<T>(low, high);
    }
  }
}

// Copies rows x columns pixels of an image from (row0, column0) on into shared memory, zeros outside the image, each
// value taken back through an activation by its signs once, and of fp32 rounded to tf32. A warp takes whole rows; `place(column, chunk)` is where in
// a row of `pitch` bytes a chunk goes.
template <class T, int C, int rows, int columns, int pitch, bool masked, class Place>
struct HaloCopy {
  static constexpr int kValues = 16 / sizeof(T), kChunks = C / kValues, kOfRow = columns * kChunks;
  static constexpr int kWarps = kThreads / 32, kOfLane = (kOfRow + 31) / 32, kRounds = (rows + kWarps - 1) / kWarps;

  uint4* halo;
  Place place;
  unsigned words[masked ? kRounds : 1][masked ? kOfLane : 1] = {};

  __device__ HaloCopy(uint4* halo, Place place) : halo(halo), place(place) {}

  // f(round, k, row, this lane's k-th chunk of the row) for all chunks of this lane.
  template <class F>
  __device__ void for_chunks(const F& f) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int row = round * kWarps + warp;
      if (rows % kWarps && round == kRounds - 1 && row >= rows) break;
#pragma unroll
      for (int k = 0; k < kOfLane; ++k) {
        if (kOfRow % 32 && k == kOfLane - 1 && k * 32 + lane >= kOfRow) break;
        f(round, k, row, k * 32 + lane);
      }
    }
  }
  __device__ void begin(const T* image, const int* signs, int h, int w, int row0, int column0) {
    const SharedAddress to = shared_address(halo);
    const int lane = threadIdx.x % 32;
    for_chunks([&](int round, int k, int row, int i) {
      // A row's chunks are one behind the other: a lane's lie 32 chunks apart.
      const int y = row0 + row, x = column0 + i / kChunks, first = y * w + column0;
      const bool exists = unsigned(y) < unsigned(h) && unsigned(x) < unsigned(w);
      const T* from = image + (first * C + lane * kValues);
      copy_async(to + (row * pitch + place(i / kChunks, i % kChunks)), from + k * 32 * kValues, exists);
      if constexpr (masked) {
        const int* sign = signs + (first + lane / kChunks);
        if (exists) words[round][k] = load(sign + k * (32 / kChunks));
      }
    });
  }
  // After wait_for_copies.
  __device__ void finish(float slope) {
    if constexpr (masked || sizeof(T) == 4)
      for_chunks([&](int round, int k, int row, int i) {
        uint4* at = halo + (row * pitch + place(i / kChunks, i % kChunks)) / 16;
        unsigned values[4];
        memcpy(values, at, 16);
        if constexpr (masked) mask_chunk<T>(slope, words[round][k] >> (i % kChunks * kValues), values);
        if constexpr (sizeof(T) == 4)
          for (unsigned& value : values) value = rounded_to_tf32(value);
        memcpy(at, values, 16);
      });
  }
};

}  // namespace pggan_fast
