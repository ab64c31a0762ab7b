// Kernels between a low resolution and twice that. A thread takes a cell: a vector of V values of the low resolution
// and the four vectors that cover them at the high one, two in each of two rows. Every value is read and written once.
#pragma once

#include "vec.cuh"

namespace pggan_fast {

// h x w low pixels in each of `planes`, c values in a pixel (contiguous: N C planes of one value, channels_last: N
// planes of C), and 2h x 2w high ones, with an extra row or column where sizes are odd.
struct Grid {
  int64_t planes, h, w, c;
  int extra_h, extra_w;
};

inline Grid grid_of(const Tensor& high, Layout layout) {
  const bool channels_last = layout == Layout::channels_last;
  const int64_t n = high.size(0), c = high.size(1), h = high.size(2), w = high.size(3);
  return {channels_last ? n : n * c, h / 2, w / 2, channels_last ? c : 1, int(h % 2), int(w % 2)};
}

// A thread's cell. Along a row of memory, V values are V pixels (contiguous) or V channels of one (channels_last).
template <int V, bool channels_last>
struct Cell {
  int64_t low, high, row;  // where the low vector and the first high one are, and from one high row to the next
  bool ends_row, ends_plane;

  __device__ Cell(const Grid& g, int64_t index) {
    const int64_t across = channels_last ? g.c / V : g.w / V;  // vectors in a pixel, or in a row
    const int64_t i = index % across * V;
    int64_t rest = index / across;
    const int64_t x = channels_last ? rest % g.w : i;
    if (channels_last) rest /= g.w;
    const int64_t y = rest % g.h, plane = rest / g.h;
    row = (2 * g.w + g.extra_w) * g.c;
    low = ((plane * g.h + y) * g.w + x) * g.c + (channels_last ? i : 0);
    high = (plane * (2 * g.h + g.extra_h) + 2 * y) * row + 2 * x * g.c + (channels_last ? i : 0);
    ends_row = channels_last ? x + 1 == g.w : x + V == g.w;
    ends_plane = y + 1 == g.h;
  }
  // Of the high vector (r, s) of a cell.
  __device__ int64_t offset(const Grid& g, int r, int s) const {
    return high + r * row + s * (channels_last ? g.c : V);
  }
};

template <int V, bool channels_last>
int64_t cells_of(const Grid& g) {
  return g.planes * g.h * g.w * g.c / V;
}

// The low value over value v of the high vectors (r, s).
template <int V, bool channels_last>
__device__ constexpr int low_of(int s, int v) {
  return channels_last ? v : (s * V + v) / 2;
}

// f(r, s, v) for every high value of a cell.
template <int V, class F>
__device__ inline void for_high(const F& f) {
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int v = 0; v < V; ++v) f(r, s, v);
}

template <class A, class H, int V, bool channels_last>
__device__ inline void load_high(const Grid& g, const Cell<V, channels_last>& cell, const H* from, A (&to)[2][2][V]) {
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const Vec<H, V> vec = load_vec<H, V>(from + cell.offset(g, r, s));
#pragma unroll
      for (int v = 0; v < V; ++v) to[r][s][v] = A(vec.v[v]);
    }
}

template <class A, class T, int V, bool channels_last>
__device__ inline void store_high(const Grid& g, const Cell<V, channels_last>& cell, T* to, const A (&from)[2][2][V]) {
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int s = 0; s < 2; ++s) store_rounded(to + cell.offset(g, r, s), from[r][s]);
}

template <class A, int V, bool channels_last>
__device__ inline void sum_high(const A (&high)[2][2][V], A (&sums)[V]) {
  for_high<V>([&](int r, int s, int v) { sums[low_of<V, channels_last>(s, v)] += high[r][s][v]; });
}

// f(cell) for this thread's cell, if there is one.
template <int V, bool channels_last, class F>
__device__ inline void for_cell(const Grid& g, const F& f) {
  const int64_t index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (index < g.planes * g.h * g.w * g.c / V) f(Cell<V, channels_last>(g, index));
}

template <class T, int V, bool channels_last>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) upsample_kernel(const T* low, T* high, Acc<T> factor, Grid g) {
  using A = Acc<T>;
  for_cell<V, channels_last>(g, [&](const Cell<V, channels_last>& cell) {
    const Vec<T, V> vec = load_vec<T, V>(low + cell.low);
    A values[2][2][V];
    for_high<V>([&](int r, int s, int v) { values[r][s][v] = factor * A(vec.v[low_of<V, channels_last>(s, v)]); });
    store_high(g, cell, high, values);
    // Zeros in the extra row and column.
    const int rows = 2 + (cell.ends_plane ? g.extra_h : 0), columns = 2 + (cell.ends_row ? g.extra_w : 0);
    for (int r = 0; r < rows; ++r)
      for (int s = r < 2 ? 2 : 0; s < columns; ++s) {
        const A zeros[V] = {};
        store_rounded(high + cell.offset(g, r, s), zeros);
      }
  });
}

template <class T, int V, bool channels_last>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    downsample_kernel(const T* high, T* low, Acc<T> factor, Grid g) {
  using A = Acc<T>;
  for_cell<V, channels_last>(g, [&](const Cell<V, channels_last>& cell) {
    A values[2][2][V], sums[V] = {};
    load_high(g, cell, high, values);
    sum_high<A, V, channels_last>(values, sums);
#pragma unroll
    for (int v = 0; v < V; ++v) sums[v] *= factor;
    store_rounded(low + cell.low, sums);
  });
}

}  // namespace pggan_fast
