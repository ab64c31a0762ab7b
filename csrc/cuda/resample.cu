// The ops of pggan_fast/ops/resample.py.
#include "resample.cuh"
#include "resample_kernels.cuh"

namespace pggan_fast {
namespace {

Tensor upsample2x(Tensor x, double scale, int64_t extra_h, int64_t extra_w) {
  const OnDeviceOf guard(x);
  check_image("upsample2x", x);
  STD_TORCH_CHECK(extra_h >> 1 == 0 && extra_w >> 1 == 0, "upsample2x: extra_h and extra_w must be 0 or 1");
  const Layout layout = working_layout(x);
  const int64_t sizes[] = {x.size(0), x.size(1), 2 * x.size(2) + extra_h, 2 * x.size(3) + extra_w};
  Tensor y = empty_with_layout(sizes, x.scalar_type(), layout);
  if (x.numel() == 0) return torch::stable::zero_(y);
  const Tensor low = with_layout(x, layout);
  const Grid g = grid_of(y, layout);
  with_kernel(dtype_of(x), g, layout, {low.const_data_ptr(), y.const_data_ptr()},
              [&](auto type, auto vector, auto channels_last, int64_t blocks) {
                using T = decltype(type);
                launch("upsample2x", upsample_kernel<T, vector, channels_last>, blocks, pointer<T>(low), output<T>(y),
                       Acc<T>(scale), g);
              });
  return y;
}

Tensor downsample2x(Tensor x, double scale) {
  const OnDeviceOf guard(x);
  check_image("downsample2x", x);
  const Layout layout = working_layout(x);
  const int64_t sizes[] = {x.size(0), x.size(1), x.size(2) / 2, x.size(3) / 2};
  Tensor y = empty_with_layout(sizes, x.scalar_type(), layout);
  const Tensor high = with_layout(x, layout);
  const Grid g = grid_of(x, layout);
  with_kernel(dtype_of(x), g, layout, {high.const_data_ptr(), y.const_data_ptr()},
              [&](auto type, auto vector, auto channels_last, int64_t blocks) {
                using T = decltype(type);
                launch("downsample2x", downsample_kernel<T, vector, channels_last>, blocks, pointer<T>(high),
                       output<T>(y), Acc<T>(scale), g);
              });
  return y;
}

}  // namespace

PGGAN_FAST_CUDA_LIBRARY {
  library.impl("upsample2x", TORCH_BOX(&upsample2x));
  library.impl("downsample2x", TORCH_BOX(&downsample2x));
}

}  // namespace pggan_fast
