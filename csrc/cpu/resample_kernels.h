// upsample2x and downsample2x: each goes once over two high rows and the low row under them, in registers. The fades
// of fade_kernels.h share the loops.
#pragma once

#include <type_traits>
#include <utility>

#include "worker.h"

// An op's constants stay in registers only where its steps are part of the loop, which the compiler has to be told.
#define INLINED __attribute__((always_inline))

namespace pggan_fast::LEVEL {

// From and to tensors

template <class A>
inline Vec<A> load_numbers(const uint8_t* p) {
  Vec<A> v;
  for (int i = 0; i < kWidth<A>; ++i) v[i] = A(p[i]);
  return v;
}

#if defined(__AVX512F__)
template <>
inline Vec<float> load_numbers<float>(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (Vec<float>)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
}
#elif defined(__AVX2__)
template <>
inline Vec<float> load_numbers<float>(const uint8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return (Vec<float>)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
}
#endif

template <class T>
inline const T* as(const void* p) {
  return static_cast<const T*>(p);
}
template <class T>
inline T* as(void* p) {
  return static_cast<T*>(p);
}

// 0..255 of a uint8 image become -1..1.
template <class A>
inline Vec<A> load_image(const uint8_t* p) {
  return load_numbers<A>(p) * broadcast<A>(A(2) / A(255)) - broadcast<A>(A(1));
}

template <class A, class T>
inline Vec<A> load_image(const T* p) {
  return load(p);
}

// Shuffles

template <class A>
struct Lane;
template <>
struct Lane<float> {
  typedef int32_t type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Lane<double> {
  typedef int64_t type __attribute__((vector_size(kVectorBytes)));
};

template <class A, int... I>
inline Vec<A> pick(Vec<A> a, Vec<A> b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, typename Lane<A>::type{I...});
#endif
}

template <class A>
using Lanes = std::make_integer_sequence<int, kWidth<A>>;

// v[first], v[first], v[first + 1], v[first + 1]...
template <class A, int first, int... I>
inline Vec<A> twice(Vec<A> v, std::integer_sequence<int, I...>) {
  return pick<A, (first + I / 2)...>(v, v);
}

// Elements first, first + 2... of a and b in a row.
template <class A, int first, int... I>
inline Vec<A> every_other(Vec<A> a, Vec<A> b, std::integer_sequence<int, I...>) {
  return pick<A, (first + 2 * I)...>(a, b);
}

// Between the resolutions
//
// An op works on one vector of low values at a time and the two pairs of vectors over them, one in the top and one in
// the bottom high row.

enum class Pairs {
  pixels,   // channels_last: some channels of the left pixel, and of the right one
  halves,   // contiguous, where left and right columns alternate: the first and the second half of both
  columns,  // contiguous: the left and the right columns
};

struct Place {
  int64_t low, top[2], bottom[2];  // offsets
};

template <class A>
struct Pair {
  Vec<A> part[2];
};

template <class A, Pairs pairs>
inline Pair<A> spread(Vec<A> v) {
  if constexpr (pairs == Pairs::halves) return {{twice<A, 0>(v, Lanes<A>{}), twice<A, kWidth<A> / 2>(v, Lanes<A>{})}};
  else return {{v, v}};
}

template <class A, Pairs pairs>
inline Vec<A> gather(const Pair<A>& v) {
  if constexpr (pairs == Pairs::halves)
    return every_other<A, 0>(v.part[0], v.part[1], Lanes<A>{}) + every_other<A, 1>(v.part[0], v.part[1], Lanes<A>{});
  else return v.part[0] + v.part[1];
}

// Two bfloat16 columns are the halves of 32-bit numbers: nothing needs to change its place.
template <class T>
constexpr bool has_columns = std::is_same<T, BFloat16>::value;

template <class A, Pairs pairs, class T>
inline Pair<A> load_pair(const T* p, const int64_t (&at)[2]) {
  if constexpr (pairs == Pairs::columns && has_columns<T>) {
    const Bits32 bits = load_bytes<Bits32>(p + at[0]);
    return {{(Vec<A>)(bits << 16), (Vec<A>)(bits & 0xffff0000)}};
  } else {
    const Pair<A> v{{load_image<A>(p + at[0]), load_image<A>(p + at[1])}};
    if constexpr (pairs != Pairs::columns) return v;
    else return {{every_other<A, 0>(v.part[0], v.part[1], Lanes<A>{}), every_other<A, 1>(v.part[0], v.part[1], Lanes<A>{})}};
  }
}

template <Pairs pairs, class T>
inline void store_pair(T* p, const int64_t (&at)[2], const Pair<Acc<T>>& v) {
  if constexpr (pairs == Pairs::columns) {
    const Bits32 bits = rounded_pair(v.part[0], v.part[1]);
    std::memcpy(p + at[0], &bits, sizeof(bits));
  } else {
    for (int k = 0; k < 2; ++k) store(p + at[k], v.part[k]);
  }
}

// 2 * kWidth channels of a channels_last bfloat16 pixel: the even ones and the odd ones, which are the halves of 32-bit
// numbers, too. Half the loads and stores of Pairs::pixels, and nothing to widen or to pack.
inline Pair<float> load_channels(const BFloat16* p) {
  const Bits32 bits = load_bytes<Bits32>(p);
  return {{(Vec<float>)(bits << 16), (Vec<float>)(bits & 0xffff0000)}};
}

inline void store_channels(BFloat16* p, const Pair<float>& v) {
  const Bits32 bits = rounded_pair(v.part[0], v.part[1]);
  std::memcpy(p, &bits, sizeof(bits));
}

template <class A>
inline Pair<A> operator+(const Pair<A>& a, const Pair<A>& b) {
  return {{a.part[0] + b.part[0], a.part[1] + b.part[1]}};
}

template <class A>
inline Pair<A> scaled(Vec<A> factor, const Pair<A>& v) {
  return {{factor * v.part[0], factor * v.part[1]}};
}

template <class T>
struct Upsample {
  using Type = T;
  using A = Acc<T>;
  using High = T;
  const T* x;
  T* y;
  Vec<A> scale;
  explicit Upsample(const Resample& a) : x(as<T>(a.low)), y(as<T>(a.high_out)), scale(broadcast<A>(A(a.factor))) {}

