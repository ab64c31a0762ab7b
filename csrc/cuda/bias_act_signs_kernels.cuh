// bias_act without pixel norm where its sign bits are kept, and its gradient by them: the activation is leaky ReLU.
#pragma once

#include "sign_bits.cuh"

namespace pggan_fast {

struct Slopes {
  float scale, positive, negative;
};

// x becomes the activation of scale * x + bias.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    bias_act_signs_forward_kernel(T* x, const float* bias, uint8_t* bits, Slopes e, Rows rows) {
  constexpr int V = 16 / sizeof(T);
  // The slope of positive values goes before the activation.
  const float scale = e.scale * e.positive, slope = e.negative / e.positive;
  float shift[V];
#pragma unroll
  for (int i = 0; i < V; ++i) shift[i] = bias ? e.positive * load(bias + rows.vector_of_pixel() * V + i) : 0.0f;
  const Tiles tiles(rows);
  for (int64_t tile = tiles.first; tile < tiles.end; tile += tiles.step) {
    T* at = x + (tile + threadIdx.x) * V;
    const SignBits<V, uint8_t> signs(bits, tile, rows);
    Packed<T, V> held[kVectorsAtOnce] = {};
    for_rows(rows, tile, [&](int k, bool exists) {
      if (exists) held[k] = load_packed<T, V>(at + k * kThreads * V);
    });
    for_rows(rows, tile, [&](int k, bool exists) {
      const Vec<T, V> x_k = held[k].unpack();
      float values[V];
      unsigned byte = 0;
#pragma unroll
      for (int i = 0; i < V; ++i) {
        values[i] = scale * float(x_k.v[i]) + shift[i];
        if (values[i] > 0) byte |= 1u << i;
        else values[i] *= slope;
      }
      if (exists) store_rounded(at + k * kThreads * V, values);
      signs.write(k, byte, exists);
    });
  }
}

// dx, and where sum_rows is not null a row of the bias's gradient for each block.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    bias_act_signs_backward_kernel(const T* dy, const uint8_t* bits, T* dx, float* sum_rows, Slopes e, Rows rows) {
  constexpr int V = 16 / sizeof(T);
  float db[V] = {};
  const Tiles tiles(rows);
  for (int64_t tile = tiles.first; tile < tiles.end; tile += tiles.step) {
    const int64_t mine = (tile + threadIdx.x) * V;
    const SignBits<V, const uint8_t> signs(bits, tile, rows);
    Packed<T, V> held[kVectorsAtOnce] = {};
    unsigned positive[kVectorsAtOnce] = {};
    for_rows(rows, tile, [&](int k, bool exists) {
      if (!exists) return;
      held[k] = load_packed<T, V>(dy + mine + k * kThreads * V);
      positive[k] = signs.read(k);
    });
    for_rows(rows, tile, [&](int k, bool exists) {
      const Vec<T, V> dy_k = held[k].unpack();
      float values[V];
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const float du = float(dy_k.v[i]) * (positive[k] >> i & 1 ? e.positive : e.negative);
        db[i] += du;
        values[i] = e.scale * du;
      }
      if (exists) store_rounded(dx + mine + k * kThreads * V, values);
    });
  }
  if (!sum_rows) return;
  sum_over_threads(db, rows.per_pixel, kThreads / rows.per_pixel);
  if (int(threadIdx.x) < rows.per_pixel)
#pragma unroll
    for (int i = 0; i < V; ++i)
      store(sum_rows + (int64_t(blockIdx.x) * rows.per_pixel + threadIdx.x) * V + i, db[i]);
}

}  // namespace pggan_fast
