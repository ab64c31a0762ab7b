// upsample2x of channels_last images whose pixels are whole vectors, one high row after the other. To write a vector of
// each of a pixel's four copies in turn takes up to 1.7 times as long, as stores to several places hinder each other.
#pragma once

#include "resample_kernels.h"

namespace pggan_fast::LEVEL {

template <class T>
constexpr bool computes_as_stored = std::is_same<T, Acc<T>>::value;

template <class T>
inline bool has_whole_pixels(const Resample& a) {
  return a.grid.c > 1 && a.grid.c * sizeof(T) % kVectorBytes == 0 && (a.factor == 1 || computes_as_stored<T>);
}

// Bytes, which are numbers only where they are scaled.
template <class T, bool scales>
void copy_pixels(const Resample& a, int64_t row, int64_t rows) {
  using A = Acc<T>;
  const Grid g = a.grid;
  const Vec<A> scale = broadcast<A>(A(a.factor));
  const int64_t pixel = g.c * sizeof(T), below = (2 * g.w + g.extra_w) * pixel;
  for (int64_t high = 2 * row; high < 2 * (row + rows); ++high) {
    const char* from = as<char>(a.low) + high / 2 * g.w * pixel;
    char* to = as<char>(a.high_out) + high_offset(g, high / 2) * sizeof(T) + high % 2 * below;
    for (int64_t i = 0; i < 2 * g.w; ++i, to += pixel)
      for (int64_t j = 0; j < pixel; j += kVectorBytes) {
        Vec<A> v = load_bytes<Vec<A>>(from + i / 2 * pixel + j);
        if constexpr (scales) v = scale * v;
        std::memcpy(to + j, &v, sizeof(v));
      }
  }
}

inline void upsample(const Resample& a, int64_t begin, int64_t end) {
  with_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t unit_rows = resample_rows(a.grid), first = begin * unit_rows;
    const int64_t rows = std::min(end * unit_rows, a.grid.planes * a.grid.h) - first;
    if (!has_whole_pixels<T>(a)) run_units<Upsample<T>, T>(a, begin, end);
    else if (a.factor == 1) copy_pixels<T, false>(a, first, rows);
    else if constexpr (computes_as_stored<T>) copy_pixels<T, true>(a, first, rows);
    if (a.grid.extra_h || a.grid.extra_w) clear_extra<T>(a, begin, end);
  });
}

}  // namespace pggan_fast::LEVEL
