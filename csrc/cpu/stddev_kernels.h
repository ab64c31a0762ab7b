// minibatch_stddev and its gradients; the formulas stand in pggan_fast/ops/stddev.py. A sample's values are compared
// position by position with those of its group, so a block of positions is worked on at a time, and copied while it
// is in cache.
#pragma once

#include "worker.h"

namespace pggan_fast::LEVEL {

template <class A>
inline Vec<A> square_root(Vec<A> v) {
  for (int i = 0; i < kWidth<A>; ++i) v[i] = std::sqrt(v[i]);
  return v;
}

// v with zeros from element n on.
template <class A>
inline Vec<A> first_of(Vec<A> v, int64_t n) {
  if (n < kWidth<A>) {
    A parts[kWidth<A>] = {};
    std::memcpy(parts, &v, n * sizeof(A));
    v = load(parts);
  }
  return v;
}

// A work item: `rows` rows of all samples of one group, `columns` values of each.
struct Positions {
  int64_t group, row, rows, column, columns;
};

inline Positions positions_of(const Samples& s, int64_t item) {
  const int64_t len = s.row_len / s.maps, chunks = stddev_chunks(s), rows = stddev_rows(s);
  if (chunks > 1) {
    const int64_t chunk = item % chunks, map = item / chunks % s.maps, row = item / chunks / s.maps;
    const int64_t first = chunk * kStddevBlock, left = len - first;
    return {row / s.rows, row % s.rows, 1, map * len + first, left < kStddevBlock ? left : kStddevBlock};
  }
  const int64_t blocks = (s.rows + rows - 1) / rows, row = item % blocks * rows;
  return {item / blocks, row, row + rows < s.rows ? rows : s.rows - row, 0, s.row_len};
}

// f(row, first value, number of values, map) for pieces of the item that belong to one map.
template <class F>
inline void for_pieces(const Samples& s, const Positions& at, F f) {
  const int64_t len = s.row_len / s.maps;
  for (int64_t row = at.row; row < at.row + at.rows; ++row)
    for (int64_t column = at.column; column < at.column + at.columns;) {
      const int64_t map = column / len, end = (map + 1) * len, item_end = at.column + at.columns;
      const int64_t count = (end < item_end ? end : item_end) - column;
      f(row, column, count, map);
      column += count;
    }
}

// Where a value is in a tensor like x, and in one with the maps behind each row.
inline int64_t place(const Samples& s, int64_t sample, int64_t row, int64_t column) {
  return (sample * s.rows + row) * s.row_len + column;
}
inline int64_t wide_row(const Samples& s) { return s.row_len + s.maps * s.map_len; }
inline int64_t wide_place(const Samples& s, int64_t sample, int64_t row, int64_t column) {
  return (sample * s.rows + row) * wide_row(s) + column;
}
// The distance between neighbours in a group, in samples, and its first sample.
inline int64_t step(const Samples& s) { return s.strided ? s.groups : 1; }
inline int64_t first_sample(const Samples& s, int64_t group) { return s.strided ? group : group * s.group; }

// f(place in a tensor like x, place in one with maps, number of values) for neighbours in memory in the item.
template <class F>
inline void for_rows(const Samples& s, const Positions& at, F f) {
  for (int64_t g = 0; g < s.group; ++g) {
    const int64_t sample = first_sample(s, at.group) + g * step(s);
    for (int64_t row = at.row; row < at.row + at.rows; ++row)
      f(place(s, sample, row, at.column), wide_place(s, sample, row, at.column), at.columns);
  }
}

// Copies the item's values of a tensor like x to one with maps.
template <class T>
inline void widen(const Samples& s, const Positions& at, const void* narrow, void* wide) {
  for_rows(s, at, [&](int64_t from, int64_t to, int64_t count) {
    std::memcpy(static_cast<T*>(wide) + to, static_cast<const T*>(narrow) + from, count * sizeof(T));
  });
}

// The mean of one group's values at W positions. It is rounded, so the distances from it do not sum to zero: their own
// mean, `rest`, is taken off as well. Gradients keep the digits that the values share.
template <class A>
struct Mean {
  Vec<A> mean, rest;
  Vec<A> distance(Vec<A> v) const { return (v - mean) - rest; }
};

template <class T>
inline Vec<Acc<T>> rounded_mean(const T* x, int64_t step, int64_t group, Vec<Acc<T>> size, int64_t n) {
  Vec<Acc<T>> total{};
  for (int64_t g = 0; g < group; ++g) total += load(x + g * step, n);
  return total / size;
}

// The sum of squared distances, from that of distances that sum to `sum` and have the mean `rest`. Of values that are all
// the same rounding leaves a little of zero, and no less than zero. What overflows stays infinite, and NaN stays NaN.
template <class A>
inline Vec<A> centred_squares(Vec<A> squares, Vec<A> sum, Vec<A> rest) {
  const Vec<A> centred = squares - sum * rest;
  return centred < Vec<A>{} ? Vec<A>{} : centred != centred ? squares : centred;
}

template <class A>
struct Moments {
  Mean<A> x;
  Vec<A> squares;  // the sum of squared distances
};

template <class T>
inline Moments<Acc<T>> moments(const T* x, int64_t step, int64_t group, Vec<Acc<T>> size, int64_t n) {
  using A = Acc<T>;
  const Vec<A> mean = rounded_mean(x, step, group, size, n);
  Vec<A> sum{}, squares{};
  for (int64_t g = 0; g < group; ++g) {
    const Vec<A> d = load(x + g * step, n) - mean;
    sum += d;
    squares += d * d;
  }
  const Vec<A> rest = sum / size;
  return {{mean, rest}, centred_squares<A>(squares, sum, rest)};
}

template <class T>
void stddev_forward_item(const Stddev& a, int64_t item) {
  using A = Acc<T>;
  const Samples& s = a.samples;
  const Positions at = positions_of(s, item);
  widen<T>(s, at, a.x, a.y);
  const int64_t sample = first_sample(s, at.group), stride = step(s) * s.rows * s.row_len;
  const Vec<A> size = broadcast<A>(A(s.group)), eps = broadcast<A>(A(a.eps));
  const Vec<A> scale = broadcast<A>(A(1) / A(a.divisor));
  const auto sum_of_deviations = [&](int64_t row, int64_t column, int64_t count) {
    const T* x = static_cast<const T*>(a.x) + place(s, sample, row, column);
    // A work item is small enough for its sum to be taken in A.
    Vec<A> total{};
    for_vectors<A>(count, [&](int64_t i, int64_t n) {
      const Moments<A> m = moments(x + i, stride, s.group, size, n);
      total += first_of<A>(square_root<A>(m.squares * scale + eps), n);
    });
    return double(sum(total));
  };
  double* sums = a.sums + item * s.maps;
  for (int64_t map = 0; map < s.maps; ++map) sums[map] = 0;
  // With one map the values of all rows are one piece.
  if (s.maps == 1) sums[0] = sum_of_deviations(at.row, at.column, at.rows * at.columns);
  else
    for_pieces(s, at, [&](int64_t row, int64_t column, int64_t count, int64_t map) {
      sums[map] += sum_of_deviations(row, column, count);
    });
}

template <class T>
void stddev_backward_item(const Stddev& a, int64_t item) {
  using A = Acc<T>;
  const Samples& s = a.samples;
  const Positions at = positions_of(s, item);
  const int64_t sample = first_sample(s, at.group), stride = step(s) * s.rows * s.row_len;
  const int64_t wide_stride = step(s) * s.rows * wide_row(s);
  const Vec<A> size = broadcast<A>(A(s.group)), eps = broadcast<A>(A(a.eps));
  const Vec<A> scale = broadcast<A>(A(1) / A(a.divisor));
  for_pieces(s, at, [&](int64_t row, int64_t column, int64_t count, int64_t map) {
    const T* x = static_cast<const T*>(a.x) + place(s, sample, row, column);
    const T* dy = static_cast<const T*>(a.dy) + wide_place(s, sample, row, column);
    T* dx = static_cast<T*>(a.dx) + place(s, sample, row, column);
    const Vec<A> gradient = broadcast<A>(A(a.factors[at.group * s.maps + map]));
    for_vectors<A>(count, [&](int64_t i, int64_t n) {
      const Moments<A> m = moments(x + i, stride, s.group, size, n);
      const Vec<A> factor = gradient / square_root<A>(m.squares * scale + eps);
      for (int64_t g = 0; g < s.group; ++g) {
        const Vec<A> d = m.x.distance(load(x + g * stride + i, n));
        store(dx + g * stride + i, load(dy + g * wide_stride + i, n) + factor * d, n);
      }
    });
  });
}

template <class T>
void stddev_double_backward_item(const Stddev& a, int64_t item) {
  using A = Acc<T>;
  const Samples& s = a.samples;
  const Positions at = positions_of(s, item);
  const int64_t sample = first_sample(s, at.group), stride = step(s) * s.rows * s.row_len;
  const Vec<A> size = broadcast<A>(A(s.group)), eps = broadcast<A>(A(a.eps));
  const Vec<A> scale = broadcast<A>(A(1) / A(a.divisor)), one = broadcast<A>(A(1));
  double* sums = a.sums + item * s.maps;
  for (int64_t map = 0; map < s.maps; ++map) sums[map] = 0;
  for_pieces(s, at, [&](int64_t row, int64_t column, int64_t count, int64_t map) {
    const int64_t origin = place(s, sample, row, column);
    const T* x = static_cast<const T*>(a.x) + origin;
    const T* gradient = static_cast<const T*>(a.g) + origin;
    T* dx = static_cast<T*>(a.dx) + origin;
    const Vec<A> t = broadcast<A>(A(a.factors[at.group * s.maps + map]));
    Vec<A> total{};
    for_vectors<A>(count, [&](int64_t i, int64_t n) {
      Mean<A> of_x{rounded_mean(x + i, stride, s.group, size, n), {}};
      Mean<A> of_g{rounded_mean(gradient + i, stride, s.group, size, n), {}};
      Vec<A> x_sum{}, g_sum{}, squares{}, product{};
      for (int64_t g = 0; g < s.group; ++g) {
        const Vec<A> d = load(x + g * stride + i, n) - of_x.mean, h = load(gradient + g * stride + i, n) - of_g.mean;
        x_sum += d;
        g_sum += h;
        squares += d * d;
        product += d * h;
      }
      of_x.rest = x_sum / size;
      of_g.rest = g_sum / size;
      squares = centred_squares<A>(squares, x_sum, of_x.rest);
      product -= x_sum * of_g.rest;
      const Vec<A> inverse = one / square_root<A>(squares * scale + eps);
      total += first_of<A>(product * inverse, n);
      // Of two samples, g is a multiple of d and g - pull d nothing but what eps leaves of g: less than rounding would.
      const bool is_pair = s.group == 2;
      const Vec<A> keep = is_pair ? eps * inverse * inverse : one;
      const Vec<A> pull = is_pair ? Vec<A>{} : product * inverse * inverse * scale;
      const Vec<A> factor = t * inverse;
      for (int64_t g = 0; g < s.group; ++g) {
        const Vec<A> d = of_x.distance(load(x + g * stride + i, n));
        const Vec<A> h = of_g.distance(load(gradient + g * stride + i, n));
        store(dx + g * stride + i, factor * (keep * h - pull * d), n);
      }
    });
    sums[map] += double(sum(total));
  });
  widen<T>(s, at, a.g, a.y);
}

// The maps: an item is one map of one sample

template <class T>
void stddev_read_map(const Stddev& a, int64_t item) {
  using A = Acc<T>;
  const Samples& s = a.samples;
  const int64_t map = item % s.maps;
  // In double: what is left of terms that cancel is a factor of every gradient.
  double totals[kWidth<A>] = {};
  for (int64_t row = 0; row < s.rows; ++row) {
    const T* dy = static_cast<const T*>(a.dy) + wide_place(s, item / s.maps, row, s.row_len + map * s.map_len);
    for_vectors<A>(s.map_len, [&](int64_t i, int64_t n) {
      A values[kWidth<A>];
      store(values, load(dy + i, n));
      for (int k = 0; k < kWidth<A>; ++k) totals[k] += double(values[k]);
    });
  }
  a.sums[item] = sum_of(totals, kWidth<A>);
}

template <class T>
void stddev_write_map(const Stddev& a, int64_t item) {
  using A = Acc<T>;
  const Samples& s = a.samples;
  const int64_t sample = item / s.maps, map = item % s.maps;
  const int64_t group = s.strided ? sample % s.groups : sample / s.group;
  const Vec<A> value = broadcast<A>(A(a.factors[group * s.maps + map]));
  T stored[kWidth<A>];
  store(stored, value);
  for (int64_t row = 0; row < s.rows; ++row) {
    T* y = static_cast<T*>(a.y) + wide_place(s, sample, row, s.row_len + map * s.map_len);
    if (s.map_len == 1) *y = stored[0];
    else for_vectors<A>(s.map_len, [&](int64_t i, int64_t n) { std::memcpy(y + i, stored, n * sizeof(T)); });
  }
}

// The table's entries

template <class F>
inline void for_items(const Stddev& a, int64_t begin, int64_t end, F f) {
  with_type(a.dtype, [&](auto type) {
    for (int64_t item = begin; item < end; ++item) f(type, item);
  });
}

inline void stddev_forward(const Stddev& a, int64_t begin, int64_t end) {
  for_items(a, begin, end, [&](auto type, int64_t item) { stddev_forward_item<decltype(type)>(a, item); });
}

inline void stddev_backward(const Stddev& a, int64_t begin, int64_t end) {
  for_items(a, begin, end, [&](auto type, int64_t item) { stddev_backward_item<decltype(type)>(a, item); });
}

inline void stddev_double_backward(const Stddev& a, int64_t begin, int64_t end) {
  for_items(a, begin, end, [&](auto type, int64_t item) { stddev_double_backward_item<decltype(type)>(a, item); });
}

inline void stddev_read_maps(const Stddev& a, int64_t begin, int64_t end) {
  for_items(a, begin, end, [&](auto type, int64_t item) { stddev_read_map<decltype(type)>(a, item); });
}

inline void stddev_write_maps(const Stddev& a, int64_t begin, int64_t end) {
  for_items(a, begin, end, [&](auto type, int64_t item) { stddev_write_map<decltype(type)>(a, item); });
}

}  // namespace pggan_fast::LEVEL
