// What upfirdn2d asks of its arguments, and its filter as a sum of products of a column and a row.
#pragma once

#include <cmath>

#include "tensors.h"

namespace pggan_fast {

struct Resampling {
  int64_t h, w, oh, ow;
};

inline Resampling resampling(const Tensor& x, const Tensor& f, int64_t upx, int64_t upy, int64_t downx, int64_t downy,
                             int64_t x0, int64_t x1, int64_t y0, int64_t y1) {
  STD_TORCH_CHECK(x.dim() == 4, "upfirdn2d: x must be [N, C, H, W]");
  STD_TORCH_CHECK((f.dim() == 1 || f.dim() == 2) && f.numel() > 0, "upfirdn2d: f must be [taps] or [fh, fw]");
  STD_TORCH_CHECK(upx > 0 && upy > 0 && downx > 0 && downy > 0, "upfirdn2d: up and down must be at least 1");
  const int64_t h = x.size(2), w = x.size(3), fh = f.size(0), fw = f.size(f.dim() - 1);
  // Rounded down: sizes below the filter's have no outputs, and a gradient may have exactly none.
  const int64_t rows = h * upy + y0 + y1 - fh + downy, columns = w * upx + x0 + x1 - fw + downx;
  STD_TORCH_CHECK(rows >= 0 && columns >= 0, "upfirdn2d: the padded image is smaller than the filter");
  return {h, w, rows / downy, columns / downx};
}

// sum over terms of columns[term][i] * rows[term][j], in the order of a correlation.
struct Filter {
  int64_t fh, fw, terms;
  std::vector<double> columns, rows;
};

// f in fp64 on the CPU, [taps] or [fh, fw] contiguous. One term where f is a product up to `rounding` of its largest
// value, otherwise one for each of its rows.
inline Filter separated_values(const double* f, int64_t fh, int64_t fw, bool is_vector, bool flip, double gain,
                               double rounding) {
  Filter filter{fh, fw, 1, {}, {}};
  const auto at = [&](int64_t i, int64_t j) { return f[flip ? i * fw + j : (fh - 1 - i) * fw + (fw - 1 - j)]; };
  if (is_vector) {
    for (int64_t j = 0; j < fw; ++j) {
      const double value = f[flip ? j : fw - 1 - j];
      filter.columns.push_back(value);
      filter.rows.push_back(value * gain);
    }
    return filter;
  }
  int64_t top = 0, left = 0;
  for (int64_t i = 0; i < fh; ++i)
    for (int64_t j = 0; j < fw; ++j)
      if (std::abs(at(i, j)) > std::abs(at(top, left))) top = i, left = j;
  const double largest = at(top, left);
  bool is_product = true;
  for (int64_t i = 0; i < fh; ++i) filter.columns.push_back(largest == 0 ? 0 : at(i, left) / largest);
  for (int64_t i = 0; i < fh; ++i)
    for (int64_t j = 0; j < fw; ++j)
      // Not "greater than", so that a NaN is no product either.
      is_product &= std::abs(filter.columns[i] * at(top, j) - at(i, j)) <= rounding * std::abs(largest);
  if (is_product) {
    for (int64_t j = 0; j < fw; ++j) filter.rows.push_back(at(top, j) * gain);
    return filter;
  }
  filter.terms = fh;
  filter.columns.assign(fh * fh, 0.0);
  for (int64_t i = 0; i < fh; ++i) {
    filter.columns[i * fh + i] = 1;
    for (int64_t j = 0; j < fw; ++j) filter.rows.push_back(at(i, j) * gain);
  }
  return filter;
}

inline Filter separated(const Tensor& f, bool flip, double gain, Dtype dtype) {
  // A product's values in fp32 are off by half an eps each; in fp64 that would show.
  const double rounding = dtype == Dtype::f64 ? 4e-16 : 1.2e-7;
  // What setup_filter makes is converted here: torch's conversion takes longer than small images.
  std::vector<double> values;
  if (f.scalar_type() == ScalarType::Float && f.is_contiguous()) {
    const float* from = f.const_data_ptr<float>();
    values.assign(from, from + f.numel());
  } else {
    const Tensor wide = with_layout(with_dtype(f, ScalarType::Double), Layout::contiguous);
    values.assign(wide.const_data_ptr<double>(), wide.const_data_ptr<double>() + f.numel());
  }
  return separated_values(values.data(), f.size(0), f.size(f.dim() - 1), f.dim() == 1, flip, gain,
                          rounding);
}

}  // namespace pggan_fast
