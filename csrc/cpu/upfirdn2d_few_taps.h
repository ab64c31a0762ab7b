// upfirdn2d with everybody's filters: three or four taps on both axes, up 2, down 2 or neither, one term. What vectors
// fit goes through registers (upfirdn2d_few_taps_fused.h). Pixels of few channels go through memory, four output rows at
// a time: the input rows under them are summed down the columns, each read once, into four rows that stay in the
// first-level cache with zeros on both sides for the padding; then the sums along the rows need no edges:
//
//   input rows  -- down the columns -->  |000 sums of output row 0 000|  -- along x -->  4 output rows
//                                        |000 ...          row 3 000|
//
// Wide rows are cut into strips.
#pragma once

#include "upfirdn2d_few_taps_fused.h"

namespace pggan_fast::LEVEL {

// Extra: the second phase's inputs, down the columns, begin one later than the first's.
template <Change change, int filter, bool Extra, class T>
struct FewTaps {
  using A = Acc<T>;
  using Taps = Axis<change, filter, A>;
  static constexpr int W = kWidth<A>, kPhases = Taps::kPhases, kStep = Taps::kStep, N = Taps::kTaps;
  static constexpr int R = kFewTapsRows, kRowsIn = (R / kPhases - 1) * kStep + N + Extra;
  static constexpr int64_t kStrip = 2048;  // values of an input row in a strip, or a few more

  const Upfirdn2d& a;
  const Taps down, along;
  const int64_t columns;  // outputs of the first phase in a row
  int64_t strip, stride;
  int64_t most;  // blocks of R rows that are summed down before they are summed along
  A* sums;
  T* zeros;  // an input row

  FewTaps(const Upfirdn2d& work, const Taps& down)
      : a(work), down(down), along(work.rows, work.x0), columns((a.ow + kPhases - 1) / kPhases) {
    const int64_t widest = std::max<int64_t>(8, kStrip / (a.c * kStep)), strips = (columns + widest - 1) / widest;
    strip = (columns + strips - 1) / strips;
    stride = rounded_up((strip * kStep + N + 1) * a.c, W) + 4 * W;
    most = std::clamp<int64_t>(kStrip / stride, 1, 4);
    sums = scratch<A>(1, most * R * stride);
    zeros = scratch<T>(2, rounded_up(a.w * a.c, W));
    std::fill_n(sums, most * R * stride, A(0));
    std::memset(static_cast<void*>(zeros), 0, a.w * a.c * sizeof(T));
  }

  // Values [0, size) of R rows of sums, `to` the first's. `y` is where the outputs from there on will be written.
  void sum_down(const T* const (&rows)[kRowsIn], int64_t size, A* to, const T* y) const {
    const Taps taps = down;
    const int64_t stride = this->stride, row_out = a.ow * a.c;
    const int64_t next = int64_t{R} / kPhases * kStep * a.w * a.c;
    for_vectors<A>(size, [&](int64_t i, auto n) {
      // Both passes would otherwise wait for memory in turn.
      for (int k = kRowsIn - R / kPhases * kStep; k < kRowsIn; ++k) __builtin_prefetch(rows[k] + i + next);
      for (int r = 0; r < R; ++r) {
        __builtin_prefetch(y + r * row_out + i * kPhases / kStep, 1);
        if (kPhases == 2) __builtin_prefetch(y + r * row_out + i * 2 + W, 1);
      }
      Vec<A> in[kRowsIn];
      for (int k = 0; k < kRowsIn; ++k) in[k] = load(rows[k] + i, n);
      for (int r = 0; r < R; ++r) {
        const int phase = r % kPhases;
        store(to + r * stride + i, Taps::sum(taps.weights, phase, Extra, in + r / kPhases * kStep), n);
      }
    });
  }

  // Outputs [first, first + count) of each phase, of `rows` rows, from the sums at `in`.
  void sum_along(const A* in, int64_t first, int64_t count, int64_t rows, T* y) const {
    const Taps taps = along;
    const int64_t c = a.c, stride = this->stride, row_out = a.ow * c;
    y += kPhases * first * c;
    for (; rows > 0; --rows, in += stride, y += row_out) {
      if constexpr (change == Change::none) sum_pixel<0, false>(taps, in, c, count * c, y);
      else if (taps.extra()) sum_pixels<true>(taps, in, first, count, y);
      else sum_pixels<false>(taps, in, first, count, y);
    }
  }

  template <bool ExtraX>
  void sum_pixels(const Taps& taps, const A* in, int64_t first, int64_t count, T* y) const {
    const int64_t c = a.c;
    for (int64_t j = 0; j < count; ++j, in += kStep * c, y += kPhases * c) {
      sum_pixel<0, ExtraX>(taps, in, c, c, y);
      if (kPhases == 2 && 2 * (first + j) + 1 < a.ow) sum_pixel<kPhases - 1, ExtraX>(taps, in, c, c, y + c);
    }
  }

