// The ops of pggan_fast/ops/sign_bits.py.
#include <tuple>

#include "../shared/bias_act.h"
#include "bias_act_kernels.cuh"
#include "bias_act_signs_kernels.cuh"

namespace pggan_fast {
namespace {

Slopes slopes_of(double scale, double slope, double gain) {
  STD_TORCH_CHECK(slope > 0 && gain > 0, "bias_act: sign bits need slope and gain above 0, got ", slope, " and ", gain);
  return {float(scale), float(gain), float(gain * slope)};
}

Tensor bias_act_with_sign_bits(Tensor x, std::optional<Tensor> bias, double scale, double slope, double gain) {
  const OnDeviceOf guard(x);
  const Slopes e = slopes_of(scale, slope, gain);
  check_device("bias_act_with_sign_bits_", "bias", bias, x);
  const auto shift = per_channel(bias, x);
  const Rows rows = rows_of("bias_act_with_sign_bits_", x);
  Tensor bits = empty_sign_bits(x);
  with_short_type("bias_act_with_sign_bits_", x, [&](auto type) {
    using T = decltype(type);
    const auto kernel = bias_act_signs_forward_kernel<T>;
    launch("bias_act_with_sign_bits_", kernel, blocks_at_once("bias_act_with_sign_bits_", kernel, tiles_of(rows)),
           output<T>(x), pointer<float>(shift), output<uint8_t>(bits), e, rows);
  });
  return bits;
}

std::tuple<Tensor, Tensor> backward_by_sign_bits(Tensor dy, Tensor sign_bits, double scale, double slope, double gain,
                                                 bool needs_db) {
  const char* name = "bias_act_backward_by_sign_bits";
  const OnDeviceOf guard(dy);
  const Slopes e = slopes_of(scale, slope, gain);
  check_device(name, "sign_bits", sign_bits, dy);
  const uint8_t* bits = bytes_of(name, sign_bits, dy);
  const Tensor dense = with_layout(dy, Layout::channels_last);
  const Rows rows = rows_of(name, dense);
  Tensor dx = empty_with_layout(dy.sizes(), dy.scalar_type(), Layout::channels_last);
  Tensor db = empty_vector(needs_db ? dy.size(1) : 0, ScalarType::Float);
  if (rows.vectors == 0) return {dx, torch::stable::zero_(db)};
  const auto run = [&](const Slopes& e, bool with_sums) {
    with_short_type(name, dense, [&](auto type) {
      using T = decltype(type);
      const auto kernel = bias_act_signs_backward_kernel<T>;
      int64_t blocks = blocks_at_once(name, kernel, tiles_of(rows));
      std::optional<Tensor> sums;
      if (with_sums) {
        blocks = std::min(blocks, most_rows(dense, 2, 1));
        sums = empty_vector(blocks * dy.size(1), ScalarType::Float);
      }
      launch(name, kernel, blocks, pointer<T>(dense), bits, output<T>(dx), sums ? output<float>(*sums) : nullptr, e,
             rows);
      if (sums)
        launch(name, sum_rows_kernel<float>, divide_up(dy.size(1), 32), pointer<float>(*sums), blocks, dy.size(1),
               output<float>(db));
    });
  };
  // A scale of 0, for which the kernel leaves no sums, takes a launch of its own after that of the sums.
  if (scale == 0 && needs_db) run({1, e.positive, e.negative}, true);
  run(e, needs_db && scale != 0);
  return {dx, db};
}

}  // namespace

PGGAN_FAST_CUDA_LIBRARY {
  library.impl("bias_act_with_sign_bits_", TORCH_BOX(&bias_act_with_sign_bits));
  library.impl("bias_act_backward_by_sign_bits", TORCH_BOX(&backward_by_sign_bits));
}

}  // namespace pggan_fast
