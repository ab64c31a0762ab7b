// From contiguous to channels_last and back. Included by level_*.cpp only.
#pragma once

#include <utility>

#include "worker.h"

namespace pggan_fast::LEVEL {

// As many elements as there are floats in a vector: a square of them is transposed in registers.
template <class T>
struct Square {
  typedef T Row __attribute__((vector_size(kFloats * sizeof(T))));
};

// Two rows, kDistance apart, exchange every other block of kDistance columns.
template <int kDistance, class Row, int... kColumn>
inline void exchange(Row& a, Row& b, std::integer_sequence<int, kColumn...>) {
  const Row first = __builtin_shufflevector(a, b, (kColumn & kDistance ? kFloats + kColumn - kDistance : kColumn)...);
  b = __builtin_shufflevector(a, b, (kColumn & kDistance ? kFloats + kColumn : kColumn + kDistance)...);
  a = first;
}

// Transposes blocks of kDistance in blocks of twice that, then the halves of each.
template <int kDistance, class Row>
inline void transpose(Row* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < kFloats; ++i)
    if (!(i & kDistance)) exchange<kDistance>(rows[i], rows[i + kDistance], std::make_integer_sequence<int, kFloats>());
  if constexpr (kDistance > 1) transpose<kDistance / 2>(rows);
}

template <class T>
inline void transpose_square(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  typename Square<T>::Row rows[kFloats];
#pragma GCC unroll 16
  for (int i = 0; i < kFloats; ++i) std::memcpy(&rows[i], from + i * from_stride, sizeof(rows[i]));
  transpose<kFloats / 2>(rows);
#pragma GCC unroll 16
  for (int i = 0; i < kFloats; ++i) std::memcpy(to + i * to_stride, &rows[i], sizeof(rows[i]));
}

// to[column][row] = from[row][column]
template <class T>
inline void transpose_part(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows, int64_t columns) {
  if (rows == kFloats && columns == kFloats) return transpose_square(from, from_stride, to, to_stride);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < columns; ++column) to[column * to_stride + row] = from[row * from_stride + column];
}

template <class T>
void relayout_typed(const Relayout& work, int64_t begin, int64_t end) {
  const int64_t c = work.c, p = work.p, blocks = (p + kRelayoutPixels - 1) / kRelayoutPixels;
  const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
  for (int64_t item = begin; item < end; ++item) {
    const T* from = static_cast<const T*>(work.from) + item / blocks * c * p;
    T* to = static_cast<T*>(work.to) + item / blocks * c * p;
    const int64_t first = item % blocks * kRelayoutPixels, last = least(first + kRelayoutPixels, p);
    for (int64_t i = 0; i < c; i += kFloats)
      for (int64_t j = first; j < last; j += kFloats) {
        const int64_t channels = least(kFloats, c - i), pixels = least(kFloats, last - j);
        if (work.to_channels_last)
          transpose_part(from + i * p + j, p, to + j * c + i, c, channels, pixels);
        else
          transpose_part(from + j * c + i, c, to + i * p + j, p, pixels, channels);
      }
  }
}

void relayout(const Relayout& work, int64_t begin, int64_t end) {
  work.wide ? relayout_typed<uint32_t>(work, begin, end) : relayout_typed<uint16_t>(work, begin, end);
}

}  // namespace pggan_fast::LEVEL
