// The ops of pggan_fast/ops/conv_rgb.py.
#include <tuple>

#include "../shared/bias_act.h"
#include "bias_act_kernels.cuh"
#include "conv_rgb_kernels.cuh"

namespace pggan_fast {
namespace {

// f(a value of the type, the narrow tensor's channels as a constant)
template <class F>
void with_narrow(const char* op, const Tensor& t, int64_t channels, F f) {
  STD_TORCH_CHECK(channels == 1 || channels == 3, op, ": images have ", channels, " channels, allowed: 1, 3");
  with_short_type(op, t, [&](auto type) {
    if (channels == 1) f(type, std::integral_constant<int, 1>{});
    else f(type, std::integral_constant<int, 3>{});
  });
}

// What the three ops share. `wide_channels` is the weight's dimension of the wide tensor's channels.
ConvRGB arguments(const char* op, double scale, double positive_slope, double negative_slope) {
  STD_TORCH_CHECK(positive_slope > 0, op, ": the slope of positive values must be above 0");
  ConvRGB a{};
  a.scale = float(scale * positive_slope), a.bias_scale = float(positive_slope);
  a.slope = float(negative_slope / positive_slope);
  return a;
}

// What both convolutions read beside x. Returns the bias as a kernel takes it, which must live as long as the launch.
std::optional<Tensor> set_operands(const char* op, ConvRGB& a, const Tensor& x, const Tensor& weight,
                                   const std::optional<Tensor>& bias, const std::optional<Tensor>& mask,
                                   int wide_channels) {
  check_device(op, "weight", weight, x);
  check_device(op, "bias", bias, x);
  check_device(op, "mask", mask, x);
  STD_TORCH_CHECK(x.dim() == 4, op, ": x must be [N, C, H, W]");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(1) == x.size(1) && weight.size(2) * weight.size(3) == 1 &&
                      weight.scalar_type() == ScalarType::Float,
                  op, ": weight must be [C_out, C_in, 1, 1] in float32");
  a.weight = pointer<float>(weight);
  a.w_wide = weight.stride(wide_channels), a.w_narrow = weight.stride(1 - wide_channels);
  std::optional<Tensor> shift;
  if (bias) shift = with_layout(with_dtype(*bias, ScalarType::Float), Layout::contiguous);
  STD_TORCH_CHECK(!shift || shift->numel() == weight.size(0), op,
                  ": bias must have one value for each output channel");
  a.bias = pointer<float>(shift);
  return shift;
}

std::tuple<Tensor, Tensor> expand(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> mask,
                                  double scale, double positive_slope, double negative_slope, bool needs_signs) {
  const char* op = "conv_rgb_expand";
  const OnDeviceOf guard(x);
  ConvRGB a = arguments(op, scale, positive_slope, negative_slope);
  const std::optional<Tensor> shift = set_operands(op, a, x, weight, bias, mask, 0);
  const Tensor narrow = with_layout(x, Layout::channels_last);
  const int64_t sizes[] = {x.size(0), weight.size(0), x.size(2), x.size(3)};
  Tensor y = empty_with_layout(sizes, x.scalar_type(), Layout::channels_last);
  const bool writes = needs_signs && !mask;
  Tensor signs = writes ? empty_sign_bits(y) : empty_words({0});
  a.rows = rows_of(op, y);
  a.narrow = narrow.const_data_ptr(), a.out = y.mutable_data_ptr();
  a.mask = mask ? bytes_of(op, *mask, y) : nullptr;
  a.sign_bits = writes ? output<uint8_t>(signs) : nullptr;
  with_narrow(op, x, x.size(1), [&](auto type, auto channels) {
    with_bool(mask.has_value(), [&](auto masked) {
      const auto kernel = conv_rgb_expand_kernel<decltype(type), channels, masked>;
      launch(op, kernel, blocks_at_once(op, kernel, tiles_of(a.rows)), a);
    });
  });
  return {y, signs};
}

Tensor reduce(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> mask, double scale,
              double positive_slope, double negative_slope) {
  const char* op = "conv_rgb_reduce";
  const OnDeviceOf guard(x);
  ConvRGB a = arguments(op, scale, positive_slope, negative_slope);
  const std::optional<Tensor> shift = set_operands(op, a, x, weight, bias, mask, 1);
  const Tensor wide = with_layout(x, Layout::channels_last);
  const int64_t sizes[] = {x.size(0), weight.size(0), x.size(2), x.size(3)};
  Tensor y = empty_with_layout(sizes, x.scalar_type(), Layout::channels_last);
  a.rows = rows_of(op, wide);
  a.wide = wide.const_data_ptr(), a.out = y.mutable_data_ptr();
  a.mask = mask ? bytes_of(op, *mask, x) : nullptr;
  with_narrow(op, x, weight.size(0), [&](auto type, auto channels) {
    const auto kernel = conv_rgb_reduce_kernel<decltype(type), channels>;
    launch(op, kernel, blocks_at_once(op, kernel, tiles_of(a.rows)), a);
  });
  return y;
}

Tensor weight_gradient(Tensor wide, Tensor narrow, std::optional<Tensor> mask, double scale, double positive_slope,
                       double negative_slope, bool sums_narrow) {
  const char* op = "conv_rgb_weight_gradient";
  const OnDeviceOf guard(wide);
  check_device(op, "narrow", narrow, wide);
  check_device(op, "mask", mask, wide);
  ConvRGB a = arguments(op, scale, positive_slope, negative_slope);
  STD_TORCH_CHECK(wide.dim() == 4 && narrow.dim() == 4 && narrow.scalar_type() == wide.scalar_type() &&
                      narrow.size(0) == wide.size(0) && narrow.size(2) == wide.size(2) &&
                      narrow.size(3) == wide.size(3),
                  op, ": tensors must have the same images in the same dtype");
  const Tensor wide_dense = with_layout(wide, Layout::channels_last);
  const Tensor narrow_dense = with_layout(narrow, Layout::channels_last);
  a.rows = rows_of(op, wide_dense);
  a.wide = wide_dense.const_data_ptr(), a.narrow = narrow_dense.const_data_ptr();
  a.mask = mask ? bytes_of(op, *mask, wide) : nullptr;
  const int64_t row_len = narrow.size(1) * wide.size(1) + (sums_narrow ? narrow : wide).size(1);
  Tensor sums = empty_vector(row_len, ScalarType::Float);
  if (a.rows.vectors == 0) return torch::stable::zero_(sums);
  with_narrow(op, wide, narrow.size(1), [&](auto type, auto channels) {
    with_bool(sums_narrow, [&](auto alone) {
      const auto kernel = conv_rgb_weight_gradient_kernel<decltype(type), channels, alone>;
      const int64_t most = most_rows(wide_dense, 1, narrow.size(1) + 1);
      const int64_t blocks = blocks_at_once(op, kernel, std::min(tiles_of(a.rows), most));
      const Tensor sum_rows = empty_vector(blocks * row_len, ScalarType::Float);
      a.sum_rows = output<float>(sum_rows);
      launch(op, kernel, blocks, a);
      launch(op, sum_rows_kernel<float>, divide_up(row_len, 32), pointer<float>(sum_rows), blocks, row_len,
             output<float>(sums));
    });
  });
  return sums;
}

}  // namespace

PGGAN_FAST_CUDA_LIBRARY {
  library.impl("conv_rgb_expand", TORCH_BOX(&expand));
  library.impl("conv_rgb_reduce", TORCH_BOX(&reduce));
  library.impl("conv_rgb_weight_gradient", TORCH_BOX(&weight_gradient));
}

}  // namespace pggan_fast
