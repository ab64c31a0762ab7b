// exp, expm1 and log1p of vectors, each within 2 ulp: range reduction by ln 2, then a Taylor series. No argument is above
// 0: activations need no other exponential, and one step then scales by 2^n.
#pragma once

#include "worker.h"

namespace pggan_fast::LEVEL {

typedef uint64_t Bits64 __attribute__((vector_size(kVectorBytes)));

// -|u|
inline Vec<float> minus_magnitude(Vec<float> u) { return (Vec<float>)((Bits32)u | (1u << 31)); }
inline Vec<double> minus_magnitude(Vec<double> u) { return (Vec<double>)((Bits64)u | (uint64_t(1) << 63)); }

template <class A>
struct Exponent;
template <>
struct Exponent<float> {
  static constexpr float kRound = 12582912.0f, kBias = 127.0f;  // adding the first rounds to an integer
  static constexpr float kLn2High = 0.693145751953125f, kLn2Low = 1.428606765330187e-06f;  // n times the first is exact
  static constexpr float kLowest = -87.33654f;  // the logarithm of the least normal number
  static constexpr int kTerms = 7, kLogTerms = 7;
  static Vec<float> pow2_of_bits(Vec<float> v) { return (Vec<float>)((Bits32)v << 23); }
};
template <>
struct Exponent<double> {
  static constexpr double kRound = 6755399441055744.0, kBias = 1023.0;
  static constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kLowest = -708.3964185322641;
  static constexpr int kTerms = 13, kLogTerms = 16;
  static Vec<double> pow2_of_bits(Vec<double> v) { return (Vec<double>)((Bits64)v << 52); }
};

// x = n ln 2 + r with |r| at most ln 2 / 2, for x of kLowest to 0: `power` is 2^n, `rest` exp(r) - 1. NaN stays in `rest`.
template <class A>
struct Reduced {
  Vec<A> power, rest;

  explicit Reduced(Vec<A> x) {
    using E = Exponent<A>;
    constexpr A kShift = E::kRound + E::kBias;
    // n + kBias, the exponent's field of 2^n, then lies in the lowest bits.
    const Vec<A> shifted = x * A(1.4426950408889634) + kShift, n = shifted - kShift;
    power = E::pow2_of_bits(shifted);
    const Vec<A> r = (x - n * E::kLn2High) - n * E::kLn2Low;
    A factor = 1;
    A factors[E::kTerms + 1] = {};
    for (int k = 2; k <= E::kTerms; ++k) factors[k] = factor /= A(k);
    Vec<A> series = broadcast<A>(factors[E::kTerms]);
    for (int k = E::kTerms - 1; k >= 2; --k) series = series * r + factors[k];
    rest = r + r * r * series;
  }
};

// exp(x) for x at most 0; results below the least normal number are 0.
template <class A>
inline Vec<A> exp_of_negative(Vec<A> x) {
  const Reduced<A> v(x);
  return x < Exponent<A>::kLowest ? Vec<A>{} : v.power * v.rest + v.power;
}

// exp(x) - 1 for x at most 0, exact where it is small.
template <class A>
inline Vec<A> expm1_of_negative(Vec<A> x) {
  // Below, the result is -1 to the last bit.
  const Vec<A> lowest = broadcast<A>(std::is_same<A, float>::value ? A(-30) : A(-60));
  const Reduced<A> v(x < lowest ? lowest : x);
  return v.power * v.rest + (v.power - 1);
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
