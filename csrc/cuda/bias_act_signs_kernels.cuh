// bias_act without pixel norm where its sign bits are kept, and its gradient by them: the activation is leaky ReLU.
#pragma once

#include "sign_bits.cuh"

namespace pggan_fast {

struct Slopes {
  float scale, positive, negative;
};

// Gives a zero a sign, and is lost in every other value.
constexpr float kBelowZero = -0x1p-149f;

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
  with_words<V>(rows, [&](auto half) {
    const Tiles tiles(rows);
    for (int64_t tile = tiles.first; tile < tiles.end; tile += tiles.step) {
      T* at = x + (tile + threadIdx.x) * V;
      const SignBits<V, uint8_t, decltype(half)> signs(bits, tile, rows);
      Packed<T, V> held[kVectorsAtOnce] = {};
      for_full_rows(rows, tile, [&](int k, bool exists) {
        if (exists) held[k] = load_packed<T, V>(at + k * kThreads * V);
      });
      for_full_rows(rows, tile, [&](int k, bool exists) {
        float values[V];
        held[k].unpack(values);
#pragma unroll
        for (int i = 0; i < V; ++i) {
          values[i] = scale * values[i] + shift[i];
          if (!(values[i] > 0)) values[i] = values[i] * slope + kBelowZero;
        }
        unsigned byte = 0;
        if (exists) byte = store_with_signs(at + k * kThreads * V, values);
        signs.write(k, byte, exists);
      });
    }
  });
}

// dx, and where sum_rows is not null a row of the bias's gradient for each block. The scale, which is not 0, is in the
// slopes, and taken out of the sums in the end.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    bias_act_signs_backward_kernel(const T* dy, const uint8_t* bits, T* dx, float* sum_rows, Slopes e, Rows rows) {
  constexpr int V = 16 / sizeof(T);
  const float positive = e.scale * e.positive, negative = e.scale * e.negative;
  float db[V] = {};
  with_words<V>(rows, [&](auto half) {
    const Tiles tiles(rows);
    for (int64_t tile = tiles.first; tile < tiles.end; tile += tiles.step) {
      const int64_t mine = (tile + threadIdx.x) * V;
      const SignBits<V, const uint8_t, decltype(half)> signs(bits, tile, rows);
      Packed<T, V> held[kVectorsAtOnce] = {};
      unsigned byte[kVectorsAtOnce] = {};
      for_full_rows(rows, tile, [&](int k, bool exists) {
        if (!exists) return;
        held[k] = load_packed<T, V>(dy + mine + k * kThreads * V);
        byte[k] = signs.read(k);
      });
      for_full_rows(rows, tile, [&](int k, bool exists) {
        float values[V];
        held[k].unpack(values);
#pragma unroll
        for (int i = 0; i < V; ++i) {
          values[i] *= byte[k] >> i & 1 ? positive : negative;
          db[i] += values[i];
        }
        if (exists) store_rounded(dx + mine + k * kThreads * V, values);
      });
    }
  });
  if (!sum_rows) return;
  sum_over_threads(db, rows.per_pixel, kThreads / rows.per_pixel);
  if (int(threadIdx.x) < rows.per_pixel)
#pragma unroll
    for (int i = 0; i < V; ++i)
      store(sum_rows + (int64_t(blockIdx.x) * rows.per_pixel + threadIdx.x) * V + i, db[i] / e.scale);
}

}  // namespace pggan_fast
