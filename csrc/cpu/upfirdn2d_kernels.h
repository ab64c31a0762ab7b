// upfirdn2d: a filter is a sum of `terms` products of a column and a row. For each output row, the input rows under it
// are first summed down the columns, in vectors along memory, then the sums along the row: everything is a weighted
// sum of streams that lie one element apart. Upsampling makes `up` phases of outputs, each with its own taps, and
// downsampling makes streams of every `down`-th value:
//
//   output r + P j of a row  =  sum over taps of  coefficient * sums[first + S j],   P = up / gcd, S = down / gcd
//
// Rows of pixels (c = 1) keep the sums of each residue modulo S apart, so that the stream over j is contiguous. Pixels
// of c channels (channels_last) have vectors along the channels and need no such split.
#pragma once

#include "upfirdn2d_few_taps.h"

namespace pggan_fast::LEVEL {

// The coefficient of input value start / up, the first one at or behind position `start` of the upsampled row: tap
// `skipped` of the filter.
struct FirstTap {
  int64_t input, skipped;
};
inline FirstTap first_tap(int64_t start, int64_t up) {
  const int64_t input = -floor_divided(-start, up);
  return {input, input * up - start};
}

// A weighted sum of N streams, which registers hold, or where N is 0 of any number of them.
template <int N, class S>
struct Streams {
  using A = Acc<S>;
  const S* from[N];
  Vec<A> weight[N];

  Streams(const S* const* given, const A* weights, int64_t) {
    for (int k = 0; k < N; ++k) from[k] = given[k], weight[k] = broadcast<A>(weights[k]);
  }
  Vec<A> at(int64_t i) const {
    Vec<A> total = weight[0] * load(from[0] + i);
    for (int k = 1; k < N; ++k) total += weight[k] * load(from[k] + i);
    return total;
  }
  // Where only the first `count` values are there.
  Vec<A> at(int64_t i, int64_t count) const {
    Vec<A> total = weight[0] * load(from[0] + i, count);
    for (int k = 1; k < N; ++k) total += weight[k] * load(from[k] + i, count);
    return total;
  }
};

template <class S>
struct Streams<0, S> {
  using A = Acc<S>;
  const S* const* from;
  const A* weights;
  int64_t n;

  Streams(const S* const* given, const A* weights, int64_t n) : from(given), weights(weights), n(n) {}
  Vec<A> at(int64_t i) const { return at(i, Whole<A>{}); }
  template <class Count>
  Vec<A> at(int64_t i, Count count) const {
    Vec<A> total{};
    for (int64_t k = 0; k < n; ++k) total += broadcast<A>(weights[k]) * load(from[k] + i, count);
    return total;
  }
};

// f(std::integral_constant<int, N>), the counts of everybody's filters among them.
template <class F>
inline void with_count(int64_t n, const F& f) {
  switch (n) {
    case 1: return f(std::integral_constant<int, 1>{});
    case 2: return f(std::integral_constant<int, 2>{});
    case 3: return f(std::integral_constant<int, 3>{});
    case 4: return f(std::integral_constant<int, 4>{});
    case 6: return f(std::integral_constant<int, 6>{});
    default: return f(std::integral_constant<int, 0>{});
  }
}

inline int64_t common_divisor(int64_t a, int64_t b) { return b ? common_divisor(b, a % b) : a; }

// How the taps along a row are found, the same for every row of a tensor.
template <class T>
struct RowPlan {
  using A = Acc<T>;
  const Upfirdn2d& a;
  int64_t P, S;          // phases, and from one output of a phase to the next in the input
  int64_t low, end;      // the input columns that any output reads, padding included; low is a multiple of S
  int64_t part, stride;  // values of a residue's sums, and of a term's
  int64_t* offsets;      // of a phase's taps in the sums
  A* weights;
  int64_t* counts;  // of a phase's taps
  int64_t most;     // taps that a phase has room for
  A* sums;
  A* column_weights;  // room for those of one output row

  explicit RowPlan(const Upfirdn2d& work) : a(work) {
    const int64_t divisor = common_divisor(a.upx, a.downx), width = kWidth<A>;
    P = a.upx / divisor;
    S = a.downx / divisor;
    low = floor_divided(first_tap(-a.x0, a.upx).input, S) * S;
    end = floor_divided((a.ow - 1) * a.downx - a.x0 + a.fw - 1, a.upx) + 1;
    if (end < low + 1) end = low + 1;
    part = split() ? rounded_up((end - low + S - 1) / S + 3 * width, width) : rounded_up((end - low) * a.c + 3 * width, width);
    stride = split() ? S * part : part;
    most = a.terms * (a.fw / a.upx + 1);
    counts = scratch<int64_t>(0, P);
    offsets = scratch<int64_t>(1, P * most);
    weights = scratch<A>(0, P * most + a.fh);
    column_weights = weights + P * most;
    sums = scratch<A>(1, a.terms * stride);
    for (int64_t i = 0; i < a.terms * stride; ++i) sums[i] = 0;
    for (int64_t r = 0; r < P; ++r) list_taps(r);
  }

