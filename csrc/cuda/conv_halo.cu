// The ops of pggan_fast/ops/conv_halo.py.
#include <tuple>

#include "../shared/bias_act.h"
#include "bias_act_kernels.cuh"
#include "conv_halo_weight_gradient_kernels.cuh"
#include "sign_bits.cuh"

namespace pggan_fast {
namespace {

void check_gpu(const char* op) {
  int major = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device_index());
  STD_TORCH_CHECK(major >= 8, op, ": needs a GPU of compute capability 8.0");
}

// Room for two blocks; ops/conv_halo.py's `needs_more_memory` says for which kernels.
void check_memory(const char* op, int bytes) {
  int of_multiprocessor = 0;
  cudaDeviceGetAttribute(&of_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device_index());
  STD_TORCH_CHECK(2 * bytes < of_multiprocessor, op, ": needs a GPU with more shared memory for these channels");
}

Fused fused_of(const std::string& name) {
  if (name == "epilogue") return Fused::epilogue;
  if (name == "pixel_norm") return Fused::pixel_norm;
  if (name == "in_mask") return Fused::in_mask;
  STD_TORCH_CHECK(name == "out_mask", "conv_halo: fused is '", name,
                  "', allowed: epilogue, pixel_norm, in_mask, out_mask");
  return Fused::out_mask;
}

template <auto value>
using Constant = std::integral_constant<decltype(value), value>;

// f(a constant): from an enumeration's value, or a number of channels, to a template argument.
template <class F>
void with_fused(Fused fused, F f) {
  switch (fused) {
    case Fused::epilogue:
      return f(Constant<Fused::epilogue>{});
    case Fused::pixel_norm:
      return f(Constant<Fused::pixel_norm>{});
    case Fused::in_mask:
      return f(Constant<Fused::in_mask>{});
    case Fused::out_mask:
      return f(Constant<Fused::out_mask>{});
  }
}
template <class F>
void with_kind(Kind kind, F f) {
  switch (kind) {
    case Kind::plain:
      return f(Constant<Kind::plain>{});
    case Kind::strided:
      return f(Constant<Kind::strided>{});
    case Kind::transposed:
      return f(Constant<Kind::transposed>{});
  }
}
template <class F>
void with_channels(int64_t channels, F f) {
  STD_TORCH_CHECK(channels == 16 || channels == 32, "conv_halo: there are ", channels, " channels, allowed: 16, 32");
  if (channels == 16) f(Constant<16>{});
  else f(Constant<32>{});
}
// What there is a kernel for; ops/conv_halo.py's `exists` says the same.
template <class T, int CI, int CO, Kind kind>
constexpr bool kExists = kind == Kind::plain || (kind == Kind::strided ? CI : CO) == 16;

std::tuple<Tensor, Tensor, Tensor> conv_halo(Tensor x, Tensor weight, std::optional<Tensor> bias,
                                             std::optional<Tensor> mask, bool transposed, int64_t stride, int64_t out_h,
                                             int64_t out_w, std::string fused_name, double scale, double positive_slope,
                                             double negative_slope, double eps, bool needs_signs) {
  const OnDeviceOf guard(x);
  check_gpu("conv_halo");
  check_device("conv_halo", "weight", weight, x);
  check_device("conv_halo", "bias", bias, x);
  check_device("conv_halo", "mask", mask, x);
  const Fused fused = fused_of(fused_name);
  const bool masked = fused == Fused::in_mask || fused == Fused::out_mask;
  const Kind kind = stride == 1 ? Kind::plain : transposed ? Kind::transposed : Kind::strided;
  const int64_t side = kind == Kind::plain ? 3 : 4;
  STD_TORCH_CHECK(x.dim() == 4 && is_channels_last(x) && is_aligned(x.const_data_ptr()),
                  "conv_halo: x must be channels_last [N, C, H, W] at an address that 16 divides");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(2) == side && weight.size(3) == side &&
                      weight.scalar_type() == x.scalar_type() && weight.size(transposed ? 0 : 1) == x.size(1),
                  "conv_halo: weight must be [C_out, C_in, ", side, ", ", side, "] in x's dtype, or transposed");
  STD_TORCH_CHECK(masked == mask.has_value(), "conv_halo: a mask goes with in_mask and out_mask");
  const int64_t n = x.size(0), h = x.size(2), w = x.size(3), c_in = x.size(1), c_out = weight.size(transposed ? 1 : 0);
  STD_TORCH_CHECK(h * w * c_in < INT32_MAX && out_h * out_w * c_out < INT32_MAX, "conv_halo: an image is too large");
  const int64_t sizes[] = {n, c_out, out_h, out_w}, factors[] = {n, 1, out_h, out_w};
  Tensor y = empty_with_layout(sizes, x.scalar_type(), Layout::channels_last);
  const bool norm = fused == Fused::pixel_norm, writes_signs = fused == Fused::epilogue && needs_signs;
  Tensor r =
      norm ? empty_with_layout(factors, ScalarType::Float, Layout::contiguous) : empty_vector(0, ScalarType::Float);
  Tensor signs = empty_words(writes_signs ? std::vector<int64_t>{n, out_h, out_w, 1} : std::vector<int64_t>{0});
  if (y.numel() == 0) return {y, r, signs};
  std::optional<Tensor> shift;
  if (bias) shift = with_layout(with_dtype(*bias, ScalarType::Float), Layout::contiguous);
  STD_TORCH_CHECK(!shift || shift->numel() == c_out, "conv_halo: bias must have one value for each output channel");
  if (mask)
    STD_TORCH_CHECK(mask->scalar_type() == ScalarType::Int && mask->is_contiguous() &&
                        mask->numel() == (fused == Fused::in_mask ? n * h * w : n * out_h * out_w),
                    "conv_halo: mask must be the packed signs, int32 [N, H, W, 1]");

