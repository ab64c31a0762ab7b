// What CPU and CUDA kernels call dtypes and layouts. Plain C++, no torch.
#pragma once

#include <cstdint>

namespace pggan_fast {

enum class Dtype { f64, f32, bf16, f16 };

// contiguous: [N, C, P]; channels_last: [N, P, C], P the number of pixels.
enum class Layout { contiguous, channels_last };

struct Shape {
  int64_t n, c, p;
  Layout layout;
};

// gain * act(scale * x + bias), slope 1 for linear and 0 for relu, then pixel norm if asked.
struct Epilogue {
  double scale, slope, gain, eps;
  bool pixel_norm;
};

}  // namespace pggan_fast
