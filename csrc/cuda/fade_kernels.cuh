// fade_in, fade_reals and gradients, on the cells of resample_kernels.cuh.
#pragma once

#include "resample_kernels.cuh"

namespace pggan_fast {

// The weight of the new path: one value of device memory, or a number where there is none. Every thread reads the same
// address, which costs a warp one request and memory nothing: it is not counted among the bytes of a launch.
template <class A>
struct Alpha {
  const float* tensor;
  A number;
  __device__ A value() const { return tensor ? A(*tensor) : number; }
};

// torch.lerp: steps from the nearer of the two images, so that a weight of 0 or 1 gives one of them to the bit, and the
// rounding of a large one does not swallow the digits of the other.
template <class A>
__device__ inline A lerp(A old, A fresh, A alpha) {
  return fabs(alpha) < A(0.5) ? old + (fresh - old) * alpha : fresh + (old - fresh) * (1 - alpha);
}

template <class T, int V, bool channels_last>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    fade_in_kernel(const T* low, const T* high, T* out, Alpha<Acc<T>> weight, Grid g) {
  using A = Acc<T>;
  const A alpha = weight.value();
  for_cell<V, channels_last>(g, [&](const Cell<V, channels_last>& cell) {
    const Vec<T, V> vec = load_vec<T, V>(low + cell.low);
    A values[2][2][V];
    load_high(g, cell, high, values);
    for_high<V>([&](int r, int s, int v) {
      const A old = A(vec.v[low_of<V, channels_last>(s, v)]);
      values[r][s][v] = lerp(old, values[r][s][v], alpha);
    });
    store_high(g, cell, out, values);
  });
}

template <class T, int V, bool channels_last>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    fade_in_backward_kernel(const T* dy, T* d_low, T* d_high, Alpha<Acc<T>> weight, Grid g) {
  using A = Acc<T>;
  const A alpha = weight.value();
  for_cell<V, channels_last>(g, [&](const Cell<V, channels_last>& cell) {
    A values[2][2][V], sums[V] = {};
    load_high(g, cell, dy, values);
    // Scaled first: the sum of what 1 - alpha leaves nothing of may be no number.
    for_high<V>([&](int r, int s, int v) { sums[low_of<V, channels_last>(s, v)] += (1 - alpha) * values[r][s][v]; });
    store_rounded(d_low + cell.low, sums);
    for_high<V>([&](int r, int s, int v) { values[r][s][v] *= alpha; });
    store_high(g, cell, d_high, values);
  });
}

// Of paths of one size; alpha is rounded to T, as torch.lerp takes it forward.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    blend_backward_kernel(const T* dy, T* d_old, T* d_new, Alpha<Acc<T>> weight, int64_t vectors) {
  using A = Acc<T>;
  const int64_t vector = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (vector >= vectors) return;
  const A alpha = weight.tensor ? A(static_cast<T>(weight.value())) : weight.number;
  A values[V], rest[V];
  load_packed<T, V>(dy + vector * V).unpack(values);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    rest[i] = (1 - alpha) * values[i];
    values[i] *= alpha;
  }
  store_rounded(d_old + vector * V, rest);
  store_rounded(d_new + vector * V, values);
}

// H is T, or bytes, which become -1..1.
template <class T, class H, int V, bool channels_last>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    fade_reals_kernel(const H* images, T* out, Alpha<Acc<T>> weight, Grid g) {
  using A = Acc<T>;
  const A alpha = weight.value();
  for_cell<V, channels_last>(g, [&](const Cell<V, channels_last>& cell) {
    A values[2][2][V], sums[V] = {};
    load_high(g, cell, images, values);
    if constexpr (std::is_same_v<H, uint8_t>)
      for_high<V>([&](int r, int s, int v) { values[r][s][v] = values[r][s][v] * A(2.0 / 255) - 1; });
    sum_high<A, V, channels_last>(values, sums);
    for_high<V>([&](int r, int s, int v) {
      const A coarse = sums[low_of<V, channels_last>(s, v)] / 4;
      values[r][s][v] = lerp(coarse, values[r][s][v], alpha);
    });
    store_high(g, cell, out, values);
  });
}

}  // namespace pggan_fast
