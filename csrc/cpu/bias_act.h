// What bias_act.cpp and activation.cpp share: how a tensor is cut into work items, and sums per channel.
#pragma once

#include "../shared/bias_act.h"
#include "tensors.h"

namespace pggan_fast {

inline int64_t work_items_of(const Shape& s, const Epilogue& e) {
  if (s.n * s.p == 0) return 0;
  if (bias_act_by_planes(s, e)) {
    const int64_t planes = bias_act_planes(s);
    return (s.n * s.c + planes - 1) / planes * bias_act_chunks(s);
  }
  const int64_t block = bias_act_block(s);
  const auto blocks = [&](int64_t pixels) { return (pixels + block - 1) / block; };
  return s.layout == Layout::contiguous ? s.n * blocks(s.p) : blocks(s.n * s.p);
}

inline int64_t item_elements(const Shape& s, const Epilogue& e) {
  if (bias_act_by_planes(s, e)) return std::min(s.n * s.c * s.p, kPlanePixels);
  return std::min(bias_act_block(s), s.layout == Layout::contiguous ? s.p : s.n * s.p) * s.c;
}

// Runs f(begin, end, sums) over all work items and returns what it added to sums[channel], one for each of c channels,
// or without `needed` an empty tensor and f gets null. One row of sums for each of a number of ranges that does not
// depend on the threads: the same result with any.
template <class F>
Tensor sums_per_channel(int64_t c, bool needed, ScalarType dtype, int64_t items, int64_t elements, const F& f) {
  Tensor result = empty_vector(needed ? c : 0, dtype);
  const int64_t ranges = needed ? std::min<int64_t>(items, 64) : items;
  std::vector<double> sums(needed ? std::max<int64_t>(ranges, 1) * c : 0);
  parallel(ranges, ranges ? elements * (items / ranges) : 0, [&](int64_t begin, int64_t end) {
    for (int64_t range = begin; range < end; ++range)
      f(items * range / ranges, items * (range + 1) / ranges, needed ? &sums[range * c] : nullptr);
  });
  if (!needed) return result;
  for (int64_t range = 1; range < ranges; ++range)
    for (int64_t j = 0; j < c; ++j) sums[j] += sums[range * c + j];
  if (dtype == ScalarType::Double) std::copy_n(sums.begin(), c, result.mutable_data_ptr<double>());
  else std::copy_n(sums.begin(), c, result.mutable_data_ptr<float>());
  return result;
}

}  // namespace pggan_fast
