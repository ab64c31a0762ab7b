// bias_act and its gradients; the formulas stand in pggan_fast/ops/bias_act.py. Each kernel reads and writes every
// element once while a column's slots fit in kThreads threads' registers: 1024 channels do in any layout and dtype.
// With more, pixel norm reads its inputs a second time.
#pragma once

#include "tiling.cuh"

namespace pggan_fast {

// The activation multiplies by `above` where a sign is positive and by `below` elsewhere. A product with a slope of 0
// would make NaN of infinity, so relu sets values to 0 where the sign is not above `dead`; elsewhere, and where the sign
// is NaN, it multiplies by gain alone. Other activations have no such values: no number is at most NaN.
template <class A>
struct Coefficients {
  A scale, above, below, dead, eps;
  // gain * act'(sign) * v, and gain * act(v) where v is its own sign.
  __device__ A activate(A v, A sign) const { return (sign <= dead ? A(0) : v) * (sign > 0 ? above : below); }
};

template <class T, int V, bool last, bool norm>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    bias_act_forward_kernel(const T* x, const Acc<T>* bias, T* y, Acc<T>* r, Coefficients<Acc<T>> e, Tiling t) {
  using A = Acc<T>;
  constexpr int K = kSlots<V, 1>, W = last ? 1 : V;
  const Share<last, norm> me(t);
  const PerChannel<V, last, A> shift(t, me, bias, K);
  for (int64_t tile = me.first_tile; tile < t.tiles; tile += me.tile_step) {
    const Column<T, V, last> at(t, tile * t.width + me.column);
    Packed<T, V> held[K];
    const auto activated = [&](T x_i, A b) {
      const A z = e.scale * A(x_i) + b;
      return e.activate(z, z);
    };
    A factor[W] = {};
    for (int64_t chunk = me.first_chunk; chunk < me.end_chunk; ++chunk) {
      read(t, at, me.part, chunk, x, held);
      if (norm)
        for_slots<K>(t, me.part, chunk, at.exists, at.base, [&](int k, int64_t slot, int64_t) {
          const Vec<T, V> x_k = held[k].unpack();
#pragma unroll
          for (int i = 0; i < V; ++i) {
            const A u = activated(x_k.v[i], shift(slot, i));
            factor[last ? 0 : i] += u * u;
          }
        });
    }
    if (norm) {
      sum_over_threads(factor, last ? 1 : t.width, t.parts);
#pragma unroll
      for (int w = 0; w < W; ++w) {
        factor[w] = reciprocal_root(factor[w] / A(t.c) + e.eps);
        if (at.exists && me.part == 0) store(r + at.pixel + w, factor[w]);
      }
      pack_again(held);
    }
    for (int64_t chunk = me.first_chunk; chunk < me.end_chunk; ++chunk) {
      if (me.end_chunk - me.first_chunk > 1) read(t, at, me.part, chunk, x, held);
      for_slots<K>(t, me.part, chunk, at.exists, at.base, [&](int k, int64_t slot, int64_t place) {
        const Vec<T, V> x_k = held[k].unpack();
        A values[V];
#pragma unroll
        for (int i = 0; i < V; ++i) {
          values[i] = activated(x_k.v[i], shift(slot, i));
          if (norm) values[i] *= factor[last ? 0 : i];
        }
        store_rounded(y + place, values);
      });
    }
  }
}

// The bias's gradient by columns of a block: row `row` of [rows, C], where `first` it is the first to be written.
template <int V, bool last, int K, class A>
__device__ inline void add_bias_gradient(const Tiling& t, int part, int column, int64_t chunk,
                                         A (&sums)[K][last ? V : 1], A* rows, int64_t row, bool first) {
#pragma unroll
  for (int k = 0; k < K; ++k) sum_over_threads(sums[k], last ? t.parts : 1, t.width);
  for_slots<K>(t, part, chunk, column == 0, 0, [&](int k, int64_t slot, int64_t) {
#pragma unroll
    for (int i = 0; i < (last ? V : 1); ++i) {
      A* to = rows + row * t.c + (last ? slot * V : slot) + i;
      store(to, first ? sums[k][i] : load(to) + sums[k][i]);
    }
  });
}

// y is null where no value of it counts; dr may be null, and db_rows where no bias is wanted.
template <class T, int V, bool last, bool norm>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    bias_act_backward_kernel(const T* dy, const Acc<T>* dr, const T* y, const Acc<T>* r, T* dx, Acc<T>* db_rows,
                             Coefficients<Acc<T>> e, Tiling t) {
  using A = Acc<T>;
  constexpr int K = kSlots<V, 2>, W = last ? 1 : V;
  const Share<last, norm> me(t);
  A db[K][last ? V : 1] = {};
  for (int64_t tile = me.first_tile; tile < t.tiles; tile += me.tile_step) {
    const Column<T, V, last> at(t, tile * t.width + me.column);
    Packed<T, V> held_dy[K], held_y[K];
    const auto read_both = [&](int64_t chunk) {
      read(t, at, me.part, chunk, dy, held_dy);
      if (y) read(t, at, me.part, chunk, y, held_y);
    };
    // r, the mean of dy y, and dr; then what y is multiplied by
    A of_pixels[3 * W] = {}, *factor = of_pixels, *along_y = factor + W, *from_r = along_y + W;
    for (int64_t chunk = me.first_chunk; chunk < me.end_chunk; ++chunk) {
      read_both(chunk);
      if (norm)
        for_slots<K>(t, me.part, chunk, at.exists, at.base, [&](int k, int64_t, int64_t) {
          const Vec<T, V> dy_k = held_dy[k].unpack(), y_k = held_y[k].unpack();
#pragma unroll
          for (int i = 0; i < V; ++i) along_y[last ? 0 : i] += A(dy_k.v[i]) * A(y_k.v[i]);
        });
    }
    if (norm) {
      read_pixels<V, last>(r, at.pixel, at.exists && me.part == 0, factor);
      read_pixels<V, last>(dr, at.pixel, at.exists && me.part == 0, from_r);
      sum_over_threads(of_pixels, last ? 1 : t.width, t.parts);
#pragma unroll
      for (int w = 0; w < W; ++w) along_y[w] = factor[w] * (along_y[w] + factor[w] * from_r[w]) / A(t.c);
      pack_again(held_dy);
      pack_again(held_y);
    }
    for (int64_t chunk = me.first_chunk; chunk < me.end_chunk; ++chunk) {
      const bool again = me.end_chunk - me.first_chunk > 1;
      if (again) read_both(chunk);
      for_slots<K>(t, me.part, chunk, at.exists, at.base, [&](int k, int64_t, int64_t place) {
        const Vec<T, V> dy_k = held_dy[k].unpack(), y_k = held_y[k].unpack();
        A values[V];
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const int w = last ? 0 : i;
          const A y_i = y ? A(y_k.v[i]) : A(0);
          A du = A(dy_k.v[i]);
          if (norm) du = factor[w] * du - along_y[w] * y_i;
          du = e.activate(du, y_i);
          values[i] = e.scale * du;
          db[k][last ? i : 0] += du;
        }
        store_rounded(dx + place, values);
      });
      if (again && db_rows) {
        add_bias_gradient<V, last>(t, me.part, me.column, chunk, db, db_rows, blockIdx.x, tile == me.first_tile);
#pragma unroll
        for (int k = 0; k < K; ++k)
#pragma unroll
          for (int i = 0; i < (last ? V : 1); ++i) db[k][i] = 0;
      }
    }
  }
  if (db_rows && me.end_chunk - me.first_chunk == 1)
    add_bias_gradient<V, last>(t, me.part, me.column, me.first_chunk, db, db_rows, me.first_tile, true);
}

