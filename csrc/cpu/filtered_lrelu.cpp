// The ops of pggan_fast/ops/filtered_lrelu.py.
#include "../shared/filtered_lrelu.h"

#include "tensors.h"

namespace pggan_fast {
namespace {

FilteredLrelu work_of(const Tensor& x, const Tensor& y, const Lrelu& s, const std::vector<double>& fu,
                      const std::vector<double>& fu_gain, const std::vector<double>& fd) {
  FilteredLrelu a{};
  a.dtype = dtype_of(x);
  a.planes = x.size(0) * x.size(1);
  a.channels = x.size(1);
  a.h = s.h, a.w = s.w, a.gh = s.gh, a.gw = s.gw, a.oh = s.oh, a.ow = s.ow, a.up = s.up, a.down = s.down;
  a.x0 = s.x0, a.y0 = s.y0, a.left = s.left, a.top = s.top;
  a.up_taps = fu.size(), a.down_taps = fd.size();
  a.up_columns = fu.data(), a.up_rows = fu_gain.data(), a.down_filter = fd.data();
  a.x = data(x);
  a.y = y.mutable_data_ptr();
  return a;
}

void run(const FilteredLrelu& a) {
  parallel(a.planes, 8 * a.gh * a.gw, [&](int64_t begin, int64_t end) { kernels().filtered_lrelu(a, begin, end); });
}

std::tuple<Tensor, Tensor> filtered_lrelu(Tensor x, std::optional<Tensor> bias, Tensor fu, Tensor fd, int64_t up,
                                          int64_t down, int64_t x0, int64_t x1, int64_t y0, int64_t y1,
                                          bool flip_filter, double gain, double slope, std::optional<double> clamp,
                                          bool keep_mask) {
  check_lrelu(x, up, down, gain, slope);
  check_bias(x, bias);
  const Lrelu s = lrelu_sizes(x, fu, fd, up, down, x0, x1, y0, y1);
  const int64_t sizes[] = {x.size(0), x.size(1), s.oh, s.ow};
  Output y(empty_with_layout(sizes, x.scalar_type(), working_layout(x)), Layout::contiguous);
  const Tensor mask = fresh_mask(keep_mask ? mask_sizes(x, s) : std::vector<int64_t>{0});
  const Tensor dense = with_layout(x, Layout::contiguous);
  const std::vector<double> columns = in_order(fu, flip_filter, 1), rows = in_order(fu, flip_filter, up * up * gain),
                            filter = in_order(fd, flip_filter, 1);
  FilteredLrelu a = work_of(dense, y.buffer, s, columns, rows, filter);
  std::optional<Tensor> wide;
  if (bias) wide = with_layout(with_dtype(*bias, accumulation_type(x)), Layout::contiguous);
  a.bias = data(wide);
  a.slope = slope;
  a.clamp = clamp ? *clamp : INFINITY;
  a.written_mask = keep_mask ? static_cast<uint8_t*>(mask.mutable_data_ptr()) : nullptr;
  run(a);
  return {y.finish(), mask};
}

Tensor filtered_lrelu_masked(Tensor x, Tensor mask, Tensor fu, Tensor fd, int64_t up, int64_t down, int64_t x0,
                             int64_t y0, int64_t left, int64_t top, int64_t grid_h, int64_t grid_w, int64_t out_h,
                             int64_t out_w, bool flip_filter, double gain, double slope) {
  const Lrelu s =
      masked_sizes(x, mask, fu, fd, up, down, x0, y0, left, top, grid_h, grid_w, out_h, out_w, gain, slope);
  const int64_t sizes[] = {x.size(0), x.size(1), out_h, out_w};
  Output y(empty_with_layout(sizes, x.scalar_type(), working_layout(x)), Layout::contiguous);
  const Tensor dense = with_layout(x, Layout::contiguous), bits = with_layout(mask, Layout::contiguous);
  const std::vector<double> columns = in_order(fu, flip_filter, 1), rows = in_order(fu, flip_filter, gain),
                            filter = in_order(fd, flip_filter, 1);
  FilteredLrelu a = work_of(dense, y.buffer, s, columns, rows, filter);
  a.slope = slope;
  a.read_mask = static_cast<const uint8_t*>(bits.const_data_ptr());
  run(a);
  return y.finish();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pggan_fast, CPU, m) {
  m.impl("filtered_lrelu", TORCH_BOX(&filtered_lrelu));
  m.impl("filtered_lrelu_masked", TORCH_BOX(&filtered_lrelu_masked));
}

}  // namespace pggan_fast
