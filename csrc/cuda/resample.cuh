// What the ops between two resolutions share on the host: resample.cu and fade.cu.
#pragma once

#include <initializer_list>

#include "resample_kernels.cuh"

namespace pggan_fast {

inline void check_image(const char* op, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4, op, ": x must be [N, C, H, W]");
}

// f(T, V, channels_last), each a value whose type says it, and the blocks to launch, for tensors that begin at these
// places.
template <class F>
void with_kernel(Dtype dtype, const Grid& g, Layout layout, std::initializer_list<const void*> places, F f) {
  if (g.planes * g.h * g.w * g.c == 0) return;
  const bool aligned = std::all_of(places.begin(), places.end(), is_aligned);
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int V = 16 / sizeof(T);
    with_bool(layout == Layout::channels_last, [&](auto channels_last) {
      // A row of the high resolution must begin where a vector may, too.
      const bool fits = aligned && (channels_last ? g.c % V == 0 : g.w % V == 0 && g.extra_w == 0);
      with_vector<T>(fits, [&](auto vector) {
        f(type, vector, channels_last, divide_up(cells_of<vector, channels_last>(g), kThreads));
      });
    });
  });
}

}  // namespace pggan_fast
