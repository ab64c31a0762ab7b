// How bias_act's kernels cut a tensor among threads so that all channels of a pixel are in one block's registers.
//
// A column is what is next to each other in every channel: V pixels of a sample (contiguous), or one pixel
// (channels_last). A vector is V elements of a column: one channel of V pixels, or V channels of one pixel.
// A block takes a tile of columns at a time, `columns_per_block` of them beside each other, and `threads_per_column`
// threads for each. A thread holds K vectors, either of one column, threads_per_column apart, or, where a column has
// few (`narrow`, channels_last), one of each of K columns, columns_per_block apart: always the same channels. A chunk is
// what the threads of a column hold of it. The work items of a block are all chunks of its tiles with pixel norm,
// otherwise one chunk of each.
#pragma once

#include "vec.cuh"

namespace pggan_fast {

// Vectors that a thread holds of each of `tensors`: few enough that no register is spilled, and enough for 1024
// channels to a block.
template <int V, int tensors>
constexpr int kVectors = V == 1 && tensors == 1 ? 8 : 4;

struct Tiling {
  int64_t c, p;                               // channels, pixels of a sample
  int64_t columns;                            // of the tensor
  int64_t columns_per_sample;                 // columns of one sample
  int64_t vectors;                            // of a column
  int64_t stride;                             // from a vector to the next one
  int64_t tiles;
  int64_t chunks;                             // of a column
  int threads_per_column, columns_per_block;  // threads_per_column * columns_per_block = kThreads
};

// Whether channels_last columns are taken K at a time: all of a column's threads are in a warp then with pixel norm;
// without, a chunk is of up to 64 vectors.
template <class T, int V>
bool is_narrow(const Shape& s, bool norm) {
  return V > 1 && (!norm || s.c / V <= 16);
}

inline int64_t power_of_two_from(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}

template <class T, int V, bool channels_last, int tensors, bool narrow = false>
Tiling tiling_of(const Shape& s, bool norm) {
  constexpr int K = narrow ? 1 : kVectors<V, tensors>;
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
        std::max(threads_per_column,
                 power_of_two_from(std::min<int64_t>(t.vectors, narrow ? 64 : 128 / (V * sizeof(T)))));
  threads_per_column =
      std::max(threads_per_column,
               std::min(kThreads / std::min<int64_t>(kThreads, power_of_two_from(t.columns)), power_of_two_from(fill)));
  t.threads_per_column = static_cast<int>(std::min<int64_t>(threads_per_column, kThreads));
  t.columns_per_block = kThreads / t.threads_per_column;
  t.tiles = divide_up(t.columns, t.columns_per_block * (narrow ? kVectors<V, tensors> : 1));
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

// What one thread has of a tile and a chunk: K vectors of one column, or of K columns.
template <class T, int V, bool channels_last, int K, bool narrow = false>
struct Held {
  static constexpr int kColumns = narrow ? K : 1, kPixels = channels_last ? kColumns : V;
  int64_t base, pixel;  // of the first column's first vector in the tensor; of its first pixel in [N, P]
  int columns;          // from the first one on that are there, or more than it has
  int thread_in_column;
  const Tiling& t;

  __device__ Held(const Tiling& t, int64_t tile, int column, int thread_in_column)
      : thread_in_column(thread_in_column), t(t) {
    const int64_t index = tile * (t.columns_per_block * kColumns) + column;
    columns = int(min(t.columns - index, int64_t(kThreads * kColumns)));
    int64_t n = 0;
    // A division of 32 bits takes a fifth of the instructions of one of 64.
    if (!channels_last)
      n = t.columns <= INT32_MAX ? unsigned(index) / unsigned(t.columns_per_sample) : index / t.columns_per_sample;
    const int64_t within = index - n * t.columns_per_sample;
    base = channels_last ? index * t.c : n * t.c * t.p + within * V;
    pixel = channels_last ? index : n * t.p + within * V;
  }
  // Whether the column of vector k, or the only one, is there.
  __device__ bool exists(int k = 0) const { return (narrow ? k * t.columns_per_block : 0) < columns; }

  // The place of this thread's first vector of a chunk, in the tensor that begins at p.
  template <class P>
  __device__ P* first(int64_t chunk, P* p) const {
    return p + base + (chunk * (narrow ? 1 : K) * t.threads_per_column + thread_in_column) * t.stride;
  }
  // f(k, the vector of its column, how far from the first one it is) for each vector that is there.
  template <class F>
  __device__ void for_vectors(int64_t chunk, const F& f) const {
    // Far apart are only planes.
    using Step = std::conditional_t<channels_last, int, int64_t>;
    const Step step = narrow ? t.columns_per_block * int(t.c) : t.threads_per_column * Step(t.stride);
    int vec_index = int(chunk) * (narrow ? 1 : K) * t.threads_per_column + thread_in_column;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (exists(k) && vec_index < int(t.vectors)) f(k, vec_index, k * step);
      if (!narrow) vec_index += t.threads_per_column;
    }
  }
  __device__ void read(int64_t chunk, const T* from, Packed<T, V> (&to)[K]) const {
    const T* row = first(chunk, from);
    for_vectors(chunk, [&](int k, int, auto further) { to[k] = load_packed<T, V>(row + further); });
  }
  // The values for the pixels of its columns: the first thread of a column reads them, for others they are 0, so that a
  // sum hands them on.
  template <class A>
  __device__ void read_pixels(const A* from, A* to) const {
#pragma unroll
    for (int w = 0; w < kPixels; ++w) {
      const bool mine = from && thread_in_column == 0 && exists(narrow ? w : 0);
      to[w] = mine ? load(from + pixel + place(w)) : A(0);
    }
  }
  // What the first thread of a column has, for all of them, which are in one warp.
  template <class A>
  __device__ void from_first_thread(A* values) const {
    const int lane = threadIdx.x % 32 - thread_in_column;
#pragma unroll
    for (int w = 0; w < kPixels; ++w) values[w] = __shfl_sync(~0u, values[w], lane);
  }
  template <class A>
  __device__ void write_pixels(A* to, const A* from) const {
#pragma unroll
    for (int w = 0; w < kPixels; ++w)
      if (thread_in_column == 0 && exists(narrow ? w : 0)) store(to + pixel + place(w), from[w]);
  }

 private:
  __device__ int place(int w) const { return narrow ? w * t.columns_per_block : w; }
};

template <class T, int V, int K>
__device__ inline void pack_again(Packed<T, V> (&held)[K]) {
#pragma unroll
  for (int k = 0; k < K; ++k) held[k].pack_again();
}

struct PerChannelCache;

// A value for each channel, times a factor. A block reads those of its chunk once, into shared memory, if they fit; of
// narrow columns a thread has the only vector in registers.
template <int V, bool channels_last, class A, bool narrow = false>
struct PerChannel {
  static constexpr int kCached = 2048, kWidth = channels_last ? V : 1;
  const A* values;  // or null, for zeros
  A factor;
  A* cache = nullptr;
  int64_t first = 0;
  A held[narrow ? kWidth : 1];

