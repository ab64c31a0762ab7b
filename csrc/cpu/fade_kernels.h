// fade_in, fade_reals and gradients, in the loops of resample_kernels.h.
#pragma once

#include "resample_kernels.h"

namespace pggan_fast::LEVEL {

// torch.lerp: steps from the nearer of the two images, so that a weight of 0 or 1 gives one of them to the bit, and the
// rounding of a large one does not swallow the digits of the other.
template <class A>
struct Blend {
  bool from_old;
  Vec<A> step;  // the weight of the farther image
  explicit Blend(double alpha)
      : from_old(std::fabs(A(alpha)) < A(0.5)), step(broadcast<A>(from_old ? A(alpha) : A(1) - A(alpha))) {}
  INLINED Pair<A> operator()(const Pair<A>& old, const Pair<A>& fresh) const {
    return from_old ? towards(old, fresh) : towards(fresh, old);
  }
  INLINED Pair<A> towards(const Pair<A>& near, const Pair<A>& far) const {
    return {{near.part[0] + (far.part[0] - near.part[0]) * step, near.part[1] + (far.part[1] - near.part[1]) * step}};
  }
};

template <class T>
struct FadeIn {
  using Type = T;
  using A = Acc<T>;
  using High = T;
  const T *low, *high;
  T* y;
  Blend<A> blend;
  explicit FadeIn(const Resample& a) : low(as<T>(a.low)), high(as<T>(a.high)), y(as<T>(a.high_out)), blend(a.factor) {}

  template <Pairs pairs>
  INLINED void at(const Place& p) const {
    const Pair<A> old = spread<A, pairs>(load(low + p.low));
    const Pair<A> top = load_pair<A, pairs>(high, p.top), bottom = load_pair<A, pairs>(high, p.bottom);
    store_pair<pairs>(y, p.top, blend(old, top));
    store_pair<pairs>(y, p.bottom, blend(old, bottom));
  }

  INLINED void at_channels(const Place& p) const {
    const Pair<A> old = load_channels(low + p.low);
    for (const int64_t at : {p.top[0], p.top[1], p.bottom[0], p.bottom[1]})
      store_channels(y + at, blend(old, load_channels(high + at)));
  }
};

template <class T>
struct FadeInBackward {
  using Type = T;
  using A = Acc<T>;
  using High = T;
  const T* dy;
  T *d_low, *d_high;
  Vec<A> alpha, rest;
  explicit FadeInBackward(const Resample& a)
      : dy(as<T>(a.high)),
        d_low(as<T>(a.low_out)),
        d_high(as<T>(a.high_out)),
        alpha(broadcast<A>(A(a.factor))),
        rest(broadcast<A>(A(1) - A(a.factor))) {}

  template <Pairs pairs>
  INLINED void at(const Place& p) const {
    const Pair<A> top = load_pair<A, pairs>(dy, p.top), bottom = load_pair<A, pairs>(dy, p.bottom);
    store_pair<pairs>(d_high, p.top, scaled<A>(alpha, top));
    store_pair<pairs>(d_high, p.bottom, scaled<A>(alpha, bottom));
    // Scaled first: the sum of what 1 - alpha leaves nothing of may be no number.
    store(d_low + p.low, gather<A, pairs>(scaled<A>(rest, top) + scaled<A>(rest, bottom)));
  }

  INLINED void at_channels(const Place& p) const {
    Pair<A> side[2];
    for (int k = 0; k < 2; ++k) {
      const Pair<A> top = load_channels(dy + p.top[k]), bottom = load_channels(dy + p.bottom[k]);
      store_channels(d_high + p.top[k], scaled<A>(alpha, top));
      store_channels(d_high + p.bottom[k], scaled<A>(alpha, bottom));
      side[k] = scaled<A>(rest, top) + scaled<A>(rest, bottom);
    }
    store_channels(d_low + p.low, side[0] + side[1]);
  }
};

// Image: T, or uint8_t.
template <class T, class Image>
struct FadeReals {
  using Type = T;
  using A = Acc<T>;
  using High = Image;
  const Image* x;
  T* y;
  Blend<A> blend;
  explicit FadeReals(const Resample& a) : x(as<Image>(a.high)), y(as<T>(a.high_out)), blend(a.factor) {}

  template <Pairs pairs>
  INLINED void at(const Place& p) const {
    const Pair<A> top = load_pair<A, pairs>(x, p.top), bottom = load_pair<A, pairs>(x, p.bottom);
    const Pair<A> old = spread<A, pairs>(broadcast<A>(A(0.25)) * gather<A, pairs>(top + bottom));
    store_pair<pairs>(y, p.top, blend(old, top));
    store_pair<pairs>(y, p.bottom, blend(old, bottom));
  }

  INLINED void at_channels(const Place& p) const {
    const Pair<A> left[] = {load_channels(x + p.top[0]), load_channels(x + p.bottom[0])};
    const Pair<A> right[] = {load_channels(x + p.top[1]), load_channels(x + p.bottom[1])};
    const Pair<A> old = scaled<A>(broadcast<A>(A(0.25)), left[0] + left[1] + (right[0] + right[1]));
    store_channels(y + p.top[0], blend(old, left[0]));
    store_channels(y + p.top[1], blend(old, right[0]));
    store_channels(y + p.bottom[0], blend(old, left[1]));
    store_channels(y + p.bottom[1], blend(old, right[1]));
  }
};

// The table's entries

inline void fade_in(const Resample& a, int64_t begin, int64_t end) {
  with_type(a.dtype, [&](auto type) { run_units<FadeIn<decltype(type)>, decltype(type)>(a, begin, end); });
}

inline void fade_in_backward(const Resample& a, int64_t begin, int64_t end) {
  with_type(a.dtype, [&](auto type) { run_units<FadeInBackward<decltype(type)>, decltype(type)>(a, begin, end); });
}

inline void fade_reals(const Resample& a, int64_t begin, int64_t end) {
  with_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    if (a.bytes) run_units<FadeReals<T, uint8_t>, T>(a, begin, end);
    else run_units<FadeReals<T, T>, T>(a, begin, end);
  });
}

}  // namespace pggan_fast::LEVEL
