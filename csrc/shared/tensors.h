// From torch's stable tensors to the kernels' plain pointers: dtypes, layouts, output buffers.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "layout.h"

namespace pggan_fast {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Where fresh tensors go: on the CPU, or on the current device of this type. Each module says which.
inline int32_t device_type();
inline int32_t device_index();

inline Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double: return Dtype::f64;
    case ScalarType::Float: return Dtype::f32;
    case ScalarType::BFloat16: return Dtype::bf16;
    case ScalarType::Half: return Dtype::f16;
    default: STD_TORCH_CHECK(false, "pggan_fast: tensors must be float64, float32, bfloat16 or float16");
  }
}

// What t's dtype is accumulated in.
inline ScalarType accumulation_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// f(a value of the type that this dtype is).
template <class F>
void with_type(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::f64: return f(double{});
    case Dtype::f32: return f(float{});
    case Dtype::bf16: return f(torch::headeronly::BFloat16{});
    case Dtype::f16: return f(torch::headeronly::Half{});
  }
}

// Whether t is dense with its channels innermost.
inline bool is_channels_last(const Tensor& t) {
  const int64_t dim = t.dim();
  if (dim < 3 || (t.size(1) > 1 && t.stride(1) != 1)) return false;
  int64_t expected = t.size(1);
  for (int64_t i = dim - 1; i >= 0; --i) {
    if (i == 1) continue;
    if (t.size(i) > 1 && t.stride(i) != expected) return false;
    expected *= t.size(i);
  }
  return true;
}

inline bool has_layout(const Tensor& t, Layout layout) {
  return layout == Layout::contiguous ? t.is_contiguous() : is_channels_last(t);
}

// As kernels take it: vectors of one pixel are rows of channels.
inline Shape shape_of(const Tensor& t, Layout layout) {
  int64_t p = 1;
  for (int64_t i = 2; i < t.dim(); ++i) p *= t.size(i);
  return {t.size(0), t.size(1), p, p == 1 ? Layout::channels_last : layout};
}

// The layout a kernel works in for an output like `t`: channels_last if `t` is, otherwise contiguous.
inline Layout working_layout(const Tensor& t) {
  return !t.is_contiguous() && is_channels_last(t) ? Layout::channels_last : Layout::contiguous;
}

inline Tensor with_dtype(const Tensor& t, ScalarType dtype) {
  return t.scalar_type() == dtype ? t : torch::stable::to(t, dtype);
}

// torch::stable::empty looks its operator up by name at each call; this shim does not, which a small op notices.
inline Tensor empty_strided(const int64_t* sizes, const int64_t* strides, int64_t dim, ScalarType dtype) {
  const int32_t code = dtype == ScalarType::Double     ? aoti_torch_dtype_float64()
                       : dtype == ScalarType::Float    ? aoti_torch_dtype_float32()
                       : dtype == ScalarType::BFloat16 ? aoti_torch_dtype_bfloat16()
                                                       : aoti_torch_dtype_float16();
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dim, sizes, strides, code, device_type(), device_index(), &handle));
  return Tensor(handle);
}

// A fresh tensor that has the layout.
inline Tensor empty_with_layout(torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType dtype, Layout layout) {
  const int64_t dim = sizes.size();
  int64_t strides[8], next = 1;
  STD_TORCH_CHECK(dim <= 8, "pggan_fast: tensors have at most 8 dimensions");
  const bool channels_last = layout == Layout::channels_last && dim > 2;
  if (channels_last) {
    strides[1] = 1;
    next = sizes[1];
  }
  for (int64_t i = dim - 1; i >= 0; --i) {
    if (channels_last && i == 1) continue;
    strides[i] = next;
    // As torch counts an empty tensor's strides: 0 or 1 by layout.
    next *= channels_last ? sizes[i] : std::max<int64_t>(sizes[i], 1);
  }
  return empty_strided(sizes.data(), strides, dim, dtype);
}

// t itself if it has the layout, otherwise a copy that has it.
inline Tensor with_layout(const Tensor& t, Layout layout) {
  if (has_layout(t, layout)) return t;
  if (layout == Layout::contiguous) return torch::stable::contiguous(t);
  if (t.dim() == 4) return torch::stable::contiguous(t, MemoryFormat::ChannelsLast);
  // torch has no channels_last format for [N, C, L] and from six dimensions on, and a general copy serves five.
  Tensor copy = empty_with_layout(t.sizes(), t.scalar_type(), layout);
  torch::stable::copy_(copy, t);
  return copy;
}

// torch.empty_like, quickly where t is dense.
inline Tensor fresh_like(const Tensor& t) {
  if (t.is_contiguous() || is_channels_last(t))
    return empty_strided(t.sizes().data(), t.strides().data(), t.dim(), t.scalar_type());
  return torch::stable::empty_like(t);
}

// An output, fresh and with the strides torch gives it, and the buffer that a kernel writes for it: the same unless
// the strides are unusual.
struct Output {
  Tensor tensor, buffer;

  Output(Tensor fresh, Layout layout) : tensor(std::move(fresh)), buffer(tensor) {
    if (!has_layout(tensor, layout)) buffer = empty_with_layout(tensor.sizes(), tensor.scalar_type(), layout);
  }
  Tensor finish() {
    if (buffer.get() != tensor.get()) torch::stable::copy_(tensor, buffer);
    return tensor;
  }
};

inline const void* data(const Tensor& t) { return t.const_data_ptr(); }
inline const void* data(const std::optional<Tensor>& t) { return t ? t->const_data_ptr() : nullptr; }

}  // namespace pggan_fast
