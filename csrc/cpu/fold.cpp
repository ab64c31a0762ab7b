// Weights folded with a 2x rescaling, cast and laid out in one pass, and the adjoint: see pggan_fast/ops/fold.py.
#include "../shared/fold.h"
#include "tensors.h"

namespace pggan_fast {
namespace {

constexpr int64_t kTile = 16;

// to[t] = scale * sum of from[t + e] over e in {first, first + 1}, in both directions, where it exists. By tiles of
// A x B: transposed, one side's neighbours are the other's strides of kilobytes, and a tile's lines stay in the cache.
template <class From, class To>
void sum_shifts(const Filters<From>& from, int64_t k_from, const Filters<To>& to, int64_t k_to, int64_t first,
                int64_t a, int64_t b, double scale) {
  using A = std::conditional_t<std::is_same_v<From, const double> || std::is_same_v<To, double>, double, float>;
  // A tile's inner dimension is the one in which the source's neighbours lie.
  const bool swapped = from.a < from.b;
  const int64_t outer = swapped ? b : a, inner = swapped ? a : b;
  const int64_t from_outer = swapped ? from.b : from.a, from_inner = swapped ? from.a : from.b;
  const int64_t to_outer = swapped ? to.b : to.a, to_inner = swapped ? to.a : to.b;
  const int64_t tiles_inner = (inner + kTile - 1) / kTile, tiles = (outer + kTile - 1) / kTile * tiles_inner;

  const auto do_tile = [&](int64_t u0, int64_t v0) {
    const int64_t rows = std::min(kTile, outer - u0), columns = std::min(kTile, inner - v0);
    for (int64_t row = 0; row < k_to; ++row)
      for (int64_t column = 0; column < k_to; ++column) {
        A total[kTile][kTile] = {};
        for (int64_t r = std::max<int64_t>(row + first, 0); r <= std::min(row + first + 1, k_from - 1); ++r)
          for (int64_t c = std::max<int64_t>(column + first, 0); c <= std::min(column + first + 1, k_from - 1); ++c) {
            const From* p = from.at(0, r, c) + u0 * from_outer + v0 * from_inner;
            for (int64_t u = 0; u < rows; ++u, p += from_outer)
              if (from_inner == 1 && columns == kTile)
                for (int64_t v = 0; v < kTile; ++v) total[u][v] += A(p[v]);
              else
                for (int64_t v = 0; v < columns; ++v) total[u][v] += A(p[v * from_inner]);
          }
        To* p = to.at(0, row, column) + u0 * to_outer + v0 * to_inner;
        if (to_outer < to_inner)
          for (int64_t v = 0; v < columns; ++v)
            for (int64_t u = 0; u < rows; ++u) p[u * to_outer + v * to_inner] = To(A(scale) * total[u][v]);
        else
          for (int64_t u = 0; u < rows; ++u)
            for (int64_t v = 0; v < columns; ++v) p[u * to_outer + v * to_inner] = To(A(scale) * total[u][v]);
      }
  };
  parallel(tiles, kTile * kTile * (k_to * k_to + k_from * k_from), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) do_tile(t / tiles_inner * kTile, t % tiles_inner * kTile);
  });
}

Tensor fold_weight(Tensor weight, double scale, bool transposed, ScalarType dtype, bool channels_last) {
  const int64_t a = weight.size(0), b = weight.size(1), k = weight.size(2);
  Tensor folded =
      transposed ? empty_filters(b, a, k + 1, dtype, channels_last) : empty_filters(a, b, k + 1, dtype, channels_last);
  with_type(dtype_of(weight), [&](auto from) {
    with_type(dtype_of(folded), [&](auto to) {
      const auto w = filters(static_cast<const decltype(from)*>(weight.const_data_ptr()), weight);
      const auto f = filters(static_cast<decltype(to)*>(folded.mutable_data_ptr()), folded);
      sum_shifts(w, k, transposed ? flipped(f, k + 1) : f, k + 1, -1, a, b, scale);
    });
  });
  return folded;
}

Tensor unfold_weight(Tensor folded, double scale, bool transposed, ScalarType dtype, bool channels_last) {
  const int64_t a = folded.size(transposed), b = folded.size(!transposed), k = folded.size(2) - 1;
  Tensor weight = empty_filters(a, b, k, dtype, channels_last);
  with_type(dtype_of(folded), [&](auto from) {
    with_type(dtype_of(weight), [&](auto to) {
      const auto f = filters(static_cast<const decltype(from)*>(folded.const_data_ptr()), folded);
      const auto w = filters(static_cast<decltype(to)*>(weight.mutable_data_ptr()), weight);
      sum_shifts(transposed ? flipped(f, k + 1) : f, k + 1, w, k, 0, a, b, scale);
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
