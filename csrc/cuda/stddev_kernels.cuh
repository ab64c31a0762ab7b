// minibatch_stddev and its gradients; the formulas stand in pggan_fast/ops/stddev.py. A thread takes V neighbouring
// positions of all samples of a group. Up to kHeld samples stay in its registers between the passes over them; of
// larger groups the gradients read the others again, from cache where it holds them.
#pragma once

#include "vec.cuh"

namespace pggan_fast {

constexpr int kHeld = 4;

// groups x group samples of `rows` rows of `row_len` values. A tensor with maps has maps x map_len more behind each
// row. contiguous: one row of C P values, map_len P; channels_last: P rows of C values, map_len 1.
struct Samples {
  int64_t groups, group, maps, rows, row_len, map_len;
  bool strided;

  // Blocks that share the positions of one map of one group; each leaves one sum.
  int64_t blocks;

  C10_HOST_DEVICE int64_t positions() const { return rows * (row_len / maps); }
  C10_HOST_DEVICE int64_t wide_row() const { return row_len + maps * map_len; }
  C10_HOST_DEVICE int64_t sample(int64_t index_of_group, int64_t index) const {
    return strided ? index * groups + index_of_group : index_of_group * group + index;
  }
};

// The sum of v over all threads of the block.
__device__ inline double block_sum(double v) {
  double sum[1] = {v};
  sum_over_threads(sum, 1, kThreads);
  return sum[0];
}

// *p, read once for the block.
__device__ inline double from_first_thread(const double* p) { return block_sum(threadIdx.x == 0 ? load(p) : 0.0); }

// V positions of one map of one group, in tensors like x (narrow) and in those with maps (wide).
template <int V>
struct Positions {
  int64_t narrow, wide;                // of the group's first sample
  int64_t narrow_stride, wide_stride;  // from one sample of the group to the next

  __device__ Positions(const Samples& s, int64_t group, int64_t map, int64_t position) {
    const int64_t len = s.row_len / s.maps, column = map * len + position % len;
    const int64_t row = s.sample(group, 0) * s.rows + position / len, stride = s.strided ? s.groups : 1;
    narrow = row * s.row_len + column;
    wide = row * s.wide_row() + column;
    narrow_stride = stride * s.rows * s.row_len;
    wide_stride = stride * s.rows * s.wide_row();
  }
};

// f(positions) for this thread's positions; the block's share of one map of one group.
template <int V, class F>
__device__ inline void for_positions(const Samples& s, const F& f) {
  const int64_t share = blockIdx.x / s.blocks, map = share % s.maps, group = share / s.maps;
  const int64_t first = (blockIdx.x % s.blocks * kThreads + threadIdx.x) * V, step = s.blocks * kThreads * V;
  for (int64_t i = first; i < s.positions(); i += step) f(Positions<V>(s, group, map, i));
}

// f(index in the group, whether it is one of the first kHeld, known to the compiler).
template <class F>
__device__ inline void for_samples(const Samples& s, const F& f) {
#pragma unroll
  for (int i = 0; i < kHeld; ++i)
    if (i < s.group) f(i, std::true_type{});
  for (int64_t i = kHeld; i < s.group; ++i) f(int(i), std::false_type{});
}

// The values of a group at V positions.
template <class T, int V>
struct Values {
  Packed<T, V> held[kHeld];
  const T* from;
  int64_t stride;

  __device__ Values(const Samples& s, const T* from, int64_t stride) : from(from), stride(stride) {
    for_samples(s, [&](int i, auto is_held) {
      if constexpr (decltype(is_held)::value) held[i] = load_packed<T, V>(from + i * stride);
    });
  }
  template <class Held>
  __device__ Vec<T, V> get(int i, Held) const {
    if constexpr (Held::value) return held[i].unpack();
    else return load_vec<T, V>(from + i * stride);
  }
  __device__ void pack_again() {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) held[i].pack_again();
  }
};

// The mean over a group at V positions. It is rounded, so the distances from it do not sum to zero: their own mean,
// `rest`, is taken off as well. Gradients keep the digits that the values share.
template <class A, int V>
struct Mean {
  A mean[V] = {}, rest[V] = {};
  __device__ A distance(A value, int v) const { return (value - mean[v]) - rest[v]; }
};

