#include <cmath>
#include <tuple>

#include "bias_act.h"

namespace pggan_fast {
namespace {

Act act_of(const std::string& name) {
  if (name == "tanh") return Act::tanh;
  if (name == "sigmoid") return Act::sigmoid;
  if (name == "elu") return Act::elu;
  if (name == "selu") return Act::selu;
  if (name == "softplus") return Act::softplus;
  if (name == "swish") return Act::swish;
  STD_TORCH_CHECK(name == "linear" || name == "relu" || name == "lrelu", "activation: act is '", name,
                  "', allowed: linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus, swish");
  return Act::piecewise;
}

double slope_of(const std::string& name, double slope) { return name == "linear" ? 1 : name == "relu" ? 0 : slope; }

double clamp_of(std::optional<double> clamp) { return clamp ? *clamp : NAN; }

// Rounded like the outputs of piecewise activations, from which backward reads what was limited.
double rounded_clamp(std::optional<double> clamp, Act act, Dtype dtype) {
  double value = clamp_of(clamp);
  if (act == Act::piecewise) with_type(dtype, [&](auto type) { value = double(static_cast<decltype(type)>(value)); });
  return value;
}

const Epilogue kNoNorm{1, 1, 1, 0, false};

Tensor activation(Tensor x, std::optional<Tensor> bias, double scale, std::string act, double slope, double gain,
                  std::optional<double> clamp) {
  Tensor fresh = fresh_like(x);
  const Layout layout = working_layout(fresh);
  Output y(fresh, layout);
  const Tensor dense = with_layout(x, layout);
  const auto shift = per_channel(bias, x);
  const ActivationForward work{dtype_of(x),
                               shape_of(x, layout),
                               act_of(act),
                               scale,
                               slope_of(act, slope),
                               gain,
                               clamp_of(clamp),
                               data(dense),
                               data(shift),
                               y.buffer.mutable_data_ptr()};
  parallel(work_items_of(work.shape, kNoNorm), item_elements(work.shape, kNoNorm),
           [&](int64_t begin, int64_t end) { kernels().activation_forward(work, begin, end); });
  return y.finish();
}

std::tuple<Tensor, Tensor> activation_backward(Tensor dy, Tensor source, std::optional<Tensor> bias, double scale,
                                               std::string act, double slope, double gain, std::optional<double> clamp,
                                               bool needs_bias_grad) {
  const Layout layout = working_layout(source);
  Output dx(fresh_like(source), layout);
  const Tensor dy_dense = like("dy", dy, source, layout), dense = with_layout(source, layout);
  const auto shift = per_channel(bias, source);
  const Act which = act_of(act);
  const Dtype dtype = dtype_of(source);
  ActivationBackward work{dtype,
                          shape_of(source, layout),
                          which,
                          scale,
                          slope_of(act, slope),
                          gain,
                          rounded_clamp(clamp, which, dtype),
                          data(dy_dense),
                          data(dense),
                          data(shift),
                          dx.buffer.mutable_data_ptr(),
                          nullptr};
  const auto run = [&](int64_t begin, int64_t end, double* sums) {
    ActivationBackward part = work;
    part.db = sums;
    kernels().activation_backward(part, begin, end);
  };
  Tensor db = sums_per_channel(source.size(1), needs_bias_grad, accumulation_type(source),
                               work_items_of(work.shape, kNoNorm), item_elements(work.shape, kNoNorm), run);
  return {dx.finish(), db};
}

std::tuple<Tensor, Tensor, Tensor> activation_double_backward(std::optional<Tensor> g, std::optional<Tensor> g_bias,
                                                              Tensor dy, Tensor source, std::optional<Tensor> bias,
                                                              double scale, std::string act, double slope, double gain,
                                                              std::optional<double> clamp, bool needs_bias_grad) {
  const Layout layout = working_layout(source);
  const Act which = act_of(act);
  const Dtype dtype = dtype_of(source);
  const bool smooth = which != Act::piecewise;
  Output d_dy(fresh_like(source), layout);
  std::optional<Output> d_x;
  if (smooth) d_x.emplace(fresh_like(source), layout);
  const Tensor dy_dense = like("dy", dy, source, layout), dense = with_layout(source, layout);
  const auto g_dense = like("g", g, source, layout);
  const auto shift = per_channel(bias, source), g_shift = per_channel(g_bias, source);
  const ActivationDoubleBackward work{dtype,
                                      shape_of(source, layout),
                                      which,
                                      scale,
                                      slope_of(act, slope),
                                      gain,
                                      rounded_clamp(clamp, which, dtype),
                                      data(g_dense),
                                      data(g_shift),
                                      data(dy_dense),
                                      data(dense),
                                      data(shift),
                                      d_dy.buffer.mutable_data_ptr(),
                                      d_x ? d_x->buffer.mutable_data_ptr() : nullptr,
                                      nullptr};
  const auto run = [&](int64_t begin, int64_t end, double* sums) {
    ActivationDoubleBackward part = work;
    part.d_bias = sums;
    kernels().activation_double_backward(part, begin, end);
  };
  Tensor d_bias = sums_per_channel(source.size(1), needs_bias_grad && smooth, accumulation_type(source),
                                   work_items_of(work.shape, kNoNorm), item_elements(work.shape, kNoNorm), run);
  Tensor no_d_x = d_x ? d_x->finish() : empty_vector(0, source.scalar_type());
  return {d_dy.finish(), no_d_x, d_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pggan_fast, CPU, m) {
  m.impl("activation", TORCH_BOX(&activation));
  m.impl("activation_backward", TORCH_BOX(&activation_backward));
  m.impl("activation_double_backward", TORCH_BOX(&activation_double_backward));
}

}  // namespace pggan_fast
