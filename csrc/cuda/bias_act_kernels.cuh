// bias_act and its gradients; the formulas stand in pggan_fast/ops/bias_act.py. Each kernel reads and writes every
// element once while a column's vectors fit in kThreads threads' registers: 1024 channels do in any layout and dtype.
// With more, pixel norm reads its inputs a second time.
#pragma once

#include "tiling.cuh"

namespace pggan_fast {

// gain * act'(sign) * v, for v that is a multiple of gain already: as it is where the sign is above zero, times slope
// elsewhere, where it is NaN too. Of relu v is 0 where the sign is at most zero: a product would make NaN of infinity.
template <class A>
struct Coefficients {
  A scale, gain, slope, eps;

  template <int V>
  __device__ void activate(A (&v)[V], const A (&sign)[V]) const {
    if (slope == 0) {
#pragma unroll
      for (int i = 0; i < V; ++i) v[i] = sign[i] <= 0 ? 0 : v[i];
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i)
        if (!(sign[i] > 0)) v[i] *= slope;
    }
  }
};

// Backward reads the activation's sign off y: a value above zero that fp16 would round to zero becomes its smallest.
template <class T>
__device__ inline Acc<T> with_its_sign(Acc<T> v) {
  if constexpr (std::is_same_v<T, torch::headeronly::Half>) return v > 0 ? fmaxf(v, 0x1p-24f) : v;
  else return v;
}

template <class T, int V, bool channels_last, bool norm, bool narrow>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    bias_act_forward_kernel(const T* x, const Acc<T>* bias, T* y, Acc<T>* r, Coefficients<Acc<T>> e, Tiling t) {
  using A = Acc<T>;
  constexpr int K = kVectors<V, 1>, W = channels_last ? (narrow ? K : 1) : V;
  const WorkItems<channels_last, norm> me(t);
  const PerChannel<V, channels_last, A, narrow> shift(t, me, bias, K, e.gain);
  const int64_t end_chunk = narrow ? me.first_chunk + 1 : me.end_chunk;
  const bool again = !narrow && end_chunk - me.first_chunk > 1;
  // The gain goes before the activation.
  const A scale = e.gain * e.scale, share = 1 / A(t.c);
  for (int64_t tile = me.first_tile; tile < t.tiles; tile += me.tile_step) {
    const Held<T, V, channels_last, K, narrow> mine(t, tile, me.column, me.thread_in_column);
    A u[K][V], factor[W] = {};
    // Reads a chunk, and then f(k, how far from the first one it is) for each vector, whose values are in u.
    const auto activate = [&](int64_t chunk, const auto& f) {
      Packed<T, V> held[K];
      mine.read(chunk, x, held);
      mine.for_vectors(chunk, [&](int k, int vec_index, auto further) {
        A b[channels_last ? V : 1];
        shift.get(vec_index, b);
        held[k].unpack(u[k]);
#pragma unroll
        for (int i = 0; i < V; ++i) u[k][i] = scale * u[k][i] + b[channels_last ? i : 0];
        e.activate(u[k], u[k]);
        f(k, further);
      });
    };
    T* row = mine.first(me.first_chunk, y);
    const auto finish = [&](int k, auto further) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        if (norm) u[k][i] *= factor[channels_last ? k % W : i];
        u[k][i] = with_its_sign<T>(u[k][i]);
      }
      store_rounded(row + further, u[k]);
    };
    if constexpr (!norm) {
      activate(me.first_chunk, finish);
    } else {
      for (int64_t chunk = me.first_chunk; chunk < end_chunk; ++chunk)
        activate(chunk, [&](int k, auto) {
#pragma unroll
          for (int i = 0; i < V; ++i) factor[channels_last ? k % W : i] += u[k][i] * u[k][i];
        });
      if constexpr (narrow) sum_in_warp<W>(factor, 1, t.threads_per_column);
      else sum_over_threads(factor, channels_last ? 1 : t.columns_per_block, t.threads_per_column);
#pragma unroll
      for (int w = 0; w < W; ++w) factor[w] = reciprocal_root(factor[w] * share + e.eps);
      mine.write_pixels(r, factor);
      if (!again) mine.for_vectors(me.first_chunk, [&](int k, int, auto further) { finish(k, further); });
      else
        for (int64_t chunk = me.first_chunk; chunk < end_chunk; ++chunk) {
          row = mine.first(chunk, y);
          activate(chunk, finish);
        }
    }
  }
}