  // `size` values of streams that lie c values apart: a pixel, or where nothing changes size a whole row.
  template <int phase, bool ExtraX>
  static void sum_pixel(const Taps& taps, const A* in, int64_t c, int64_t size, T* y) {
    in += phase * ExtraX * c;
    for_vectors<A>(size, [&](int64_t i, auto n) {
      Vec<A> total = taps.weights[phase][0] * load(in + i);
      for (int k = 1; k < Taps::count(phase, ExtraX); ++k) total += taps.weights[phase][k] * load(in + i + k * c);
      store(y + i, total, n);
    });
  }

  // Output rows [row, row + R * blocks) of one plane, as far as it has them. Several blocks, where rows are short: what
  // the first pass has just stored is not yet in the cache, and the second reads it at other offsets.
  void filter_rows(const T* x, T* y, int64_t row, int64_t blocks) const {
    for (int64_t first = 0; first < columns; first += strip) {
      const int64_t count = std::min(strip, columns - first), low = first * kStep + along.shift[0];
      const int64_t high = (first + count - 1) * kStep + along.shift[kPhases - 1] + N;
      const int64_t begin = std::clamp<int64_t>(low, 0, a.w), end = std::clamp<int64_t>(high, begin, a.w);
      // The first sum lies at the beginning of a vector, and padding before it.
      const int64_t width = (high - low) * a.c, padding = std::clamp<int64_t>((begin - low) * a.c, 0, width);
      const int64_t size = (end - begin) * a.c, behind = std::min((high - end) * a.c, width);
      A* at = sums + rounded_up(padding, W);
      for (int64_t block = 0; block < blocks; ++block) {
        const T* rows[kRowsIn];
        for (int k = 0; k < kRowsIn; ++k) {
          const int64_t i = (row + block * R) / kPhases * kStep + down.shift[0] + k;
          rows[k] = i >= 0 && i < a.h ? x + (i * a.w + begin) * a.c : zeros;
        }
        sum_down(rows, size, at + block * R * stride, y + ((row + block * R) * a.ow + first * kPhases) * a.c);
      }
      const int64_t rows = std::min(R * blocks, a.oh - row);
      // One strip leaves its padding as it is.
      if (strip < columns)
        for (int64_t r = 0; r < rows; ++r) {
          std::fill_n(at + r * stride - padding, padding, A(0));
          std::fill_n(at + r * stride + size, behind, A(0));
        }
      sum_along(at - padding, first, count, rows, y + row * a.ow * a.c);
    }
  }

  void run(int64_t begin, int64_t end) const {
    const int64_t groups = (a.oh + R - 1) / R;
    while (begin < end) {
      const int64_t plane = begin / groups, first = begin % groups;
      const int64_t blocks = std::min({most, end - begin, groups - first});
      filter_rows(as<T>(a.x) + plane * a.h * a.w * a.c, as<T>(a.y) + plane * a.oh * a.ow * a.c, first * R, blocks);
      begin += blocks;
    }
  }
};

// Rows where four taps lie in two vectors, and pixels that fill vectors well. Others are filtered by way of memory.
template <class T>
bool has_whole_vectors(const Upfirdn2d& a) {
  constexpr int W = kWidth<Acc<T>>;
  return a.c == 1 ? W >= 4 : 4 * rounded_up(a.c, W) <= 5 * a.c;
}

template <Change change, int filter, bool ExtraY, class T>
void filter_few_taps(const Upfirdn2d& a, const Axis<change, filter, Acc<T>>& down, int64_t begin, int64_t end) {
  const Axis<change, filter, Acc<T>> along(a.rows, a.x0);
  if (!has_whole_vectors<T>(a)) return FewTaps<change, filter, ExtraY, T>(a, down).run(begin, end);
  if constexpr (change == Change::up)
    if (along.extra()) return FusedTaps<change, filter, ExtraY, true, T>(a, down, along).run(begin, end);
  FusedTaps<change, filter, ExtraY, false, T>(a, down, along).run(begin, end);
}

template <Change change, int filter, class T>
void filter_few_taps(const Upfirdn2d& a, int64_t begin, int64_t end) {
  const Axis<change, filter, Acc<T>> down(a.columns, a.y0);
  if constexpr (change == Change::up)
    if (down.extra()) return filter_few_taps<change, filter, true, T>(a, down, begin, end);
  filter_few_taps<change, filter, false, T>(a, down, begin, end);
}

template <int filter, class T>
void filter_few_taps(const Upfirdn2d& a, int64_t begin, int64_t end) {
  if (a.upx == 2) filter_few_taps<Change::up, filter, T>(a, begin, end);
  else if (a.downx == 2) filter_few_taps<Change::down, filter, T>(a, begin, end);
  else filter_few_taps<Change::none, filter, T>(a, begin, end);
}

}  // namespace pggan_fast::LEVEL
