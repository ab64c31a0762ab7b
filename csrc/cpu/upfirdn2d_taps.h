// Where the three or four taps of everybody's filters lie on an axis. Upsampling by 2 has two phases of outputs, of two
// taps each, or of three taps one has two and the other one: output 2 j + r of an axis is a sum of inputs from
// j + shift[r] on, and shift[1] is shift[0] or one more.
#pragma once

#include "resample_kernels.h"

namespace pggan_fast::LEVEL {

inline int64_t floor_divided(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

template <class A, int half, int... I>
inline Vec<A> interleaved(Vec<A> a, Vec<A> b, std::integer_sequence<int, I...>) {
  return pick<A, (I % 2 * kWidth<A> + half * kWidth<A> / 2 + I / 2)...>(a, b);
}

// Elements first, first + 1... of a and b in a row.
template <class A, int first, int... I>
inline Vec<A> shifted(Vec<A> a, Vec<A> b, std::integer_sequence<int, I...>) {
  if constexpr (first == 0) return a;
#if defined(__AVX512F__)
  else if constexpr (sizeof(A) == 4) return (Vec<A>)_mm512_alignr_epi32((__m512i)b, (__m512i)a, first);
  else return (Vec<A>)_mm512_alignr_epi64((__m512i)b, (__m512i)a, first);
#elif defined(__AVX2__)
  const __m256i middle = _mm256_permute2x128_si256((__m256i)a, (__m256i)b, 0x21);
  constexpr int bytes = first * sizeof(A) % 16;
  if constexpr (first < kWidth<A> / 2) return (Vec<A>)_mm256_alignr_epi8(middle, (__m256i)a, bytes);
  else return (Vec<A>)_mm256_alignr_epi8((__m256i)b, middle, bytes);
#else
  else return pick<A, (first + I)...>(a, b);
#endif
}

enum class Change { up, down, none };

// Where the taps of one axis lie: output phases j + r is the sum over k of weights[r][k] in[step j + shift[r] + k].
// Weights are copied into registers before loops: memory that these write might, for all the compiler knows, hold them.
template <Change change, int filter, class A>
struct Axis {
  static constexpr int kPhases = change == Change::up ? 2 : 1, kStep = change == Change::down ? 2 : 1;
  static constexpr int kTaps = (filter + kPhases - 1) / kPhases;
  int64_t shift[kPhases];
  Vec<A> weights[kPhases][kTaps];

  Axis(const double* taps, int64_t before) {
    for (int r = 0; r < kPhases; ++r) {
      const int64_t start = r - before;
      shift[r] = -floor_divided(-start, kPhases);
      const int64_t skipped = shift[r] * kPhases - start;
      for (int k = 0; k < kTaps; ++k) {
        const int64_t tap = skipped + k * kPhases;
        weights[r][k] = broadcast<A>(tap < filter ? A(taps[tap]) : A(0));
      }
    }
  }
  int64_t extra() const { return shift[kPhases - 1] - shift[0]; }
  // The filter's first tap is one of the phase that begins with the first input, its second one of the other phase.
  static constexpr int count(int phase, bool extra) { return kPhases == 1 ? filter : (filter + (phase != extra)) / 2; }
  // `in` is the first phase's input.
  static Vec<A> sum(const Vec<A> (&weights)[kPhases][kTaps], int phase, bool extra, const Vec<A>* in) {
    in += phase * extra;
    Vec<A> total = weights[phase][0] * in[0];
    for (int k = 1; k < count(phase, extra); ++k) total += weights[phase][k] * in[k];
    return total;
  }
};

}  // namespace pggan_fast::LEVEL