// The bias's gradient by columns of a block, times a factor: row `row` of [rows, C], where `first` it is the first to be
// written.
template <int V, bool channels_last, class Me, int K, class A>
__device__ inline void add_bias_gradient(const Tiling& t, const Me& me, int64_t chunk, A factor,
                                         A (&sums)[K][channels_last ? V : 1], A* rows, int64_t row,
                                         bool first) {
#pragma unroll
  for (int k = 0; k < K; ++k) {
    sum_over_threads(sums[k], channels_last ? t.threads_per_column : 1, t.columns_per_block);
    const int64_t vec_index = (chunk * K + k) * t.threads_per_column + me.thread_in_column;
    if (me.column > 0 || vec_index >= t.vectors) continue;
#pragma unroll
    for (int i = 0; i < (channels_last ? V : 1); ++i) {
      A* to = rows + row * t.c + (channels_last ? vec_index * V : vec_index) + i;
      store(to, first ? factor * sums[k][i] : load(to) + factor * sums[k][i]);
    }
  }
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

// y is null where no value of it counts; dr may be null, and db_rows where the bias needs no gradient. The scale, which
// is not 0, goes before the activation, and is taken out of the sums in the end.
template <class T, int V, bool channels_last, bool norm, bool narrow>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    bias_act_backward_kernel(const T* dy, const Acc<T>* dr, const T* y, const Acc<T>* r, T* dx, Acc<T>* db_rows,
                             Coefficients<Acc<T>> e, Tiling t) {
  using A = Acc<T>;
  constexpr int K = kVectors<V, 2>, W = channels_last ? (narrow ? K : 1) : V;
  const WorkItems<channels_last, norm> me(t);
  const int64_t end_chunk = narrow ? me.first_chunk + 1 : me.end_chunk;
  const bool again = !narrow && end_chunk - me.first_chunk > 1;
  const A scale = e.gain * e.scale, share = 1 / A(t.c);
  A db[narrow ? 1 : K][channels_last ? V : 1] = {};
  for (int64_t tile = me.first_tile; tile < t.tiles; tile += me.tile_step) {
    const Held<T, V, channels_last, K, narrow> mine(t, tile, me.column, me.thread_in_column);
    Packed<T, V> held_dy[K], held_y[K] = {};
    const auto read_both = [&](int64_t chunk) {
      mine.read(chunk, dy, held_dy);
      if (y) mine.read(chunk, y, held_y);
    };
    BackwardSums<A, W> sums;
    for (int64_t chunk = me.first_chunk; chunk < end_chunk; ++chunk) {
      read_both(chunk);
      if (norm)
        mine.for_vectors(chunk, [&](int k, int, auto) {
          A dy_k[V], y_k[V];
          held_dy[k].unpack(dy_k);
          held_y[k].unpack(y_k);
#pragma unroll
          for (int i = 0; i < V; ++i) sums.dy_y()[channels_last ? k % W : i] += dy_k[i] * y_k[i];
        });
    }
    A y_factor[W] = {};
    if (norm) {
      const int stride = channels_last ? 1 : t.columns_per_block;
      mine.read_pixels(r, sums.r());
      if (dr) mine.read_pixels(dr, sums.dr());
      if constexpr (narrow) {
        sum_in_warp<W>(sums.dy_y(), stride, t.threads_per_column);
        mine.from_first_thread(sums.r());
        if (dr) mine.from_first_thread(sums.dr());
      } else {
        sum_over_threads(sums.all, stride, t.threads_per_column);
      }
#pragma unroll
      for (int w = 0; w < W; ++w) {
        y_factor[w] = scale * (sums.r()[w] * (sums.dy_y()[w] + sums.r()[w] * sums.dr()[w]) * share);
        sums.r()[w] *= scale;
      }
      pack_again(held_dy);
      pack_again(held_y);
    }
    for (int64_t chunk = me.first_chunk; chunk < end_chunk; ++chunk) {
      if (again) read_both(chunk);
      T* row = mine.first(chunk, dx);
      mine.for_vectors(chunk, [&](int k, int, auto further) {
        A values[V], y_k[V];
        held_dy[k].unpack(values);
        held_y[k].unpack(y_k);
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const int w = channels_last ? k % W : i;
          values[i] = norm ? sums.r()[w] * values[i] - y_factor[w] * y_k[i] : scale * values[i];
        }
        e.activate(values, y_k);
#pragma unroll
        for (int i = 0; i < V; ++i) db[narrow ? 0 : k][channels_last ? i : 0] += values[i];
        store_rounded(row + further, values);
      });
      if (again && db_rows) {
        add_bias_gradient<V, channels_last>(t, me, chunk, 1 / e.scale, db, db_rows, blockIdx.x, tile == me.first_tile);
#pragma unroll
        for (int k = 0; k < (narrow ? 1 : K); ++k)
#pragma unroll
          for (int i = 0; i < (channels_last ? V : 1); ++i) db[k][i] = 0;
      }
    }
  }
  if (db_rows && !again)
    add_bias_gradient<V, channels_last>(t, me, me.first_chunk, 1 / e.scale, db, db_rows, me.first_tile, true);
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
  const PerChannel<V, channels_last, A> g_bias(t, me, a.g_bias, K, e.gain);
  const A scale = e.gain * e.scale;
  for (int64_t tile = me.first_tile; tile < t.tiles; tile += me.tile_step) {
    const Held<T, V, channels_last, K> mine(t, tile, me.column, me.thread_in_column);
    const bool again = me.end_chunk - me.first_chunk > 1;
    Packed<T, V> held_g[K] = {}, held_dy[K], held_y[K] = {};
    const auto read_all = [&](int64_t chunk) {
      if (a.g) mine.read(chunk, a.g, held_g);
      if (norm) mine.read(chunk, a.dy, held_dy);
      if (a.y) mine.read(chunk, a.y, held_y);
    };
    // f(i, h, dy, y, how far the vector is from the first one) for each element that this thread holds.
    const auto for_elements = [&](int64_t chunk, const auto& f) {
      mine.for_vectors(chunk, [&](int k, int vec_index, auto further) {
        A g_k[V], dy_k[V], y_k[V], b[channels_last ? V : 1];
        held_g[k].unpack(g_k);
        held_dy[k].unpack(dy_k);
        held_y[k].unpack(y_k);
        g_bias.get(vec_index, b);
#pragma unroll
        for (int i = 0; i < V; ++i) g_k[i] = scale * g_k[i] + b[channels_last ? i : 0];
        e.activate(g_k, y_k);
#pragma unroll
        for (int i = 0; i < V; ++i) f(i, g_k[i], dy_k[i], y_k[i], further);
      });
    };
    DoubleBackwardSums<A, W> sums;
    for (int64_t chunk = me.first_chunk; chunk < me.end_chunk; ++chunk) {
      read_all(chunk);
      if (norm)
        for_elements(chunk, [&](int i, A h, A dy, A y, auto) {
          const int w = channels_last ? 0 : i;
          sums.dy_y()[w] += dy * y;
          sums.h_y()[w] += h * y;
          sums.h_dy()[w] += h * dy;
        });
    }
    // d(dy) = r h + cross y and d(y) = h_factor h + cross dy
    A h_factor[W] = {}, cross[W] = {};
    if (norm) {
      mine.read_pixels(a.r, sums.r());
      mine.read_pixels(a.dr, sums.dr());
      sum_over_threads(sums.all, channels_last ? 1 : t.columns_per_block, t.threads_per_column);
#pragma unroll
      for (int w = 0; w < W; ++w) {
        const A r = sums.r()[w], dr = sums.dr()[w], m = sums.dy_y()[w] / A(t.c), q = sums.h_y()[w] / A(t.c);
        h_factor[w] = -r * (m + r * dr / A(t.c));
        cross[w] = -r * q;
        if (mine.exists() && me.thread_in_column == 0) {
          store(a.d_r + mine.pixel + w, sums.h_dy()[w] - m * sums.h_y()[w] + 2 * dr * cross[w]);
          store(a.d_dr + mine.pixel + w, r * cross[w]);
        }
      }
      pack_again(held_g);
      pack_again(held_dy);
      pack_again(held_y);
    }
    for (int64_t chunk = me.first_chunk; chunk < me.end_chunk; ++chunk) {
      if (again) read_all(chunk);
      A d_dy[V], d_y[V];
      T* row = mine.first(chunk, a.d_dy);
      T* d_y_row = mine.first(chunk, a.d_y);
      for_elements(chunk, [&](int i, A h, A dy, A y, auto further) {
        const int w = channels_last ? 0 : i;
        d_dy[i] = norm ? sums.r()[w] * h + cross[w] * y : h;
        d_y[i] = h_factor[w] * h + cross[w] * dy;
        if (i == V - 1) {
          store_rounded(row + further, d_dy);
          if (norm) store_rounded(d_y_row + further, d_y);
        }
      });
    }
  }
}

}  // namespace pggan_fast
