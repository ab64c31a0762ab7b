// bias_act and its gradients; the formulas stand in pggan_fast/ops/bias_act.py.
#pragma once

#include <algorithm>

#include "worker.h"

namespace pggan_fast::LEVEL {

// A product with a slope of 0 would make NaN of infinity, so relu sets values to 0 where the sign is not above `dead`;
// elsewhere, and where the sign is NaN, it multiplies by gain alone. Other activations have no such values: no number
// is at most NaN.
template <class A>
struct Activation {
  Vec<A> positive, negative, dead;
  explicit Activation(const Epilogue& e)
      : positive(broadcast<A>(A(e.gain))),
        negative(broadcast<A>(A(e.slope == 0 ? e.gain : e.gain * e.slope))),
        dead(broadcast<A>(e.slope == 0 ? A(0) : A(NAN))) {}
  // gain * act(u); also gain * act'(y) times u, where y is any vector of the output's signs.
  Vec<A> operator()(Vec<A> u) const { return (*this)(u, u); }
  Vec<A> operator()(Vec<A> u, Vec<A> sign) const {
    return (sign <= dead ? Vec<A>{} : u) * (sign > Vec<A>{} ? positive : negative);
  }
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
  const int64_t c = a.shape.c;
  const Activation<A> act(a.epilogue);
  const Vec<A> scale = broadcast<A>(A(a.epilogue.scale));
  const T* x = static_cast<const T*>(a.x) + block.first * c;
  T* y = static_cast<T*>(a.y) + block.first * c;
  if (!a.epilogue.pixel_norm) {
    for (int64_t i = 0; i < block.count; ++i, x += c, y += c)
      for_vectors<A>(c, [&](int64_t j, auto n) { store(y + j, act(scale * load(x + j, n) + load(bias + j)), n); });
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
      for_vectors<A>(c, [&](int64_t j, auto n) {
        __builtin_prefetch(x + most * c + j);
        store(y + j, act(scale * load(x + j, n) + load(bias + j)) * factor, n);
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
  // Sums of few rows in A, then into double: the error does not grow with the tensor.
  constexpr int64_t kRows = 64;
  A* db = scratch<A>(1, padded_c);
  for (int64_t i = 0; i < block.count; i += kRows) {
    const int64_t rows = std::min(kRows, block.count - i);
    if (a.db) std::fill_n(db, padded_c, A(0));
    for (int64_t k = i; k < i + rows; ++k, dy += c, y += c, dx += c) {
      const auto take_back = [&](int64_t j, auto n, Vec<A> du, Vec<A> out) {
        const Vec<A> d = derivative(du, out);
        store(dx + j, scale * d, n);
        if (a.db) store(db + j, load(db + j) + d);
      };
      if (!a.epilogue.pixel_norm) {
        for_vectors<A>(c, [&](int64_t j, auto n) { take_back(j, n, load(dy + j, n), load(y + j, n)); });
        continue;
      }
      Vec<A> product{};
      for_vectors<A>(c, [&](int64_t j, auto n) { product += load(dy + j, n) * load(y + j, n); });
      const Vec<A> factor = broadcast<A>(r[k]);
      const Vec<A> pull = broadcast<A>((sum(product) + (dr ? r[k] * dr[k] : A(0))) / A(c));
      for_vectors<A>(c, [&](int64_t j, auto n) {
        const Vec<A> out = load(y + j, n);
        take_back(j, n, factor * (load(dy + j, n) - out * pull), out);
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

// ---- contiguous, without pixel norm: planes one after the other.

struct Planes {
  int64_t begin, end;  // n * C + c
  int64_t first, count;  // pixels of each
};

inline Planes planes_of(const Shape& s, int64_t unit) {
  const int64_t planes = bias_act_planes(s), chunks = bias_act_chunks(s);
  const int64_t begin = unit / chunks * planes, first = unit % chunks * kPlanePixels;
  return {begin, std::min(begin + planes, s.n * s.c), first, std::min(kPlanePixels, s.p - first)};
}

// f(offset, channel) for each plane.
template <class F>
inline void for_planes(const Shape& s, const Planes& planes, const F& f) {
  int64_t channel = planes.begin % s.c;
  for (int64_t plane = planes.begin; plane < planes.end; ++plane) {
    f(plane * s.p + planes.first, channel);
    if (++channel == s.c) channel = 0;
  }
}

template <class T>
void forward_planes(const BiasActForward& a, const Planes& planes, const Acc<T>* bias) {
  using A = Acc<T>;
  const Activation<A> act(a.epilogue);
  const Vec<A> scale = broadcast<A>(A(a.epilogue.scale));
  for_planes(a.shape, planes, [&](int64_t offset, int64_t channel) {
    const T* x = static_cast<const T*>(a.x) + offset;
    T* y = static_cast<T*>(a.y) + offset;
    const Vec<A> shift = broadcast<A>(bias[channel]);
    for_vectors<A>(planes.count, [&](int64_t i, auto n) { store(y + i, act(scale * load(x + i, n) + shift), n); });
  });
}

template <class T>
void backward_planes(const BiasActBackward& a, const Planes& planes) {
  using A = Acc<T>;
  const Activation<A> derivative(a.epilogue);
  const Vec<A> scale = broadcast<A>(A(a.epilogue.scale));
  // Sums of few pixels in A, then into double: the error does not grow with the tensor.
  constexpr int64_t kRun = 1024;
  for_planes(a.shape, planes, [&](int64_t offset, int64_t channel) {
    for (int64_t start = 0; start < planes.count; start += kRun) {
      const T* dy = static_cast<const T*>(a.dy) + offset + start;
      const T* y = static_cast<const T*>(a.y) + offset + start;
      T* dx = static_cast<T*>(a.dx) + offset + start;
      Vec<A> total{};
      for_vectors<A>(std::min(kRun, planes.count - start), [&](int64_t i, auto n) {
        const Vec<A> d = derivative(load(dy + i, n), load(y + i, n));
        store(dx + i, scale * d, n);
        total += d;
      });
      if (a.db) a.db[channel] += sum(total);
    }
  });
}

template <class T>
void double_backward_planes(const BiasActDoubleBackward& a, const Planes& planes, const Acc<T>* g_bias) {
  using A = Acc<T>;
  const Activation<A> derivative(a.epilogue);
  const Vec<A> scale = broadcast<A>(A(a.epilogue.scale));
  for_planes(a.shape, planes, [&](int64_t offset, int64_t channel) {
    const T* g = a.g ? static_cast<const T*>(a.g) + offset : nullptr;
    const T* y = static_cast<const T*>(a.y) + offset;
    T* d_dy = static_cast<T*>(a.d_dy) + offset;
    const Vec<A> shift = broadcast<A>(g_bias[channel]);
    for_vectors<A>(planes.count, [&](int64_t i, auto n) {
      const Vec<A> upstream = g ? scale * load(g + i, n) : Vec<A>{};
      store(d_dy + i, derivative(upstream + shift, load(y + i, n)), n);
    });
  });
}

// ---- contiguous, with pixel norm: pixels are neighbours, sums run across planes. The second pass reads a block again
// while it is in the second-level cache. Planes are too far apart for the processor to foresee the next one: hence
// prefetch.

template <class T>
void forward_contiguous(const BiasActForward& a, const Block& block, const Acc<T>* bias) {
  using A = Acc<T>;
  const int64_t c = a.shape.c, p = a.shape.p, count = block.count;
  const Activation<A> act(a.epilogue);
  const Vec<A> scale = broadcast<A>(A(a.epilogue.scale));
  const int64_t origin = block.n * c * p + block.first;
  const T* x = static_cast<const T*>(a.x) + origin;
  T* y = static_cast<T*>(a.y) + origin;
  A* factors = scratch<A>(1, rounded_up(count, kWidth<A>));
  std::fill_n(factors, rounded_up(count, kWidth<A>), A(0));
  for (int64_t j = 0; j < c; ++j) {
    const T* plane = x + j * p;
    const Vec<A> shift = broadcast<A>(bias[j]);
    for_vectors<A>(count, [&](int64_t i, auto n) {
      __builtin_prefetch(plane + p + i);
      const Vec<A> v = act(scale * load(plane + i, n) + shift);
      store(factors + i, load(factors + i) + v * v);
    });
  }
  const Vec<A> per_channel = broadcast<A>(A(1) / A(c)), eps = broadcast<A>(A(a.epilogue.eps));
  A* r = static_cast<A*>(a.r) + block.n * p + block.first;
  for_vectors<A>(count, [&](int64_t i, auto n) {
    const Vec<A> factor = reciprocal_sqrt<A>(load(factors + i) * per_channel + eps);
    store(factors + i, factor);
    store(r + i, factor, n);
  });
  for (int64_t j = 0; j < c; ++j, x += p, y += p) {
    const Vec<A> shift = broadcast<A>(bias[j]);
    for_vectors<A>(count, [&](int64_t i, auto n) {
      __builtin_prefetch(x + p + i);
      __builtin_prefetch(y + p + i, 1);
      store(y + i, act(scale * load(x + i, n) + shift) * load(factors + i), n);
    });
  }
}

template <class T>
void backward_contiguous(const BiasActBackward& a, const Block& block) {
  using A = Acc<T>;
  const int64_t c = a.shape.c, p = a.shape.p, count = block.count;
  const Activation<A> derivative(a.epilogue);
  const Vec<A> scale = broadcast<A>(A(a.epilogue.scale));
  const int64_t origin = block.n * c * p + block.first, pixel = block.n * p + block.first;
  const T* dy = static_cast<const T*>(a.dy) + origin;
  const T* y = static_cast<const T*>(a.y) + origin;
  T* dx = static_cast<T*>(a.dx) + origin;
  const int64_t size = rounded_up(count, kWidth<A>);
  A *factors = scratch<A>(1, size), *pulls = scratch<A>(2, size);
  std::fill_n(pulls, size, A(0));
  for (int64_t j = 0; j < c; ++j) {
    const T *gradient = dy + j * p, *out = y + j * p;
    for_vectors<A>(count, [&](int64_t i, auto n) {
      __builtin_prefetch(gradient + p + i);
      __builtin_prefetch(out + p + i);
      store(pulls + i, load(pulls + i) + load(gradient + i, n) * load(out + i, n));
    });
  }
  const A* r = static_cast<const A*>(a.r) + pixel;
  const A* dr = a.dr ? static_cast<const A*>(a.dr) + pixel : nullptr;
  const Vec<A> per_channel = broadcast<A>(A(1) / A(c));
  for_vectors<A>(count, [&](int64_t i, auto n) {
    const Vec<A> factor = load(r + i, n), more = dr ? factor * load(dr + i, n) : Vec<A>{};
    store(factors + i, factor);
    store(pulls + i, (load(pulls + i) + more) * per_channel);
  });
  for (int64_t j = 0; j < c; ++j, dy += p, y += p, dx += p) {
    // A block is short enough for its sum to be taken in A.
    Vec<A> total{};
    for_vectors<A>(count, [&](int64_t i, auto n) {
      __builtin_prefetch(dy + p + i);
      __builtin_prefetch(y + p + i);
      __builtin_prefetch(dx + p + i, 1);
      const Vec<A> out = load(y + i, n);
      const Vec<A> d = derivative(load(factors + i) * (load(dy + i, n) - out * load(pulls + i)), out);
      store(dx + i, scale * d, n);
      total += d;
    });
    if (a.db) a.db[j] += sum(total);
  }
}

template <class T>
void double_backward_contiguous(const BiasActDoubleBackward& a, const Block& block, const Acc<T>* g_bias) {
  using A = Acc<T>;
  constexpr int W = kWidth<A>;
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
      if (bias_act_by_planes(a.shape, a.epilogue)) {
        forward_planes<T>(a, planes_of(a.shape, unit), bias);
        continue;
      }
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
      if (bias_act_by_planes(a.shape, a.epilogue)) {
        backward_planes<T>(a, planes_of(a.shape, unit));
        continue;
      }
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
      if (bias_act_by_planes(a.shape, a.epilogue)) {
        double_backward_planes<T>(a, planes_of(a.shape, unit), g_bias);
        continue;
      }
      const Block block = block_of(a.shape, unit);
      if (a.shape.layout == Layout::contiguous) double_backward_contiguous<T>(a, block, g_bias);
      else double_backward_channels_last<T>(a, block, g_bias);
    }
  });
}

}  // namespace pggan_fast::LEVEL