  bool split() const { return a.c == 1 && S > 1; }

  void list_taps(int64_t r) {
    const FirstTap first = first_tap(r * a.downx - a.x0, a.upx);
    int64_t n = 0;
    for (int64_t term = 0; term < a.terms; ++term)
      for (int64_t k = first.skipped, i = first.input - low; k < a.fw; k += a.upx, ++i) {
        offsets[r * most + n] = term * stride + (split() ? i % S * part + i / S : i * a.c);
        weights[r * most + n++] = A(a.rows[term * a.fw + k]);
      }
    counts[r] = n;
  }
};

// The sums down the columns for output row `row` of the plane at x, of one term.
template <class T>
void sum_columns(const RowPlan<T>& plan, const T* x, int64_t row, int64_t term) {
  using A = Acc<T>;
  constexpr int W = kWidth<A>;
  const Upfirdn2d& a = plan.a;
  const T** from = scratch<const T*>(0, a.fh);
  A* weights = plan.column_weights;
  const FirstTap first = first_tap(row * a.downy - a.y0, a.upy);
  const int64_t begin = plan.low > 0 ? plan.low : 0, end = plan.end < a.w ? plan.end : a.w;
  int64_t n = 0;
  for (int64_t k = first.skipped, i = first.input; k < a.fh; k += a.upy, ++i) {
    const double weight = a.columns[term * a.fh + k];
    // Each of several terms has one row of the filter; a tap of zero counts otherwise: times infinity it is NaN.
    if ((weight == 0 && a.terms > 1) || i < 0 || i >= a.h) continue;
    from[n] = x + (i * a.w + begin) * a.c;
    weights[n++] = A(weight);
  }
  A* sums = plan.sums + term * plan.stride;
  const int64_t size = (end - begin) * a.c;
  if (!plan.split()) {
    A* to = sums + (begin - plan.low) * a.c;
    with_count(n, [&](auto count) {
      const Streams<count, T> sum(from, weights, n);
      int64_t i = 0;
      for (; i + W <= size; i += W) store(to + i, sum.at(i));
      if (i < size) store(to + i, sum.at(i, size - i), size - i);
    });
    return;
  }
  A* to = sums + (begin - plan.low) / plan.S;
  if (plan.S == 2) {
    with_count(n, [&](auto count) {
      const Streams<count, T> sum(from, weights, n);
      int64_t i = 0;
      for (; i + 2 * W <= size; i += 2 * W) {
        const Vec<A> left = sum.at(i), right = sum.at(i + W);
        store(to + i / 2, every_other<A, 0>(left, right, Lanes<A>{}));
        store(to + plan.part + i / 2, every_other<A, 1>(left, right, Lanes<A>{}));
      }
      if (i == size) return;
      // What lies behind the row is zero and stays so: padding.
      const int64_t rest = size - i, there = rest < W ? rest : W;
      const Vec<A> left = sum.at(i, there);
      const Vec<A> right = rest > W ? sum.at(i + W, rest - W) : Vec<A>{};
      store(to + i / 2, every_other<A, 0>(left, right, Lanes<A>{}));
      store(to + plan.part + i / 2, every_other<A, 1>(left, right, Lanes<A>{}));
    });
    return;
  }
  A values[W];
  const Streams<0, T> sum(from, weights, n);
  for (int64_t i = 0; i < size; i += W) {
    const int64_t count = size - i < W ? size - i : W;
    store(values, sum.at(i, count));
    for (int64_t j = 0; j < count; ++j) to[(i + j) % plan.S * plan.part + (i + j) / plan.S] = values[j];
  }
}

// Streams of one phase.
template <class T>
inline const Acc<T>** streams_of(const RowPlan<T>& plan, int64_t phase, int which) {
  const Acc<T>** from = scratch<const Acc<T>*>(which, plan.most + 1);
  for (int64_t k = 0; k < plan.counts[phase]; ++k) from[k] = plan.sums + plan.offsets[phase * plan.most + k];
  return from;
}

// A row of single values.
template <class T>
void filter_row(const RowPlan<T>& plan, T* y) {
  using A = Acc<T>;
  constexpr int W = kWidth<A>;
  const int64_t ow = plan.a.ow;
  if (plan.P == 1) {
    const A* const* from = streams_of(plan, 0, 1);
    const int64_t n = plan.counts[0];
    with_count(n, [&](auto count) {
      const Streams<count, A> sum(from, plan.weights, n);
      int64_t j = 0;
      for (; j + W <= ow; j += W) store(y + j, sum.at(j));
      if (j < ow) store(y + j, sum.at(j), ow - j);
    });
    return;
  }
  if (plan.P == 2) {
    const A *const *even = streams_of(plan, 0, 1), *const *odd = streams_of(plan, 1, 2);
    const A* weights = plan.weights;
    const int64_t n = plan.counts[0], n_odd = plan.counts[1];
    with_count(n == n_odd ? n : 0, [&](auto count) {
      const Streams<count, A> evens(even, weights, n), odds(odd, weights + plan.most, n_odd);
      int64_t j = 0;
      for (; 2 * (j + W) <= ow; j += W) {
        const Vec<A> left = evens.at(j), right = odds.at(j);
        store(y + 2 * j, interleaved<A, 0>(left, right, Lanes<A>{}));
        store(y + 2 * j + W, interleaved<A, 1>(left, right, Lanes<A>{}));
      }
      if (2 * j < ow) {
        const Vec<A> left = evens.at(j), right = odds.at(j);
        store(y + 2 * j, interleaved<A, 0>(left, right, Lanes<A>{}), ow - 2 * j);
        if (2 * j + W < ow) store(y + 2 * j + W, interleaved<A, 1>(left, right, Lanes<A>{}), ow - 2 * j - W);
      }
    });
    return;
  }
  for (int64_t r = 0; r < plan.P && r < ow; ++r) {
    const A* const* from = streams_of(plan, r, 1);
    const Streams<0, A> sum(from, plan.weights + r * plan.most, plan.counts[r]);
    T values[W];
    for (int64_t j = 0, left = (ow - r + plan.P - 1) / plan.P; left > 0; j += W, left -= W) {
      store(values, sum.at(j));
      for (int64_t i = 0; i < W && i < left; ++i) y[r + plan.P * (j + i)] = values[i];
    }
  }
}

// A row of pixels with c values each.
template <class T>
void filter_pixels(const RowPlan<T>& plan, T* y) {
  using A = Acc<T>;
  constexpr int W = kWidth<A>;
  const Upfirdn2d& a = plan.a;
  // Where every phase is one and every step too, the row is a single run.
  const bool one_run = plan.P == 1 && plan.S == 1;
  const int64_t size = one_run ? a.ow * a.c : a.c, step = plan.S * a.c;
  for (int64_t r = 0; r < plan.P && r < a.ow; ++r) {
    const A* const* from = streams_of(plan, r, 1);
    const A* weights = plan.weights + r * plan.most;
    const int64_t n = plan.counts[r], pixels = one_run ? 1 : (a.ow - r + plan.P - 1) / plan.P;
    with_count(n, [&](auto count) {
      const Streams<count, A> sum(from, weights, n);
      for (int64_t j = 0; j < pixels; ++j) {
        T* to = y + (r + plan.P * j) * a.c;
        int64_t i = 0;
        for (; i + W <= size; i += W) store(to + i, sum.at(j * step + i));
        if (i < size) store(to + i, sum.at(j * step + i), size - i);
      }
    });
  }
}

// Output rows [begin, end) of all planes.
template <class T>
void filter_rows(const Upfirdn2d& a, int64_t begin, int64_t end) {
  const RowPlan<T> plan(a);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = as<T>(a.x) + row / a.oh * a.h * a.w * a.c;
    T* y = as<T>(a.y) + row * a.ow * a.c;
    for (int64_t term = 0; term < a.terms; ++term) sum_columns(plan, x, row % a.oh, term);
    if (a.c == 1) filter_row(plan, y);
    else filter_pixels(plan, y);
  }
}

