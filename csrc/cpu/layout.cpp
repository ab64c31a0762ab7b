// Copies in the other layout: see pggan_fast/ops/layout.py.
#include "tensors.h"

namespace pggan_fast {
namespace {

Tensor to_layout(Tensor x, bool channels_last) {
  STD_TORCH_CHECK(x.dim() == 4, "to_layout: x must be [N, C, H, W]");
  const Layout layout = channels_last ? Layout::channels_last : Layout::contiguous;
  const Layout other = channels_last ? Layout::contiguous : Layout::channels_last;
  const Dtype dtype = dtype_of(x);
  Tensor y = empty_with_layout(x.sizes(), x.scalar_type(), layout);
  if (x.numel() == 0 || dtype == Dtype::f64 || !has_layout(x, other)) return torch::stable::copy_(y, x);
  const Shape s = shape_of(x, other);
  const Relayout work = {dtype == Dtype::f32, channels_last, s.c, s.p, data(x), y.mutable_data_ptr()};
  const int64_t items = s.n * ((s.p + kRelayoutPixels - 1) / kRelayoutPixels);
  parallel(items, kRelayoutPixels * s.c, [&](int64_t begin, int64_t end) { kernels().relayout(work, begin, end); });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pggan_fast, CPU, m) { m.impl("to_layout", TORCH_BOX(&to_layout)); }

}  // namespace pggan_fast
