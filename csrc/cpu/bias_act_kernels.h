// bias_act and its gradients; the formulas stand in pggan_fast/ops/bias_act.py.
#pragma once

#include <algorithm>

#include "worker.h"

namespace pggan_fast::LEVEL {

template <class A>
struct Activation {
  Vec<A> positive, negative;
  explicit Activation(const Epilogue& e) : positive(broadcast<A>(A(e.gain))), negative(broadcast<A>(A(e.gain * e.slope))) {}
  // gain * act(u); also gain * act'(y) times u, where y is any vector of the output's signs.
  Vec<A> operator()(Vec<A> u) const { return (*this)(u, u); }
  Vec<A> operator()(Vec<A> u, Vec<A> sign) const { return u * (sign > Vec<A>{} ? positive : negative); }
};

// A per-channel vector (zeros if null) with room for a whole vector behind its end.
template <class A>
inline const A* padded(const void* values, int64_t c, int which) {
  A* copy = scratch<A>(which, rounded_up(c, kWidth<A>));
  std::fill_n(copy, rounded_up(c, kWidth<A>), A(0));
  if (values) std::memcpy(copy, values, c * sizeof(A));
  return copy;
}

// Pixels of one unit: `first` counts pixels of sample n (contiguous) or of all samples (channels_last).
struct Block {
  int64_t n, first, count;
};

inline Block block_of(const Shape& s, int64_t unit) {
  const int64_t pixels = s.layout == Layout::contiguous ? s.p : s.n * s.p;
  const int64_t size = bias_act_block(s), blocks = (pixels + size - 1) / size;
  const int64_t first = unit % blocks * size;
  return {unit / blocks, first, std::min(size, pixels - first)};
}

// ---- channels_last: the channels of a pixel are neighbours, sums run along the vector.

template <class T>
void forward_channels_last(const BiasActForward& a, const Block& block, const Acc<T>* bias) {
  using A = Acc<T>;
  constexpr int W = kWidth<A>;
  const int64_t c = a.shape.c, padded_c = rounded_up(c, W);
  const Activation<A> act(a.epilogue);
  const Vec<A> scale = broadcast<A>(A(a.epilogue.scale));
  const T* x = static_cast<const T*>(a.x) + block.first * c;
  T* y = static_cast<T*>(a.y) + block.first * c;
  if (!a.epilogue.pixel_norm) {
    for (int64_t i = 0; i < block.count; ++i, x += c, y += c)
      for (int64_t j = 0; j < c; j += W)
        store(y + j, act(scale * load(x + j, c - j) + load(bias + j)), c - j);
    return;
  }
  // W pixels at a time, so that their W square roots are one vector's.
  A* u = scratch<A>(1, W * padded_c);
  A* r = static_cast<A*>(a.r) + block.first;
  const Vec<A> per_channel = broadcast<A>(A(1) / A(c)), eps = broadcast<A>(A(a.epilogue.eps));
  for (int64_t i = 0; i < block.count; i += W) {
    const int64_t rows = std::min<int64_t>(W, block.count - i);
    A squares[W] = {};
    for (int64_t k = 0; k < rows; ++k) {
      Vec<A> total{};
      for (int64_t j = 0; j < c; j += W) {
        // Behind the last channel x and bias are zero, and so is u.
        const Vec<A> v = act(scale * load(x + k * c + j, c - j) + load(bias + j));
        store(u + k * padded_c + j, v);
        total += v * v;
      }
      squares[k] = sum(total);
    }
    A factors[W];
    store(factors, reciprocal_sqrt<A>(load(squares) * per_channel + eps));
    for (int64_t k = 0; k < rows; ++k) {
      const Vec<A> factor = broadcast<A>(factors[k]);
      for (int64_t j = 0; j < c; j += W) store(y + k * c + j, load(u + k * padded_c + j) * factor, c - j);
    }
    store(r + i, load(factors), rows);
    x += rows * c;
    y += rows * c;
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
  // Sums of few rows in A, then into double: the error does not grow with the tensor.
  constexpr int64_t kRows = 64;
  A* db = scratch<A>(1, padded_c);
  for (int64_t i = 0; i < block.count; i += kRows) {
    const int64_t rows = std::min(kRows, block.count - i);
    if (a.db) std::fill_n(db, padded_c, A(0));
    for (int64_t k = i; k < i + rows; ++k, dy += c, y += c, dx += c) {
      Vec<A> factor = broadcast<A>(1), pull = Vec<A>{};
      if (a.epilogue.pixel_norm) {
        Vec<A> product{};
        for (int64_t j = 0; j < c; j += W) product += load(dy + j, c - j) * load(y + j, c - j);
        factor = broadcast<A>(r[k]);
        pull = broadcast<A>((sum(product) + (dr ? r[k] * dr[k] : A(0))) / A(c));
      }
      for (int64_t j = 0; j < c; j += W) {
        const Vec<A> out = load(y + j, c - j);
        const Vec<A> d = derivative(factor * (load(dy + j, c - j) - out * pull), out);
        store(dx + j, scale * d, c - j);
        if (a.db) store(db + j, load(db + j) + d);
      }
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

// ---- contiguous: pixels are neighbours, sums run across planes. A block's values are kept in a dense buffer
// between the two passes: its lines in the planes are powers of two apart and would evict each other.

template <class T>
void forward_contiguous(const BiasActForward& a, const Block& block, const Acc<T>* bias) {
  using A = Acc<T>;
  constexpr int W = kWidth<A>;
  const int64_t c = a.shape.c, p = a.shape.p, count = block.count, stride = rounded_up(count, W);
  const Activation<A> act(a.epilogue);
  const Vec<A> scale = broadcast<A>(A(a.epilogue.scale));
  const int64_t origin = block.n * c * p + block.first;
  const T* x = static_cast<const T*>(a.x) + origin;
  T* y = static_cast<T*>(a.y) + origin;
  if (!a.epilogue.pixel_norm) {
    for (int64_t j = 0; j < c; ++j, x += p, y += p) {
      const Vec<A> shift = broadcast<A>(bias[j]);
      for (int64_t i = 0; i < count; i += W) store(y + i, act(scale * load(x + i, count - i) + shift), count - i);
    }
    return;
  }
  A* u = scratch<A>(1, c * stride);
  A* factors = scratch<A>(2, stride);
  std::fill_n(factors, stride, A(0));
  for (int64_t j = 0; j < c; ++j, x += p) {
    const Vec<A> shift = broadcast<A>(bias[j]);
    for (int64_t i = 0; i < count; i += W) {
      const Vec<A> v = act(scale * load(x + i, count - i) + shift);
      store(u + j * stride + i, v);
      store(factors + i, load(factors + i) + v * v);
    }
  }
  const Vec<A> per_channel = broadcast<A>(A(1) / A(c)), eps = broadcast<A>(A(a.epilogue.eps));
  A* r = static_cast<A*>(a.r) + block.n * p + block.first;
  for (int64_t i = 0; i < count; i += W) {
    const Vec<A> factor = reciprocal_sqrt<A>(load(factors + i) * per_channel + eps);
    store(factors + i, factor);
    store(r + i, factor, count - i);
  }
  for (int64_t j = 0; j < c; ++j, y += p)
    for (int64_t i = 0; i < count; i += W) store(y + i, load(u + j * stride + i) * load(factors + i), count - i);
}

template <class T>
void backward_contiguous(const BiasActBackward& a, const Block& block) {
  using A = Acc<T>;
  constexpr int W = kWidth<A>;
  const bool norm = a.epilogue.pixel_norm;
  const int64_t c = a.shape.c, p = a.shape.p, count = block.count, stride = rounded_up(count, W);
  const Activation<A> derivative(a.epilogue);
  const Vec<A> scale = broadcast<A>(A(a.epilogue.scale));
  const int64_t origin = block.n * c * p + block.first, pixel = block.n * p + block.first;
  const T* dy = static_cast<const T*>(a.dy) + origin;
  const T* y = static_cast<const T*>(a.y) + origin;
  T* dx = static_cast<T*>(a.dx) + origin;
  A *pull = nullptr, *saved_dy = nullptr, *saved_y = nullptr;
  const A* r = norm ? static_cast<const A*>(a.r) + pixel : nullptr;
  if (norm) {
    pull = scratch<A>(1, stride);
    saved_dy = scratch<A>(2, c * stride);
    saved_y = scratch<A>(3, c * stride);
    std::fill_n(pull, stride, A(0));
    for (int64_t j = 0; j < c; ++j)
      for (int64_t i = 0; i < count; i += W) {
        const Vec<A> gradient = load(dy + j * p + i, count - i), out = load(y + j * p + i, count - i);
        store(saved_dy + j * stride + i, gradient);
        store(saved_y + j * stride + i, out);
        store(pull + i, load(pull + i) + gradient * out);
      }
    const A* dr = a.dr ? static_cast<const A*>(a.dr) + pixel : nullptr;
    for (int64_t i = 0; i < count; ++i) pull[i] = (pull[i] + (dr ? r[i] * dr[i] : A(0))) / A(c);
  }
  for (int64_t j = 0; j < c; ++j) {
    // A block is short enough for its sum to be taken in A.
    Vec<A> total{};
    for (int64_t i = 0; i < count; i += W) {
      Vec<A> out, d;
      if (norm) {
        out = load(saved_y + j * stride + i);
        d = load(r + i, count - i) * (load(saved_dy + j * stride + i) - out * load(pull + i));
      } else {
        out = load(y + j * p + i, count - i);
        d = load(dy + j * p + i, count - i);
      }
      d = derivative(d, out);
      store(dx + j * p + i, scale * d, count - i);
      total += d;
    }
    if (a.db) a.db[j] += sum(total);
  }
}

template <class T>
void double_backward_contiguous(const BiasActDoubleBackward& a, const Block& block, const Acc<T>* g_bias) {
  using A = Acc<T>;
  constexpr int W = kWidth<A>;
  const bool norm = a.epilogue.pixel_norm;
  const int64_t c = a.shape.c, p = a.shape.p, count = block.count, stride = rounded_up(count, W);
  const Activation<A> derivative(a.epilogue);
  const Vec<A> scale = broadcast<A>(A(a.epilogue.scale));
  const int64_t origin = block.n * c * p + block.first, pixel = block.n * p + block.first;
  const T* g = a.g ? static_cast<const T*>(a.g) + origin : nullptr;
  const T* dy = static_cast<const T*>(a.dy) + origin;
  const T* y = static_cast<const T*>(a.y) + origin;
  T* d_dy = static_cast<T*>(a.d_dy) + origin;
  const auto upstream = [&](int64_t j, int64_t i, Vec<A> out) {
    const Vec<A> v = g ? scale * load(g + j * p + i, count - i) : Vec<A>{};
    return derivative(v + broadcast<A>(g_bias[j]), out);
  };
  if (!norm) {
    for (int64_t j = 0; j < c; ++j)
      for (int64_t i = 0; i < count; i += W)
        store(d_dy + j * p + i, upstream(j, i, load(y + j * p + i, count - i)), count - i);
    return;
  }
  // Per pixel: m and q of the formulas, and sum(h dy).
  A* m = scratch<A>(1, 3 * stride);
  A *q = m + stride, *h_dy = q + stride;
  std::fill_n(m, 3 * stride, A(0));
  for (int64_t j = 0; j < c; ++j)
    for (int64_t i = 0; i < count; i += W) {
      const Vec<A> gradient = load(dy + j * p + i, count - i), out = load(y + j * p + i, count - i);
      const Vec<A> h = upstream(j, i, out);
      store(m + i, load(m + i) + gradient * out);
      store(q + i, load(q + i) + h * out);
      store(h_dy + i, load(h_dy + i) + h * gradient);
    }
  const A* r = static_cast<const A*>(a.r) + pixel;
  for (int64_t i = 0; i < count; ++i) {
    const A dr = a.dr ? static_cast<const A*>(a.dr)[pixel + i] : A(0);
    m[i] /= A(c);
    q[i] /= A(c);
    static_cast<A*>(a.d_r)[pixel + i] = h_dy[i] - m[i] * q[i] * A(c) - 2 * r[i] * dr * q[i];
    static_cast<A*>(a.d_dr)[pixel + i] = -r[i] * r[i] * q[i];
    m[i] += r[i] * dr / A(c);
  }
  // The second pass reads the planes again, since only gradient penalties of G come here.
  T* d_y = static_cast<T*>(a.d_y) + origin;
  for (int64_t j = 0; j < c; ++j)
    for (int64_t i = 0; i < count; i += W) {
      const Vec<A> gradient = load(dy + j * p + i, count - i), out = load(y + j * p + i, count - i);
      const Vec<A> h = upstream(j, i, out), factor = load(r + i, count - i);
      store(d_dy + j * p + i, factor * (h - out * load(q + i)), count - i);
      store(d_y + j * p + i, -factor * (h * load(m + i) + gradient * load(q + i)), count - i);
    }
}

// ---- the table's entries

inline void bias_act_forward(const BiasActForward& a, int64_t begin, int64_t end) {
  with_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    const auto* bias = padded<Acc<T>>(a.bias, a.shape.c, 0);
    for (int64_t unit = begin; unit < end; ++unit) {
      const Block block = block_of(a.shape, unit);
      if (a.shape.layout == Layout::contiguous) forward_contiguous<T>(a, block, bias);
      else forward_channels_last<T>(a, block, bias);
    }
  });
}

inline void bias_act_backward(const BiasActBackward& a, int64_t begin, int64_t end) {
  with_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    for (int64_t unit = begin; unit < end; ++unit) {
      const Block block = block_of(a.shape, unit);
      if (a.shape.layout == Layout::contiguous) backward_contiguous<T>(a, block);
      else backward_channels_last<T>(a, block);
    }
  });
}

inline void bias_act_double_backward(const BiasActDoubleBackward& a, int64_t begin, int64_t end) {
  with_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    const auto* g_bias = padded<Acc<T>>(a.g_bias, a.shape.c, 0);
    for (int64_t unit = begin; unit < end; ++unit) {
      const Block block = block_of(a.shape, unit);
      if (a.shape.layout == Layout::contiguous) double_backward_contiguous<T>(a, block, g_bias);
      else double_backward_channels_last<T>(a, block, g_bias);
    }
  });
}

}  // namespace pggan_fast::LEVEL
