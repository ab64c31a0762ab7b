// The op of pggan_fast/ops/upfirdn2d.py.
#include "../shared/upfirdn2d.h"
#include "upfirdn2d_kernels.cuh"

namespace pggan_fast {
namespace {

// The largest tile whose patch fits in shared memory; false where not even one output's does.
template <class T>
bool choose_tile(Upfirdn2d& g, bool channels_last, int vector) {
  constexpr int kPatchValues = kPatchBytes / sizeof(T);
  // channels_last: 32 bytes of channels, the least that memory delivers.
  g.tc = channels_last ? std::min<int>(g.c, 32 / sizeof(T)) : 1;
  g.tc = channels_last ? int(divide_up(g.tc, vector)) * vector : 1;
  const int least = channels_last ? 1 : vector;
  g.tw = std::max(least, channels_last ? 32 : 64);
  g.th = 32;
  while (true) {
    g.ph = ((g.th - 1) * g.downy + g.fh - 1) / g.upy + 1;
    g.pw = ((g.tw - 1) * g.downx + g.fw - 1) / g.upx + 1;
    if (!channels_last) g.pw = int(divide_up(g.pw + vector - 1, vector)) * vector;
    if (int64_t(g.ph) * g.pw * g.tc <= kPatchValues) break;
    if (g.th == 1 && g.tw == least) return false;
    if (g.th > 1 && (2 * g.th > g.tw || g.tw == least)) g.th /= 2;
    else g.tw /= 2;
  }
  g.tiles_y = int(divide_up(g.oh, g.th));
  g.tiles_x = int(divide_up(g.ow, g.tw));
  g.tiles_c = int(divide_up(g.c, g.tc));
  return int64_t(g.fh) * g.fw <= kFilterValues;
}

template <class T, int V, bool channels_last>
void launch_tiles(const Upfirdn2d& g, const Tensor& x, const Tensor& f, const Tensor& y) {
  const int64_t blocks = g.planes * g.tiles_y * g.tiles_x * g.tiles_c;
  const auto run = [&](auto kernel) {
    launch("upfirdn2d", kernel, blocks, pointer<T>(x), pointer<Acc<T>>(f), output<T>(y), g);
  };
  if constexpr (V > 1 && sizeof(T) < 8) {
    // Everybody's filters: StyleGAN's [1, 3, 3, 1], and [1, 2, 1] of R3GAN and StyleGAN 1.
    const auto run_taps = [&](auto taps) {
      if (g.fh != taps || g.fw != taps || g.upx != g.upy || g.downx != g.downy) return false;
      if (g.upx == 1 && g.downx == 1) run(upfirdn2d_kernel<T, V, channels_last, 1, 1, taps>);
      else if (g.upx == 2 && g.downx == 1) run(upfirdn2d_kernel<T, V, channels_last, 2, 1, taps>);
      else if (g.upx == 1 && g.downx == 2) run(upfirdn2d_kernel<T, V, channels_last, 1, 2, taps>);
      else return false;
      return true;
    };
    if (run_taps(std::integral_constant<int, 4>{}) || run_taps(std::integral_constant<int, 3>{})) return;
  }
  run(upfirdn2d_kernel<T, V, channels_last, 0, 0, 0>);
}

// One launch. f is [taps] or [fh, fw].
Tensor filtered(const Tensor& x, const Tensor& f, ScalarType dtype, int64_t upx, int64_t upy, int64_t downx,
                int64_t downy, int64_t x0, int64_t x1, int64_t y0, int64_t y1, bool flip_filter, double gain) {
  const Resampling r = resampling(x, f, upx, upy, downx, downy, x0, x1, y0, y1);
  const Layout layout = working_layout(x);
  const int64_t n = x.size(0), c = x.size(1), sizes[] = {n, c, r.oh, r.ow};
  Tensor y = empty_with_layout(sizes, dtype, layout);
  if (y.numel() == 0) return y;
  if (x.numel() == 0) return torch::stable::zero_(y);
  for (const int64_t size : {r.h * upy, r.w * upx, r.oh * downy, r.ow * downx, c, x0, x1, y0, y1})
    STD_TORCH_CHECK(std::abs(size) < int64_t(1) << 30, "upfirdn2d: an image of this size is larger than a kernel takes");
  const bool channels_last = layout == Layout::channels_last;
  // Both tensors in one dtype, which a pass between two of them has not.
  const Tensor dense = with_layout(with_dtype(x, dtype), layout);
  const Tensor taps = with_layout(with_dtype(f, accumulation_type(y)), Layout::contiguous);
  Upfirdn2d g{};
  g.planes = channels_last ? n : n * c;
  g.h = int(r.h), g.w = int(r.w), g.c = channels_last ? int(c) : 1, g.oh = int(r.oh), g.ow = int(r.ow);
  g.upx = int(upx), g.upy = int(upy), g.downx = int(downx), g.downy = int(downy), g.x0 = int(x0), g.y0 = int(y0);
  g.fh = int(f.size(0)), g.fw = int(f.size(f.dim() - 1)), g.vector = f.dim() == 1;
  g.flip = flip_filter, g.gain = gain;
  with_type(dtype_of(y), [&](auto type) {
    using T = decltype(type);
    constexpr int V = 16 / sizeof(T);
    with_bool(channels_last, [&](auto channels_last) {
      const bool fits = is_aligned(dense.const_data_ptr()) && is_aligned(y.const_data_ptr()) &&
                        (channels_last ? g.c % V == 0 : g.w % V == 0 && g.ow % V == 0);
      if (!choose_tile<T>(g, channels_last, fits ? V : 1)) {
        launch("upfirdn2d", upfirdn2d_direct_kernel<T, channels_last>, divide_up(y.numel(), kThreads),
               pointer<T>(dense), pointer<Acc<T>>(taps), output<T>(y), g);
        return;
      }
      with_vector<T>(fits, [&](auto vector) { launch_tiles<T, vector, channels_last>(g, dense, taps, y); });
    });
  });
  return y;
}

// A longer filter [taps] takes two passes, along x and along y.
constexpr int64_t kShort = 8;

Tensor upfirdn2d(Tensor x, Tensor f, int64_t upx, int64_t upy, int64_t downx, int64_t downy, int64_t x0, int64_t x1,
                 int64_t y0, int64_t y1, bool flip_filter, double gain) {
  const OnDeviceOf guard(x);
  check_device("upfirdn2d", "f", f, x);
  resampling(x, f, upx, upy, downx, downy, x0, x1, y0, y1);
  dtype_of(x);
  if (f.dim() == 2 || f.numel() <= kShort)
    return filtered(x, f, x.scalar_type(), upx, upy, downx, downy, x0, x1, y0, y1, flip_filter, gain);
  const Tensor taps = with_layout(f, Layout::contiguous);
  const int64_t count = f.numel(), along_x[] = {1, count}, along_y[] = {count, 1};
  const Tensor fx = torch::stable::view(taps, along_x), fy = torch::stable::view(taps, along_y);
  const ScalarType wide = accumulation_type(x);
  // The pass that shrinks the image the most, or lets it grow the least, comes first.
  if (downx >= upx) {
    const Tensor between = filtered(x, fx, wide, upx, 1, downx, 1, x0, x1, 0, 0, flip_filter, gain);
    return with_dtype(filtered(between, fy, wide, 1, upy, 1, downy, 0, 0, y0, y1, flip_filter, 1), x.scalar_type());
  }
  const Tensor between = filtered(x, fy, wide, 1, upy, 1, downy, 0, 0, y0, y1, flip_filter, gain);
  return with_dtype(filtered(between, fx, wide, upx, 1, downx, 1, x0, x1, 0, 0, flip_filter, 1), x.scalar_type());
}

}  // namespace

PGGAN_FAST_CUDA_LIBRARY { library.impl("upfirdn2d", TORCH_BOX(&upfirdn2d)); }

}  // namespace pggan_fast
