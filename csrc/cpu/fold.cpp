// Weights folded with a 2x rescaling, cast and laid out in one pass, and the adjoint: see pggan_fast/ops/weights.py.
#include "../shared/bank.h"
#include "tensors.h"

namespace pggan_fast {
namespace {

// to[t] = scale * sum of from[t + e] over e in {first, first + 1}, in both directions, where it exists.
template <class From, class To>
void sum_shifts(const Bank<From>& from, int64_t k_from, const Bank<To>& to, int64_t k_to, int64_t first, int64_t a,
                int64_t b, double scale) {
  using A = std::conditional_t<std::is_same_v<From, const double> || std::is_same_v<To, double>, double, float>;
  parallel(a, b * (k_to * k_to + k_from * k_from), [&](int64_t begin, int64_t end) {
    std::vector<A> total(b);
    for (int64_t i = begin; i < end; ++i)
      for (int64_t row = 0; row < k_to; ++row)
        for (int64_t column = 0; column < k_to; ++column) {
          std::fill(total.begin(), total.end(), A(0));
          for (int64_t r = std::max<int64_t>(row + first, 0); r <= std::min(row + first + 1, k_from - 1); ++r)
            for (int64_t c = std::max<int64_t>(column + first, 0); c <= std::min(column + first + 1, k_from - 1); ++c) {
              const From* p = from.at(i, r, c);
              if (from.b == 1)
                for (int64_t j = 0; j < b; ++j) total[j] += A(p[j]);
              else
                for (int64_t j = 0; j < b; ++j) total[j] += A(p[j * from.b]);
            }
          To* p = to.at(i, row, column);
          for (int64_t j = 0; j < b; ++j) p[j * to.b] = To(A(scale) * total[j]);
        }
  });
}

Tensor fold_weight(Tensor weight, double scale, bool transposed, ScalarType dtype, bool channels_last) {
  const int64_t a = weight.size(0), b = weight.size(1), k = weight.size(2);
  Tensor folded = transposed ? empty_bank(b, a, k + 1, dtype, channels_last) : empty_bank(a, b, k + 1, dtype, channels_last);
  with_type(dtype_of(weight), [&](auto from) {
    with_type(dtype_of(folded), [&](auto to) {
      const auto w = bank(static_cast<const decltype(from)*>(weight.const_data_ptr()), weight);
      const auto f = bank(static_cast<decltype(to)*>(folded.mutable_data_ptr()), folded);
      sum_shifts(w, k, transposed ? reversed(f, k + 1) : f, k + 1, -1, a, b, scale);
    });
  });
  return folded;
}

Tensor unfold_weight(Tensor folded, double scale, bool transposed, ScalarType dtype, bool channels_last) {
  const int64_t a = folded.size(transposed), b = folded.size(!transposed), k = folded.size(2) - 1;
  Tensor weight = empty_bank(a, b, k, dtype, channels_last);
  with_type(dtype_of(folded), [&](auto from) {
    with_type(dtype_of(weight), [&](auto to) {
      const auto f = bank(static_cast<const decltype(from)*>(folded.const_data_ptr()), folded);
      const auto w = bank(static_cast<decltype(to)*>(weight.mutable_data_ptr()), weight);
      sum_shifts(transposed ? reversed(f, k + 1) : f, k + 1, w, k, 0, a, b, scale);
    });
  });
  return weight;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pggan_fast, CPU, m) {
  m.impl("fold_weight", TORCH_BOX(&fold_weight));
  m.impl("unfold_weight", TORCH_BOX(&unfold_weight));
}

}  // namespace pggan_fast
