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

// What stands beside y, as the kernels read it: as far as y goes, whoever called the op.
inline Tensor like(const char* name, const Tensor& t, const Tensor& y, Layout layout) {
  STD_TORCH_CHECK(t.sizes().equals(y.sizes()), "bias_act: ", name, " must have y's shape");
  return with_layout(with_dtype(t, y.scalar_type()), layout);
}

inline std::optional<Tensor> like(const char* name, const std::optional<Tensor>& t, const Tensor& y, Layout layout) {
  return t ? std::optional<Tensor>(like(name, *t, y, layout)) : t;
}

inline std::optional<Tensor> per_pixel(const char* name, const std::optional<Tensor>& t, const Tensor& y) {
  if (!t) return t;
  STD_TORCH_CHECK(t->dim() == y.dim() && t->size(1) == 1 && t->numel() * y.size(1) == y.numel(), "bias_act: ", name,
                  " must have one value per pixel");
  return with_layout(with_dtype(*t, accumulation_type(y)), Layout::contiguous);
}

// r as the kernels read it; none without pixel norm.
inline std::optional<Tensor> factors(const std::optional<Tensor>& r, const Tensor& y, bool pixel_norm) {
  STD_TORCH_CHECK(!pixel_norm || r, "bias_act: pixel norm's gradient needs r");
  return pixel_norm ? per_pixel("r", r, y) : std::nullopt;
}

}  // namespace pggan_fast