// var + eps, from squared distances that sum to `squares`, where distances sum to `sum` and have the mean `rest`. Of
// equal values rounding leaves a little of zero, and no less than zero. What overflows stays infinite, and NaN stays NaN.
template <class A>
__device__ inline A variance_of(A squares, A sum, A rest, A divisor, A eps) {
  const A centred = squares - sum * rest;
  return (centred < 0 ? A(0) : centred != centred ? squares : centred) * (A(1) / divisor) + eps;
}

// Mean and var + eps over a group at V positions.
template <class A, int V>
struct Moments : Mean<A, V> {
  A variance[V] = {};

  template <class T>
  __device__ Moments(const Samples& s, Values<T, V>& x, A divisor, A eps) {
    for_samples(s, [&](int i, auto held) {
      const Vec<T, V> vec = x.get(i, held);
#pragma unroll
      for (int v = 0; v < V; ++v) this->mean[v] += A(vec.v[v]);
    });
#pragma unroll
    for (int v = 0; v < V; ++v) this->mean[v] *= A(1) / A(s.group);
    x.pack_again();
    A sum[V] = {};
    for_samples(s, [&](int i, auto held) {
      const Vec<T, V> vec = x.get(i, held);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A d = A(vec.v[v]) - this->mean[v];
        sum[v] += d;
        variance[v] += d * d;
      }
    });
#pragma unroll
    for (int v = 0; v < V; ++v) {
      this->rest[v] = sum[v] * (A(1) / A(s.group));
      variance[v] = variance_of(variance[v], sum[v], this->rest[v], divisor, eps);
    }
    x.pack_again();
  }
};

// Copies x to y; each block leaves the sum of its deviations.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    stddev_forward_kernel(const T* x, T* y, double* sums, Acc<T> divisor, Acc<T> eps, Samples s) {
  using A = Acc<T>;
  double total = 0;
  for_positions<V>(s, [&](const Positions<V>& at) {
    Values<T, V> values(s, x + at.narrow, at.narrow_stride);
    for_samples(s, [&](int i, auto held) { store_vec(y + at.wide + i * at.wide_stride, values.get(i, held)); });
    const Moments<A, V> moments(s, values, divisor, eps);
#pragma unroll
    for (int v = 0; v < V; ++v) total += sqrt(moments.variance[v]);
  });
  total = block_sum(total);
  if (threadIdx.x == 0) store(sums + blockIdx.x, total);
}

// Fills the maps of every sample with its group's sum of `blocks` sums, times factor. A block fills one map.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    write_maps_kernel(const double* sums, T* y, double factor, Samples s) {
  const int64_t map = blockIdx.x % s.maps, index = blockIdx.x / s.maps % s.group;
  const int64_t group = blockIdx.x / s.maps / s.group;
  double total = 0;
  const double* of_map = sums + (group * s.maps + map) * s.blocks;
  for (int64_t i = threadIdx.x; i < s.blocks; i += kThreads) total += load(of_map + i);
  const T value = static_cast<T>(static_cast<Acc<T>>(block_sum(total) * factor));
  T* to = y + s.sample(group, index) * s.rows * s.wide_row() + s.row_len + map * s.map_len;
  for (int64_t i = threadIdx.x; i < s.rows * s.map_len; i += kThreads)
    store(to + i / s.map_len * s.wide_row() + i % s.map_len, value);
}

// T of the formulas, times factor: the sum of dy's map over a group and all pixels. A block for each group and map.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    sum_maps_kernel(const T* dy, double* gradients, double factor, Samples s) {
  const int64_t map = blockIdx.x % s.maps, group = blockIdx.x / s.maps, pixels = s.rows * s.map_len;
  double total = 0;
  for (int64_t i = threadIdx.x; i < s.group * pixels; i += kThreads) {
    const T* from = dy + s.sample(group, i / pixels) * s.rows * s.wide_row() + s.row_len + map * s.map_len;
    const int64_t pixel = i % pixels;
    total += Acc<T>(load(from + pixel / s.map_len * s.wide_row() + pixel % s.map_len));
  }
  total = block_sum(total);
  if (threadIdx.x == 0) store(gradients + blockIdx.x, total * factor);
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    stddev_backward_kernel(const T* dy, const T* x, const double* gradients, T* dx, Acc<T> divisor, Acc<T> eps,
                           Samples s) {
  using A = Acc<T>;
  const A gradient = A(from_first_thread(gradients + blockIdx.x / s.blocks));
  for_positions<V>(s, [&](const Positions<V>& at) {
    Values<T, V> values(s, x + at.narrow, at.narrow_stride), incoming(s, dy + at.wide, at.wide_stride);
    const Moments<A, V> moments(s, values, divisor, eps);
    A slope[V];
#pragma unroll
    for (int v = 0; v < V; ++v) slope[v] = gradient * reciprocal_root(moments.variance[v]);
    for_samples(s, [&](int i, auto held) {
      const Vec<T, V> x_i = values.get(i, held), dy_i = incoming.get(i, held);
      A out[V];
#pragma unroll
      for (int v = 0; v < V; ++v) out[v] = A(dy_i.v[v]) + slope[v] * moments.distance(A(x_i.v[v]), v);
      store_rounded(dx + at.narrow + i * at.narrow_stride, out);
    });
  });
}

