#include <tuple>

#include "resample.h"

namespace pggan_fast {
namespace {

double value_of(const std::optional<Tensor>& alpha, double number) {
  if (!alpha) return number;
  STD_TORCH_CHECK(alpha->numel() == 1 && alpha->scalar_type() == ScalarType::Float,
                  "fade: alpha must be a 0-d fp32 tensor");
  return *alpha->const_data_ptr<float>();
}

Tensor fade_in(Tensor low, Tensor high, std::optional<Tensor> alpha, double number) {
  check_image("fade_in", low);
  check_image("fade_in", high);
  STD_TORCH_CHECK(high.size(0) == low.size(0) && high.size(1) == low.size(1) && high.size(2) == 2 * low.size(2) &&
                      high.size(3) == 2 * low.size(3) && high.scalar_type() == low.scalar_type(),
                  "fade_in: low must be [N, C, H, W] and high [N, C, 2H, 2W] of the same dtype");
  const Layout layout = working_layout(high);
  Tensor y = empty_with_layout(high.sizes(), high.scalar_type(), layout);
  const Tensor low_dense = with_layout(low, layout), high_dense = with_layout(high, layout);
  run(kernels().fade_in, {dtype_of(high), grid_of(high, layout), value_of(alpha, number), false, data(low_dense),
                          data(high_dense), nullptr, y.mutable_data_ptr()});
  return y;
}

std::tuple<Tensor, Tensor> fade_in_backward(Tensor dy, std::optional<Tensor> alpha, double number) {
  check_image("fade_in_backward", dy);
  STD_TORCH_CHECK(dy.size(2) % 2 == 0 && dy.size(3) % 2 == 0, "fade_in_backward: dy is ", dy.size(2), " x ",
                  dy.size(3), ", height and width must be even");
  const Layout layout = working_layout(dy);
  const int64_t sizes[] = {dy.size(0), dy.size(1), dy.size(2) / 2, dy.size(3) / 2};
  Tensor d_low = empty_with_layout(sizes, dy.scalar_type(), layout);
  Tensor d_high = empty_with_layout(dy.sizes(), dy.scalar_type(), layout);
  const Tensor dy_dense = with_layout(dy, layout);
  run(kernels().fade_in_backward, {dtype_of(dy), grid_of(dy, layout), value_of(alpha, number), false, nullptr,
                                   data(dy_dense), d_low.mutable_data_ptr(), d_high.mutable_data_ptr()});
  return {d_low, d_high};
}

Tensor fade_reals(Tensor images, std::optional<Tensor> alpha, double number, ScalarType dtype) {
  check_image("fade_reals", images);
  STD_TORCH_CHECK(images.size(2) % 2 == 0 && images.size(3) % 2 == 0, "fade_reals: images are ", images.size(2), " x ",
                  images.size(3), ", height and width must be even");
  const bool bytes = images.scalar_type() == ScalarType::Byte;
  const Layout layout = working_layout(images);
  // Mixed dtypes are computed in what the result is accumulated in and rounded once.
  const bool mixed = !bytes && images.scalar_type() != dtype;
  const ScalarType work = !mixed ? dtype : dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const Tensor x = with_layout(mixed ? with_dtype(images, work) : images, layout);
  Tensor y = empty_with_layout(x.sizes(), work, layout);
  run(kernels().fade_reals, {dtype_of(y), grid_of(x, layout), value_of(alpha, number), bytes, nullptr, data(x), nullptr,
                             y.mutable_data_ptr()});
  return with_dtype(y, dtype);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pggan_fast, CPU, m) {
  m.impl("fade_in", TORCH_BOX(&fade_in));
  m.impl("fade_in_backward", TORCH_BOX(&fade_in_backward));
  m.impl("fade_reals", TORCH_BOX(&fade_reals));
}

}  // namespace pggan_fast