// db[c] = the sum of rows[:, c], in an order that depends on nothing but the shape. A block takes 32 channels.
template <class A>
__global__ void __launch_bounds__(kThreads, kBlocks<A>)
    sum_rows_kernel(const A* rows, int64_t count, int64_t c, A* db) {
  const int64_t channel = int64_t(blockIdx.x) * 32 + threadIdx.x % 32;
  A sum[1] = {};
  if (channel < c)
    for (int64_t row = threadIdx.x / 32; row < count; row += kThreads / 32) sum[0] += load(rows + row * c + channel);
  sum_over_threads(sum, 32, kThreads / 32);
  if (channel < c && threadIdx.x < 32) store(db + channel, sum[0]);
}

template <class T>
struct DoubleBackward {
  const T* g;            // or null
  const Acc<T>* g_bias;  // or null
  const T* dy;
  const Acc<T>* dr;  // or null
  const T* y;        // or null where no value of it counts
  const Acc<T>* r;
  T* d_dy;
  T* d_y;
  Acc<T>* d_r;
  Acc<T>* d_dr;
};

// Vectors of 8 pixels have 40 sums and factors beside the elements held: registers for one block.
template <class T, int V, bool last, bool norm>
constexpr int kDoubleBackwardBlocks = V == 8 && !last && norm ? 1 : kBlocks<T>;

