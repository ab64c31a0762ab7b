// What filtered_lrelu asks of its arguments, on every device: pggan_fast/ops/filtered_lrelu.py says what they mean.
#pragma once

#include <cmath>
#include <numeric>

#include "tensors.h"

namespace pggan_fast {

// Taps and factors for which a kernel on a GPU has room in shared memory: those of the Python side.
constexpr int64_t kMostTaps = 24, kMostFactor = 4;

// Along both axes: input h x w, upsampled grid gh x gw, output oh x ow. (x0, y0) is the padding before the first filter,
// (left, top) that of the grid before the second.
struct Lrelu {
  int64_t h, w, gh, gw, oh, ow, up, down, x0, y0, left, top;
};

inline int64_t taps_of(const char* name, const Tensor& f) {
  STD_TORCH_CHECK(f.dim() == 1 && f.numel() >= 1 && f.numel() <= kMostTaps, "filtered_lrelu: ", name,
                  " must be [taps], of 1 to 24 taps");
  return f.numel();
}

inline void check_lrelu(const Tensor& x, int64_t up, int64_t down, double gain, double slope) {
  STD_TORCH_CHECK(x.dim() == 4, "filtered_lrelu: x must be [N, C, H, W]");
  STD_TORCH_CHECK(up > 0 && down > 0 && up <= kMostFactor && down <= kMostFactor,
                  "filtered_lrelu: up and down must be 1 to 4");
  STD_TORCH_CHECK(gain > 0 && slope >= 0, "filtered_lrelu: gain must be above 0 and slope at least 0");
}

inline void check_bias(const Tensor& x, const std::optional<Tensor>& bias) {
  STD_TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == x.size(1)),
                  "filtered_lrelu: bias must have a value for each channel");
}

// The forward op's: the grid has what its outputs are made of.
inline Lrelu lrelu_sizes(const Tensor& x, const Tensor& fu, const Tensor& fd, int64_t up, int64_t down, int64_t x0,
                         int64_t x1, int64_t y0, int64_t y1) {
  const int64_t h = x.size(2), w = x.size(3), behind = taps_of("fd", fd), taps = taps_of("fu", fu) + behind - 1;
  const int64_t rows = h * up + y0 + y1 - taps, columns = w * up + x0 + x1 - taps;
  STD_TORCH_CHECK(rows >= 0 && columns >= 0, "filtered_lrelu: the padded image is smaller than the filters");
  const int64_t oh = rows / down + 1, ow = columns / down + 1;
  return {h, w, (oh - 1) * down + behind, (ow - 1) * down + behind, oh, ow, up, down, x0, y0, 0, 0};
}

inline std::vector<int64_t> mask_sizes(const Tensor& x, const Lrelu& s) {
  const int64_t step = std::lcm(s.up, s.down);
  return {x.size(0), x.size(1), (s.gh + 3) / 4, step, (s.gw + step - 1) / step};
}

// uint8, contiguous.
inline Tensor fresh_mask(const std::vector<int64_t>& sizes) {
  int64_t strides[8], next = 1;
  for (int64_t i = int64_t(sizes.size()) - 1; i >= 0; --i) strides[i] = next, next *= std::max<int64_t>(sizes[i], 1);
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides, aoti_torch_dtype_uint8(),
                                                  device_type(), device_index(), &handle));
  return Tensor(handle);
}

inline void check_mask(const Tensor& x, const Tensor& mask, const Lrelu& s) {
  const std::vector<int64_t> sizes = mask_sizes(x, s);
  bool fits = mask.scalar_type() == ScalarType::Byte && mask.dim() == 5;
  for (int64_t i = 0; fits && i < 5; ++i) fits = mask.size(i) == sizes[i];
  STD_TORCH_CHECK(fits, "filtered_lrelu: the mask is not one of this size");
}

// The masked op's, which says all of them.
inline Lrelu masked_sizes(const Tensor& x, const Tensor& mask, const Tensor& fu, const Tensor& fd, int64_t up,
                          int64_t down, int64_t x0, int64_t y0, int64_t left, int64_t top, int64_t grid_h,
                          int64_t grid_w, int64_t out_h, int64_t out_w, double gain, double slope) {
  check_lrelu(x, up, down, gain, slope);
  taps_of("fu", fu), taps_of("fd", fd);
  STD_TORCH_CHECK(out_h >= 0 && out_w >= 0 && grid_h >= 0 && grid_w >= 0, "filtered_lrelu: sizes must be at least 0");
  const Lrelu s{x.size(2), x.size(3), grid_h, grid_w, out_h, out_w, up, down, x0, y0, left, top};
  check_mask(x, mask, s);
  return s;
}

// A filter in the order of a correlation, times `gain`.
inline std::vector<double> in_order(const Tensor& f, bool flip, double gain) {
  const Tensor wide = with_layout(with_dtype(f, ScalarType::Double), Layout::contiguous);
  const double* taps = wide.const_data_ptr<double>();
  std::vector<double> ordered(f.numel());
  for (size_t i = 0; i < ordered.size(); ++i) ordered[i] = gain * taps[flip ? i : ordered.size() - 1 - i];
  return ordered;
}

}  // namespace pggan_fast
