// Filters seen through their strides: see pggan_fast/ops/fold.py.
#pragma once

#include "tensors.h"

namespace pggan_fast {

// Filters [A, B, k, k] seen through their strides.
template <class T>
struct Filters {
  T* origin;
  int64_t a, b, row, column;
  C10_HOST_DEVICE T* at(int64_t i, int64_t r, int64_t c) const { return origin + i * a + r * row + c * column; }
};

template <class T>
Filters<T> filters(T* p, const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 4 && t.size(2) == t.size(3), "fold_weight: weights must be [C_out, C_in, k, k]");
  return {p, t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// The filters as a transposed convolution holds them: A and B swapped, each filter flipped.
template <class T>
Filters<T> flipped(const Filters<T>& t, int64_t k) {
  return {t.origin + (k - 1) * (t.row + t.column), t.b, t.a, -t.row, -t.column};
}

inline Tensor empty_filters(int64_t a, int64_t b, int64_t k, ScalarType dtype, bool channels_last) {
  const int64_t sizes[] = {a, b, k, k};
  return empty_with_layout(sizes, dtype, channels_last ? Layout::channels_last : Layout::contiguous);
}

}  // namespace pggan_fast