template <class T, int V, bool last, bool norm>
__global__ void __launch_bounds__(kThreads, (kDoubleBackwardBlocks<T, V, last, norm>))
    bias_act_double_backward_kernel(DoubleBackward<T> a, Coefficients<Acc<T>> e, Tiling t) {
  using A = Acc<T>;
  constexpr int K = kSlots<V, 3>, W = last ? 1 : V;
  const Share<last, norm> me(t);
  const PerChannel<V, last, A> g_bias(t, me, a.g_bias, K);
  for (int64_t tile = me.first_tile; tile < t.tiles; tile += me.tile_step) {
    const Column<T, V, last> at(t, tile * t.width + me.column);
    const bool again = me.end_chunk - me.first_chunk > 1;
    Packed<T, V> held_g[K], held_dy[K], held_y[K];
    const auto read_all = [&](int64_t chunk) {
      if (a.g) read(t, at, me.part, chunk, a.g, held_g);
      if (norm) read(t, at, me.part, chunk, a.dy, held_dy);
      if (a.y) read(t, at, me.part, chunk, a.y, held_y);
    };
    // f(i, h, dy, y, the slot's offset) for each element that this thread holds.
    const auto for_elements = [&](int64_t chunk, const auto& f) {
      for_slots<K>(t, me.part, chunk, at.exists, at.base, [&](int k, int64_t slot, int64_t place) {
        const Vec<T, V> g_k = held_g[k].unpack(), dy_k = held_dy[k].unpack(), y_k = held_y[k].unpack();
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const A g = (a.g ? e.scale * A(g_k.v[i]) : A(0)) + g_bias(slot, i);
          f(i, e.activate(g, a.y ? A(y_k.v[i]) : A(0)), A(dy_k.v[i]), A(y_k.v[i]), place);
        }
      });
    };
    // Of each pixel: r, dr, and the sums of dy y, h y and h dy; then what d(y) has of h, and d(y) of dy as d(dy) of y
    A of_pixels[5 * W] = {}, *factor = of_pixels, *dr = factor + W, *dy_y = dr + W, *h_y = dy_y + W, *h_dy = h_y + W;
    for (int64_t chunk = me.first_chunk; chunk < me.end_chunk; ++chunk) {
      read_all(chunk);
      if (norm)
        for_elements(chunk, [&](int i, A h, A dy, A y, int64_t) {
          const int w = last ? 0 : i;
          dy_y[w] += dy * y;
          h_y[w] += h * y;
          h_dy[w] += h * dy;
        });
    }
    A of_h[W] = {}, crosswise[W] = {};
    if (norm) {
      read_pixels<V, last>(a.r, at.pixel, at.exists && me.part == 0, factor);
      read_pixels<V, last>(a.dr, at.pixel, at.exists && me.part == 0, dr);
      sum_over_threads(of_pixels, last ? 1 : t.width, t.parts);
#pragma unroll
      for (int w = 0; w < W; ++w) {
        const A m = dy_y[w] / A(t.c), q = h_y[w] / A(t.c);
        of_h[w] = -factor[w] * (m + factor[w] * dr[w] / A(t.c));
        crosswise[w] = -factor[w] * q;
        if (at.exists && me.part == 0) {
          store(a.d_r + at.pixel + w, h_dy[w] - m * h_y[w] + 2 * dr[w] * crosswise[w]);
          store(a.d_dr + at.pixel + w, factor[w] * crosswise[w]);
        }
      }
      pack_again(held_g);
      pack_again(held_dy);
      pack_again(held_y);
    }
    for (int64_t chunk = me.first_chunk; chunk < me.end_chunk; ++chunk) {
      if (again) read_all(chunk);
      A d_dy[V], d_y[V];
      for_elements(chunk, [&](int i, A h, A dy, A y, int64_t place) {
        const int w = last ? 0 : i;
        d_dy[i] = norm ? factor[w] * h + crosswise[w] * y : h;
        d_y[i] = of_h[w] * h + crosswise[w] * dy;
        if (i == V - 1) {
          store_rounded(a.d_dy + place, d_dy);
          if (norm) store_rounded(a.d_y + place, d_y);
        }
      });
    }
  }
}

}  // namespace pggan_fast