  HaloConv a{};
  a.x = x.const_data_ptr();
  a.weight = weight.const_data_ptr();
  a.w_in = weight.stride(transposed ? 0 : 1), a.w_out = weight.stride(transposed ? 1 : 0);
  a.w_h = weight.stride(2), a.w_w = weight.stride(3);
  if (kind == Kind::plain && transposed) {
    // The transpose of a plain convolution is one with each filter flipped.
    a.weight =
        static_cast<const char*>(a.weight) + 2 * (a.w_h + a.w_w) * (x.scalar_type() == ScalarType::Float ? 4 : 2);
    a.w_h = -a.w_h, a.w_w = -a.w_w;
  }
  a.bias = pointer<float>(shift);
  a.y = y.mutable_data_ptr();
  a.r = norm ? output<float>(r) : nullptr;
  a.signs = writes_signs ? output<int>(signs) : nullptr;
  a.mask = mask ? pointer<int>(*mask) : nullptr;
  a.h = int(h), a.w = int(w), a.out_h = int(out_h), a.out_w = int(out_w);
  a.scale = float(scale * positive_slope), a.bias_scale = float(positive_slope), a.eps = float(eps);
  a.slope = positive_slope == 0 ? 0.0f : float(negative_slope / positive_slope);
  if (norm) {
    // Pixel norm undoes a positive scale: all but the factors it gives is computed without.
    STD_TORCH_CHECK(scale > 0 && positive_slope > 0, "conv_halo: pixel norm needs a scale and a slope above 0");
    const double whole = scale * positive_slope;
    a.scale = float(1 / whole), a.bias_scale = float(1 / scale), a.eps = float(eps / (whole * whole));
  }
  with_short_type("conv_halo", x, [&](auto type) {
    with_channels(c_in, [&](auto c_in) {
      with_channels(c_out, [&](auto c_out) {
        with_kind(kind, [&](auto kind) {
          with_fused(fused, [&](auto fused) {
            using T = decltype(type);
            if constexpr (kExists<T, c_in, c_out, kind>) {
              using Tile = HaloTile<T, c_in, c_out, kind>;
              const int64_t phases = kind == Kind::transposed ? 2 : 1;  // of the output over the tile's pixels
              a.tiles_h = int(divide_up(out_h, phases * Tile::kRows));
              a.tiles_w = int(divide_up(out_w, phases * Tile::kColumns));
              const int64_t tiles = n * a.tiles_h * a.tiles_w;
              STD_TORCH_CHECK(tiles < INT32_MAX, "conv_halo: there are too many images");
              a.tiles = int(tiles);
              const auto kernel = conv_halo_kernel<T, c_in, c_out, kind, fused>;
              constexpr int kBytes = kLaunchBytes<Tile::kBytes>;
              check_memory("conv_halo", kBytes);
              launch_with_memory("conv_halo", kernel, blocks_at_once("conv_halo", kernel, tiles, kBytes), kBytes, a);
            } else {
              STD_TORCH_CHECK(false, "conv_halo: there is no kernel for these channels in this dtype");
            }
          });
        });
      });
    });
  });
  return {y, r, signs};
}

