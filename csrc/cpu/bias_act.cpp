#include "bias_act.h"

#include <tuple>

namespace pggan_fast {
namespace {

Tensor run_forward(const Tensor& x, Tensor& y, const std::optional<Tensor>& bias, Layout layout, const Epilogue& e) {
  Tensor r = empty_factors(x, e.pixel_norm);
  const auto shift = per_channel(bias, x);
  const BiasActForward work{dtype_of(x), shape_of(x, layout), e, data(x), data(shift), y.mutable_data_ptr(),
                            r.mutable_data_ptr()};
  parallel(work_items_of(work.shape, e), item_elements(work.shape, e),
           [&](int64_t begin, int64_t end) { kernels().bias_act_forward(work, begin, end); });
  return r;
}

std::tuple<Tensor, Tensor> bias_act(Tensor x, std::optional<Tensor> bias, double scale, std::string act, double slope,
                                    double gain, bool pixel_norm, double eps) {
  const Epilogue e = epilogue(scale, act, slope, gain, pixel_norm, eps);
  Tensor fresh = fresh_like(x);
  const Layout layout = working_layout(fresh);
  Output y(fresh, layout);
  Tensor r = run_forward(with_layout(x, layout), y.buffer, bias, layout, e);
  return {y.finish(), r};
}

Tensor bias_act_inplace(Tensor x, std::optional<Tensor> bias, double scale, std::string act, double slope, double gain,
                        bool pixel_norm, double eps) {
  const Epilogue e = epilogue(scale, act, slope, gain, pixel_norm, eps);
  const Layout layout = working_layout(x);
  Tensor work = with_layout(x, layout);
  Tensor r = run_forward(work, work, bias, layout, e);
  if (work.get() != x.get()) torch::stable::copy_(x, work);
  return r;
}

std::tuple<Tensor, Tensor> bias_act_backward(Tensor dy, std::optional<Tensor> dr, Tensor y, std::optional<Tensor> r,
                                             double scale, std::string act, double slope, double gain, bool pixel_norm,
                                             bool needs_db) {
  const Epilogue e = epilogue(scale, act, slope, gain, pixel_norm, 0);
  const Layout layout = working_layout(y);
  Output dx(fresh_like(y), layout);
  const Tensor dy_dense = like("dy", dy, y, layout), y_dense = with_layout(y, layout);
  const auto dr_dense = per_pixel("dr", dr, y);
  const auto r_dense = factors(r, y, pixel_norm);
  const BiasActBackward work{
      dtype_of(y),   shape_of(y, layout),          e,      data(dy_dense), data(dr_dense), data(y_dense),
      data(r_dense), dx.buffer.mutable_data_ptr(), nullptr};
  const int64_t items = work_items_of(work.shape, e), elements = item_elements(work.shape, e);
  const auto run = [&](int64_t begin, int64_t end, double* sums) {
    BiasActBackward part = work;
    part.db = sums;
    kernels().bias_act_backward(part, begin, end);
  };
  Tensor db = sums_per_channel(y.size(1), needs_db, accumulation_type(y), items, elements, run);
  return {dx.finish(), db};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> bias_act_double_backward(std::optional<Tensor> g,
                                                                    std::optional<Tensor> g_bias, Tensor dy,
                                                                    std::optional<Tensor> dr, Tensor y,
                                                                    std::optional<Tensor> r, double scale,
                                                                    std::string act, double slope, double gain,
                                                                    bool pixel_norm) {
  const Epilogue e = epilogue(scale, act, slope, gain, pixel_norm, 0);
  const Layout layout = working_layout(y);
  Output d_dy(fresh_like(y), layout);
  std::optional<Output> d_y;
  if (pixel_norm) d_y.emplace(fresh_like(y), layout);
  Tensor d_r = empty_factors(y, pixel_norm), d_dr = empty_factors(y, pixel_norm);
  const Tensor dy_dense = like("dy", dy, y, layout), y_dense = with_layout(y, layout);
  const auto r_dense = factors(r, y, pixel_norm);
  const auto g_dense = like("g", g, y, layout), dr_dense = per_pixel("dr", dr, y);
  const auto g_bias_dense = per_channel(g_bias, y);
  const BiasActDoubleBackward work{dtype_of(y),
                                   shape_of(y, layout),
                                   e,
                                   data(g_dense),
                                   data(g_bias_dense),
                                   data(dy_dense),
                                   data(dr_dense),
                                   data(y_dense),
                                   data(r_dense),
                                   d_dy.buffer.mutable_data_ptr(),
                                   d_y ? d_y->buffer.mutable_data_ptr() : nullptr,
                                   d_r.mutable_data_ptr(),
                                   d_dr.mutable_data_ptr()};
  parallel(work_items_of(work.shape, e), item_elements(work.shape, e),
           [&](int64_t begin, int64_t end) { kernels().bias_act_double_backward(work, begin, end); });
  Tensor no_d_y = d_y ? d_y->finish() : empty_factors(y, false);
  return {d_dy.finish(), no_d_y, d_r, d_dr};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pggan_fast, CPU, m) {
  m.impl("bias_act", TORCH_BOX(&bias_act));
  m.impl("bias_act_", TORCH_BOX(&bias_act_inplace));
  m.impl("bias_act_backward", TORCH_BOX(&bias_act_backward));
  m.impl("bias_act_double_backward", TORCH_BOX(&bias_act_double_backward));
}

}  // namespace pggan_fast
