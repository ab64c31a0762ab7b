// exp, expm1 and log1p of vectors, each within 2 ulp: range reduction by ln 2, then a Taylor series.
#pragma once

#include "worker.h"

namespace pggan_fast::LEVEL {

typedef uint64_t Bits64 __attribute__((vector_size(kVectorBytes)));

template <class A>
struct Exponent;
template <>
struct Exponent<float> {
  // Adding it rounds to an integer, which then lies in the lowest bits.
  static constexpr float kRound = 12582912.0f, kBias = 127.0f;
  static constexpr float kLn2High = 0.693145751953125f, kLn2Low = 1.428606765330187e-06f;  // n times the first is exact
  static constexpr float kLowest = -104.0f, kHighest = 89.0f;  // beyond, exp is 0 or infinite
  static constexpr int kTerms = 7, kLogTerms = 7;
  static Vec<float> pow2_of_bits(Vec<float> v) { return (Vec<float>)((Bits32)v << 23); }
};
template <>
struct Exponent<double> {
  static constexpr double kRound = 6755399441055744.0, kBias = 1023.0;
  static constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kLowest = -746.0, kHighest = 710.0;
  static constexpr int kTerms = 13, kLogTerms = 16;
  static Vec<double> pow2_of_bits(Vec<double> v) { return (Vec<double>)((Bits64)v << 52); }
};

// x = n ln 2 + r with |r| at most ln 2 / 2; `rest` is exp(r) - 1. NaN stays in `rest`.
template <class A>
struct Reduced {
  Vec<A> n, rest;

  explicit Reduced(Vec<A> x) {
    using E = Exponent<A>;
    x = x < broadcast<A>(E::kLowest) ? broadcast<A>(E::kLowest) : x;
    x = x > broadcast<A>(E::kHighest) ? broadcast<A>(E::kHighest) : x;
    n = x * A(1.4426950408889634) + E::kRound - E::kRound;
    const Vec<A> r = (x - n * E::kLn2High) - n * E::kLn2Low;
    A factor = 1;
    A factors[E::kTerms + 1] = {};
    for (int k = 2; k <= E::kTerms; ++k) factors[k] = factor /= A(k);
    Vec<A> series = broadcast<A>(factors[E::kTerms]);
    for (int k = E::kTerms - 1; k >= 2; --k) series = series * r + factors[k];
    rest = r + r * r * series;
  }
};

// 2^n of integers from -127 (0 in fp32) to 127.
template <class A>
inline Vec<A> pow2(Vec<A> n) {
  return Exponent<A>::pow2_of_bits(n + (Exponent<A>::kRound + Exponent<A>::kBias));
}

template <class A>
inline Vec<A> exp(Vec<A> x) {
  const Reduced<A> v(x);
#if defined(__AVX512F__)
  if constexpr (std::is_same<A, float>::value) return (Vec<A>)_mm512_scalef_ps((__m512)(v.rest + 1), (__m512)v.n);
  else return (Vec<A>)_mm512_scalef_pd((__m512d)(v.rest + 1), (__m512d)v.n);
#else
  // In two steps: at both ends 2^n alone is no normal number.
  const Vec<A> half = v.n * A(0.5) + Exponent<A>::kRound - Exponent<A>::kRound;
  return (v.rest + 1) * pow2<A>(half) * pow2<A>(v.n - half);
#endif
}

// exp(x) - 1 for x at most 0, exact where it is small.
template <class A>
inline Vec<A> expm1_of_negative(Vec<A> x) {
  // Below, the result is -1 to the last bit.
  const Vec<A> lowest = broadcast<A>(std::is_same<A, float>::value ? A(-30) : A(-60));
  const Reduced<A> v(x < lowest ? lowest : x);
  const Vec<A> power = pow2<A>(v.n);
  return power * v.rest + (power - 1);
}

// log(1 + z) for z in [0, 1] is 2 artanh(z / (2 + z)).
template <class A>
inline Vec<A> log1p_of_fraction(Vec<A> z) {
  const Vec<A> s = z / (z + 2), square = s * s;
  Vec<A> series = broadcast<A>(A(1) / A(2 * Exponent<A>::kLogTerms + 1));
  for (int k = Exponent<A>::kLogTerms - 1; k >= 1; --k) series = series * square + A(1) / A(2 * k + 1);
  return 2 * s + 2 * s * (square * series);
}

}  // namespace pggan_fast::LEVEL
