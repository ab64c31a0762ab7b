#include "resample.h"

namespace pggan_fast {
namespace {

Tensor upsample2x(Tensor x, double scale, int64_t extra_h, int64_t extra_w) {
  check_image("upsample2x", x);
  STD_TORCH_CHECK(extra_h >> 1 == 0 && extra_w >> 1 == 0, "upsample2x: extra_h and extra_w must be 0 or 1");
  const Layout layout = working_layout(x);
  const int64_t sizes[] = {x.size(0), x.size(1), 2 * x.size(2) + extra_h, 2 * x.size(3) + extra_w};
  Tensor y = empty_with_layout(sizes, x.scalar_type(), layout);
  if (x.numel() == 0) return torch::stable::zero_(y);
  const Tensor low = with_layout(x, layout);
  run(kernels().upsample,
      {dtype_of(x), grid_of(y, layout), scale, false, data(low), nullptr, nullptr, y.mutable_data_ptr()});
  return y;
}

Tensor downsample2x(Tensor x, double scale) {
  check_image("downsample2x", x);
  const Layout layout = working_layout(x);
  const int64_t sizes[] = {x.size(0), x.size(1), x.size(2) / 2, x.size(3) / 2};
  Tensor y = empty_with_layout(sizes, x.scalar_type(), layout);
  const Tensor high = with_layout(x, layout);
  run(kernels().downsample,
      {dtype_of(x), grid_of(x, layout), scale, false, nullptr, data(high), y.mutable_data_ptr(), nullptr});
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pggan_fast, CPU, m) {
  m.impl("upsample2x", TORCH_BOX(&upsample2x));
  m.impl("downsample2x", TORCH_BOX(&downsample2x));
}

}  // namespace pggan_fast
