// bias_act and its gradients; the formulas stand in pggan_fast/ops/bias_act.py. Each kernel reads and writes every
// element once while a column's vectors fit in kThreads threads' registers: 1024 channels do in any layout and dtype.
// With more, pixel norm reads its inputs a second time.
#pragma once

#include "tiling.cuh"

namespace pggan_fast {

// The activation multiplies by `positive_slope` where a sign is positive and by `negative_slope` elsewhere. A product
// with a slope of 0 would make NaN of infinity, so relu sets values to 0 where the sign is not above `dead`;
// elsewhere, and where the sign is NaN, it multiplies by gain alone. Other activations have no such values: no number
// is at most NaN.
template <class A>
struct Coefficients {
  A scale, positive_slope, negative_slope, dead, eps;
  // gain * act'(sign) * v, and gain * act(v) where v is its own sign.
  __device__ A activate(A v, A sign) const {
    return (sign <= dead ? A(0) : v) * (sign > 0 ? positive_slope : negative_slope);
  }
};

// Backward reads the activation's sign off y: a value above zero that fp16 would round to zero becomes its smallest.
template <class T>
__device__ inline Acc<T> with_its_sign(Acc<T> v) {
  if constexpr (std::is_same_v<T, torch::headeronly::Half>) return v > 0 && v < 0x1p-24f ? 0x1p-24f : v;
  else return v;
}

template <class T, int V, bool channels_last, bool norm>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    bias_act_forward_kernel(const T* x, const Acc<T>* bias, T* y, Acc<T>* r, Coefficients<Acc<T>> e, Tiling t) {
  using A = Acc<T>;
  constexpr int K = kVectors<V, 1>, W = channels_last ? 1 : V;
  const WorkItems<channels_last, norm> me(t);
  const PerChannel<V, channels_last, A> shift(t, me, bias, K);
  for (int64_t tile = me.first_tile; tile < t.tiles; tile += me.tile_step) {
    const Column<T, V, channels_last> at(t, tile * t.columns_per_block + me.column);
    Packed<T, V> held[K];
    const auto activated = [&](T x_i, A b) {
      const A z = e.scale * A(x_i) + b;
      return e.activate(z, z);
    };
    A factor[W] = {};
    for (int64_t chunk = me.first_chunk; chunk < me.end_chunk; ++chunk) {
      read(t, at, me.thread_in_column, chunk, x, held);
      if (norm)
        for_vectors<K>(t, me.thread_in_column, chunk, at.exists, at.base, [&](int k, int64_t vec_index, int64_t) {
          const Vec<T, V> x_k = held[k].unpack();
#pragma unroll
          for (int i = 0; i < V; ++i) {
            const A u = activated(x_k.v[i], shift(vec_index, i));
            factor[channels_last ? 0 : i] += u * u;
          }
        });
    }
    if (norm) {
      sum_over_threads(factor, channels_last ? 1 : t.columns_per_block, t.threads_per_column);
#pragma unroll
      for (int w = 0; w < W; ++w) {
        factor[w] = reciprocal_root(factor[w] / A(t.c) + e.eps);
        if (at.exists && me.thread_in_column == 0) store(r + at.pixel + w, factor[w]);
      }
      pack_again(held);
    }
    for (int64_t chunk = me.first_chunk; chunk < me.end_chunk; ++chunk) {
      if (me.end_chunk - me.first_chunk > 1) read(t, at, me.thread_in_column, chunk, x, held);
      for_vectors<K>(t, me.thread_in_column, chunk, at.exists, at.base, [&](int k, int64_t vec_index, int64_t offset) {
        const Vec<T, V> x_k = held[k].unpack();
        A values[V];
#pragma unroll
        for (int i = 0; i < V; ++i) {
          values[i] = activated(x_k.v[i], shift(vec_index, i));
          if (norm) values[i] *= factor[channels_last ? 0 : i];
          values[i] = with_its_sign<T>(values[i]);
        }
        store_rounded(y + offset, values);
      });
    }
  }
}

// The bias's gradient by columns of a block: row `row` of [rows, C], where `first` it is the first to be written.
template <int V, bool channels_last, int K, class A>
__device__ inline void add_bias_gradient(const Tiling& t, int thread_in_column, int column, int64_t chunk,
                                         A (&sums)[K][channels_last ? V : 1], A* rows, int64_t row, bool first) {
#pragma unroll
  for (int k = 0; k < K; ++k) sum_over_threads(sums[k], channels_last ? t.threads_per_column : 1, t.columns_per_block);
  for_vectors<K>(t, thread_in_column, chunk, column == 0, 0, [&](int k, int64_t vec_index, int64_t) {
#pragma unroll
    for (int i = 0; i < (channels_last ? V : 1); ++i) {
      A* to = rows + row * t.c + (channels_last ? vec_index * V : vec_index) + i;
      store(to, first ? sums[k][i] : load(to) + sums[k][i]);
    }
  });
}

// The sums over a column's threads for each of its W pixels; r and dr are read by the first thread, and 0 in the
// others.
template <class A, int W>
struct BackwardSums {
  A all[3 * W] = {};
  __device__ A* r() { return all; }
  __device__ A* dy_y() { return all + W; }
  __device__ A* dr() { return all + 2 * W; }
};

// y is null where no value of it counts; dr may be null, and db_rows where the bias needs no gradient.
template <class T, int V, bool channels_last, bool norm>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    bias_act_backward_kernel(const T* dy, const Acc<T>* dr, const T* y, const Acc<T>* r, T* dx, Acc<T>* db_rows,
                             Coefficients<Acc<T>> e, Tiling t) {
  using A = Acc<T>;
  constexpr int K = kVectors<V, 2>, W = channels_last ? 1 : V;
  const WorkItems<channels_last, norm> me(t);
  A db[K][channels_last ? V : 1] = {};
  for (int64_t tile = me.first_tile; tile < t.tiles; tile += me.tile_step) {
    const Column<T, V, channels_last> at(t, tile * t.columns_per_block + me.column);
    Packed<T, V> held_dy[K], held_y[K];
    const auto read_both = [&](int64_t chunk) {
      read(t, at, me.thread_in_column, chunk, dy, held_dy);
      if (y) read(t, at, me.thread_in_column, chunk, y, held_y);
    };
    BackwardSums<A, W> sums;
    for (int64_t chunk = me.first_chunk; chunk < me.end_chunk; ++chunk) {
      read_both(chunk);
      if (norm)
        for_vectors<K>(t, me.thread_in_column, chunk, at.exists, at.base, [&](int k, int64_t, int64_t) {
          const Vec<T, V> dy_k = held_dy[k].unpack(), y_k = held_y[k].unpack();
#pragma unroll
          for (int i = 0; i < V; ++i) sums.dy_y()[channels_last ? 0 : i] += A(dy_k.v[i]) * A(y_k.v[i]);
        });
    }
    A y_factor[W] = {};
    if (norm) {
      read_pixels<V, channels_last>(r, at.pixel, at.exists && me.thread_in_column == 0, sums.r());
      read_pixels<V, channels_last>(dr, at.pixel, at.exists && me.thread_in_column == 0, sums.dr());
      sum_over_threads(sums.all, channels_last ? 1 : t.columns_per_block, t.threads_per_column);
#pragma unroll
      for (int w = 0; w < W; ++w) y_factor[w] = sums.r()[w] * (sums.dy_y()[w] + sums.r()[w] * sums.dr()[w]) / A(t.c);
      pack_again(held_dy);
      pack_again(held_y);
    }
    for (int64_t chunk = me.first_chunk; chunk < me.end_chunk; ++chunk) {
      const bool again = me.end_chunk - me.first_chunk > 1;
      if (again) read_both(chunk);
      for_vectors<K>(t, me.thread_in_column, chunk, at.exists, at.base, [&](int k, int64_t, int64_t offset) {
        const Vec<T, V> dy_k = held_dy[k].unpack(), y_k = held_y[k].unpack();
        A values[V];
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const int w = channels_last ? 0 : i;
          const A y_i = y ? A(y_k.v[i]) : A(0);
          A du = A(dy_k.v[i]);
          if (norm) du = sums.r()[w] * du - y_factor[w] * y_i;
          du = e.activate(du, y_i);
          values[i] = e.scale * du;
          db[k][channels_last ? i : 0] += du;
        }
        store_rounded(dx + offset, values);
      });
      if (again && db_rows) {
        add_bias_gradient<V, channels_last>(t, me.thread_in_column, me.column, chunk, db, db_rows, blockIdx.x,
                                            tile == me.first_tile);
#pragma unroll
        for (int k = 0; k < K; ++k)
#pragma unroll
          for (int i = 0; i < (channels_last ? V : 1); ++i) db[k][i] = 0;
      }
    }
  }
  if (db_rows && me.end_chunk - me.first_chunk == 1)
    add_bias_gradient<V, channels_last>(t, me.thread_in_column, me.column, me.first_chunk, db, db_rows, me.first_tile,
                                        true);
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

// As BackwardSums, for the double backward: h is the activation's mask times g, so are its products summed with y and
// dy.
template <class A, int W>
struct DoubleBackwardSums {
  A all[5 * W] = {};
  __device__ A* r() { return all; }
  __device__ A* dr() { return all + W; }
  __device__ A* dy_y() { return all + 2 * W; }
  __device__ A* h_y() { return all + 3 * W; }
  __device__ A* h_dy() { return all + 4 * W; }
};

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
template <class T, int V, bool channels_last, bool norm>
constexpr int kDoubleBackwardBlocks = V == 8 && !channels_last && norm ? 1 : kBlocks<T>;

template <class T, int V, bool channels_last, bool norm>
__global__ void __launch_bounds__(kThreads, (kDoubleBackwardBlocks<T, V, channels_last, norm>))
    bias_act_double_backward_kernel(DoubleBackward<T> a, Coefficients<Acc<T>> e, Tiling t) {
  using A = Acc<T>;
  constexpr int K = kVectors<V, 3>, W = channels_last ? 1 : V;
  const WorkItems<channels_last, norm> me(t);
  const PerChannel<V, channels_last, A> g_bias(t, me, a.g_bias, K);
  for (int64_t tile = me.first_tile; tile < t.tiles; tile += me.tile_step) {
    const Column<T, V, channels_last> at(t, tile * t.columns_per_block + me.column);
    const bool again = me.end_chunk - me.first_chunk > 1;
    Packed<T, V> held_g[K], held_dy[K], held_y[K];
    const auto read_all = [&](int64_t chunk) {
      if (a.g) read(t, at, me.thread_in_column, chunk, a.g, held_g);
      if (norm) read(t, at, me.thread_in_column, chunk, a.dy, held_dy);
      if (a.y) read(t, at, me.thread_in_column, chunk, a.y, held_y);
    };
    // f(i, h, dy, y, the vector's offset) for each element that this thread holds.
    const auto for_elements = [&](int64_t chunk, const auto& f) {
      for_vectors<K>(t, me.thread_in_column, chunk, at.exists, at.base, [&](int k, int64_t vec_index, int64_t offset) {
        const Vec<T, V> g_k = held_g[k].unpack(), dy_k = held_dy[k].unpack(), y_k = held_y[k].unpack();
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const A g = (a.g ? e.scale * A(g_k.v[i]) : A(0)) + g_bias(vec_index, i);
          f(i, e.activate(g, a.y ? A(y_k.v[i]) : A(0)), A(dy_k.v[i]), A(y_k.v[i]), offset);
        }
      });
    };
    DoubleBackwardSums<A, W> sums;
    for (int64_t chunk = me.first_chunk; chunk < me.end_chunk; ++chunk) {
      read_all(chunk);
      if (norm)
        for_elements(chunk, [&](int i, A h, A dy, A y, int64_t) {
          const int w = channels_last ? 0 : i;
          sums.dy_y()[w] += dy * y;
          sums.h_y()[w] += h * y;
          sums.h_dy()[w] += h * dy;
        });
    }
    // d(dy) = r h + cross y and d(y) = h_factor h + cross dy
    A h_factor[W] = {}, cross[W] = {};
    if (norm) {
      read_pixels<V, channels_last>(a.r, at.pixel, at.exists && me.thread_in_column == 0, sums.r());
      read_pixels<V, channels_last>(a.dr, at.pixel, at.exists && me.thread_in_column == 0, sums.dr());
      sum_over_threads(sums.all, channels_last ? 1 : t.columns_per_block, t.threads_per_column);
#pragma unroll
      for (int w = 0; w < W; ++w) {
        const A r = sums.r()[w], dr = sums.dr()[w], m = sums.dy_y()[w] / A(t.c), q = sums.h_y()[w] / A(t.c);
        h_factor[w] = -r * (m + r * dr / A(t.c));
        cross[w] = -r * q;
        if (at.exists && me.thread_in_column == 0) {
          store(a.d_r + at.pixel + w, sums.h_dy()[w] - m * sums.h_y()[w] + 2 * dr * cross[w]);
          store(a.d_dr + at.pixel + w, r * cross[w]);
        }
      }
      pack_again(held_g);
      pack_again(held_dy);
      pack_again(held_y);
    }
    for (int64_t chunk = me.first_chunk; chunk < me.end_chunk; ++chunk) {
      if (again) read_all(chunk);
      A d_dy[V], d_y[V];
      for_elements(chunk, [&](int i, A h, A dy, A y, int64_t offset) {
        const int w = channels_last ? 0 : i;
        d_dy[i] = norm ? sums.r()[w] * h + cross[w] * y : h;
        d_y[i] = h_factor[w] * h + cross[w] * dy;
        if (i == V - 1) {
          store_rounded(a.d_dy + offset, d_dy);
          if (norm) store_rounded(a.d_y + offset, d_y);
        }
      });
    }
  }
}

}  // namespace pggan_fast
