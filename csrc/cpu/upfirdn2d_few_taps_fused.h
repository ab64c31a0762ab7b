// upfirdn2d with three or four taps on both axes, up 2, down 2 or neither, in registers: R output rows at a time, the
// input rows under them are summed down the columns a vector at a time, and the sums of consecutive vectors along the row
// at once.
// Nothing between the two passes waits for a store, as it would where the first one's sums went by way of memory.
//
//   input rows  -- down the columns -->  sums[R] of vector i, i + 1  -- along x -->  vector i of R output rows
//
// Rows of single values (contiguous) shift two vectors of sums against each other; pixels of a vector or more
// (channels_last) keep the sums of the last four pixels in a ring in the first-level cache.
#pragma once

#include "upfirdn2d_taps.h"

namespace pggan_fast::LEVEL {

// Images this large come from memory and go there: the inputs are fetched ahead, and the outputs are written past the
// caches, where they would push out what is still to be read.
constexpr int64_t kLargeBytes = 8 << 20;

// ExtraY, ExtraX: the second phase's inputs, down the columns and along the rows, begin one later than the first's.
template <Change change, int filter, bool ExtraY, bool ExtraX, class T>
struct FusedTaps {
  using A = Acc<T>;
  using Taps = Axis<change, filter, A>;
  static constexpr int W = kWidth<A>, kPhases = Taps::kPhases, kStep = Taps::kStep, N = Taps::kTaps;
  // As many as registers hold: narrower levels have half as many of them.
  static constexpr int R = kVectorBytes == 64 && change != Change::down ? 4 : 2;
  static constexpr int kRowsIn = (R / kPhases - 1) * kStep + N + ExtraY;
  static_assert(kFewTapsRows % R == 0);
  static constexpr int kRing = 4;  // pixels

  const Upfirdn2d& a;
  const Taps down, along;
  const bool far, stream;
  const int64_t stride;  // of a pixel's sums in the ring, for one output row
  A* ring;               // [kRing][R][stride]
  T* zeros;              // an input row

  FusedTaps(const Upfirdn2d& work, const Taps& down, const Taps& along)
      : a(work), down(down), along(along), far(is_large(a.h * a.w) || is_large(a.oh * a.ow)), stream(streams_output()),
        stride(rounded_up(a.c, W)) {
    ring = scratch<A>(1, kRing * R * stride);
    zeros = scratch<T>(2, a.w * a.c);
    std::memset(static_cast<void*>(zeros), 0, a.w * a.c * sizeof(T));
  }

  bool is_large(int64_t pixels) const { return a.planes * pixels * a.c * int64_t{sizeof(T)} >= kLargeBytes; }
  // Whole vectors, each where a vector may lie.
  bool streams_output() const {
    return is_large(a.oh * a.ow) && a.ow * a.c * sizeof(T) % kVectorBytes == 0 &&
           reinterpret_cast<uintptr_t>(a.y) % kVectorBytes == 0;
  }

  // The first `left` values of v, all of them if that is more.
  [[gnu::always_inline]] static void put(T* y, Vec<A> v, int64_t left, bool stream) {
    if (left < W) store(y, v, left);
    else if (stream) store_past_cache(y, v);
    else store(y, v);
  }

  static void sum_down(const Taps& taps, const Vec<A> (&in)[kRowsIn], Vec<A> (&sums)[R]) {
    for (int r = 0; r < R; ++r) {
      const int phase = r % kPhases;
      sums[r] = Taps::sum(taps.weights, phase, ExtraY, in + r / kPhases * kStep);
    }
  }

  // The vectors at column i of the input rows where not all of it lies in the image: zeros beside that. Not inlined, so
  // that loops keep their registers.
  [[gnu::noinline]] void load_edge(const T* const (&rows)[kRowsIn], int64_t i, T* to) const {
    const int64_t from = std::clamp<int64_t>(-i, 0, W), end = std::clamp<int64_t>(a.w - i, from, W);
    for (int k = 0; k < kRowsIn; ++k) {
      if (from == end) store(to + k * W, Vec<A>{});
      else copy_between(rows[k] + i, from, end, to + k * W);
    }
  }

  // What the rows after these add to them.
  [[gnu::always_inline]] inline void prefetch_next(const T* const (&rows)[kRowsIn], int64_t i) const {
    if (!far) return;
    constexpr int kNew = R / kPhases * kStep;
    for (int k = kRowsIn - kNew; k < kRowsIn; ++k) __builtin_prefetch(rows[k] + kNew * a.w * a.c + i);
  }

