// The distance of two rows of values in one dimension, without sorting them: see pggan_fast/ops/wasserstein.py.
//
// Values become places: integers in the range of both rows. The rows' step functions, how many values lie up to a
// place, enclose the area that is asked for. In a bucket of places in which one function stays above the other the area
// follows from how many values lie there and from the sum of their places; values of other buckets alone are sorted.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "tensors.h"

namespace pggan_fast {
namespace {

constexpr int kPlaceBits = 27;  // more than float32 tells apart
constexpr float kPlaces = 1 << kPlaceBits;
constexpr float kLastPlace = kPlaces - 8;             // the last integer below it that float32 has
constexpr int kFewestBits = 8, kMostBits = 16;        // of a bucket's number
constexpr int64_t kMostValues = int64_t(1) << 26;     // of a row: what a bucket's word can count
constexpr int64_t kPerBucket = 4;
constexpr int64_t kAtOnce = 16;                       // extents of so many values side by side

struct Scale {
  float low, factor;
};

// Vectors of the baseline: the counts, which are no work for vectors, take longer than the arithmetic.
typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Places __attribute__((vector_size(16)));
constexpr int64_t kWidth = 4;

Places places_of(const float* x, const Scale& scale) {
  Floats values;
  std::memcpy(&values, x, sizeof(values));
  const Floats zero{}, last = zero + kLastPlace;
  values = (values - scale.low) * scale.factor;
  values = values > zero ? values : zero;  // rounding may leave a little less
  return __builtin_convertvector(values < last ? values : last, Places);
}

// f(place) for every value of a row.
template <class F>
void for_places(const float* x, int64_t n, const Scale& scale, const F& f) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const Places places = places_of(x + i, scale);
    for (int64_t j = 0; j < kWidth; ++j) f(places[j]);
  }
  if (i == n) return;
  float rest[kWidth] = {};
  std::copy(x + i, x + n, rest);
  const Places places = places_of(rest, scale);
  for (int64_t j = 0; j < n - i; ++j) f(places[j]);
}

struct Extent {
  float low, high;
  bool finite;
};

Extent extent_of(const float* x, int64_t n) {
  float low[kAtOnce], high[kAtOnce], zero[kAtOnce] = {};  // zero: NaN if a value is not finite
  std::fill_n(low, kAtOnce, x[0]);
  std::fill_n(high, kAtOnce, x[0]);
  const auto add = [&](int64_t j, float value) {
    low[j] = std::min(low[j], value);
    high[j] = std::max(high[j], value);
    zero[j] += 0 * value;
  };
  int64_t i = 0;
  for (; i + kAtOnce <= n; i += kAtOnce)
    for (int64_t j = 0; j < kAtOnce; ++j) add(j, x[i + j]);
  for (; i < n; ++i) add(0, x[i]);
  bool finite = true;
  for (float z : zero) finite &= z == 0;
  return {*std::min_element(low, low + kAtOnce), *std::max_element(high, high + kAtOnce), finite};
}

// What a bucket has of one row: its values' number above, the sum of their places within the bucket below.
struct Word {
  int count_shift;
  uint64_t one() const { return uint64_t(1) << count_shift; }
  int64_t count(uint64_t word) const { return int64_t(word >> count_shift); }
  int64_t places(uint64_t word) const { return int64_t(word & (one() - 1)); }
};

// The memory of one thread.
struct Buckets {
  int bits, width;  // there are 2^bits of 2^width places each
  Word word;
  std::vector<uint64_t> a, b;
  std::vector<int32_t> next;      // where the next value of a bucket goes that is sorted; 0, to be overwritten, of others
  std::vector<int32_t> crossing;  // numbers of the buckets in which the functions may cross
  std::vector<int64_t> above;     // a's less b's values below each of those
  std::vector<uint32_t> keys;     // twice the place, plus 1 for b's

  explicit Buckets(int64_t n) : bits(kFewestBits) {
    while (bits < kMostBits && n / kPerBucket >> bits) ++bits;
    width = kPlaceBits - bits;
    word.count_shift = 63;
    while (n >> (64 - word.count_shift)) --word.count_shift;
    for (auto* each : {&a, &b}) each->resize(size_t(1) << bits);
    next.resize(size_t(1) << bits);
  }

  void count(const float* x, int64_t n, const Scale& scale, std::vector<uint64_t>& words) const {
    std::fill(words.begin(), words.end(), 0);
    const int32_t within = (1 << width) - 1;
    const uint64_t one = word.one();
    uint64_t* of = words.data();
    const int shift = width;
    for_places(x, n, scale, [=](int32_t place) { of[place >> shift] += one + uint64_t(place & within); });
  }

