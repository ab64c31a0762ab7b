#include <cmath>

#include "../shared/upfirdn2d.h"
#include "tensors.h"

namespace pggan_fast {
namespace {

Tensor upfirdn2d(Tensor x, Tensor f, int64_t upx, int64_t upy, int64_t downx, int64_t downy, int64_t x0, int64_t x1,
                 int64_t y0, int64_t y1, bool flip_filter, double gain) {
  const Resampling r = resampling(x, f, upx, upy, downx, downy, x0, x1, y0, y1);
  const Layout layout = working_layout(x);
  const bool last = layout == Layout::channels_last;
  const int64_t n = x.size(0), c = x.size(1);
  const int64_t sizes[] = {n, c, r.oh, r.ow};
  Tensor y = empty_with_layout(sizes, x.scalar_type(), layout);
  if (y.numel() == 0) return y;
  if (x.numel() == 0) return torch::stable::zero_(y);
  const Tensor dense = with_layout(x, layout);
  const Filter filter = separated(f, flip_filter, gain, dtype_of(x));
  const Upfirdn2d work{dtype_of(x), last ? n : n * c,     r.h,         r.w,           last ? c : 1,
                       r.oh,        r.ow,                 upx,         upy,           downx,
                       downy,       x0,                   y0,          filter.fh,     filter.fw,
                       filter.terms, filter.columns.data(), filter.rows.data(), data(dense), y.mutable_data_ptr()};
  const bool small = upfirdn2d_has_small_planes(work);
  const int64_t rows = upfirdn2d_has_few_taps(work) ? kFewTapsRows : 1;
  const int64_t items = small ? (work.planes + kPlanesAtOnce - 1) / kPlanesAtOnce
                              : work.planes * ((work.oh + rows - 1) / rows);
  const int64_t in_item = small ? kPlanesAtOnce * work.oh * work.ow : rows * work.ow * work.c;
  parallel(items, 4 * in_item, [&](int64_t begin, int64_t end) { kernels().upfirdn2d(work, begin, end); });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pggan_fast, CPU, m) { m.impl("upfirdn2d", TORCH_BOX(&upfirdn2d)); }

}  // namespace pggan_fast
