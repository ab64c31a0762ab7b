// Weights folded with a 2x rescaling, cast and laid out in one pass, and the adjoint: see pggan_fast/ops/fold.py.
#include "../shared/fold.h"
#include "vec.cuh"

namespace pggan_fast {
namespace {

// to[t] = scale * sum of from[t + e] over e in {0, 1}, or {-1, 0} where `to` is larger, in both directions, where it
// exists, for `a` x `b` filters: a thread for each, neighbours being neighbours in `to`. Of 3 x 3 kernels the compiler
// knows the sizes, and each value is read once; of others up to four times, from the first-level cache but for once.
template <class From, class To, bool larger, bool of_3x3>
__global__ void __launch_bounds__(kThreads, kBlocks<From>)
    sum_shifts_kernel(Filters<const From> from, int any_from, Filters<To> to, int any_to, int64_t a, int64_t b,
                      double scale) {
  using A = std::conditional_t<std::is_same_v<From, double> || std::is_same_v<To, double>, double, float>;
  constexpr int kFrom = larger ? 3 : 4;
  const int k_from = of_3x3 ? kFrom : any_from, k_to = of_3x3 ? 7 - kFrom : any_to;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= a * b) return;
  const bool along_a = to.a < to.b;
  const int64_t j = along_a ? i % a : i / b, l = along_a ? i / a : i % b;
  [[maybe_unused]] A held[kFrom * kFrom];
  if constexpr (of_3x3) {
#pragma unroll
    for (int t = 0; t < kFrom * kFrom; ++t) held[t] = A(load(from.at(j, t / kFrom, t % kFrom) + l * from.b));
  }
#pragma unroll
  for (int row = 0; row < k_to; ++row)
#pragma unroll
    for (int column = 0; column < k_to; ++column) {
      A total = 0;
#pragma unroll
      for (int shift = 0; shift < 4; ++shift) {
        const int r = row + shift / 2 - larger, c = column + shift % 2 - larger;
        if (r < 0 || r >= k_from || c < 0 || c >= k_from) continue;
        if constexpr (of_3x3) total += held[r * kFrom + c];
        else total += A(load(from.at(j, r, c) + l * from.b));
      }
      store(to.at(j, row, column) + l * to.b, static_cast<To>(A(scale) * total));
    }
}

// `from` [A, B, k_from, k_from] to `to` [A, B, k_to, k_to], or one of them with A and B swapped.
void sum_shifts(const char* op, const Tensor& from, bool flip_from, const Tensor& to, bool flip_to, double scale) {
  const int64_t a = to.size(flip_to), b = to.size(!flip_to);
  const int k_from = int(from.size(2)), k_to = int(to.size(2));
  const int64_t blocks = divide_up(a * b, kThreads);
  with_type(dtype_of(from), [&](auto from_type) {
    with_type(dtype_of(to), [&](auto to_type) {
      using From = decltype(from_type);
      using To = decltype(to_type);
      const auto f = filters(pointer<From>(from), from);
      const auto t = filters(output<To>(to), to);
      with_bool(k_to > k_from, [&](auto larger) {
        with_bool(std::max(k_from, k_to) == 4, [&](auto of_3x3) {
          launch(op, sum_shifts_kernel<From, To, larger(), of_3x3()>, blocks, flip_from ? flipped(f, k_from) : f,
                 k_from, flip_to ? flipped(t, k_to) : t, k_to, a, b, scale);
        });
      });
    });
  });
}

Tensor fold_weight(Tensor weight, double scale, bool transposed, ScalarType dtype, bool channels_last) {
  const OnDeviceOf guard(weight);
  const int64_t a = weight.size(transposed), b = weight.size(!transposed), k = weight.size(2);
  Tensor folded = empty_filters(a, b, k + 1, dtype, channels_last);
  sum_shifts("fold_weight", weight, false, folded, transposed, scale);
  return folded;
}

Tensor unfold_weight(Tensor folded, double scale, bool transposed, ScalarType dtype, bool channels_last) {
  const OnDeviceOf guard(folded);
  const int64_t a = folded.size(transposed), b = folded.size(!transposed), k = folded.size(2) - 1;
  Tensor weight = empty_filters(a, b, k, dtype, channels_last);
  sum_shifts("unfold_weight", folded, transposed, weight, false, scale);
  return weight;
}

}  // namespace

PGGAN_FAST_CUDA_LIBRARY {
  library.impl("fold_weight", TORCH_BOX(&fold_weight));
  library.impl("unfold_weight", TORCH_BOX(&unfold_weight));
}

}  // namespace pggan_fast