  template <bool norm>
  __device__ PerChannel(const Tiling& t, const WorkItems<channels_last, norm>& me, const A* values, int vectors,
                        A factor = 1)
      : values(values), factor(factor) {
    const int64_t channels = int64_t(narrow ? 1 : vectors) * t.threads_per_column * kWidth;
    if (channels > kCached || me.end_chunk - me.first_chunk > 1) return;
    cache = shared_array<PerChannelCache, A, kCached>();
    first = me.first_chunk * channels;
    for (int64_t i = threadIdx.x; i < min(channels, t.c - first); i += kThreads)
      cache[i] = values ? factor * load(values + first + i) : A(0);
    __syncthreads();
    if constexpr (narrow) read_cache(me.thread_in_column * kWidth, held);
  }
  // Those of a vector's elements: kWidth of them.
  __device__ void get(int vec_index, A (&to)[kWidth]) const {
    if constexpr (narrow) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) to[i] = held[i];
    } else if (cache) {
      read_cache(vec_index * kWidth - first, to);
    } else {
#pragma unroll
      for (int i = 0; i < kWidth; ++i)
        to[i] = values ? factor * load(values + int64_t(vec_index) * kWidth + i) : A(0);
    }
  }

 private:
  // 16 bytes at a time: vectors begin at multiples of that.
  __device__ void read_cache(int64_t at, A (&to)[kWidth]) const {
    constexpr int N = kWidth * sizeof(A) % 16 ? 1 : 16 / sizeof(A);
#pragma unroll
    for (int i = 0; i < kWidth; i += N) {
      const Vec<A, N> vec = *reinterpret_cast<const Vec<A, N>*>(cache + at + i);
#pragma unroll
      for (int j = 0; j < N; ++j) to[i + j] = vec.v[j];
    }
  }
};

}  // namespace pggan_fast
