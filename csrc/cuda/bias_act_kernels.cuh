// bias_act and its gradients; the formulas stand in pggan_fast/ops/bias_act.py. Each kernel reads and writes every
// element once while a column's slots fit in kThreads threads' registers: up to 2048 channels, and 4096 but in the
// double backward. With more, each pass of pixel norm reads its inputs anew.
#pragma once

#include "tiling.cuh"

namespace pggan_fast {

// Of the activation: scale * x + bias, times `above` where that is positive and `below` elsewhere.
template <class A>
struct Coefficients {
  A scale, above, below, eps;
};

template <class T, int V, bool last, bool norm>
__global__ void __launch_bounds__(kThreads, 1)
    bias_act_forward_kernel(const T* x, const Acc<T>* bias, T* y, Acc<T>* r, Coefficients<Acc<T>> e, Tiling t) {
  using A = Acc<T>;
  constexpr int K = kSlots<V, 1>, W = last ? 1 : V;
  const Share<last, norm> me(t);
  const PerChannel<V, last, A> shift(t, me, bias, K);
  for (int64_t tile = me.first_tile; tile < t.tiles; tile += me.tile_step) {
    const Column<T, V, last> at(t, tile * t.width + me.column);
    Vec<T, V> held[K];
    const auto activated = [&](T x_i, A b) {
      const A z = e.scale * A(x_i) + b;
      return z * (z > 0 ? e.above : e.below);
    };
    A factor[W] = {};
    for (int64_t chunk = me.first_chunk; chunk < me.end_chunk; ++chunk) {
      read(t, at, me.part, chunk, x, held);
      if (norm)
        for_slots<K>(t, me.part, chunk, at.exists, [&](int k, int64_t slot) {
#pragma unroll
          for (int i = 0; i < V; ++i) {
            const A u = activated(held[k].v[i], shift(slot, i));
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
    }
    for (int64_t chunk = me.first_chunk; chunk < me.end_chunk; ++chunk) {
      if (me.end_chunk - me.first_chunk > 1) read(t, at, me.part, chunk, x, held);
      for_slots<K>(t, me.part, chunk, at.exists, [&](int k, int64_t slot) {
        A values[V];
#pragma unroll
        for (int i = 0; i < V; ++i) values[i] = activated(held[k].v[i], shift(slot, i)) * (norm ? factor[last ? 0 : i] : A(1));
        store_rounded(y + at.place(t, slot), values);
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
  for_slots<K>(t, part, chunk, column == 0, [&](int k, int64_t slot) {
#pragma unroll
    for (int i = 0; i < (last ? V : 1); ++i) {
      A* to = rows + row * t.c + (last ? slot * V : slot) + i;
      store(to, first ? sums[k][i] : load(to) + sums[k][i]);
    }
  });
}

// y is null where no value of it counts; dr may be null, and db_rows where no bias is wanted.
template <class T, int V, bool last, bool norm>
__global__ void __launch_bounds__(kThreads, 1)
    bias_act_backward_kernel(const T* dy, const Acc<T>* dr, const T* y, const Acc<T>* r, T* dx, Acc<T>* db_rows,
                             Coefficients<Acc<T>> e, Tiling t) {
  using A = Acc<T>;
  constexpr int K = kSlots<V, 2>, W = last ? 1 : V;
  const Share<last, norm> me(t);
  A db[K][last ? V : 1] = {};
  for (int64_t tile = me.first_tile; tile < t.tiles; tile += me.tile_step) {
    const Column<T, V, last> at(t, tile * t.width + me.column);
    Vec<T, V> held_dy[K], held_y[K];
    const auto read_both = [&](int64_t chunk) {
      read(t, at, me.part, chunk, dy, held_dy);
      if (y) read(t, at, me.part, chunk, y, held_y);
    };
    // The mean of dy y, r, and r^2 dr / C
    A of_pixels[3 * W] = {}, *mean = of_pixels, *factor = mean + W, *from_r = factor + W;
    for (int64_t chunk = me.first_chunk; chunk < me.end_chunk; ++chunk) {
      read_both(chunk);
      if (norm)
        for_slots<K>(t, me.part, chunk, at.exists, [&](int k, int64_t) {
#pragma unroll
          for (int i = 0; i < V; ++i) mean[last ? 0 : i] += A(held_dy[k].v[i]) * A(held_y[k].v[i]);
        });
    }
    if (norm) {
      read_pixels<V, last>(r, at.pixel, at.exists && me.part == 0, factor);
      read_pixels<V, last>(dr, at.pixel, at.exists && me.part == 0, from_r);
      sum_over_threads(of_pixels, last ? 1 : t.width, t.parts);
#pragma unroll
      for (int w = 0; w < W; ++w) {
        mean[w] /= A(t.c);
        from_r[w] *= factor[w] * factor[w] / A(t.c);
      }
    }
    for (int64_t chunk = me.first_chunk; chunk < me.end_chunk; ++chunk) {
      const bool again = me.end_chunk - me.first_chunk > 1;
      if (again) read_both(chunk);
      for_slots<K>(t, me.part, chunk, at.exists, [&](int k, int64_t slot) {
        A values[V];
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const int w = last ? 0 : i;
          const A y_i = y ? A(held_y[k].v[i]) : A(0);
          A du = A(held_dy[k].v[i]);
          if (norm) du = factor[w] * (du - y_i * mean[w]) - from_r[w] * y_i;
          du *= y_i > 0 ? e.above : e.below;
          values[i] = e.scale * du;
          db[k][last ? i : 0] += du;
        }
        store_rounded(dx + at.place(t, slot), values);
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
__global__ void __launch_bounds__(kThreads) sum_rows_kernel(const A* rows, int64_t count, int64_t c, A* db) {
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

template <class T, int V, bool last, bool norm>
__global__ void __launch_bounds__(kThreads, 1)
    bias_act_double_backward_kernel(DoubleBackward<T> a, Coefficients<Acc<T>> e, Tiling t) {
  using A = Acc<T>;
  constexpr int K = kSlots<V, 3>, W = last ? 1 : V;
  const Share<last, norm> me(t);
  const PerChannel<V, last, A> g_bias(t, me, a.g_bias, K);
  for (int64_t tile = me.first_tile; tile < t.tiles; tile += me.tile_step) {
    const Column<T, V, last> at(t, tile * t.width + me.column);
    const bool again = me.end_chunk - me.first_chunk > 1;
    Vec<T, V> held_g[K], held_dy[K], held_y[K];
    const auto read_all = [&](int64_t chunk) {
      if (a.g) read(t, at, me.part, chunk, a.g, held_g);
      if (norm) read(t, at, me.part, chunk, a.dy, held_dy);
      if (a.y) read(t, at, me.part, chunk, a.y, held_y);
    };
    // f(k, slot, i, h) for each element that this thread holds.
    const auto for_elements = [&](int64_t chunk, const auto& f) {
      for_slots<K>(t, me.part, chunk, at.exists, [&](int k, int64_t slot) {
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const A g = (a.g ? e.scale * A(held_g[k].v[i]) : A(0)) + g_bias(slot, i);
          f(k, slot, i, g * (a.y && A(held_y[k].v[i]) > 0 ? e.above : e.below));
        }
      });
    };
    // m and q of the formulas, r, r^2 dr / C, and d(r)
    A of_pixels[4 * W] = {}, *m = of_pixels, *q = m + W, *factor = q + W, *from_r = factor + W, d_r[W] = {};
    for (int64_t chunk = me.first_chunk; chunk < me.end_chunk; ++chunk) {
      read_all(chunk);
      if (norm)
        for_elements(chunk, [&](int k, int64_t, int i, A h) {
          m[last ? 0 : i] += A(held_dy[k].v[i]) * A(held_y[k].v[i]);
          q[last ? 0 : i] += h * A(held_y[k].v[i]);
        });
    }
    if (norm) {
      read_pixels<V, last>(a.r, at.pixel, at.exists && me.part == 0, factor);
      read_pixels<V, last>(a.dr, at.pixel, at.exists && me.part == 0, from_r);
      sum_over_threads(of_pixels, last ? 1 : t.width, t.parts);
#pragma unroll
      for (int w = 0; w < W; ++w) {
        m[w] /= A(t.c);
        q[w] /= A(t.c);
      }
    }
    for (int64_t chunk = me.first_chunk; chunk < me.end_chunk; ++chunk) {
      if (again) read_all(chunk);
      A d_dy[V], d_y[V];
      for_elements(chunk, [&](int k, int64_t slot, int i, A h) {
        const int w = last ? 0 : i;
        if (norm) {
          const A y = A(held_y[k].v[i]), dy = A(held_dy[k].v[i]);
          d_dy[i] = factor[w] * (h - y * q[w]);
          d_y[i] = -factor[w] * (h * m[w] + dy * q[w]) - factor[w] * factor[w] * from_r[w] * h / A(t.c);
          d_r[w] += h * (dy - y * m[w]);
        } else {
          d_dy[i] = h;
        }
        if (i == V - 1) {
          store_rounded(a.d_dy + at.place(t, slot), d_dy);
          if (norm) store_rounded(a.d_y + at.place(t, slot), d_y);
        }
      });
    }
    if (norm) {
      sum_over_threads(d_r, last ? 1 : t.width, t.parts);
      if (at.exists && me.part == 0)
#pragma unroll
        for (int w = 0; w < W; ++w) {
          store(a.d_r + at.pixel + w, d_r[w] - 2 * factor[w] * from_r[w] * q[w]);
          store(a.d_dr + at.pixel + w, -factor[w] * factor[w] * q[w]);
        }
    }
  }
}

}  // namespace pggan_fast
