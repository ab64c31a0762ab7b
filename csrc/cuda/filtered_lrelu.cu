// The ops of pggan_fast/ops/filtered_lrelu.py.
#include "filtered_lrelu_kernels.cuh"

namespace pggan_fast {
namespace {

// The largest tile of outputs whose patches fit in shared memory. Rows of a tile begin a byte of the mask where the
// tile's rows of the grid are a multiple of 4, which 4 rows of outputs are.
template <class A>
void choose_tile(FilteredLrelu& g) {
  g.tw = std::min(32, g.ow);
  g.th = std::min(32, int(divide_up(g.oh, 4)) * 4);
  while (true) {
    // One grid row to three more than the outputs need: the patch begins at a byte of the mask.
    const int reach = std::max(g.down, g.down_taps);
    g.pgh = int(divide_up((g.th - 1) * g.down + reach + 3, 4)) * 4;
    g.pgw = (g.tw - 1) * g.down + reach;
    g.ph = (g.pgh - 1 + g.up_taps - 1) / g.up + 2;
    g.pw = (g.pgw - 1 + g.up_taps - 1) / g.up + 2;
    const int first = std::max(g.ph * g.pw, g.pgh * g.pgw), second = std::max(g.ph * g.pgw, g.pgh * g.tw);
    if (first <= kFirstValues<A> && second <= kSecondValues<A>) break;
    if (g.th > 4 && g.th * 2 > g.tw) g.th -= 4;
    else g.tw = (g.tw + 1) / 2;
  }
  g.tiles_y = int(divide_up(g.oh, g.th));
  g.tiles_x = int(divide_up(g.ow, g.tw));
}

FilteredLrelu work_of(const Tensor& x, const Tensor& fu, const Tensor& fd, const Lrelu& s, bool flip, double gain,
                      double slope) {
  for (const int64_t size : {s.h * s.up, s.w * s.up, s.gh, s.gw, s.oh * s.down, s.ow * s.down, s.x0, s.y0, s.left,
                             s.top, x.size(1)})
    STD_TORCH_CHECK(std::abs(size) < int64_t(1) << 30, "filtered_lrelu: an image of this size is larger than a kernel takes");
  FilteredLrelu g{};
  g.planes = x.size(0) * x.size(1);
  g.channels = int(x.size(1));
  g.h = int(s.h), g.w = int(s.w), g.gh = int(s.gh), g.gw = int(s.gw), g.oh = int(s.oh), g.ow = int(s.ow);
  g.up = int(s.up), g.down = int(s.down), g.x0 = int(s.x0), g.y0 = int(s.y0), g.left = int(s.left), g.top = int(s.top);
  g.up_taps = int(fu.numel()), g.down_taps = int(fd.numel());
  g.flip = flip, g.gain = gain, g.slope = slope;
  g.step = std::lcm(g.up, g.down);
  g.mask_w = int(divide_up(g.gw, g.step));
  return g;
}

// Every dtype's filters and bias, as kernels take them.
Tensor wide(const Tensor& t, const Tensor& x) {
  return with_layout(with_dtype(t, accumulation_type(x)), Layout::contiguous);
}

template <bool reads, bool writes>
void run(FilteredLrelu g, const Tensor& x, const std::optional<Tensor>& bias, const Tensor& fu, const Tensor& fd,
         const uint8_t* mask_in, uint8_t* mask_out, const Tensor& y) {
  if (y.numel() == 0) return;
  with_type(dtype_of(y), [&](auto type) {
    using T = decltype(type);
    choose_tile<Acc<T>>(g);
    launch("filtered_lrelu", filtered_lrelu_kernel<T, reads, writes>, g.planes * g.tiles_y * g.tiles_x, pointer<T>(x),
           pointer<Acc<T>>(bias), pointer<Acc<T>>(fu), pointer<Acc<T>>(fd), mask_in, mask_out, output<T>(y), g);
  });
}

std::tuple<Tensor, Tensor> filtered_lrelu(Tensor x, std::optional<Tensor> bias, Tensor fu, Tensor fd, int64_t up,
                                          int64_t down, int64_t x0, int64_t x1, int64_t y0, int64_t y1,
                                          bool flip_filter, double gain, double slope, std::optional<double> clamp,
                                          bool keep_mask) {
  const OnDeviceOf guard(x);
  check_device("filtered_lrelu", "bias", bias, x);
  check_device("filtered_lrelu", "fu", fu, x);
  check_device("filtered_lrelu", "fd", fd, x);
  check_lrelu(x, up, down, gain, slope);
  check_bias(x, bias);
  dtype_of(x);
  const Lrelu s = lrelu_sizes(x, fu, fd, up, down, x0, x1, y0, y1);
  const int64_t sizes[] = {x.size(0), x.size(1), s.oh, s.ow};
  Output y(empty_with_layout(sizes, x.scalar_type(), working_layout(x)), Layout::contiguous);
  const Tensor mask = fresh_mask(keep_mask ? mask_sizes(x, s) : std::vector<int64_t>{0});
  const Tensor dense = with_layout(x, Layout::contiguous), up_filter = wide(fu, x), down_filter = wide(fd, x);
  std::optional<Tensor> wide_bias;
  if (bias) wide_bias = wide(*bias, x);
  FilteredLrelu g = work_of(x, fu, fd, s, flip_filter, up * up * gain, slope);
  g.clamp = clamp ? *clamp : INFINITY;
  const auto kept = keep_mask ? static_cast<uint8_t*>(mask.mutable_data_ptr()) : nullptr;
  if (keep_mask) run<false, true>(g, dense, wide_bias, up_filter, down_filter, nullptr, kept, y.buffer);
  else run<false, false>(g, dense, wide_bias, up_filter, down_filter, nullptr, nullptr, y.buffer);
  return {y.finish(), mask};
}

Tensor filtered_lrelu_masked(Tensor x, Tensor mask, Tensor fu, Tensor fd, int64_t up, int64_t down, int64_t x0,
                             int64_t y0, int64_t left, int64_t top, int64_t grid_h, int64_t grid_w, int64_t out_h,
                             int64_t out_w, bool flip_filter, double gain, double slope) {
  const OnDeviceOf guard(x);
  check_device("filtered_lrelu", "mask", mask, x);
  check_device("filtered_lrelu", "fu", fu, x);
  check_device("filtered_lrelu", "fd", fd, x);
  const Lrelu s =
      masked_sizes(x, mask, fu, fd, up, down, x0, y0, left, top, grid_h, grid_w, out_h, out_w, gain, slope);
  const int64_t sizes[] = {x.size(0), x.size(1), out_h, out_w};
  Output y(empty_with_layout(sizes, x.scalar_type(), working_layout(x)), Layout::contiguous);
  const Tensor dense = with_layout(x, Layout::contiguous), bits = with_layout(mask, Layout::contiguous);
  const Tensor up_filter = wide(fu, x), down_filter = wide(fd, x);
  const FilteredLrelu g = work_of(x, fu, fd, s, flip_filter, gain, slope);
  run<true, false>(g, dense, std::nullopt, up_filter, down_filter, static_cast<const uint8_t*>(bits.const_data_ptr()),
                   nullptr, y.buffer);
  return y.finish();
}

}  // namespace

PGGAN_FAST_CUDA_LIBRARY {
  library.impl("filtered_lrelu", TORCH_BOX(&filtered_lrelu));
  library.impl("filtered_lrelu_masked", TORCH_BOX(&filtered_lrelu_masked));
}

}  // namespace pggan_fast
