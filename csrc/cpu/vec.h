// Vectors of one instruction set, from the compiler's vector extension: arithmetic is written as on numbers.
// Included by level_*.cpp only, in a namespace of the level's own.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __F16C__
#include <immintrin.h>
#else
#include <torch/headeronly/util/Half.h>
#endif

namespace pggan_fast::LEVEL {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// What a dtype is accumulated in.
template <class T>
struct Accumulated {
  using type = float;
};
template <>
struct Accumulated<double> {
  using type = double;
};
template <class T>
using Acc = typename Accumulated<T>::type;

template <class A>
struct Vector;
template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
};
template <class A>
using Vec = typename Vector<A>::type;

// Elements in a vector of A.
template <class A>
constexpr int kWidth = kVectorBytes / sizeof(A);

constexpr int kFloats = kWidth<float>;
typedef uint32_t Bits32 __attribute__((vector_size(kVectorBytes)));
typedef uint16_t Bits16 __attribute__((vector_size(kVectorBytes / 2)));

template <class A>
inline Vec<A> broadcast(A value) {
  return value - Vec<A>{};
}

template <class V, class T>
inline V load_bytes(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

inline Vec<float> load(const float* p) { return load_bytes<Vec<float>>(p); }
inline Vec<double> load(const double* p) { return load_bytes<Vec<double>>(p); }
inline void store(float* p, Vec<float> v) { std::memcpy(p, &v, sizeof(v)); }
inline void store(double* p, Vec<double> v) { std::memcpy(p, &v, sizeof(v)); }

inline Vec<float> load(const BFloat16* p) {
#if defined(__AVX512F__)
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (Vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
#elif defined(__AVX2__)
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (Vec<float>)_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
#else
  return (Vec<float>)(__builtin_convertvector(load_bytes<Bits16>(p), Bits32) << 16);
#endif
}

// Bits whose upper halves are v as bfloat16, rounded to nearest, ties to even; NaN stays NaN.
inline Bits32 rounded_bits(Vec<float> v) {
#if defined(__AVX512F__)
  const __m512i bits = (__m512i)v;
  // The NaNs of arithmetic are quiet, and stay NaN when cut off.
  const __mmask16 ordered = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_ORD_Q);
  const __m512i up = _mm512_mask_add_epi32(bits, ordered, bits, _mm512_set1_epi32(0x8000));
  // Halfway values have gone up and left zeros below: they go back to the even one of their neighbours.
  const __mmask16 halfway = _mm512_mask_testn_epi32_mask(ordered, up, _mm512_set1_epi32(0xffff));
  return (Bits32)_mm512_mask_and_epi32(up, halfway, up, _mm512_set1_epi32(~0x10000));
#else
  const Bits32 bits = (Bits32)v, is_nan = (Bits32)(v != v);
  return bits + ((0x7fff + ((bits >> 16) & 1)) & ~is_nan);
#endif
}

inline void store(BFloat16* p, Vec<float> v) {
  const Bits32 words = rounded_bits(v) >> 16;
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16((__m512i)words));
#elif defined(__AVX2__)
  const __m128i low = _mm256_castsi256_si128((__m256i)words), high = _mm256_extracti128_si256((__m256i)words, 1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi32(low, high));
#else
  const Bits16 out = __builtin_convertvector(words, Bits16);
  std::memcpy(p, &out, sizeof(out));
#endif
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// Rounds 16 float32 to bfloat16, ties to even: `kept` are their upper halves and `cut` their lower ones. 16-bit
// numbers, of which a register has all: fewer instructions than 8 and 8 32-bit ones.
inline __m256i rounded_halves(__m256i kept, __m256i cut) {
  // Up where more than a half is cut off, or a half of an odd number.
  const __m256i even = _mm256_andnot_si256(kept, _mm256_set1_epi16(1));
  const __m256i up = _mm256_srli_epi16(_mm256_subs_epu16(cut, even), 15);
  // A NaN of ones alone stays: the sum ends at 0x7fff, and where the sign is set the larger of both is no 0.
  return _mm256_max_epu16(_mm256_adds_epi16(kept, up), kept);
}
#endif

// Bits whose lower halves are `low` as bfloat16 and whose upper halves are `high`.
inline Bits32 rounded_pair(Vec<float> low, Vec<float> high) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  constexpr int kUpper = 0xaa;  // of every two 16-bit numbers the second one
  const __m256i a = (__m256i)low, b = (__m256i)high;
  return (Bits32)rounded_halves(_mm256_blend_epi16(_mm256_srli_epi32(a, 16), b, kUpper),
                                _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), kUpper));
#else
  return rounded_bits(low) >> 16 | (rounded_bits(high) & 0xffff0000);
#endif
}

// a, and b behind it.
template <class T>
inline void store_two(T* p, Vec<Acc<T>> a, Vec<Acc<T>> b) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (std::is_same<T, BFloat16>::value) {
    const __m256i first = (__m256i)a, second = (__m256i)b, lower = _mm256_set1_epi32(0xffff);
    const __m256i kept = _mm256_packus_epi32(_mm256_srli_epi32(first, 16), _mm256_srli_epi32(second, 16));
    const __m256i cut = _mm256_packus_epi32(_mm256_and_si256(first, lower), _mm256_and_si256(second, lower));
    // Packing goes by halves of a register.
    const __m256i in_order = _mm256_permute4x64_epi64(rounded_halves(kept, cut), _MM_SHUFFLE(3, 1, 2, 0));
    return _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), in_order);
  }