  template <Pairs pairs>
  INLINED void at(const Place& p) const {
    const Pair<A> v = spread<A, pairs>(scale * load(x + p.low));
    store_pair<pairs>(y, p.top, v);
    store_pair<pairs>(y, p.bottom, v);
  }

  INLINED void at_channels(const Place& p) const {
    const Pair<A> v = scaled<A>(scale, load_channels(x + p.low));
    for (const int64_t at : {p.top[0], p.top[1], p.bottom[0], p.bottom[1]}) store_channels(y + at, v);
  }
};

template <class T>
struct Downsample {
  using Type = T;
  using A = Acc<T>;
  using High = T;
  const T* x;
  T* y;
  Vec<A> scale;
  explicit Downsample(const Resample& a) : x(as<T>(a.high)), y(as<T>(a.low_out)), scale(broadcast<A>(A(a.factor))) {}

  template <Pairs pairs>
  INLINED void at(const Place& p) const {
    const Pair<A> top = load_pair<A, pairs>(x, p.top), bottom = load_pair<A, pairs>(x, p.bottom);
    store(y + p.low, scale * gather<A, pairs>(top + bottom));
  }

  INLINED void at_channels(const Place& p) const {
    const Pair<A> left = load_channels(x + p.top[0]) + load_channels(x + p.bottom[0]);
    const Pair<A> right = load_channels(x + p.top[1]) + load_channels(x + p.bottom[1]);
    store_channels(y + p.low, scaled<A>(scale, left + right));
  }
};

// Rows

// Offset of the first of the two high rows of low row `row`, counted through all planes.
inline int64_t high_offset(const Grid& g, int64_t row) {
  return (2 * row + (g.extra_h ? row / g.h : 0)) * (2 * g.w + g.extra_w) * g.c;
}

// Whether rows are made of whole vectors: the last one may overlap the one before, as no op works in place.
template <class A>
inline bool fits(const Grid& g) {
  return (g.c == 1 ? g.w : g.c) >= kWidth<A>;
}

template <class Op>
void run_rows(const Resample& a, int64_t row, int64_t rows) {
  constexpr int W = kWidth<typename Op::A>;
  constexpr Pairs in_rows = has_columns<typename Op::Type> ? Pairs::columns : Pairs::halves;
  const Grid g = a.grid;
  const int64_t below = (2 * g.w + g.extra_w) * g.c;
  const Op op(a);
  for (; rows > 0; --rows, ++row) {
    const int64_t low = row * g.w * g.c, high = high_offset(g, row);
    if (g.c == 1) {
      for (int64_t i = 0; i < g.w; i += W) {
        const int64_t k = i + W <= g.w ? i : g.w - W, left = high + 2 * k, right = left + W;
        op.template at<in_rows>({low + k, {left, right}, {left + below, right + below}});
      }
      continue;
    }
    const auto each_step = [&](int64_t step, auto at) {
      for (int64_t pixel = 0; pixel < g.w; ++pixel)
        for (int64_t j = 0; j < g.c; j += step) {
          const int64_t k = pixel * g.c + (j + step <= g.c ? j : g.c - step), left = high + pixel * g.c + k;
          at({low + k, {left, left + g.c}, {left + below, left + g.c + below}});
        }
    };
    if constexpr (has_columns<typename Op::Type> && has_columns<typename Op::High>)
      if (g.c >= 2 * W) {
        each_step(2 * W, [&](const Place& p) { op.at_channels(p); });
        continue;
      }
    if (g.c >= 2 * W)  // two vectors of each place in turn: the fewer changes of place, the better memory follows
      each_step(2 * W, [&](const Place& p) {
        op.template at<Pairs::pixels>(p);
        op.template at<Pairs::pixels>({p.low + W, {p.top[0] + W, p.top[1] + W}, {p.bottom[0] + W, p.bottom[1] + W}});
      });
    else each_step(W, [&](const Place& p) { op.template at<Pairs::pixels>(p); });
  }
}

// Contiguous images of half a vector's width: a low vector is two rows, a high one a whole row.
template <class Op>
void run_half_rows(const Resample& a, int64_t row, int64_t rows) {
  constexpr int W = kWidth<typename Op::A>;
  const Op op(a);
  for (int64_t i = 0; i < rows; i += 2) {
    const int64_t k = row + (i + 2 <= rows ? i : rows - 2), low = k * W / 2, high = k * W * 2;
    op.template at<Pairs::halves>({low, {high, high + 2 * W}, {high + W, high + 3 * W}});
  }
}

// Narrow rows, packed into one wide row

// Copies between items that alternate in a tensor and two places where every other one follows its like, in pieces of
// 16 bytes: what is written too much behind an item comes before the next one. Nothing is touched from `end` on.
template <bool out>
inline void copy_pairs(char* tensor, int64_t stride, char* a, char* b, int64_t bytes, int64_t pairs, const char* end) {
  const auto copy = [](char* t, char* packed, int64_t n) { std::memcpy(out ? t : packed, out ? packed : t, n); };
  const int64_t pieces = (bytes + 15) / 16;
  for (; pairs > 0 && tensor + stride + 16 * pieces <= end; --pairs, tensor += 2 * stride, a += bytes, b += bytes) {
    copy(tensor, a, 16);
    for (int64_t i = 1; i < pieces; ++i) copy(tensor + 16 * i, a + 16 * i, 16);
    copy(tensor + stride, b, 16);
    for (int64_t i = 1; i < pieces; ++i) copy(tensor + stride + 16 * i, b + 16 * i, 16);
  }
  for (; pairs > 0; --pairs, tensor += 2 * stride, a += bytes, b += bytes) {
    copy(tensor, a, bytes);
    copy(tensor + stride, b, bytes);
  }
}

// Values in one of the packed row's parts, with room for what copy_pairs writes too much.
inline int64_t packed_count(const Grid& g, int64_t rows) { return rounded_up(rows * g.w * g.c + 16, 64); }

// Contiguous rows follow one another in a row of one plane, the upper ones in the upper high row. channels_last pixels
// become the channels of one pixel, the left ones of the left high pixel.
template <bool out, class T>
inline void copy_high(const Grid& g, int64_t rows, T* tensor, T* packed) {
  const int64_t high_row = (2 * g.w + g.extra_w) * g.c, count = packed_count(g, rows);
  const auto bytes = [](T* p) { return reinterpret_cast<char*>(p); };
  const char* end = bytes(tensor + 2 * rows * high_row);
  constexpr int64_t size = sizeof(T);
  if (g.c == 1) {
    copy_pairs<out>(bytes(tensor), high_row * size, bytes(packed), bytes(packed + 2 * count), 2 * g.w * size, rows, end);
    return;
  }
  for (int64_t row = 0; row < 2 * rows; ++row) {
    T* left = packed + row % 2 * 2 * count + row / 2 * g.w * g.c;
    copy_pairs<out>(bytes(tensor + row * high_row), g.c * size, bytes(left), bytes(left + count), g.c * size, g.w, end);
  }
}

template <class Op, class T>
void run_packed(const Resample& a, int64_t row, int64_t rows) {
  using High = typename Op::High;
  const Grid& g = a.grid;
  const int64_t count = packed_count(g, rows), low = row * g.w * g.c, low_bytes = rows * g.w * g.c * sizeof(T);
  const int64_t high = high_offset(g, row);
  Resample packed = a;
  packed.grid = g.c == 1 ? Grid{1, 1, count, 1, 0, 0} : Grid{1, 1, 1, count, 0, 0};
  if (a.low) packed.low = std::memcpy(scratch<T>(0, count), as<T>(a.low) + low, low_bytes);
  if (a.high) {
    High* buffer = scratch<High>(1, 4 * count);
    // Only read: the copy goes into the buffer.
    copy_high<false>(g, rows, const_cast<High*>(as<High>(a.high)) + high, buffer);
    packed.high = buffer;
  }
  if (a.low_out) packed.low_out = scratch<T>(2, count);
  if (a.high_out) packed.high_out = scratch<T>(3, 4 * count);
  run_rows<Op>(packed, 0, 1);
  if (a.low_out) std::memcpy(as<T>(a.low_out) + low, packed.low_out, low_bytes);
  if (a.high_out) copy_high<true>(g, rows, as<T>(a.high_out) + high, as<T>(packed.high_out));
}

// The table's entries

template <class Op, class T>
void run_units(const Resample& a, int64_t begin, int64_t end) {
  const Grid& g = a.grid;
  const int64_t unit_rows = resample_rows(g), all = g.planes * g.h;
  const bool is_half = g.c == 1 && 2 * g.w == kWidth<Acc<T>> && !g.extra_h && !g.extra_w;
  for (int64_t row = begin * unit_rows; row < end * unit_rows && row < all; row += unit_rows) {
    const int64_t rows = row + unit_rows < all ? unit_rows : all - row;
    if (fits<Acc<T>>(g)) run_rows<Op>(a, row, rows);
    else if (is_half && rows > 1) run_half_rows<Op>(a, row, rows);
    else run_packed<Op, T>(a, row, rows);
  }
}

// Zeros in the extra column of two high rows, and in the extra row behind a plane's last.
template <class T>
void clear_extra(const Resample& a, int64_t begin, int64_t end) {
  const Grid& g = a.grid;
  const int64_t unit_rows = resample_rows(g), all = g.planes * g.h, high_row = (2 * g.w + g.extra_w) * g.c;
  for (int64_t row = begin * unit_rows; row < end * unit_rows && row < all; ++row) {
    T* y = as<T>(a.high_out) + high_offset(g, row);
    for (int64_t k = 0; k < 2 * g.extra_w; ++k) std::memset(y + k * high_row + 2 * g.w * g.c, 0, g.c * sizeof(T));
    if (g.extra_h && row % g.h == g.h - 1) std::memset(y + 2 * high_row, 0, high_row * sizeof(T));
  }
}

inline void downsample(const Resample& a, int64_t begin, int64_t end) {
  with_type(a.dtype, [&](auto type) { run_units<Downsample<decltype(type)>, decltype(type)>(a, begin, end); });
}

}  // namespace pggan_fast::LEVEL
