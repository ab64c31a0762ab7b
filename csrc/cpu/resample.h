// What the ops between two resolutions share: resample.cpp and fade.cpp.
#pragma once

#include "tensors.h"

namespace pggan_fast {

inline void run(void (*kernel)(const Resample&, int64_t, int64_t), const Resample& work) {
  const Grid& g = work.grid;
  const int64_t row = g.w * g.c;
  if (row == 0) return;
  const int64_t rows = resample_rows(g), items = (g.planes * g.h + rows - 1) / rows;
  parallel(items, 4 * rows * row, [&](int64_t begin, int64_t end) { kernel(work, begin, end); });
}

inline void check_image(const char* op, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4, op, ": x must be [N, C, H, W]");
}

// The grid between a high-resolution tensor and half its size.
inline Grid grid_of(const Tensor& high, Layout layout) {
  const bool last = layout == Layout::channels_last;
  const int64_t n = high.size(0), c = high.size(1), h = high.size(2), w = high.size(3);
  return {last ? n : n * c, h / 2, w / 2, last ? c : 1, h % 2, w % 2};
}

}  // namespace pggan_fast
