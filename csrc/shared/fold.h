// Filters seen through their strides: see pggan_fast/ops/fold.py.
#pragma once

#include "tensors.h"

namespace pggan_fast {

// A bank of filters [A, B, k, k] seen through its strides.
template <class T>
struct Bank {
  T* origin;
  int64_t a, b, row, column;
  C10_HOST_DEVICE T* at(int64_t i, int64_t r, int64_t c) const { return origin + i * a + r * row + c * column; }
};

template <class T>
Bank<T> bank(T* p, const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 4 && t.size(2) == t.size(3), "fold_weight: weights must be [C_out, C_in, k, k]");
  return {p, t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// The bank as a transposed convolution holds it: A and B swapped, each filter reversed.
template <class T>
Bank<T> reversed(const Bank<T>& t, int64_t k) {
  return {t.origin + (k - 1) * (t.row + t.column), t.b, t.a, -t.row, -t.column};
}

inline Tensor empty_bank(int64_t a, int64_t b, int64_t k, ScalarType dtype, bool channels_last) {
  const int64_t sizes[] = {a, b, k, k};
  return empty_with_layout(sizes, dtype, channels_last ? Layout::channels_last : Layout::contiguous);
}

}  // namespace pggan_fast
