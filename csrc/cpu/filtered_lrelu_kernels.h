// filtered_lrelu: one plane at a time, row by row of the upsampled grid, which exists for a few rows only:
//
//   input rows   a ring of the last ones, in the accumulation type, bias added
//   columns      their weighted sum: one row of the grid, at the input's width
//   grid row     that, filtered along the row; activation; mask
//   half rows    a ring of grid rows, filtered and downsampled along the row
//   output row   their weighted sum
//
// With L = lcm(up, down), a grid row is kept as L streams, every L-th value each, an input row as L / up and a half row
// as L / down: every sum is then one of streams that lie one element apart.
#pragma once

#include "worker.h"

namespace pggan_fast::LEVEL {

// a / b rounded down, and what is left.
inline int64_t quotient(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
inline int64_t remainder(int64_t a, int64_t b) { return a - quotient(a, b) * b; }

// finish(the weighted sum of n streams at i, i) for each whole vector up to `count`, which is rounded up to one.
template <class A, class F>
inline void weighted_sums(const A* const* from, const A* weights, int64_t n, int64_t count, const F& finish) {
  constexpr int64_t W = kWidth<A>;
  int64_t i = 0;
  for (; i + 3 * W < count; i += 4 * W) {
    Vec<A> a{}, b{}, c{}, d{};
    for (int64_t k = 0; k < n; ++k) {
      const Vec<A> weight = broadcast<A>(weights[k]);
      const A* p = from[k] + i;
      a += weight * load(p);
      b += weight * load(p + W);
      c += weight * load(p + 2 * W);
      d += weight * load(p + 3 * W);
    }
    finish(a, i);
    finish(b, i + W);
    finish(c, i + 2 * W);
    finish(d, i + 3 * W);
  }
  for (; i < count; i += W) {
    Vec<A> a{};
    for (int64_t k = 0; k < n; ++k) a += broadcast<A>(weights[k]) * load(from[k] + i);
    finish(a, i);
  }
}

// A byte for each lane.
template <class A>
struct Bytes {
  typedef uint8_t type __attribute__((vector_size(kWidth<A>)));
};

template <class T>
class FilteredPlane {
  using A = Acc<T>;
  using Lanes = decltype(Vec<A>{} > Vec<A>{});
  static constexpr int64_t W = kWidth<A>;
  static constexpr int64_t kMost = 32;  // taps of a filter, and room for more

  const FilteredLrelu& a;
  int64_t L, in_step, out_step;
  int64_t low, in_part, in_row, in_ring;  // first column of an input row; values of a stream, of a row; rows
  int64_t margin, grid_part, grid_count;  // zeros before a grid row's stream; its values and, rounded up, its results
  int64_t out_part, out_row;
  int64_t mask_part, mask_count;
  A *inputs, *columns, *grid, *halves, *zeros, *results;
  uint8_t* mask;
  int64_t loaded, made;

 public:
  explicit FilteredPlane(const FilteredLrelu& work) : a(work) {
    int64_t divisor = a.up;
    for (int64_t b = a.down; b;) {
      const int64_t rest = divisor % b;
      divisor = b, b = rest;
    }
    L = a.up / divisor * a.down, in_step = L / a.up, out_step = L / a.down;
    mask_count = (a.gw + L - 1) / L;
    mask_part = grid_count = rounded_up(mask_count, W);
    // What results of whole vectors read, padding included.
    low = quotient(-quotient(a.x0, a.up), in_step) * in_step;
    const int64_t in_end = quotient(L * grid_count - a.x0 + a.up_taps, a.up) + 1 - low;
    in_part = rounded_up(std::max<int64_t>(in_end, 1) / in_step + 2, W) + W;
    in_row = in_step * in_part;
    in_ring = a.up_taps / a.up + 2;
    out_part = rounded_up((a.ow + out_step - 1) / out_step, W);
    out_row = out_step * out_part;
    margin = a.left > 0 ? rounded_up(a.left, L) / L : 0;
    const int64_t grid_end = quotient(L * out_part - a.left + a.down_taps, L) + 2;
    grid_part = rounded_up(margin + std::max(grid_end, grid_count), W) + W;
    const int64_t widest = std::max(in_row, out_row);
    const int64_t total = (in_ring + 1) * in_row + L * grid_part + a.down_taps * out_row + 2 * widest;
    inputs = scratch<A>(0, total);
    for (int64_t i = 0; i < total; ++i) inputs[i] = 0;
    columns = inputs + in_ring * in_row;
    grid = columns + in_row;
    halves = grid + L * grid_part;
    zeros = halves + a.down_taps * out_row;
    results = zeros + widest;
    mask = scratch<uint8_t>(0, L * mask_part);
  }

  void run(int64_t plane) {
    loaded = made = 0;
    const A bias = a.bias ? as<A>(a.bias)[plane % a.channels] : A(0);
    const T* x = as<T>(a.x) + plane * a.h * a.w;
    T* y = as<T>(a.y) + plane * a.oh * a.ow;
    const int64_t mask_offset = plane * ((a.gh + 3) / 4) * L * mask_count;
    for (int64_t row = 0; row < a.oh; ++row) {
      const int64_t first = row * a.down - a.top, end = std::min(first + a.down_taps, a.gh);
      for (; made < end; ++made) make_half(x, bias, made, mask_offset);
      const A* from[kMost];
      A weights[kMost];
      int64_t n = 0;
      for (int64_t k = 0; k < a.down_taps; ++k) {
        if (first + k < 0 || first + k >= a.gh) continue;
        from[n] = halves + (first + k) % a.down_taps * out_row;
        weights[n++] = A(a.down_filter[k]);
      }
      write(y + row * a.ow, from, weights, n);
    }
  }

 private:
  void load_row(const T* x, A bias, A* to) {
    const int64_t begin = std::max<int64_t>(low, 0), end = std::min(a.w, low + in_step * in_part - W);
    const Vec<A> added = broadcast<A>(bias);
    if (in_step == 1) {
      for (int64_t i = begin; i < end; i += W) {
        const int64_t count = std::min(end - i, W);
        store(to + (i - low), load(x + i, count) + added, count);
      }
      return;
    }
    A values[W];
    for (int64_t i = begin; i < end; i += W) {
      const int64_t count = std::min(end - i, W);
      store(values, load(x + i, count) + added);
      for (int64_t j = 0; j < count; ++j) to[(i + j - low) % in_step * in_part + (i + j - low) / in_step] = values[j];
    }
  }

  // Grid row i, filtered and downsampled along the row.
  void make_half(const T* x, A bias, int64_t i, int64_t mask_offset) {
    const int64_t start = i - a.y0, input = -quotient(-start, a.up);
    const A* from[kMost];
    A weights[kMost];
    int64_t n = 0;
    for (int64_t k = input * a.up - start, r = input; k < a.up_taps; k += a.up, ++r) {
      if (r < 0 || r >= a.h) continue;
      for (loaded = std::max(loaded, r); loaded <= r; ++loaded)
        load_row(x + loaded * a.w, bias, inputs + loaded % in_ring * in_row);
      from[n] = inputs + r % in_ring * in_row;
      weights[n++] = A(a.up_columns[k]);
    }
    weighted_sums(from, weights, n, in_row, [&](Vec<A> sum, int64_t at) { store(columns + at, sum); });
    const int64_t rows = L * mask_count, offset = mask_offset + i / 4 * rows, shift = 2 * (i % 4);
    if (a.read_mask && shift == 0)
      for (int64_t r = 0; r < L; ++r)
        std::memcpy(mask + r * mask_part, a.read_mask + offset + r * mask_count, mask_count);
    for (int64_t r = 0; r < L; ++r) make_stream(r, shift);
    if (a.written_mask && (shift == 6 || i == a.gh - 1))
      for (int64_t r = 0; r < L; ++r)
        std::memcpy(a.written_mask + offset + r * mask_count, mask + r * mask_part, mask_count);
    A* to = halves + i % a.down_taps * out_row;
    for (int64_t s = 0; s < out_step; ++s) {
      for (int64_t k = 0; k < a.down_taps; ++k) {
        const int64_t at = s * a.down - a.left + k;
        from[k] = grid + remainder(at, L) * grid_part + margin + quotient(at, L);
        weights[k] = A(a.down_filter[k]);
      }
      A* part = to + s * out_part;
      weighted_sums(from, weights, a.down_taps, out_part, [&](Vec<A> sum, int64_t at) { store(part + at, sum); });
    }
  }

  // The grid row's values r, r + L, r + 2 L...: filtered, activated, clamped.
  void make_stream(int64_t r, int64_t shift) {
    const int64_t start = r - a.x0, input = -quotient(-start, a.up);
    const A* from[kMost];
    A weights[kMost];
    int64_t n = 0;
    for (int64_t k = input * a.up - start, c = input - low; k < a.up_taps; k += a.up, ++c) {
      from[n] = columns + c % in_step * in_part + c / in_step;
      weights[n++] = A(a.up_rows[k]);
    }
    A* to = grid + r * grid_part + margin;
    uint8_t* bits = mask + r * mask_part;
    if (a.read_mask) {
      const Vec<A> slope = broadcast<A>(A(a.slope)), zero{};
      weighted_sums(from, weights, n, grid_count, [&](Vec<A> v, int64_t at) {
        const Lanes code = __builtin_convertvector(load_bytes<typename Bytes<A>::type>(bits + at), Lanes) >> shift;
        v = (code & 1) != 0 ? v * slope : v;
        store(to + at, (code & 2) != 0 ? zero : v);
      });
    } else {
      const Vec<A> slope = broadcast<A>(A(a.slope)), limit = broadcast<A>(A(a.clamp)), zero{};
      // A product with a slope of 0 would make NaN of infinity.
      const Vec<A> dead = broadcast<A>(a.slope == 0 ? A(0) : A(NAN)), one = broadcast<A>(1);
      weighted_sums(from, weights, n, grid_count, [&](Vec<A> v, int64_t at) {
        const Lanes below = v <= zero;
        v = (v <= dead ? zero : v) * (below ? slope : one);
        const Lanes above_limit = v >= limit, below_limit = v <= -limit;
        if (a.written_mask) {
          const Lanes code = ((below & 1) | ((above_limit | below_limit) & 2)) << shift;
          auto bytes = __builtin_convertvector(code, typename Bytes<A>::type);
          if (shift) bytes |= load_bytes<typename Bytes<A>::type>(bits + at);
          std::memcpy(bits + at, &bytes, sizeof bytes);
        }
        v = above_limit ? limit : v;
        store(to + at, below_limit ? -limit : v);
      });
    }
    // Behind the grid's last value there are zeros, in the mask too.
    const int64_t end = (a.gw - r + L - 1) / L;
    for (int64_t j = end; j < grid_count; ++j) to[j] = 0;
    if (a.written_mask)
      for (int64_t j = end; j < mask_count; ++j) bits[j] = 0;
  }

  void write(T* y, const A* const* from, const A* weights, int64_t n) {
    if (out_step == 1) {
      weighted_sums(from, weights, n, a.ow, [&](Vec<A> sum, int64_t at) { store(y + at, sum, a.ow - at); });
      return;
    }
    weighted_sums(from, weights, n, out_row, [&](Vec<A> sum, int64_t at) { store(results + at, sum); });
    A values[W];
    for (int64_t i = 0; i < a.ow; i += W) {
      const int64_t count = std::min(a.ow - i, W);
      for (int64_t j = 0; j < count; ++j) values[j] = results[(i + j) % out_step * out_part + (i + j) / out_step];
      store(y + i, load(values, count), count);
    }
  }
};

inline void filtered_lrelu(const FilteredLrelu& a, int64_t begin, int64_t end) {
  with_type(a.dtype, [&](auto type) {
    FilteredPlane<decltype(type)> plane(a);
    for (int64_t i = begin; i < end; ++i) plane.run(i);
  });
}

}  // namespace pggan_fast::LEVEL
