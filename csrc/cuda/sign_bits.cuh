// Passes over channels_last tensors whose channels are a power of two, and the sign bits of such a tensor: one int for a
// pixel and 32 channels, [pixels, C / 32], where 16 channels fill the lower half of theirs.
#pragma once

#include "launch.cuh"
#include "vec.cuh"

namespace pggan_fast {

// A tensor [pixels, C] as vectors of 16 bytes. Those of a pixel divide the threads of a block, so that a thread that
// takes every n-th vector of a block's has the same channels of every pixel.
struct Rows {
  int64_t vectors;
  int per_pixel, log_per_pixel;
  __device__ int vector_of_pixel() const { return threadIdx.x & (per_pixel - 1); }
};

// Vectors that a thread has on the way at a time, 64 bytes, and those of a block: its tile.
constexpr int kVectorsAtOnce = 4, kTileVectors = kThreads * kVectorsAtOnce;

// f(k, whether it is there) for this thread's vectors of a block's tile that begins at `first`: kThreads apart.
template <class F>
__device__ inline void for_rows(const Rows& rows, int64_t first, const F& f) {
  const int left = int(min(rows.vectors - first, int64_t(kTileVectors))) - int(threadIdx.x);
#pragma unroll
  for (int k = 0; k < kVectorsAtOnce; ++k) f(k, k * kThreads < left);
}

// The same with code of its own for full tiles, all but the last, in which nothing is asked of each vector: for kernels
// with registers to spare.
template <class F>
__device__ inline void for_full_rows(const Rows& rows, int64_t first, const F& f) {
  if (first + kTileVectors > rows.vectors) return for_rows(rows, first, f);
#pragma unroll
  for (int k = 0; k < kVectorsAtOnce; ++k) f(k, true);
}

// How a block goes from tile to tile.
struct Tiles {
  int64_t first, end, step;
  __device__ explicit Tiles(const Rows& rows) {
    first = int64_t(blockIdx.x) * kTileVectors;
    end = rows.vectors;
    step = int64_t(gridDim.x) * kTileVectors;
  }
};

inline int64_t tiles_of(const Rows& rows) { return divide_up(rows.vectors, kTileVectors); }

// Whether words of sign bits are filled by half: those of 16 channels.
template <int V>
__device__ inline bool has_half_words(const Rows& rows) {
  return rows.per_pixel * V == 16;
}

// f(std::bool_constant of has_half_words): a loop of its own for each, in which addresses are known numbers apart.
template <int V, class F>
__device__ inline void with_words(const Rows& rows, const F& f) {
  if (has_half_words<V>(rows)) f(std::true_type{});
  else f(std::false_type{});
}

// The sign bits of this thread's vectors of V values in a tile. Two vectors of four values share a byte, and words of 16
// channels have two bytes more. `Half` is the type that `with_words` gives, or void where it is not known.
template <int V, class Byte, class Half = void>
struct SignBits {
  Byte* first;
  bool is_narrow;
  __device__ SignBits(Byte* bits, int64_t tile, const Rows& rows) {
    if constexpr (std::is_void_v<Half>) is_narrow = has_half_words<V>(rows);
    else is_narrow = Half::value;
    const int64_t byte = (tile + threadIdx.x) >> (V == 8 ? 0 : 1);
    first = bits + byte + (is_narrow ? byte & ~int64_t(1) : 0);
  }
  __device__ int step() const { return kThreads * V / 8 * (is_narrow ? 2 : 1); }
  // Whether element i of vector k is positive is bit i of what is returned.
  __device__ unsigned read(int k) const {
    const unsigned byte = load(first + k * step());
    return V == 8 ? byte : byte >> (threadIdx.x % 2 * 4);
  }
  // Every thread of a warp must call it.
  __device__ void write(int k, unsigned byte, bool exists) const {
    if (V == 4) byte |= __shfl_xor_sync(~0u, byte, 1) << 4;  // of even vectors this is the byte
    if (!exists || (V == 4 && threadIdx.x % 2)) return;
    store(first + k * step(), uint8_t(byte));
    if (is_narrow) store(first + k * step() + 2, uint8_t(0));
  }
};

// Rounds values to T and stores them. Returns in bit i of the low byte whether value i, whose zeros are negative, has no
// sign: above zero, that is, or not a number.
template <class T>
__device__ inline unsigned store_with_signs(T* p, const float (&values)[8]) {
  Vec<unsigned, 4> pairs;
#pragma unroll
  for (int i = 0; i < 4; ++i) pairs.v[i] = packed_pair<T>(values[2 * i], values[2 * i + 1]);
  store_vec(reinterpret_cast<unsigned*>(p), pairs);
  unsigned byte = 255;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
#ifdef PGGAN_FAST_CUDA_ON_CPU
    for (int j = 0; j < 4; ++j) byte -= (pairs.v[i + j / 2] >> (j % 2 ? 31 : 15) & 1) << (2 * i + j);
#else
    // The signs of four values as bytes of 0 or -1, and their sum by weights; that of -128 is the same in a byte.
    unsigned signs;
    asm("prmt.b32 %0, %1, %2, 0xfdb9;" : "=r"(signs) : "r"(pairs.v[i]), "r"(pairs.v[i + 1]));
    byte = __dp4a(int(signs), int(i ? 0x80402010u : 0x08040201u), int(byte));
#endif
  }
  return byte;
}