// Small planes, kPlanesAtOnce of them as the channels of one.
template <class T>
void filter_planes(const Upfirdn2d& a, int64_t begin, int64_t end) {
  constexpr int64_t G = kPlanesAtOnce;
  const int64_t in = a.h * a.w, out = a.oh * a.ow;
  T *x = scratch<T>(2, in * G), *y = scratch<T>(3, out * G);
  for (int64_t first = begin * G; first < end * G && first < a.planes; first += G) {
    const int64_t count = a.planes - first < G ? a.planes - first : G;
    for (int64_t i = 0; i < in; ++i)
      for (int64_t k = 0; k < count; ++k) x[i * G + k] = as<T>(a.x)[(first + k) * in + i];
    // Of planes that are not there, values that were left from before: their results are dropped.
    for (int64_t i = 0; i < in; ++i)
      for (int64_t k = count; k < G; ++k) x[i * G + k] = T{};
    Upfirdn2d inner = a;
    inner.planes = 1;
    inner.c = G;
    inner.x = x;
    inner.y = y;
    filter_rows<T>(inner, 0, a.oh);
    for (int64_t k = 0; k < count; ++k)
      for (int64_t i = 0; i < out; ++i) as<T>(a.y)[(first + k) * out + i] = y[i * G + k];
  }
}

inline void upfirdn2d(const Upfirdn2d& a, int64_t begin, int64_t end) {
  with_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    if (upfirdn2d_has_few_taps(a))
      return a.fh == 3 ? filter_few_taps<3, T>(a, begin, end) : filter_few_taps<4, T>(a, begin, end);
    if (upfirdn2d_has_small_planes(a)) filter_planes<T>(a, begin, end);
    else filter_rows<T>(a, begin, end);
  });
}

}  // namespace pggan_fast::LEVEL
