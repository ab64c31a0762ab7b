// Weights folded with a 2x rescaling, cast and laid out in one pass, and the adjoint: see pggan_fast/ops/weights.py.
#include "../shared/bank.h"
#include "vec.cuh"

namespace pggan_fast {
namespace {

// to[t] = scale * sum of from[t + e] over e in {first, first + 1}, in both directions, where it exists, for `a` x `b`
// filters. A thread for each value of `to`, neighbours being neighbours in memory: filters are strided either way, so
// these are single elements, and each of `from` is read up to four times, from the first-level cache but for once.
template <class From, class To>
__global__ void __launch_bounds__(kThreads, kBlocks<From>)
    sum_shifts_kernel(Bank<const From> from, int k_from, Bank<To> to, int k_to, int first, int64_t a, int64_t b,
                      bool channels_last, double scale) {
  using A = std::conditional_t<std::is_same_v<From, double> || std::is_same_v<To, double>, double, float>;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= a * b * k_to * k_to) return;
  // The layout says which indices are next to each other: the filter's pixels, or one of its two channels.
  const int64_t pixels = k_to * k_to, inner = channels_last ? (to.a == 1 ? a : b) : pixels;
  const int64_t at = i % inner, rest = i / inner;
  const int64_t pixel = channels_last ? rest % pixels : at;
  const int64_t outer = channels_last ? rest / pixels : rest;
  const int64_t j = channels_last && to.a == 1 ? at : channels_last ? outer : outer / b;
  const int64_t l = channels_last && to.a == 1 ? outer : channels_last ? at : outer % b;
  const int row = int(pixel / k_to), column = int(pixel % k_to);
  A total = 0;
  for (int r = max(row + first, 0); r <= min(row + first + 1, k_from - 1); ++r)
    for (int c = max(column + first, 0); c <= min(column + first + 1, k_from - 1); ++c)
      total += A(load(from.at(j, r, c) + l * from.b));
  store(to.at(j, row, column) + l * to.b, static_cast<To>(A(scale) * total));
}

// `from` [A, B, k_from, k_from] to `to` [A, B, k_to, k_to], or one of them with A and B swapped.
void sum_shifts(const char* op, const Tensor& from, bool reverse_from, const Tensor& to, bool reverse_to, int first,
                bool channels_last, double scale) {
  const int64_t a = to.size(reverse_to), b = to.size(!reverse_to);
  const int k_from = int(from.size(2)), k_to = int(to.size(2));
  const int64_t blocks = divide_up(to.numel(), kThreads);
  with_type(dtype_of(from), [&](auto from_type) {
    with_type(dtype_of(to), [&](auto to_type) {
      using From = decltype(from_type);
      using To = decltype(to_type);
      const auto f = bank(pointer<From>(from), from);
      const auto t = bank(output<To>(to), to);
      launch(op, sum_shifts_kernel<From, To>, blocks, reverse_from ? reversed(f, k_from) : f, k_from,
             reverse_to ? reversed(t, k_to) : t, k_to, first, a, b, channels_last, scale);
    });
  });
}

Tensor fold_weight(Tensor weight, double scale, bool transposed, ScalarType dtype, bool channels_last) {
  const OnDeviceOf guard(weight);
  const int64_t a = weight.size(transposed), b = weight.size(!transposed), k = weight.size(2);
  Tensor folded = empty_bank(a, b, k + 1, dtype, channels_last);
  sum_shifts("fold_weight", weight, false, folded, transposed, -1, channels_last, scale);
  return folded;
}

Tensor unfold_weight(Tensor folded, double scale, bool transposed, ScalarType dtype, bool channels_last) {
  const OnDeviceOf guard(folded);
  const int64_t a = folded.size(transposed), b = folded.size(!transposed), k = folded.size(2) - 1;
  Tensor weight = empty_bank(a, b, k, dtype, channels_last);
  sum_shifts("unfold_weight", folded, transposed, weight, false, 0, channels_last, scale);
  return weight;
}

}  // namespace

PGGAN_FAST_CUDA_LIBRARY {
  library.impl("fold_weight", TORCH_BOX(&fold_weight));
  library.impl("unfold_weight", TORCH_BOX(&unfold_weight));
}

}  // namespace pggan_fast
