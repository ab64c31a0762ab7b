// What bias_act's kernels share in both layouts: the activation, an item's pixels.
#pragma once

#include <algorithm>

#include "worker.h"

namespace pggan_fast::LEVEL {

// A product with a slope of 0 would make NaN of infinity, so relu sets values to 0 where the sign is not above `dead`;
// elsewhere, and where the sign is NaN, it multiplies by gain alone. Other activations have no such values: no number
// is at most NaN.
template <class A>
struct Activation {
  Vec<A> positive_slope, negative_slope, dead;
  explicit Activation(const Epilogue& e)
      : positive_slope(broadcast<A>(A(e.gain))),
        negative_slope(broadcast<A>(A(e.slope == 0 ? e.gain : e.gain * e.slope))),
        dead(broadcast<A>(e.slope == 0 ? A(0) : A(NAN))) {}
  // gain * act(u); also gain * act'(y) times u, where y is any vector of the output's signs.
  Vec<A> operator()(Vec<A> u) const { return (*this)(u, u); }
  Vec<A> operator()(Vec<A> u, Vec<A> sign) const {
    return (sign <= dead ? Vec<A>{} : u) * (sign > Vec<A>{} ? positive_slope : negative_slope);
  }
};

// Backward reads the activation's sign off y: a value above zero that fp16 would round to zero becomes its smallest.
template <class T>
inline Vec<Acc<T>> with_its_sign(Vec<Acc<T>> v) {
  if constexpr (std::is_same_v<T, Half>) {
    const Vec<float> least = broadcast<float>(0x1p-24f);
    return v > Vec<float>{} ? (v < least ? least : v) : v;
  } else {
    return v;
  }
}

// A per-channel vector (zeros if null) with room for a whole vector behind its end.
template <class A>
inline const A* padded(const void* values, int64_t c, int which) {
  A* copy = scratch<A>(which, rounded_up(c, kWidth<A>));
  std::fill_n(copy, rounded_up(c, kWidth<A>), A(0));
  if (values) std::memcpy(copy, values, c * sizeof(A));
  return copy;
}

// Pixels of one item: `first` counts pixels of sample n (contiguous) or of all samples (channels_last).
struct Block {
  int64_t n, first, count;
};

inline Block block_of(const Shape& s, int64_t item) {
  const int64_t pixels = s.layout == Layout::contiguous ? s.p : s.n * s.p;
  const int64_t size = bias_act_block(s), blocks = (pixels + size - 1) / size;
  const int64_t first = item % blocks * size;
  return {item / blocks, first, std::min(size, pixels - first)};
}

// channels_last rows whose sums are taken in A before they go into double: the error does not grow with the tensor.
// Vectors go into double one by one, since sums of few may cancel (D's scores) and then nothing but errors is left.
inline int64_t rows_at_once(const Shape& s) { return s.p == 1 ? 1 : 64; }

}  // namespace pggan_fast::LEVEL
