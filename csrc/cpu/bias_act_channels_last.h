// bias_act and its gradients on channels_last tensors.
#pragma once

#include "bias_act_common.h"

namespace pggan_fast::LEVEL {

// channels_last: the channels of a pixel are neighbours, sums run along the vector.

template <class T>
void forward_channels_last(const BiasActForward& a, const Block& block, const Acc<T>* bias) {
  using A = Acc<T>;
  constexpr int W = kWidth<A>;
  const int64_t c = a.shape.c;
  const Activation<A> act(a.epilogue);
  const Vec<A> scale = broadcast<A>(A(a.epilogue.scale));
  const T* x = static_cast<const T*>(a.x) + block.first * c;
  T* y = static_cast<T*>(a.y) + block.first * c;
  if (!a.epilogue.pixel_norm) {
    for (int64_t i = 0; i < block.count; ++i, x += c, y += c)
      store_vectors(y, c, [&](int64_t j, auto n) {
        return with_its_sign<T>(act(scale * load(x + j, n) + load(bias + j)));
      });
    return;
  }
  // Few pixels at a time: x is in the first-level cache when the second pass reads it again, and the square roots of
  // several pixels are one vector's.
  const int64_t most = std::clamp<int64_t>(8 * 1024 / (c * int64_t(sizeof(T))), 1, W);
  A* r = static_cast<A*>(a.r) + block.first;
  const Vec<A> per_channel = broadcast<A>(A(1) / A(c)), eps = broadcast<A>(A(a.epilogue.eps));
  for (int64_t i = 0; i < block.count; i += most) {
    const int64_t rows = std::min(most, block.count - i);
    A factors[W] = {};
    for (int64_t k = 0; k < rows; ++k) {
      Vec<A> total{};
      // Behind the last channel x and bias are zero, and so is v.
      for_vectors<A>(c, [&](int64_t j, auto n) {
        // The second pass only writes: without this it would wait for y.
        __builtin_prefetch(y + k * c + j, 1);
        const Vec<A> v = act(scale * load(x + k * c + j, n) + load(bias + j));
        total += v * v;
      });
      factors[k] = sum(total);
    }
    store(factors, reciprocal_sqrt<A>(load(factors) * per_channel + eps));
    store(r + i, load(factors), rows);
    for (int64_t k = 0; k < rows; ++k, x += c, y += c) {
      const Vec<A> factor = broadcast<A>(factors[k]);
      store_vectors(y, c, [&](int64_t j, auto n) {
        __builtin_prefetch(x + most * c + j);
        return with_its_sign<T>(act(scale * load(x + j, n) + load(bias + j)) * factor);
      });
    }
  }
}

template <class T>
void backward_channels_last(const BiasActBackward& a, const Block& block) {
  using A = Acc<T>;
  constexpr int W = kWidth<A>;
  const int64_t c = a.shape.c, padded_c = rounded_up(c, W);
  const Activation<A> derivative(a.epilogue);
  const Vec<A> scale = broadcast<A>(A(a.epilogue.scale));
  const T* dy = static_cast<const T*>(a.dy) + block.first * c;
  const T* y = static_cast<const T*>(a.y) + block.first * c;
  T* dx = static_cast<T*>(a.dx) + block.first * c;
  const A* r = a.r ? static_cast<const A*>(a.r) + block.first : nullptr;
  const A* dr = a.dr ? static_cast<const A*>(a.dr) + block.first : nullptr;
  const int64_t most = rows_at_once(a.shape);
  A* db = scratch<A>(1, padded_c);
  for (int64_t i = 0; i < block.count; i += most) {
    const int64_t rows = std::min(most, block.count - i);
    if (a.db) std::fill_n(db, padded_c, A(0));
    for (int64_t k = i; k < i + rows; ++k, dy += c, y += c, dx += c) {
      const auto take_back = [&](int64_t j, Vec<A> du, Vec<A> out) {
        const Vec<A> d = derivative(du, out);
        if (a.db) store(db + j, load(db + j) + d);
        return scale * d;
      };
      if (!a.epilogue.pixel_norm) {
        store_vectors(dx, c, [&](int64_t j, auto n) { return take_back(j, load(dy + j, n), load(y + j, n)); });
        continue;
      }
      Vec<A> product{};
      for_vectors<A>(c, [&](int64_t j, auto n) { product += load(dy + j, n) * load(y + j, n); });
      const Vec<A> factor = broadcast<A>(r[k]);
      const Vec<A> pull = broadcast<A>((sum(product) + (dr ? r[k] * dr[k] : A(0))) / A(c));
      store_vectors(dx, c, [&](int64_t j, auto n) {
        const Vec<A> out = load(y + j, n);
        return take_back(j, factor * (load(dy + j, n) - out * pull), out);
      });
    }
    if (a.db)
      for (int64_t j = 0; j < c; ++j) a.db[j] += db[j];
  }
}

template <class T>
void double_backward_channels_last(const BiasActDoubleBackward& a, const Block& block, const Acc<T>* g_bias) {
  using A = Acc<T>;
  constexpr int W = kWidth<A>;
  const int64_t c = a.shape.c, padded_c = rounded_up(c, W);
  const Activation<A> derivative(a.epilogue);
  const Vec<A> scale = broadcast<A>(A(a.epilogue.scale));
  A* h = scratch<A>(1, padded_c);
  for (int64_t pixel = block.first; pixel < block.first + block.count; ++pixel) {
    const T* g = a.g ? static_cast<const T*>(a.g) + pixel * c : nullptr;
    const T* dy = static_cast<const T*>(a.dy) + pixel * c;
    const T* y = static_cast<const T*>(a.y) + pixel * c;
    T* d_dy = static_cast<T*>(a.d_dy) + pixel * c;
    Vec<A> dy_y{}, h_y{}, h_dy{};
    for (int64_t j = 0; j < c; j += W) {
      const Vec<A> out = load(y + j, c - j), gradient = load(dy + j, c - j);
      const Vec<A> upstream = g ? scale * load(g + j, c - j) : Vec<A>{};
      const Vec<A> v = derivative(upstream + load(g_bias + j), out);
      dy_y += gradient * out;
      h_y += v * out;
      h_dy += v * gradient;
      if (a.epilogue.pixel_norm) store(h + j, v);
      else store(d_dy + j, v, c - j);
    }
    if (!a.epilogue.pixel_norm) continue;
    const A r = static_cast<const A*>(a.r)[pixel], dr = a.dr ? static_cast<const A*>(a.dr)[pixel] : A(0);
    const A m = sum(dy_y) / A(c), q = sum(h_y) / A(c);
    static_cast<A*>(a.d_r)[pixel] = sum(h_dy) - m * q * A(c) - 2 * r * dr * q;
    static_cast<A*>(a.d_dr)[pixel] = -r * r * q;
    const Vec<A> factor = broadcast<A>(r), q_all = broadcast<A>(q), m_all = broadcast<A>(m + r * dr / A(c));
    T* d_y = static_cast<T*>(a.d_y) + pixel * c;
    for (int64_t j = 0; j < c; j += W) {
      const Vec<A> v = load(h + j), out = load(y + j, c - j), gradient = load(dy + j, c - j);
      store(d_dy + j, factor * (v - out * q_all), c - j);
      store(d_y + j, -factor * (v * m_all + gradient * q_all), c - j);
    }
  }
}

}  // namespace pggan_fast::LEVEL
