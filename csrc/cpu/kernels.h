// The CPU kernels' interface: what csrc/cpu/*.cpp, compiled for any machine, asks of the kernels that are compiled
// once per instruction set (level_*.cpp). Plain structs and function pointers: a shared inline function would be
// emitted by every level and the linker could keep one that this machine cannot run (so `static` below).
#pragma once

#include "../shared/layout.h"

namespace pggan_fast {

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
  const void* r;  // A[N, P], null without pixel norm
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

// `activation`: what reads its derivative off the output's sign (linear, relu, lrelu), and the smooth ones.
enum class Act { piecewise, tanh, sigmoid, elu, selu, softplus, swish };

struct ActivationForward {
  Dtype dtype;
  Shape shape;
  Act act;
  double scale, slope, gain, clamp;  // clamp is NaN for none
  const void* x;
  const void* bias;  // A[C] or null
  void* y;
};

struct ActivationBackward {
  Dtype dtype;
  Shape shape;
  Act act;
  double scale, slope, gain, clamp;
  const void* dy;
  const void* source;  // y of piecewise, x of the smooth ones
  const void* bias;    // A[C] or null
  void* dx;
  double* db;  // one row of C sums for this range of work, or null
};

struct ActivationDoubleBackward {
  Dtype dtype;
  Shape shape;
  Act act;
  double scale, slope, gain, clamp;
  const void* g;       // or null
  const void* g_bias;  // A[C] or null
  const void* dy;
  const void* source;
  const void* bias;
  void* d_dy;
  void* d_x;       // this and the next one are written by the smooth ones
  double* d_bias;  // one row of C sums for this range of work, or null
};

// h x w low-resolution pixels in each of `planes`, c values in each pixel (contiguous: N C planes of one value,
// channels_last: N planes of C), and 2h x 2w high-resolution ones, with an extra row or column where sizes are odd.
struct Grid {
  int64_t planes, h, w, c, extra_h, extra_w;
};

// low and high are read, low_out and high_out written, each where the op has it; `dtype` but for `bytes`.
struct Resample {
  Dtype dtype;
  Grid grid;
  double factor;  // of the sums or copies, or alpha
  bool bytes;     // fade_reals: high is uint8
  const void* low;
  const void* high;
  void* low_out;
  void* high_out;
};

// groups x group samples of `rows` rows of `row_len` values. A tensor with maps has maps x map_len more behind each
// row. contiguous: one row of C P values, map_len P; channels_last: P rows of C values, map_len 1. One sample in
// memory:
//
//   contiguous:     | channel 0: P values | channel 1 | ... | channel C - 1 | map 0: P values | ... |
//                   |<------------------- row_len = C P ------------------>|<-- maps x P -------->|
//   channels_last:  | pixel 0: C values | maps | pixel 1: C values | maps | ... | pixel P - 1: C values | maps |
//                   |<-- row_len = C -->|                                    (without maps: the C values alone)
//
// Which samples are one group: strided, of 8 samples in groups of 4: 0 1 0 1 0 1 0 1; consecutive: 0 0 0 0 1 1 1 1.
struct Samples {
  int64_t groups, group, maps, rows, row_len, map_len;
  bool strided;
};

// x, g and dx are [N, C, P], dy and y have the maps behind. Null where the op has no such tensor.
struct Stddev {
  Dtype dtype;
  Samples samples;
  double eps, divisor;
  const void* x;
  const void* dy;
  const void* g;
  void* y;
  void* dx;
  double* sums;           // written: one for each work item and map; by read_maps one for each sample and map
  const double* factors;  // read: one for each group and map
};

// [N, C, P] to [N, P, C], or back; elements of 4 bytes (`wide`) or 2.
struct Relayout {
  bool wide, to_channels_last;
  int64_t c, p;
  const void* from;
  void* to;
};

// Pixels of one sample in a work item of relayout: whole cache lines on both sides.
constexpr int64_t kRelayoutPixels = 64;

// planes x h x w pixels of c values (contiguous: N C planes of one value, channels_last: N planes of C) to oh x ow.
// The filter is a sum over `terms` of columns[term][fh] times rows[term][fw], in the order of a correlation.
struct Upfirdn2d {
  Dtype dtype;
  int64_t planes, h, w, c, oh, ow;
  int64_t upx, upy, downx, downy, x0, y0, fh, fw, terms;
  const double* columns;
  const double* rows;
  const void* x;
  void* y;
};

// planes x h x w pixels to a grid of gh x gw, and that to oh x ow: see pggan_fast/ops/filtered_lrelu.py. Filters in the
// order of a correlation, at most 24 taps each; the first one's along rows has the gain. With `read_mask` the grid's
// values are multiplied by what it says, otherwise activated, and `written_mask`, if there, says how.
struct FilteredLrelu {
  Dtype dtype;
  int64_t planes, channels, h, w, gh, gw, oh, ow;
  int64_t up, down, x0, y0, left, top, up_taps, down_taps;
  const double* up_columns;
  const double* up_rows;
  const double* down_filter;
  double slope, clamp;
  const void* x;
  const void* bias;  // A[channels] or null
  const uint8_t* read_mask;
  uint8_t* written_mask;
  void* y;
};

// Everybody's filters, of three or four taps, have a kernel of their own.
constexpr int kFewTapsRows = 4;  // output rows in a work item
static inline bool upfirdn2d_has_few_taps(const Upfirdn2d& a) {
  if (a.terms != 1 || a.fh != a.fw || (a.fh != 3 && a.fh != 4) || a.upx != a.upy || a.downx != a.downy) return false;
  // Of rows this short it would fill a small part of each vector.
  if (a.c == 1 && a.w <= 8 && a.ow <= 4 && a.h <= 64) return false;
  return a.upx * a.downx <= 2;
}

// Planes too small for rows of whole vectors are filtered this many at a time: a vector of the widest level's.
constexpr int64_t kPlanesAtOnce = 16;
static inline bool upfirdn2d_has_small_planes(const Upfirdn2d& a) {
  return !upfirdn2d_has_few_taps(a) && a.c == 1 && a.w <= 16 && a.ow <= 16 && a.h <= 64 && a.oh <= 64;
}

// Each kernel does the work items [begin, end). A work item of upfirdn2d is one output row, kFewTapsRows of them, or
// kPlanesAtOnce small planes; of bias_act and activation it is a block of `bias_act_block` pixels or of
// `bias_act_planes` planes; of resampling some rows; of stddev a block of positions, and of its maps one map of one
// sample.
struct Kernels {
  void (*bias_act_forward)(const BiasActForward&, int64_t begin, int64_t end);
  void (*bias_act_backward)(const BiasActBackward&, int64_t begin, int64_t end);
  void (*bias_act_double_backward)(const BiasActDoubleBackward&, int64_t begin, int64_t end);
  void (*upsample)(const Resample&, int64_t begin, int64_t end);
  void (*downsample)(const Resample&, int64_t begin, int64_t end);
  void (*fade_in)(const Resample&, int64_t begin, int64_t end);
  void (*fade_in_backward)(const Resample&, int64_t begin, int64_t end);
  void (*fade_reals)(const Resample&, int64_t begin, int64_t end);
  void (*stddev_forward)(const Stddev&, int64_t begin, int64_t end);
  void (*stddev_backward)(const Stddev&, int64_t begin, int64_t end);
  void (*stddev_double_backward)(const Stddev&, int64_t begin, int64_t end);
  void (*stddev_read_maps)(const Stddev&, int64_t begin, int64_t end);
  void (*stddev_write_maps)(const Stddev&, int64_t begin, int64_t end);
  void (*relayout)(const Relayout&, int64_t begin, int64_t end);
  void (*upfirdn2d)(const Upfirdn2d&, int64_t begin, int64_t end);
  void (*filtered_lrelu)(const FilteredLrelu&, int64_t begin, int64_t end);
  void (*activation_forward)(const ActivationForward&, int64_t begin, int64_t end);
  void (*activation_backward)(const ActivationBackward&, int64_t begin, int64_t end);
  void (*activation_double_backward)(const ActivationDoubleBackward&, int64_t begin, int64_t end);
};

// A work item of bias_act with pixel norm is a block of this many pixels, of one sample (contiguous) or of all samples
// (channels_last). Its values fit in the second-level cache between the two passes that pixel norm needs. In memory,
// items 0, 1, 2 ... of one sample with C channels, b pixels to a block:
//
//   contiguous:     | channel 0: 00..0 11..1 22..2 | channel 1: 00..0 11..1 22..2 | ... | channel C - 1 |
//                   |            |<b>|             |           C stretches of b values, P values apart
//   channels_last:  | 000000 ... 0 | 111111 ... 1 | 222222 ... 2 | ...
//                   |<-- b * C --->|              |          b pixels of C values, one stretch
static inline int64_t bias_act_block(const Shape& s) {
  const bool last = s.layout == Layout::channels_last;
  // contiguous: long enough runs of a plane for the processor to read ahead, few enough for the second-level cache.
  const int64_t most = last ? 16 * 1024 / s.c : s.c > 256 ? 1024 : 512;
  const int64_t for_threads = s.n * s.p / 8, pixels = (most < for_threads || last ? most : for_threads) / 64 * 64;
  return pixels < 64 ? 64 : pixels > 4096 ? 4096 : pixels;
}

// Without pixel norm a contiguous tensor is walked in memory's order: a work item is this many planes of one channel
// and sample each, or one of this many chunks of a plane.
constexpr int64_t kPlanePixels = 16 * 1024;
static inline bool bias_act_by_planes(const Shape& s, const Epilogue& e) {
  return s.layout == Layout::contiguous && !e.pixel_norm;
}
static inline int64_t bias_act_planes(const Shape& s) { return s.p < kPlanePixels ? kPlanePixels / s.p : 1; }
static inline int64_t bias_act_chunks(const Shape& s) { return (s.p + kPlanePixels - 1) / kPlanePixels; }

// A work item of resampling is this many low rows, of any planes, with two high rows each.
static inline int64_t resample_rows(const Grid& g) {
  const int64_t row = g.w * g.c;
  // An extra row parts the planes.
  return row > 1024 || g.extra_h ? 1 : 1024 / row;
}

// Positions in a work item of stddev: times the samples of a group, the values fit in the first or second level
// cache between the passes over them.
constexpr int64_t kStddevBlock = 2048;

// A work item is this many whole rows, or one of `stddev_chunks` chunks of one map's part of a row.
static inline int64_t stddev_rows(const Samples& s) { return s.row_len < kStddevBlock ? kStddevBlock / s.row_len : 1; }
static inline int64_t stddev_chunks(const Samples& s) { return (s.row_len / s.maps + kStddevBlock - 1) / kStddevBlock; }

extern const Kernels kernels_baseline;
#ifndef PGGAN_FAST_NO_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

// The best level that this machine runs.
const Kernels& kernels();

}  // namespace pggan_fast