// See ops/conv_halo.py: [CA, taps, CB] and the CA sums of a, one behind the other.
Tensor conv_halo_weight_gradient(Tensor a, Tensor b, std::optional<Tensor> mask, int64_t stride, double scale,
                                 double positive_slope, double negative_slope) {
  const OnDeviceOf guard(a);
  check_gpu("conv_halo_weight_gradient");
  check_device("conv_halo_weight_gradient", "b", b, a);
  check_device("conv_halo_weight_gradient", "mask", mask, a);
  for (const Tensor& t : {a, b})
    STD_TORCH_CHECK(
        t.dim() == 4 && is_channels_last(t) && is_aligned(t.const_data_ptr()) && t.scalar_type() == a.scalar_type(),
        "conv_halo_weight_gradient: tensors must be channels_last [N, C, H, W] at addresses that 16 divides");
  const int64_t n = a.size(0), c_a = a.size(1), c_b = b.size(1), h = a.size(2), w = a.size(3),
                side = stride == 1 ? 3 : 4;
  STD_TORCH_CHECK(b.size(0) == n && a.numel() > 0 && a.numel() / n < INT32_MAX && b.numel() / n < INT32_MAX,
                  "conv_halo_weight_gradient: an image is empty or too large");
  if (mask)
    STD_TORCH_CHECK(mask->scalar_type() == ScalarType::Int && mask->is_contiguous() && mask->numel() == n * h * w,
                    "conv_halo_weight_gradient: mask must be the packed signs, int32 [N, H, W, 1]");
  HaloWeightGradient g{};
  g.a = a.const_data_ptr(), g.b = b.const_data_ptr(), g.mask = mask ? pointer<int>(*mask) : nullptr;
  g.h = int(h), g.w = int(w), g.b_h = int(b.size(2)), g.b_w = int(b.size(3));
  g.scale = float(scale * positive_slope), g.sum_scale = float(positive_slope);
  g.slope = positive_slope == 0 ? 0.0f : float(negative_slope / positive_slope);
  const int64_t row_len = c_a * (side * side * c_b + 1);
  Tensor sums = empty_vector(row_len, ScalarType::Float);
  with_short_type("conv_halo_weight_gradient", a, [&](auto type) {
    with_channels(c_a, [&](auto c_a) {
      with_channels(c_b, [&](auto c_b) {
        with_bool(stride == 2, [&](auto strided) {
          with_bool(mask.has_value(), [&](auto masked) {
            using T = decltype(type);
            if constexpr (!strided || c_b == 16) {
              using Tile = GradientTile<T, c_a, c_b, strided>;
              g.tiles_h = int(divide_up(h, Tile::kRows));
              g.tiles_w = int(divide_up(w, Tile::kColumns));
              const int64_t tiles = n * g.tiles_h * g.tiles_w;
              STD_TORCH_CHECK(tiles < INT32_MAX, "conv_halo_weight_gradient: there are too many images");
              g.tiles = int(tiles);
              const auto kernel = conv_halo_weight_gradient_kernel<T, c_a, c_b, strided, masked>;
              const int64_t blocks = blocks_at_once("conv_halo_weight_gradient", kernel, tiles);
              const Tensor rows = empty_vector(blocks * row_len, ScalarType::Float);
              g.rows = output<float>(rows);
              launch("conv_halo_weight_gradient", kernel, blocks, g);
              launch("conv_halo_weight_gradient", sum_rows_kernel<float>, divide_up(row_len, 32), pointer<float>(rows),
                     blocks, row_len, output<float>(sums));
            } else {
              STD_TORCH_CHECK(false, "conv_halo_weight_gradient: there is no kernel for these channels in this dtype");
            }
          });
        });
      });
    });
  });
  return sums;
}

}  // namespace

PGGAN_FAST_CUDA_LIBRARY {
  library.impl("conv_halo", TORCH_BOX(&conv_halo));
  library.impl("conv_halo_weight_gradient", TORCH_BOX(&conv_halo_weight_gradient));
}

}  // namespace pggan_fast
