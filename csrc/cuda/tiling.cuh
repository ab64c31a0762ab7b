// How bias_act's kernels cut a tensor among threads so that all channels of a pixel are in one block's registers.
//
// A column is what is next to each other in every channel: V pixels of a sample (contiguous), or one pixel
// (channels_last). A vector is V elements of a column: one channel of V pixels, or V channels of one pixel.
// A block takes `columns_per_block` columns at a time, a tile, and `threads_per_column` threads for each column, which
// hold K vectors apiece: a chunk of threads_per_column * K vectors. The work items of a block are all chunks of its
// tiles with pixel norm, otherwise one chunk of each.
#pragma once

#include "vec.cuh"

namespace pggan_fast {

// Vectors that a thread holds of each of `tensors`: few enough that no register is spilled, and enough for 1024
// channels to a block.
template <int V, int tensors>
constexpr int kVectors = V == 1 && tensors == 1 ? 8 : 4;

struct Tiling {
  int64_t c, p;        // channels, pixels of a sample
  int64_t columns;     // of the tensor
  int64_t columns_per_sample;  // columns of one sample
  int64_t vectors;             // of a column
  int64_t stride;              // from a vector to the next one
  int64_t tiles;               // of `columns_per_block` columns
  int64_t chunks;      // of a column
  int threads_per_column, columns_per_block;  // threads_per_column * columns_per_block = kThreads
};

inline int64_t power_of_two_from(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}

template <class T, int V, bool channels_last, int tensors>
Tiling tiling_of(const Shape& s, bool norm) {
  constexpr int K = kVectors<V, tensors>;
  Tiling t{};
  t.c = s.c;
  t.p = s.p;
  t.columns_per_sample = channels_last ? s.p : s.p / V;
  t.columns = s.n * t.columns_per_sample;
  t.vectors = channels_last ? s.c / V : s.c;
  t.stride = channels_last ? V : s.p;
  const int64_t fill = divide_up(t.vectors, K);
  // A thread for as many vectors as it holds; neighbours in memory are for neighbouring threads, 128 bytes at least;
  // a column that is not there needs no threads.
  int64_t threads_per_column = norm ? power_of_two_from(fill) : 1;
  if (channels_last)
    threads_per_column =
        std::max(threads_per_column, power_of_two_from(std::min<int64_t>(t.vectors, 128 / (V * sizeof(T)))));
  threads_per_column =
      std::max(threads_per_column,
               std::min(kThreads / std::min<int64_t>(kThreads, power_of_two_from(t.columns)), power_of_two_from(fill)));
  t.threads_per_column = static_cast<int>(std::min<int64_t>(threads_per_column, kThreads));
  t.columns_per_block = kThreads / t.threads_per_column;
  t.tiles = divide_up(t.columns, t.columns_per_block);
  t.chunks = divide_up(t.vectors, int64_t(t.threads_per_column) * K);
  return t;
}

// This thread's place in the block, and the block's tiles and chunks.
template <bool channels_last, bool norm>
struct WorkItems {
  int thread_in_column, column;
  int64_t first_chunk, end_chunk, first_tile, tile_step;

  __device__ explicit WorkItems(const Tiling& t) {
    const int thread = threadIdx.x;
    thread_in_column = channels_last ? thread % t.threads_per_column : thread / t.columns_per_block;
    column = channels_last ? thread / t.threads_per_column : thread % t.columns_per_block;
    first_chunk = norm ? 0 : blockIdx.x % t.chunks;
    end_chunk = norm ? t.chunks : first_chunk + 1;
    first_tile = norm ? blockIdx.x : blockIdx.x / t.chunks;
    tile_step = norm ? gridDim.x : gridDim.x / t.chunks;
  }
};

// The blocks to launch for this many tiles at a time.
inline int64_t blocks_for(const Tiling& t, int64_t tiles, bool norm) { return norm ? tiles : tiles * t.chunks; }

// One thread's column.
template <class T, int V, bool channels_last>
struct Column {
  int64_t base, pixel;  // of the first vector in the tensor; of the first pixel in [N, P]
  bool exists;

  __device__ Column(const Tiling& t, int64_t index) {
    exists = index < t.columns;
    const int64_t n = channels_last ? 0 : index / t.columns_per_sample, within = index - n * t.columns_per_sample;
    base = channels_last ? index * t.c : n * t.c * t.p + within * V;
    pixel = channels_last ? index : n * t.p + within * V;
  }
};

// f(k, vector, the vector's offset) for each vector of a chunk that this thread holds, in a column that begins at
// `base`.
template <int K, class F>
__device__ inline void for_vectors(const Tiling& t, int thread_in_column, int64_t chunk, bool exists, int64_t base,
                                   const F& f) {
  int64_t vec_index = chunk * K * t.threads_per_column + thread_in_column, offset = base + vec_index * t.stride;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (exists && vec_index < t.vectors) f(k, vec_index, offset);
    vec_index += t.threads_per_column;
    offset += t.threads_per_column * t.stride;
  }
}

// Reads this thread's vectors of a chunk.
template <class T, int V, bool channels_last, int K>
__device__ inline void read(const Tiling& t, const Column<T, V, channels_last>& at, int thread_in_column, int64_t chunk,
                            const T* from, Packed<T, V> (&to)[K]) {
  for_vectors<K>(t, thread_in_column, chunk, at.exists, at.base,
                 [&](int k, int64_t, int64_t offset) { to[k] = load_packed<T, V>(from + offset); });
}

template <class T, int V, int K>
__device__ inline void pack_again(Packed<T, V> (&held)[K]) {
#pragma unroll
  for (int k = 0; k < K; ++k) held[k].pack_again();
}

struct PerChannelCache;

// A value for each channel. A block reads those of its chunk once, into shared memory, if they fit.
template <int V, bool channels_last, class A>
struct PerChannel {
  static constexpr int kCached = 2048;
  const A* values;  // or null, for zeros
  A* cache = nullptr;
  int64_t first = 0;

  template <bool norm>
  __device__ PerChannel(const Tiling& t, const WorkItems<channels_last, norm>& me, const A* values, int vectors)
      : values(values) {
    const int64_t channels = int64_t(vectors) * t.threads_per_column * (channels_last ? V : 1);
    if (!values || channels > kCached || me.end_chunk - me.first_chunk > 1) return;
    cache = shared_array<PerChannelCache, A, kCached>();
    first = me.first_chunk * channels;
    for (int64_t i = threadIdx.x; i < min(channels, t.c - first); i += kThreads) cache[i] = load(values + first + i);
    __syncthreads();
  }
  // For element i of a vector.
  __device__ A operator()(int64_t vec_index, int i) const {
    const int64_t channel = channels_last ? vec_index * V + i : vec_index;
    return cache ? cache[channel - first] : values ? load(values + channel) : A(0);
  }
};

// The values for a column's pixels: the first thread of a column reads them, for others they are 0, so that a sum hands
// them on.
template <int V, bool channels_last, class A>
__device__ inline void read_pixels(const A* from, int64_t pixel, bool mine, A* to) {
#pragma unroll
  for (int w = 0; w < (channels_last ? 1 : V); ++w) to[w] = from && mine ? load(from + pixel + w) : A(0);
}

}  // namespace pggan_fast