  // The area in buckets where the functions do not cross; notes the others.
  int64_t plain_area() {
    int64_t area = 0, above = 0, last = 1;
    crossing.clear();
    this->above.clear();
    for (size_t k = 0; k < a.size(); ++k) {
      const int64_t from_a = word.count(a[k]), from_b = word.count(b[k]), after = above + from_a - from_b;
      if (above < from_b && -above < from_a) {
        crossing.push_back(int32_t(k));
        this->above.push_back(above);
        next[k] = int32_t(last);
        last += from_a + from_b;
      } else {
        area += std::abs(after * (int64_t(1) << width) - word.places(a[k]) + word.places(b[k]));
        next[k] = 0;
      }
      above = after;
    }
    keys.resize(last);
    return area;
  }

  void collect(const float* x, int64_t n, const Scale& scale, uint32_t owner) {
    int32_t* of = next.data();
    uint32_t* to = keys.data();
    const int shift = width;
    for_places(x, n, scale, [=](int32_t place) {
      int32_t& at = of[place >> shift];
      if (at > 0) to[at++] = uint32_t(place) << 1 | owner;
    });
  }

  // The area in buckets where the functions may cross, whose values are collected.
  int64_t area_of_crossings() {
    int64_t area = 0;
    uint32_t* key = keys.data() + 1;
    for (size_t i = 0; i < crossing.size(); ++i) {
      const int64_t stop = int64_t(crossing[i] + 1) << width;
      int64_t at = int64_t(crossing[i]) << width, above = this->above[i];
      uint32_t* const end = keys.data() + next[crossing[i]];
      std::sort(key, end);
      for (; key != end; ++key) {
        const int64_t place = *key >> 1;
        area += std::abs(above) * (place - at);
        at = place;
        above += *key & 1 ? -1 : 1;
      }
      area += std::abs(above) * (stop - at);
    }
    return area;
  }
};

double distance(const float* a, const float* b, int64_t n, float shift, Buckets& buckets) {
  const Extent of_a = extent_of(a, n), of_b = extent_of(b, n);
  if (!of_a.finite || !of_b.finite || !std::isfinite(shift)) return std::numeric_limits<double>::quiet_NaN();
  const double low = std::min(double(of_a.low) + shift, double(of_b.low));
  const double range = std::max(double(of_a.high) + shift, double(of_b.high)) - low;
  if (range == 0) return 0;
  const float factor = float(kLastPlace / range);
  const Scale scale_a{float(low - shift), factor}, scale_b{float(low), factor};

  buckets.count(a, n, scale_a, buckets.a);
  buckets.count(b, n, scale_b, buckets.b);
  int64_t area = buckets.plain_area();
  if (!buckets.crossing.empty()) {
    buckets.collect(a, n, scale_a, 0);
    buckets.collect(b, n, scale_b, 1);
    area += buckets.area_of_crossings();
  }
  return double(area) / factor;
}

Tensor wasserstein_1d(Tensor a, Tensor b, Tensor shift) {
  STD_TORCH_CHECK(a.dim() == 2 && a.size(1) > 0 && b.sizes().equals(a.sizes()) && shift.dim() == 1 &&
                      shift.size(0) == a.size(0),
                  "wasserstein_1d: a and b must be [K, N] of one shape, N 1 or more, and shift [K]");
  for (const Tensor& each : {a, b, shift})
    STD_TORCH_CHECK(dtype_of(each) == Dtype::f32, "wasserstein_1d: a, b and shift must be float32");
  const int64_t n = a.size(1), sizes[] = {a.size(0)};
  STD_TORCH_CHECK(n <= kMostValues, "wasserstein_1d: rows have ", n, " values, allowed: ", kMostValues);
  const Tensor x = torch::stable::contiguous(a), y = torch::stable::contiguous(b);
  const Tensor shifts = torch::stable::contiguous(shift);
  Tensor result = empty_with_layout(sizes, ScalarType::Double, Layout::contiguous);
  parallel(a.size(0), 4 * n, [&](int64_t begin, int64_t end) {
    Buckets buckets(n);
    for (int64_t k = begin; k < end; ++k)
      static_cast<double*>(result.mutable_data_ptr())[k] =
          distance(static_cast<const float*>(x.const_data_ptr()) + k * n,
                   static_cast<const float*>(y.const_data_ptr()) + k * n, n,
                   static_cast<const float*>(shifts.const_data_ptr())[k], buckets);
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pggan_fast, CPU, m) { m.impl("wasserstein_1d", TORCH_BOX(&wasserstein_1d)); }

}  // namespace pggan_fast