  // Sums of the input columns from i on, zeros where these lie beyond the image.
  [[gnu::always_inline]] inline void sum_columns(const Taps& taps, const T* const (&rows)[kRowsIn], int64_t i,
                                                 Vec<A> (&sums)[R]) const {
    if (i >= a.w) {
      for (int r = 0; r < R; ++r) sums[r] = Vec<A>{};
      return;
    }
    T edge[kRowsIn * W];
    Vec<A> in[kRowsIn];
    if (__builtin_expect(i < 0 || i + W > a.w, 0)) {
      load_edge(rows, i, edge);
      for (int k = 0; k < kRowsIn; ++k) in[k] = load(edge + k * W);
    } else {
      for (int k = 0; k < kRowsIn; ++k) in[k] = load(rows[k] + i);
      prefetch_next(rows, i);
    }
    sum_down(taps, in, sums);
  }

  // Tap k of each output of the vector that begins Lead values behind the input's vector `now`.
  template <int Lead, int k>
  static Vec<A> tap(Vec<A> before, Vec<A> now, Vec<A> next) {
    if constexpr (k < Lead) return shifted<A, W + k - Lead>(before, now, Lanes<A>{});
    else return shifted<A, k - Lead>(now, next, Lanes<A>{});
  }

  // `count` output rows of single values, as many as there are input columns or a few more or less. If Lead is the
  // padding, vectors of sums begin with column 0 and lie as the image's do; otherwise Lead is 0.
  template <int Lead>
  void blur_row(const T* const (&rows)[kRowsIn], int64_t count, T* y) const {
    const Taps taps = down, weights = along;
    const bool stream = this->stream;
    const int64_t ow = a.ow;
    int64_t i = weights.shift[0] + Lead;
    Vec<A> before[R] = {}, now[R], next[R];
    sum_columns(taps, rows, i, now);
    for (int64_t j = 0; j < ow; j += W) {
      sum_columns(taps, rows, i += W, next);
      for (int r = 0; r < R; ++r) {
        const Vec<A> in[] = {tap<Lead, 0>(before[r], now[r], next[r]), tap<Lead, 1>(before[r], now[r], next[r]),
                             tap<Lead, 2>(before[r], now[r], next[r]), tap<Lead, 3>(before[r], now[r], next[r])};
        if (r < count) put(y + r * ow + j, Taps::sum(weights.weights, 0, ExtraX, in), ow - j, stream);
        before[r] = now[r];
        now[r] = next[r];
      }
    }
  }

  // The same of rows with half as many outputs, from the even and the odd columns.
  template <int Lead>
  void halve_row(const T* const (&rows)[kRowsIn], int64_t count, T* y) const {
    const Taps taps = down, weights = along;
    const bool stream = this->stream;
    const int64_t ow = a.ow;
    const Lanes<A> lanes{};
    int64_t i = weights.shift[0] + Lead;
    Vec<A> before[R] = {}, even[R], odd[R];
    const auto next = [&](Vec<A>(&evens)[R], Vec<A>(&odds)[R]) __attribute__((always_inline)) {
      Vec<A> low[R], high[R];
      sum_columns(taps, rows, i, low);
      sum_columns(taps, rows, i + W, high);
      for (int r = 0; r < R; ++r) {
        evens[r] = every_other<A, 0>(low[r], high[r], lanes);
        odds[r] = every_other<A, 1>(low[r], high[r], lanes);
      }
      i += 2 * W;
    };
    next(even, odd);
    for (int64_t j = 0; j < ow; j += W) {
      Vec<A> evens[R], odds[R];
      next(evens, odds);
      for (int r = 0; r < R; ++r) {
        const Vec<A> later = shifted<A, 1>(even[r], evens[r], lanes);
        // With one column of padding, the first tap of output j is odd column j - 1.
        const Vec<A> first = Lead ? shifted<A, W - 1>(before[r], odd[r], lanes) : even[r];
        const Vec<A> in[] = {first, Lead ? even[r] : odd[r], Lead ? odd[r] : later,
                             Lead ? later : shifted<A, 1>(odd[r], odds[r], lanes)};
        if (r < count) put(y + r * ow + j, Taps::sum(weights.weights, 0, ExtraX, in), ow - j, stream);
        before[r] = odd[r];
        even[r] = evens[r];
        odd[r] = odds[r];
      }
    }
  }

  // The same of rows with twice as many outputs, even and odd ones in turn.
  template <int Lead>
  void double_row(const T* const (&rows)[kRowsIn], int64_t count, T* y) const {
    const Taps taps = down, weights = along;
    const bool stream = this->stream;
    const int64_t ow = a.ow;
    int64_t i = weights.shift[0] + Lead;
    Vec<A> before[R] = {}, now[R], next[R];
    sum_columns(taps, rows, i, now);
    for (int64_t j = 0; j < ow; j += 2 * W) {
      sum_columns(taps, rows, i += W, next);
      for (int r = 0; r < R; ++r) {
        const Vec<A> in[] = {tap<Lead, 0>(before[r], now[r], next[r]), tap<Lead, 1>(before[r], now[r], next[r]),
                             tap<Lead, 2>(before[r], now[r], next[r])};
        const Vec<A> even = Taps::sum(weights.weights, 0, ExtraX, in);
        const Vec<A> odd = Taps::sum(weights.weights, kPhases - 1, ExtraX, in);
        const Vec<A> low = interleaved<A, 0>(even, odd, Lanes<A>{}), high = interleaved<A, 1>(even, odd, Lanes<A>{});
        before[r] = now[r];
        now[r] = next[r];
        if (r >= count) continue;
        T* to = y + r * ow + j;
        put(to, low, ow - j, stream);
        if (ow - j > W) put(to + W, high, ow - j - W, stream);
      }
    }
  }

