// What bias_act's ops ask of their arguments, and the tensors beside x and y.
#pragma once

#include <string>

#include "tensors.h"

namespace pggan_fast {

inline Epilogue epilogue(double scale, const std::string& act, double slope, double gain, bool pixel_norm, double eps) {
  STD_TORCH_CHECK(act == "linear" || act == "relu" || act == "lrelu", "bias_act: act is '", act,
                  "', allowed: linear, relu, lrelu");
  STD_TORCH_CHECK(slope >= 0 && gain >= 0, "bias_act: slope is ", slope, " and gain is ", gain,
                  ", both must be at least 0");
  return {scale, act == "linear" ? 1.0 : act == "relu" ? 0.0 : slope, gain, eps, pixel_norm};
}

inline Tensor empty_vector(int64_t size, ScalarType dtype) {
  const int64_t stride = 1;
  return empty_strided(&size, &stride, 1, dtype);
}

inline Tensor empty_factors(const Tensor& x, bool pixel_norm) {
  if (!pixel_norm) return empty_vector(0, accumulation_type(x));
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes[1] = 1;
  return empty_with_layout(sizes, accumulation_type(x), Layout::contiguous);
}

inline std::optional<Tensor> per_channel(const std::optional<Tensor>& values, const Tensor& x) {
  if (!values) return values;
  STD_TORCH_CHECK(values->dim() == 1 && values->size(0) == x.size(1), "bias_act: bias must have one value for each of ",
                  x.size(1), " channels");
  return with_layout(with_dtype(*values, accumulation_type(x)), Layout::contiguous);
}

// r as the kernels read it; none without pixel norm.
inline std::optional<Tensor> factors(const std::optional<Tensor>& r, bool pixel_norm) {
  STD_TORCH_CHECK(!pixel_norm || r, "bias_act: pixel norm's gradient needs r");
  return pixel_norm ? std::optional<Tensor>(with_layout(*r, Layout::contiguous)) : std::nullopt;
}

inline std::optional<Tensor> optional_with_layout(const std::optional<Tensor>& t, Layout layout) {
  return t ? std::optional<Tensor>(with_layout(*t, layout)) : t;
}

}  // namespace pggan_fast
