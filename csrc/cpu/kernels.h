// The CPU kernels' interface: what csrc/cpu/*.cpp, compiled for any machine, asks of the kernels that are compiled
// once per instruction set (level_*.cpp). Plain structs and function pointers: a shared inline function would be
// emitted by every level and the linker could keep one that this machine cannot run (so `static` below).
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

// Tensors of `dtype` unless said otherwise; A is double for f64 and float for the rest.
struct BiasActForward {
  Dtype dtype;
  Shape shape;
  Epilogue epilogue;
  const void* x;
  const void* bias;  // A[C] or null
  void* y;
  void* r;  // A[N, P], written with pixel norm
};

struct BiasActBackward {
  Dtype dtype;
  Shape shape;
  Epilogue epilogue;
  const void* dy;
  const void* dr;  // A[N, P] or null
  const void* y;
  const void* r;  // A[N, P], read with pixel norm
  void* dx;
  double* db;  // one row of C sums for this range of work, or null
};

struct BiasActDoubleBackward {
  Dtype dtype;
  Shape shape;
  Epilogue epilogue;
  const void* g;       // or null
  const void* g_bias;  // A[C] or null
  const void* dy;
  const void* dr;  // A[N, P] or null
  const void* y;
  const void* r;
  void* d_dy;
  void* d_y;   // this and the next two are written with pixel norm
  void* d_r;   // A[N, P]
  void* d_dr;  // A[N, P]
};

// Each kernel does the units [begin, end) of its work; a unit is a block of `bias_act_block` pixels.
struct Kernels {
  void (*bias_act_forward)(const BiasActForward&, int64_t begin, int64_t end);
  void (*bias_act_backward)(const BiasActBackward&, int64_t begin, int64_t end);
  void (*bias_act_double_backward)(const BiasActDoubleBackward&, int64_t begin, int64_t end);
};

// A unit of bias_act's work is a block of pixels of one sample (contiguous) or of all samples (channels_last).
// This many: a block's values fit in the second-level cache between the two passes that pixel norm needs.
static inline int64_t bias_act_block(const Shape& s) {
  const int64_t elements = s.layout == Layout::contiguous ? 64 * 1024 : 16 * 1024;
  const int64_t pixels = elements / s.c / 64 * 64;
  return pixels < 64 ? 64 : pixels > 4096 ? 4096 : pixels;
}

extern const Kernels kernels_baseline;
#ifndef PGGAN_FAST_NO_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

// The best level that this machine runs.
const Kernels& kernels();

}  // namespace pggan_fast
