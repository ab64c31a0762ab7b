// The ops of pggan_fast/ops/fade.py.
#include <tuple>

#include "fade_kernels.cuh"
#include "resample.cuh"

namespace pggan_fast {
namespace {

template <class A>
Alpha<A> alpha_of(const char* op, const std::optional<Tensor>& alpha, double number, const Tensor& x) {
  if (!alpha) return {nullptr, A(number)};
  STD_TORCH_CHECK(alpha->numel() == 1 && alpha->scalar_type() == ScalarType::Float, op,
                  ": alpha must be a 0-d fp32 tensor");
  check_device(op, "alpha", *alpha, x);
  return {pointer<float>(*alpha), A(0)};
}

Tensor fade_in(Tensor low, Tensor high, std::optional<Tensor> alpha, double number) {
  const OnDeviceOf guard(high);
  check_image("fade_in", low);
  check_image("fade_in", high);
  STD_TORCH_CHECK(high.size(0) == low.size(0) && high.size(1) == low.size(1) && high.size(2) == 2 * low.size(2) &&
                      high.size(3) == 2 * low.size(3) && high.scalar_type() == low.scalar_type(),
                  "fade_in: low must be [N, C, H, W] and high [N, C, 2H, 2W] of the same dtype");
  check_device("fade_in", "low", low, high);
  const Layout layout = working_layout(high);
  Tensor y = empty_with_layout(high.sizes(), high.scalar_type(), layout);
  const Tensor low_dense = with_layout(low, layout), high_dense = with_layout(high, layout);
  const Grid g = grid_of(high, layout);
  with_kernel(dtype_of(high), g, layout, {low_dense.const_data_ptr(), high_dense.const_data_ptr(), y.const_data_ptr()},
              [&](auto type, auto vector, auto channels_last, int64_t blocks) {
                using T = decltype(type);
                launch("fade_in", fade_in_kernel<T, vector, channels_last>, blocks, pointer<T>(low_dense),
                       pointer<T>(high_dense), output<T>(y), alpha_of<Acc<T>>("fade_in", alpha, number, high), g);
              });
  return y;
}

std::tuple<Tensor, Tensor> fade_in_backward(Tensor dy, std::optional<Tensor> alpha, double number) {
  const OnDeviceOf guard(dy);
  check_image("fade_in_backward", dy);
  STD_TORCH_CHECK(dy.size(2) % 2 == 0 && dy.size(3) % 2 == 0, "fade_in_backward: dy is ", dy.size(2), " x ",
                  dy.size(3), ", height and width must be even");
  const Layout layout = working_layout(dy);
  const int64_t sizes[] = {dy.size(0), dy.size(1), dy.size(2) / 2, dy.size(3) / 2};
  Tensor d_low = empty_with_layout(sizes, dy.scalar_type(), layout);
  Tensor d_high = empty_with_layout(dy.sizes(), dy.scalar_type(), layout);
  const Tensor dy_dense = with_layout(dy, layout);
  const Grid g = grid_of(dy, layout);
  with_kernel(dtype_of(dy), g, layout, {dy_dense.const_data_ptr(), d_low.const_data_ptr(), d_high.const_data_ptr()},
              [&](auto type, auto vector, auto channels_last, int64_t blocks) {
                using T = decltype(type);
                launch("fade_in_backward", fade_in_backward_kernel<T, vector, channels_last>, blocks,
                       pointer<T>(dy_dense), output<T>(d_low), output<T>(d_high),
                       alpha_of<Acc<T>>("fade_in_backward", alpha, number, dy), g);
              });
  return {d_low, d_high};
}

std::tuple<Tensor, Tensor> blend_backward(Tensor dy, std::optional<Tensor> alpha, double number) {
  const OnDeviceOf guard(dy);
  Output d_old(fresh_like(dy), working_layout(dy)), d_new(fresh_like(dy), working_layout(dy));
  const Tensor dense = with_layout(dy, working_layout(dy));
  const int64_t size = dy.numel();
  const bool aligned = is_aligned(dense.const_data_ptr()) && is_aligned(d_old.buffer.const_data_ptr()) &&
                       is_aligned(d_new.buffer.const_data_ptr());
  with_type(dtype_of(dy), [&](auto type) {
    using T = decltype(type);
    with_vector<T>(aligned && size % (16 / sizeof(T)) == 0, [&](auto vector) {
      launch("blend_backward", blend_backward_kernel<T, vector>, divide_up(size / vector, kThreads), pointer<T>(dense),
             output<T>(d_old.buffer), output<T>(d_new.buffer), alpha_of<Acc<T>>("blend_backward", alpha, number, dy),
             size / vector);
    });
  });
  return {d_old.finish(), d_new.finish()};
}

Tensor fade_reals(Tensor images, std::optional<Tensor> alpha, double number, ScalarType dtype) {
  const OnDeviceOf guard(images);
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
  const Grid g = grid_of(x, layout);
  with_kernel(dtype_of(y), g, layout, {x.const_data_ptr(), y.const_data_ptr()},
              [&](auto type, auto vector, auto channels_last, int64_t blocks) {
                using T = decltype(type);
                const auto weight = alpha_of<Acc<T>>("fade_reals", alpha, number, images);
                if (bytes)
                  launch("fade_reals", fade_reals_kernel<T, uint8_t, vector, channels_last>, blocks,
                         pointer<uint8_t>(x), output<T>(y), weight, g);
                else
                  launch("fade_reals", fade_reals_kernel<T, T, vector, channels_last>, blocks, pointer<T>(x),
                         output<T>(y), weight, g);
              });
  return with_dtype(y, dtype);
}

}  // namespace

PGGAN_FAST_CUDA_LIBRARY {
  library.impl("fade_in", TORCH_BOX(&fade_in));
  library.impl("fade_in_backward", TORCH_BOX(&fade_in_backward));
  library.impl("blend_backward", TORCH_BOX(&blend_backward));
  library.impl("fade_reals", TORCH_BOX(&fade_reals));
}

}  // namespace pggan_fast