  // `count` output rows of single values. The usual paddings make the vectors lie as the image does.
  void filter_row(const T* const (&rows)[kRowsIn], int64_t count, T* y) const {
    const int64_t before = -along.shift[0];
    if constexpr (change == Change::none) {
      if (before == 1) blur_row<1>(rows, count, y);
      else if (before == 2) blur_row<2>(rows, count, y);
      else blur_row<0>(rows, count, y);
    } else if constexpr (change == Change::down) {
      if (before == 1) halve_row<1>(rows, count, y);
      else halve_row<0>(rows, count, y);
    } else {
      if (before == 1) double_row<1>(rows, count, y);
      else double_row<0>(rows, count, y);
    }
  }

  // `count` output rows of pixels.
  void filter_pixels(const T* const (&rows)[kRowsIn], int64_t count, T* y) const {
    const Taps taps = down, weights = along;
    const bool stream = this->stream;
    const int64_t c = a.c, row_out = a.ow * c, stride = this->stride, slot = R * stride;
    // An output pixel, or two where upsampling, is due with the last of the pixels that it is a sum of.
    constexpr int kPixels = N + ExtraX;
    int64_t j = 0;
    for (int64_t k = 0; j < a.ow; ++k) {
      const int64_t column = weights.shift[0] + k;
      const bool inside = column >= 0 && column < a.w;
      const bool due = k >= kPixels - 1 && (k - (kPixels - 1)) % kStep == 0;
      A* last = ring + k % kRing * slot;
      if (!inside) std::fill_n(last, slot, A(0));
      const A* pixels[kPixels];
      for (int p = 0; p < kPixels; ++p) pixels[p] = ring + (k + kRing - (kPixels - 1) + p) % kRing * slot;
      const bool second = kPhases == 2 && j + 1 < a.ow;
      T* to = y + j * c;
      for_vectors<A>(c, [&](int64_t i, auto n) {
        Vec<A> sums[R];
        if (inside) {
          Vec<A> in[kRowsIn];
          for (int r = 0; r < kRowsIn; ++r) in[r] = load(rows[r] + column * c + i, n);
          sum_down(taps, in, sums);
          prefetch_next(rows, column * c + i);
          for (int r = 0; r < R; ++r) store(last + r * stride + i, sums[r]);
        } else {
          for (int r = 0; r < R; ++r) sums[r] = Vec<A>{};
        }
        if (!due) return;
        for (int r = 0; r < R; ++r) {
          Vec<A> in[kPixels];
          for (int p = 0; p < kPixels - 1; ++p) in[p] = load(pixels[p] + r * stride + i);
          in[kPixels - 1] = sums[r];
          if (r >= count) continue;
          put(to + r * row_out + i, Taps::sum(weights.weights, 0, ExtraX, in), n, stream);
          if (second) put(to + r * row_out + c + i, Taps::sum(weights.weights, kPhases - 1, ExtraX, in), n, stream);
        }
      });
      if (due) j += kPhases;
    }
  }

  void run(int64_t begin, int64_t end) const {
    const int64_t groups = (a.oh + kFewTapsRows - 1) / kFewTapsRows, row_in = a.w * a.c, row_out = a.ow * a.c;
    for (; begin < end; ++begin) {
      const int64_t plane = begin / groups, first = begin % groups * kFewTapsRows;
      const T* x = as<T>(a.x) + plane * a.h * row_in;
      T* y = as<T>(a.y) + plane * a.oh * row_out;
      for (int64_t row = first; row < std::min(first + kFewTapsRows, a.oh); row += R) {
        const T* rows[kRowsIn];
        for (int k = 0; k < kRowsIn; ++k) {
          const int64_t i = row / kPhases * kStep + down.shift[0] + k;
          rows[k] = i >= 0 && i < a.h ? x + i * row_in : zeros;
        }
        const int64_t count = std::min<int64_t>(R, a.oh - row);
        if (a.c == 1) filter_row(rows, count, y + row * row_out);
        else filter_pixels(rows, count, y + row * row_out);
      }
    }
    if (stream) finish_stores();
  }
};

}  // namespace pggan_fast::LEVEL
