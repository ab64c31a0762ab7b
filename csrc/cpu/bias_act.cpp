#include "../shared/bias_act.h"

#include <tuple>

#include "tensors.h"

namespace pggan_fast {
namespace {

int64_t work_items_of(const Shape& s, const Epilogue& e) {
  if (s.n * s.p == 0) return 0;
  if (bias_act_by_planes(s, e)) {
    const int64_t planes = bias_act_planes(s);
    return (s.n * s.c + planes - 1) / planes * bias_act_chunks(s);
  }
  const int64_t block = bias_act_block(s);
  const auto blocks = [&](int64_t pixels) { return (pixels + block - 1) / block; };
  return s.layout == Layout::contiguous ? s.n * blocks(s.p) : blocks(s.n * s.p);
}

int64_t item_elements(const Shape& s, const Epilogue& e) {
  if (bias_act_by_planes(s, e)) return std::min(s.n * s.c * s.p, kPlanePixels);
  return std::min(bias_act_block(s), s.layout == Layout::contiguous ? s.p : s.n * s.p) * s.c;
}

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
  const int64_t c = y.size(1);
  Tensor db = empty_vector(needs_db ? c : 0, accumulation_type(y));
  BiasActBackward work{
      dtype_of(y),   shape_of(y, layout),          e,      data(dy_dense), data(dr_dense), data(y_dense),
      data(r_dense), dx.buffer.mutable_data_ptr(), nullptr};
  const int64_t items = work_items_of(work.shape, e), elements = item_elements(work.shape, e);
  // One row of sums for each of a number of ranges that does not depend on the threads: the same result with any.
  const int64_t ranges = needs_db ? std::min<int64_t>(items, 64) : items;
  std::vector<double> sums(needs_db ? ranges * c : 0);
  parallel(ranges, ranges ? elements * (items / ranges) : 0, [&](int64_t begin, int64_t end) {
    for (int64_t range = begin; range < end; ++range) {
      BiasActBackward part = work;
      part.db = needs_db ? &sums[range * c] : nullptr;
      kernels().bias_act_backward(part, items * range / ranges, items * (range + 1) / ranges);
    }
  });
  if (needs_db) {
    for (int64_t range = 1; range < ranges; ++range)
      for (int64_t j = 0; j < c; ++j) sums[j] += sums[range * c + j];
    sums.resize(c);
    if (db.scalar_type() == ScalarType::Double) std::copy(sums.begin(), sums.end(), db.mutable_data_ptr<double>());
    else std::copy(sums.begin(), sums.end(), db.mutable_data_ptr<float>());
  }
  return {dx.finish(), db};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> bias_act_double_backward(std::optional<Tensor> g,
                                                                    std::optional<Tensor> g_bias, Tensor dy,
                                                                    std::optional<Tensor> dr, Tensor y,
                                                                    std::optional<Tensor> r, double scale, std::string act, double slope,
                                                                    double gain, bool pixel_norm) {
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