#endif
  store(p, a);
  store(p + kWidth<Acc<T>>, b);
}

inline Vec<float> load(const Half* p) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vec<float> v;
  for (int i = 0; i < kFloats; ++i) v[i] = torch::headeronly::detail::fp16_ieee_to_fp32_value(p[i].bits);
  return v;
#endif
}

inline void store(Half* p, Vec<float> v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kFloats; ++i) p[i].bits = torch::headeronly::detail::fp16_ieee_from_fp32_value(v[i]);
#endif
}

#if defined(__AVX2__)
inline __m256i first_lanes(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#endif

// The first `count` elements, zeros behind them.
template <class T>
inline Vec<Acc<T>> load(const T* p, int64_t count) {
  if (count >= kWidth<Acc<T>>) return load(p);
#if defined(__AVX512F__)
  const uint32_t mask = (1u << count) - 1;
  if constexpr (std::is_same<T, float>::value) return (Vec<float>)_mm512_maskz_loadu_ps(__mmask16(mask), p);
  else if constexpr (std::is_same<T, double>::value) return (Vec<double>)_mm512_maskz_loadu_pd(__mmask8(mask), p);
#elif defined(__AVX2__)
  if constexpr (std::is_same<T, float>::value) return (Vec<float>)_mm256_maskload_ps(p, first_lanes(count));
#endif
  T part[kWidth<Acc<T>>] = {};
  std::memcpy(part, p, count * sizeof(T));
  return load(part);
}

template <class T>
inline void store(T* p, Vec<Acc<T>> v, int64_t count) {
  if (count >= kWidth<Acc<T>>) return store(p, v);
#if defined(__AVX512F__)
  const uint32_t mask = (1u << count) - 1;
  if constexpr (std::is_same<T, float>::value) return _mm512_mask_storeu_ps(p, __mmask16(mask), (__m512)v);
  else if constexpr (std::is_same<T, double>::value) return _mm512_mask_storeu_pd(p, __mmask8(mask), (__m512d)v);
#elif defined(__AVX2__)
  if constexpr (std::is_same<T, float>::value) return _mm256_maskstore_ps(p, first_lanes(count), (__m256)v);
#endif
  T part[kWidth<Acc<T>>];
  store(part, v);
  std::memcpy(p, part, count * sizeof(T));
}

// Elements [from, to) of a vector of them, zeros around these: nothing else is read.
template <class T>
inline void copy_between(const T* p, int64_t from, int64_t end, T* to) {
#if defined(__AVX512F__)
  const uint32_t mask = ((1u << end) - 1) & ~((1u << from) - 1);
  if constexpr (std::is_same<T, float>::value) return store(to, (Vec<float>)_mm512_maskz_loadu_ps(__mmask16(mask), p));
  else if constexpr (sizeof(T) == 2) {
    const __m256i v = _mm256_maskz_loadu_epi16(__mmask16(mask), p);
    return std::memcpy(to, &v, sizeof(v)), void();
  }
#elif defined(__AVX2__)
  if constexpr (std::is_same<T, float>::value) {
    const __m256i mask = _mm256_andnot_si256(first_lanes(from), first_lanes(end));
    return store(to, (Vec<float>)_mm256_maskload_ps(p, mask));
  }
#endif
  for (int64_t i = 0; i < kWidth<Acc<T>>; ++i) to[i] = i >= from && i < end ? p[i] : T{};
}

// A whole vector to where nobody looks soon, at a multiple of its size; finish_stores() after the last one.
template <class T>
inline void store_past_cache(T* p, Vec<Acc<T>> v) {
#if defined(__AVX512F__)
  if constexpr (std::is_same<T, float>::value) return _mm512_stream_ps(p, (__m512)v);
  else if constexpr (std::is_same<T, double>::value) return _mm512_stream_pd(p, (__m512d)v);
#elif defined(__AVX2__)
  if constexpr (std::is_same<T, float>::value) return _mm256_stream_ps(p, (__m256)v);
  else if constexpr (std::is_same<T, double>::value) return _mm256_stream_pd(p, (__m256d)v);
#endif
  store(p, v);
}

inline void finish_stores() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

template <class A>
inline A sum_of(const A* v, int width) {
  if (width == 1) return v[0];
  return sum_of(v, width / 2) + sum_of(v + width / 2, width / 2);
}

inline float sum(Vec<float> v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float parts[kFloats];
  store(parts, v);
  return sum_of(parts, kFloats);
#endif
}

inline double sum(Vec<double> v) {
  double parts[kWidth<double>];
  store(parts, v);
  return sum_of(parts, kWidth<double>);
}

template <class A>
inline Vec<A> reciprocal_sqrt(Vec<A> v) {
  // By way of an array: of the vector's own elements the compiler makes scalar code.
  A parts[kWidth<A>];
  store(parts, v);
  for (int i = 0; i < kWidth<A>; ++i) parts[i] = A(1) / std::sqrt(parts[i]);
  return load(parts);
}

}  // namespace pggan_fast::LEVEL
