// bias_act and its gradients on contiguous tensors.
#pragma once

#include "bias_act_common.h"

namespace pggan_fast::LEVEL {

// Contiguous, without pixel norm: planes one after the other.

struct Planes {
  int64_t begin, end;  // n * C + c
  int64_t first, count;  // pixels of each
};

inline Planes planes_of(const Shape& s, int64_t item) {
  const int64_t planes = bias_act_planes(s), chunks = bias_act_chunks(s);
  const int64_t begin = item / chunks * planes, first = item % chunks * kPlanePixels;
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
    store_vectors(y, planes.count, [&](int64_t i, auto n) {
      return with_its_sign<T>(act(scale * load(x + i, n) + shift));
    });
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
      store_vectors(dx, std::min(kRun, planes.count - start), [&](int64_t i, auto n) {
        const Vec<A> d = derivative(load(dy + i, n), load(y + i, n));
        total += d;
        return scale * d;
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
    store_vectors(d_dy, planes.count, [&](int64_t i, auto n) {
      const Vec<A> upstream = g ? scale * load(g + i, n) : Vec<A>{};
      return derivative(upstream + shift, load(y + i, n));
    });
  });
}

// Contiguous, with pixel norm: pixels are neighbours, sums run across planes. The second pass reads a block again
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
    store_vectors(y, count, [&](int64_t i, auto n) {
      __builtin_prefetch(x + p + i);
      __builtin_prefetch(y + p + i, 1);
      return with_its_sign<T>(act(scale * load(x + i, n) + shift) * load(factors + i));
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
    store_vectors(dx, count, [&](int64_t i, auto n) {
      __builtin_prefetch(dy + p + i);
      __builtin_prefetch(y + p + i);
      __builtin_prefetch(dx + p + i, 1);
      const Vec<A> out = load(y + i, n);
      const Vec<A> d = derivative(load(factors + i) * (load(dy + i, n) - out * load(pulls + i)), out);
      total += d;
      return scale * d;
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

}  // namespace pggan_fast::LEVEL
