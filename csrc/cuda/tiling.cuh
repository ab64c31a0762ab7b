// How bias_act's kernels cut a tensor among threads so that all channels of a pixel are in one block's registers.
//
// A column is what is next to each other in every channel: V pixels of a sample (contiguous), or one pixel
// (channels_last). A slot is a vector of V elements of a column: one channel of V pixels, or V channels of one pixel.
// A block takes `width` columns at a time and `parts` threads for each, which hold K slots apiece: a chunk of
// parts * K slots. With pixel norm a block goes through all chunks of its columns, otherwise it stays at one.
#pragma once

#include "vec.cuh"

namespace pggan_fast {

// Slots that a thread holds of each of `tensors`: few enough that no register is spilled, and enough for 1024 channels
// to a block.
template <int V, int tensors>
constexpr int kSlots = V == 1 && tensors == 1 ? 8 : 4;

struct Tiling {
  int64_t c, p;        // channels, pixels of a sample
  int64_t columns;     // of the tensor
  int64_t per_sample;  // columns of one sample
  int64_t slots;       // of a column
  int64_t stride;      // from a slot to the next one
  int64_t tiles;       // of `width` columns
  int64_t chunks;      // of a column
  int parts, width;    // parts * width = kThreads
};

inline int64_t power_of_two_from(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}

template <class T, int V, bool last, int tensors>
Tiling tiling_of(const Shape& s, bool norm) {
  constexpr int K = kSlots<V, tensors>;
  Tiling t{};
  t.c = s.c;
  t.p = s.p;
  t.per_sample = last ? s.p : s.p / V;
  t.columns = s.n * t.per_sample;
  t.slots = last ? s.c / V : s.c;
  t.stride = last ? V : s.p;
  const int64_t fill = divide_up(t.slots, K);
  // A thread for as many slots as it holds; neighbours in memory are for neighbouring threads, 128 bytes at least;
  // a column that is not there needs no threads.
  int64_t parts = norm ? power_of_two_from(fill) : 1;
  if (last) parts = std::max(parts, power_of_two_from(std::min<int64_t>(t.slots, 128 / (V * sizeof(T)))));
  parts = std::max(parts, std::min(kThreads / std::min<int64_t>(kThreads, power_of_two_from(t.columns)),
                                   power_of_two_from(fill)));
  t.parts = static_cast<int>(std::min<int64_t>(parts, kThreads));
  t.width = kThreads / t.parts;
  t.tiles = divide_up(t.columns, t.width);
  t.chunks = divide_up(t.slots, int64_t(t.parts) * K);
  return t;
}

// This thread's place in the block, and the block's tiles and chunks.
template <bool last, bool norm>
struct Share {
  int part, column;
  int64_t first_chunk, end_chunk, first_tile, tile_step;

  __device__ explicit Share(const Tiling& t) {
    const int thread = threadIdx.x;
    part = last ? thread % t.parts : thread / t.width;
    column = last ? thread / t.parts : thread % t.width;
    first_chunk = norm ? 0 : blockIdx.x % t.chunks;
    end_chunk = norm ? t.chunks : first_chunk + 1;
    first_tile = norm ? blockIdx.x : blockIdx.x / t.chunks;
    tile_step = norm ? gridDim.x : gridDim.x / t.chunks;
  }
};

// The blocks to launch for this many tiles at a time.
inline int64_t blocks_for(const Tiling& t, int64_t tiles, bool norm) { return norm ? tiles : tiles * t.chunks; }

// One thread's column.
template <class T, int V, bool last>
struct Column {
  int64_t base, pixel;  // of the first slot in the tensor; of the first pixel in [N, P]
  bool exists;

  __device__ Column(const Tiling& t, int64_t index) {
    exists = index < t.columns;
    const int64_t n = last ? 0 : index / t.per_sample, within = index - n * t.per_sample;
    base = last ? index * t.c : n * t.c * t.p + within * V;
    pixel = last ? index : n * t.p + within * V;
  }
};

// f(k, slot, the slot's offset) for each slot of a chunk that this thread holds, in a column that begins at `base`.
template <int K, class F>
__device__ inline void for_slots(const Tiling& t, int part, int64_t chunk, bool exists, int64_t base, const F& f) {
  int64_t slot = chunk * K * t.parts + part, place = base + slot * t.stride;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (exists && slot < t.slots) f(k, slot, place);
    slot += t.parts;
    place += t.parts * t.stride;
  }
}

// Reads this thread's slots of a chunk.
template <class T, int V, bool last, int K>
__device__ inline void read(const Tiling& t, const Column<T, V, last>& at, int part, int64_t chunk, const T* from,
                            Packed<T, V> (&to)[K]) {
  for_slots<K>(t, part, chunk, at.exists, at.base,
               [&](int k, int64_t, int64_t place) { to[k] = load_packed<T, V>(from + place); });
}

template <class T, int V, int K>
__device__ inline void pack_again(Packed<T, V> (&held)[K]) {
#pragma unroll
  for (int k = 0; k < K; ++k) held[k].pack_again();
}

struct PerChannelCache;

// A value for each channel. A block reads those of its chunk once, into shared memory, if they fit.
template <int V, bool last, class A>
struct PerChannel {
  static constexpr int kCached = 2048;
  const A* values;  // or null, for zeros
  A* cache = nullptr;
  int64_t first = 0;

  template <bool norm>
  __device__ PerChannel(const Tiling& t, const Share<last, norm>& me, const A* values, int slots) : values(values) {
    const int64_t channels = int64_t(slots) * t.parts * (last ? V : 1);
    if (!values || channels > kCached || me.end_chunk - me.first_chunk > 1) return;
    cache = shared_array<PerChannelCache, A, kCached>();
    first = me.first_chunk * channels;
    for (int64_t i = threadIdx.x; i < min(channels, t.c - first); i += kThreads) cache[i] = load(values + first + i);
    __syncthreads();
  }
  // For element i of a slot.
  __device__ A operator()(int64_t slot, int i) const {
    const int64_t channel = last ? slot * V + i : slot;
    return cache ? cache[channel - first] : values ? load(values + channel) : A(0);
  }
};

// The values for a column's pixels: one part's threads read them, for others they are 0, so that a sum hands them on.
template <int V, bool last, class A>
__device__ inline void read_pixels(const A* from, int64_t pixel, bool mine, A* to) {
#pragma unroll
  for (int w = 0; w < (last ? 1 : V); ++w) to[w] = from && mine ? load(from + pixel + w) : A(0);
}

}  // namespace pggan_fast
