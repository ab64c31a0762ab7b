// 1 x 1 convolutions between images of few channels and tensors of many, channels_last: passes over the wide tensor,
// with the pixels of the narrow one in shared memory, into which a block copies them as they lie in a row.
#pragma once

#include "sign_bits.cuh"

namespace pggan_fast {

// narrow [pixels, CN], wide [pixels, C], weight [C, CN] through strides.
struct ConvRGB {
  const void* narrow;
  const void* wide;
  void* out;
  const float* weight;
  int64_t w_wide, w_narrow;
  const float* bias;        // or null
  const uint8_t* mask;      // sign bits of the wide tensor, or null
  uint8_t* sign_bits;       // or null: written
  float* sum_rows;          // of the weight's gradient: [blocks][CN, C; the sums of wide, or of narrow]
  // The slope of positive values is in scale and bias_scale; `slope` is that of others over it.
  float scale, bias_scale, slope;
  Rows rows;  // of the wide tensor
};

struct NarrowPixels;

// Most pixels of a tile: where a pixel has two vectors.
template <class T, int CN>
__device__ inline float* narrow_pixels() {
  return shared_array<NarrowPixels, float, kTileVectors / (sizeof(T) == 4 ? 4 : 2) * CN>();
}

// Copies the narrow tensor's pixels of a tile into shared memory. Every thread of the block must call it.
template <class T, int CN>
__device__ inline void read_narrow(const ConvRGB& a, int64_t tile, float* to) {
  const int count = int(min(a.rows.vectors - tile, int64_t(kTileVectors))) >> a.rows.log_per_pixel;
  const T* from = static_cast<const T*>(a.narrow) + (tile >> a.rows.log_per_pixel) * CN;
  __syncthreads();  // the last tile's have been read
  for (int i = threadIdx.x; i < count * CN; i += kThreads) to[i] = float(load(from + i));
  __syncthreads();
}

template <int CN, int V>
__device__ inline void read_weight(const ConvRGB& a, float (&weight)[CN][V]) {
  const int channel = a.rows.vector_of_pixel() * V;
#pragma unroll
  for (int n = 0; n < CN; ++n)
#pragma unroll
    for (int i = 0; i < V; ++i)
      weight[n][i] = a.scale * load(a.weight + (channel + i) * a.w_wide + n * a.w_narrow);
}

// out = the activation of the products of narrow and weight; where masked, times the slopes that the mask says.
template <class T, int CN, bool masked>
__global__ void __launch_bounds__(kThreads, 2) conv_rgb_expand_kernel(ConvRGB a) {
  constexpr int V = 16 / sizeof(T);
  float* pixels = narrow_pixels<T, CN>();
  float weight[CN][V], bias[V];
  read_weight(a, weight);
#pragma unroll
  for (int i = 0; i < V; ++i)
    bias[i] = a.bias ? a.bias_scale * load(a.bias + a.rows.vector_of_pixel() * V + i) : 0.0f;
  const float* mine = pixels + (threadIdx.x >> a.rows.log_per_pixel) * CN;
  const int step = (kThreads >> a.rows.log_per_pixel) * CN;
  const Tiles tiles(a.rows);
  for (int64_t tile = tiles.first; tile < tiles.end; tile += tiles.step) {
    T* out = static_cast<T*>(a.out) + (tile + threadIdx.x) * V;
    const SignBits<V, const uint8_t> mask(a.mask, tile, a.rows);
    const SignBits<V, uint8_t> signs(a.sign_bits, tile, a.rows);
    read_narrow<T, CN>(a, tile, pixels);
    for_rows(a.rows, tile, [&](int k, bool exists) {
      unsigned byte = masked && exists ? mask.read(k) : 0;
      float pixel[CN], values[V];
#pragma unroll
      for (int n = 0; n < CN; ++n) pixel[n] = mine[k * step + n];
#pragma unroll
      for (int i = 0; i < V; ++i) {
        values[i] = bias[i];
#pragma unroll
        for (int n = 0; n < CN; ++n) values[i] += pixel[n] * weight[n][i];
        if (!masked && values[i] > 0) byte |= 1u << i;
        if (masked ? !(byte >> i & 1) : !(values[i] > 0)) values[i] *= a.slope;
      }
      if (exists) store_rounded(out + k * kThreads * V, values);
      if (!masked && a.sign_bits) signs.write(k, byte, exists);
    });
  }
}

// Vectors of the wide tensor and what the mask says of them, if there is one.
template <class T, int V>
__device__ inline void read_wide(const ConvRGB& a, int64_t tile, Packed<T, V> (&held)[kVectorsAtOnce],
                                 unsigned (&bits)[kVectorsAtOnce]) {
  const T* from = static_cast<const T*>(a.wide) + (tile + threadIdx.x) * V;
  const SignBits<V, const uint8_t> mask(a.mask, tile, a.rows);
  for_rows(a.rows, tile, [&](int k, bool exists) {
    bits[k] = ~0u;
    if (!exists) return;
    held[k] = load_packed<T, V>(from + k * kThreads * V);
    if (a.mask) bits[k] = mask.read(k);
  });
}

// In fp32, taken back through the activation.
template <class T, int V>
__device__ inline void unmask(const ConvRGB& a, const Packed<T, V>& held, unsigned bits, float (&to)[V]) {
  const Vec<T, V> values = held.unpack();
#pragma unroll
  for (int i = 0; i < V; ++i) {
    to[i] = float(values.v[i]);
    if (!(bits >> i & 1)) to[i] *= a.slope;
  }
}

// out [pixels, CN] = the products of wide and weight, + bias.
template <class T, int CN>
__global__ void __launch_bounds__(kThreads, 2) conv_rgb_reduce_kernel(ConvRGB a) {
  constexpr int V = 16 / sizeof(T), K = kVectorsAtOnce;
  float weight[CN][V], bias[CN];
  read_weight(a, weight);
#pragma unroll
  for (int n = 0; n < CN; ++n) bias[n] = a.bias ? a.bias_scale * load(a.bias + n) : 0.0f;
  const int step = (kThreads >> a.rows.log_per_pixel) * CN;
  const Tiles tiles(a.rows);
  for (int64_t tile = tiles.first; tile < tiles.end; tile += tiles.step) {
    Packed<T, V> held[K] = {};
    unsigned bits[K];
    read_wide(a, tile, held, bits);
    float sums[K * CN] = {};
#pragma unroll
    for (int k = 0; k < K; ++k) {
      float values[V];
      unmask(a, held[k], bits[k], values);
#pragma unroll
      for (int n = 0; n < CN; ++n)
#pragma unroll
        for (int i = 0; i < V; ++i) sums[k * CN + n] += values[i] * weight[n][i];
    }
    sum_over_threads(sums, 1, a.rows.per_pixel);
    T* out = static_cast<T*>(a.out) + ((tile + threadIdx.x) >> a.rows.log_per_pixel) * CN;
    for_rows(a.rows, tile, [&](int k, bool exists) {
      if (!exists || a.rows.vector_of_pixel()) return;
#pragma unroll
      for (int n = 0; n < CN; ++n) store(out + k * step + n, static_cast<T>(sums[k * CN + n] + bias[n]));
    });
  }
}

// A row of sums for each block: of the products of wide and narrow over all pixels, and of one of the two alone.
template <class T, int CN, bool sums_narrow>
__global__ void __launch_bounds__(kThreads, 2) conv_rgb_weight_gradient_kernel(ConvRGB a) {
  constexpr int V = 16 / sizeof(T), K = kVectorsAtOnce, kAlone = sums_narrow ? CN : V;
  float* pixels = narrow_pixels<T, CN>();
  float sums[CN * V + kAlone] = {};
  const float* mine = pixels + (threadIdx.x >> a.rows.log_per_pixel) * CN;
  const int step = (kThreads >> a.rows.log_per_pixel) * CN;
  const Tiles tiles(a.rows);
  for (int64_t tile = tiles.first; tile < tiles.end; tile += tiles.step) {
    Packed<T, V> held[K] = {};
    unsigned bits[K];
    read_wide(a, tile, held, bits);
    read_narrow<T, CN>(a, tile, pixels);
    for_rows(a.rows, tile, [&](int k, bool exists) {
      if (!exists) return;
      float values[V], pixel[CN];
      unmask(a, held[k], bits[k], values);
#pragma unroll
      for (int n = 0; n < CN; ++n) pixel[n] = mine[k * step + n];
#pragma unroll
      for (int i = 0; i < V; ++i)
#pragma unroll
        for (int n = 0; n < CN; ++n) sums[n * V + i] += values[i] * pixel[n];
#pragma unroll
      for (int i = 0; i < kAlone; ++i) sums[CN * V + i] += sums_narrow ? pixel[i % CN] : values[i % V];
    });
  }
  sum_over_threads(sums, a.rows.per_pixel, kThreads / a.rows.per_pixel);
  if (int(threadIdx.x) >= a.rows.per_pixel) return;
  const int c = a.rows.per_pixel * V;
  float* row = a.sum_rows + int64_t(blockIdx.x) * (CN * c + (sums_narrow ? CN : c));
#pragma unroll
  for (int n = 0; n < CN; ++n)
#pragma unroll
    for (int i = 0; i < V; ++i) store(row + n * c + threadIdx.x * V + i, a.scale * sums[n * V + i]);
  // Each thread of a pixel has the narrow tensor's sums.
  if (sums_narrow && threadIdx.x) return;
#pragma unroll
  for (int i = 0; i < kAlone; ++i) store(row + CN * c + threadIdx.x * V + i, a.bias_scale * sums[CN * V + i]);
}

}  // namespace pggan_fast