// Copies g to d_dy; each block leaves its sum of a / s.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    stddev_double_backward_kernel(const T* g, const T* x, const double* gradients, T* d_dy, T* dx, double* sums,
                                  Acc<T> divisor, Acc<T> eps, Samples s) {
  using A = Acc<T>;
  const A gradient = A(from_first_thread(gradients + blockIdx.x / s.blocks));
  double total = 0;
  for_positions<V>(s, [&](const Positions<V>& at) {
    Values<T, V> values(s, x + at.narrow, at.narrow_stride), of_dx(s, g + at.narrow, at.narrow_stride);
    Mean<A, V> of_x, of_g;
    const A share = A(1) / A(s.group);
    for_samples(s, [&](int i, auto held) {
      const Vec<T, V> x_i = values.get(i, held), g_i = of_dx.get(i, held);
      store_vec(d_dy + at.wide + i * at.wide_stride, g_i);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        of_x.mean[v] += A(x_i.v[v]);
        of_g.mean[v] += A(g_i.v[v]);
      }
    });
#pragma unroll
    for (int v = 0; v < V; ++v) {
      of_x.mean[v] *= share;
      of_g.mean[v] *= share;
    }
    values.pack_again();
    of_dx.pack_again();
    A squares[V] = {}, a[V] = {};
    for_samples(s, [&](int i, auto held) {
      const Vec<T, V> x_i = values.get(i, held), g_i = of_dx.get(i, held);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A d = A(x_i.v[v]) - of_x.mean[v], h = A(g_i.v[v]) - of_g.mean[v];
        of_x.rest[v] += d;
        of_g.rest[v] += h;
        squares[v] += d * d;
        a[v] += d * h;
      }
    });
    // dx = T (h - d a / (s^2 D)) / s, with the distances d of x and h of g from their means. Of two samples, h is a
    // multiple of d and the difference nothing but what eps leaves of h: less than rounding would.
    const bool is_pair = s.group == 2;
    // The means' rests, which both distances take off, are one constant for all samples: registers are short here.
    A of_h[V], of_d[V], rest[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A x_sum = of_x.rest[v];
      of_x.rest[v] *= share;
      of_g.rest[v] *= share;
      a[v] -= x_sum * of_g.rest[v];
      const A inverse = reciprocal_root(variance_of(squares[v], x_sum, of_x.rest[v], divisor, eps));
      const A slope = gradient * inverse;
      of_h[v] = is_pair ? slope * (eps * inverse * inverse) : slope;
      of_d[v] = is_pair ? A(0) : slope * (a[v] * inverse * inverse * (A(1) / divisor));
      rest[v] = of_h[v] * of_g.rest[v] - of_d[v] * of_x.rest[v];
      total += a[v] * inverse;
    }
    values.pack_again();
    of_dx.pack_again();
    for_samples(s, [&](int i, auto held) {
      const Vec<T, V> x_i = values.get(i, held), g_i = of_dx.get(i, held);
      A out[V];
#pragma unroll
      for (int v = 0; v < V; ++v)
        out[v] = of_h[v] * (A(g_i.v[v]) - of_g.mean[v]) - of_d[v] * (A(x_i.v[v]) - of_x.mean[v]) - rest[v];
      store_rounded(dx + at.narrow + i * at.narrow_stride, out);
    });
  });
  total = block_sum(total);
  if (threadIdx.x == 0) store(sums + blockIdx.x, total);
}

}  // namespace pggan_fast