// The same for vectors of fp32.
__device__ inline unsigned store_with_signs(float* p, const float (&values)[4]) {
  store_vec(p, reinterpret_cast<const Vec<float, 4>&>(values));
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (values[i] > 0) bits |= 1u << i;
  return bits;
}

inline int64_t bytes_of_value(const Tensor& t) {
  const Dtype dtype = dtype_of(t);
  return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2;
}

// The rows of a tensor that these passes are for.
inline Rows rows_of(const char* op, const Tensor& t) {
  const int64_t c = t.size(1), per_pixel = c * bytes_of_value(t) / 16;
  STD_TORCH_CHECK(t.dim() >= 2 && (t.dim() == 2 ? t.is_contiguous() : is_channels_last(t)) &&
                      is_aligned(t.const_data_ptr()),
                  op, ": tensors must be channels_last at addresses that 16 divides");
  STD_TORCH_CHECK(c >= 16 && (c & (c - 1)) == 0 && per_pixel <= kThreads, op, ": there are ", c,
                  " channels, allowed: powers of two from 16 to ", 16 * kThreads / bytes_of_value(t));
  int log = 0;
  while ((1 << log) < per_pixel) ++log;
  return {t.numel() * bytes_of_value(t) / 16, int(per_pixel), log};
}

// f(a value of the type) for the dtypes that there are kernels for.
template <class F>
void with_short_type(const char* op, const Tensor& t, F f) {
  const Dtype dtype = dtype_of(t);
  STD_TORCH_CHECK(dtype != Dtype::f64, op, ": tensors must be float32, bfloat16 or float16");
  if (dtype == Dtype::f32) return f(float{});
  if (dtype == Dtype::bf16) return f(torch::headeronly::BFloat16{});
  return f(torch::headeronly::Half{});
}

inline Tensor empty_words(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size() - 1; i-- > 0;) strides[i] = strides[i + 1] * sizes[i + 1];
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(), aoti_torch_dtype_int32(),
                                                  device_type(), device_index(), &handle));
  return Tensor(handle);
}

inline Tensor empty_sign_bits(const Tensor& like) {
  return empty_words({like.size(0), like.size(2), like.size(3), divide_up(like.size(1), 32)});
}

inline const uint8_t* bytes_of(const char* op, const Tensor& bits, const Tensor& like) {
  STD_TORCH_CHECK(like.dim() == 4 && bits.scalar_type() == ScalarType::Int && bits.is_contiguous() &&
                      bits.numel() == like.numel() / like.size(1) * divide_up(like.size(1), 32),
                  op, ": sign bits must be int32 [N, H, W, ceil(C / 32)]");
  return static_cast<const uint8_t*>(bits.const_data_ptr());
}

// How many blocks may leave a row of `width` sums for each channel, so that this adds less than 5% to what is read and
// written of `tensors` tensors.
inline int64_t most_rows(const Tensor& t, int tensors, int width) {
  const int64_t bytes_of_channel = t.numel() / t.size(1) * bytes_of_value(t);
  return std::max<int64_t>(1, tensors * bytes_of_channel / (int64_t(width) * 2 * 4 * 25));
}

}  // namespace pggan_fast
