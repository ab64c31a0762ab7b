// `activation` and its gradients: y = limit(gain * act(u)), u = scale * x + bias. The formulas stand in
// pggan_fast/ops/activation_op.py. linear, relu, lrelu and sigmoid of full precision read their derivative off y, the
// others compute u anew.
#pragma once

#include <limits>

#include "bias_act_contiguous.h"
#include "vec_math.h"

namespace pggan_fast::LEVEL {

// The smooth activations: value, first and second derivative at u

// sigmoid(u), its derivative, and 1 - 2 sigmoid(u), without a difference of nearly equal numbers in the tails.
template <class A>
struct Sigmoid {
  Vec<A> s, ds, slope;
  explicit Sigmoid(Vec<A> u) {
    const Vec<A> e = exp_of_negative<A>(minus_magnitude(u)), q = 1 / (1 + e), rise = (1 - e) * q;
    s = u < Vec<A>{} ? e * q : q;
    ds = e * q * q;
    slope = u < Vec<A>{} ? rise : -rise;
  }
};

template <Act act, class A>
struct Smooth;

template <class A>
struct Smooth<Act::sigmoid, A> {
  static Vec<A> value(Vec<A> u) { return Sigmoid<A>(u).s; }
  static void derivatives(Vec<A> u, Vec<A>& first, Vec<A>& second) {
    const Sigmoid<A> v(u);
    first = v.ds;
    second = v.ds * v.slope;
  }
};

template <class A>
struct Smooth<Act::tanh, A> {
  static Vec<A> value(Vec<A> u) {
    const Vec<A> t = expm1_of_negative<A>(2 * minus_magnitude(u)), size = -t / (t + 2);
    return u < Vec<A>{} ? -size : size;
  }
  static void derivatives(Vec<A> u, Vec<A>& first, Vec<A>& second) {
    const Sigmoid<A> v(2 * u);
    first = 4 * v.ds;
    second = 2 * v.slope * first;
  }
};

template <class A>
struct Smooth<Act::swish, A> {
  static Vec<A> value(Vec<A> u) { return u * Sigmoid<A>(u).s; }
  static void derivatives(Vec<A> u, Vec<A>& first, Vec<A>& second) {
    const Sigmoid<A> v(u);
    first = v.s + u * v.ds;
    second = v.ds * (2 + u * v.slope);
  }
};

// Above 20 it is the identity, as torch has it.
template <class A>
struct Smooth<Act::softplus, A> {
  static Vec<A> value(Vec<A> u) {
    const Vec<A> v = (u > Vec<A>{} ? u : Vec<A>{}) + log1p_of_fraction<A>(exp_of_negative<A>(minus_magnitude(u)));
    return u > 20 ? u : v;
  }
  static void derivatives(Vec<A> u, Vec<A>& first, Vec<A>& second) {
    const Sigmoid<A> v(u);
    first = u > 20 ? broadcast<A>(1) : v.s;
    second = u > 20 ? Vec<A>{} : v.ds;
  }
};

template <class A>
struct Elu {
  static Vec<A> value(Vec<A> u, A above, A below) {
    const Vec<A> left = below * expm1_of_negative<A>(u > Vec<A>{} ? Vec<A>{} : u);
    return u > Vec<A>{} ? above * u : left;
  }
  static void derivatives(Vec<A> u, A above, A below, Vec<A>& first, Vec<A>& second) {
    const Vec<A> left = below * exp_of_negative<A>(u > Vec<A>{} ? Vec<A>{} : u);
    first = u > Vec<A>{} ? broadcast<A>(above) : left;
    second = u >= Vec<A>{} ? Vec<A>{} : left;
  }
};

template <class A>
struct Smooth<Act::elu, A> {
  static Vec<A> value(Vec<A> u) { return Elu<A>::value(u, 1, 1); }
  static void derivatives(Vec<A> u, Vec<A>& first, Vec<A>& second) { Elu<A>::derivatives(u, 1, 1, first, second); }
};

template <class A>
struct Smooth<Act::selu, A> {
  static constexpr A kAbove = A(1.0507009873554805), kBelow = A(1.0507009873554805 * 1.6732632423543772);
  static Vec<A> value(Vec<A> u) { return Elu<A>::value(u, kAbove, kBelow); }
  static void derivatives(Vec<A> u, Vec<A>& first, Vec<A>& second) {
    Elu<A>::derivatives(u, kAbove, kBelow, first, second);
  }
};

// The sigmoid's derivatives by y: v = gain * sigmoid(u) has y (1 - y / gain) by u, and that 1 - 2 y / gain by y.
template <Act act, class T>
constexpr bool reads_sigmoid = act == Act::sigmoid && std::is_same<T, Acc<T>>::value;  // half precision rounds y off

template <class A>
struct OfSigmoid {
  Vec<A> per_gain;
  explicit OfSigmoid(double gain) : per_gain(broadcast<A>(gain < std::numeric_limits<A>::min() ? A(0) : A(1 / gain))) {}
  Vec<A> first(Vec<A> y) const { return y * (1 - y * per_gain); }
  Vec<A> second(Vec<A> y) const { return 1 - 2 * y * per_gain; }
};

// The limits

// A clamp of NaN is none: no comparison with it holds.
template <class A>
struct Limit {
  Vec<A> high;
  Vec<A> operator()(Vec<A> v) const { return v > high ? high : v < -high ? -high : v; }
  // `derivative`, and zero where v is limited; the limits themselves count as such.
  Vec<A> pass(Vec<A> v, Vec<A> derivative) const {
    return v >= high ? Vec<A>{} : v <= -high ? Vec<A>{} : derivative;
  }
};

// Walks over a tensor

// total = body(offset, count, per_channel) for each vector; per_channel(values) are its values of one for each channel.
// Sums of few totals are taken in A, then added to sums[channel] in double: the error does not grow with the tensor.
template <class T, class Body>
void walk(const Shape& shape, int64_t begin, int64_t end, double* sums, const Body& body) {
  using A = Acc<T>;
  if (shape.layout == Layout::contiguous) {
    constexpr int64_t kRun = 1024;
    for (int64_t item = begin; item < end; ++item) {
      const Planes planes = planes_of(shape, item);
      for_planes(shape, planes, [&](int64_t offset, int64_t channel) {
        for (int64_t start = 0; start < planes.count; start += kRun) {
          Vec<A> total{};
          for_vectors<A>(std::min(kRun, planes.count - start), [&](int64_t i, auto n) {
            total += body(offset + start + i, n, [&](const A* values) { return broadcast<A>(values[channel]); });
          });
          if (sums) sums[channel] += sum(total);
        }
      });
    }
    return;
  }
  const int64_t most = rows_at_once(shape), c = shape.c;
  A* totals = scratch<A>(2, rounded_up(c, kWidth<A>));
  for (int64_t item = begin; item < end; ++item) {
    const Block block = block_of(shape, item);
    for (int64_t i = 0; i < block.count; i += most) {
      if (sums) std::fill_n(totals, rounded_up(c, kWidth<A>), A(0));
      for (int64_t k = block.first + i; k < block.first + std::min(i + most, block.count); ++k)
        for_vectors<A>(c, [&](int64_t j, auto n) {
          const Vec<A> d = body(k * c + j, n, [&](const A* values) { return load(values + j); });
          if (sums) store(totals + j, load(totals + j) + d);
        });
      if (sums)
        for (int64_t j = 0; j < c; ++j) sums[j] += totals[j];
    }
  }
}

// f(std::integral_constant<Act, act>), `piecewise` for linear, relu and lrelu.
template <class F>
inline void with_act(Act act, const F& f) {
  switch (act) {
    case Act::tanh: return f(std::integral_constant<Act, Act::tanh>{});
    case Act::sigmoid: return f(std::integral_constant<Act, Act::sigmoid>{});
    case Act::elu: return f(std::integral_constant<Act, Act::elu>{});
    case Act::selu: return f(std::integral_constant<Act, Act::selu>{});
    case Act::softplus: return f(std::integral_constant<Act, Act::softplus>{});
    case Act::swish: return f(std::integral_constant<Act, Act::swish>{});
    case Act::piecewise: return f(std::integral_constant<Act, Act::piecewise>{});
  }
}

template <Act act, class T>
void forward(const ActivationForward& a, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const A* bias = padded<A>(a.bias, a.shape.c, 0);
  const Activation<A> piecewise({a.scale, a.slope, a.gain, 0, false});
  const Vec<A> scale = broadcast<A>(A(a.scale)), gain = broadcast<A>(A(a.gain));
  const Limit<A> limit{broadcast<A>(A(a.clamp))};
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  walk<T>(a.shape, begin, end, nullptr, [&](int64_t i, auto n, const auto& per_channel) {
    const Vec<A> u = scale * load(x + i, n) + per_channel(bias);
    if constexpr (act == Act::piecewise) store(y + i, with_its_sign<T>(limit(piecewise(u))), n);
    else store(y + i, limit(gain * Smooth<act, A>::value(u)), n);
    return Vec<A>{};
  });
}

template <Act act, class T>
void backward(const ActivationBackward& a, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const A* bias = padded<A>(a.bias, a.shape.c, 0);
  const Activation<A> piecewise({a.scale, a.slope, a.gain, 0, false});
  const Vec<A> scale = broadcast<A>(A(a.scale)), gain = broadcast<A>(A(a.gain));
  const Limit<A> limit{broadcast<A>(A(a.clamp))};
  const bool limited = a.clamp == a.clamp;
  [[maybe_unused]] const OfSigmoid<A> of_sigmoid(a.gain);
  const T *dy = static_cast<const T*>(a.dy), *source = static_cast<const T*>(a.source);
  T* dx = static_cast<T*>(a.dx);
  walk<T>(a.shape, begin, end, a.db, [&](int64_t i, auto n, const auto& per_channel) {
    const Vec<A> gradient = load(dy + i, n), v = load(source + i, n);
    Vec<A> d;
    if constexpr (act == Act::piecewise) {
      d = limit.pass(v, piecewise(gradient, v));
    } else if constexpr (reads_sigmoid<act, T>) {
      d = limit.pass(v, gradient * of_sigmoid.first(v));
    } else {
      const Vec<A> u = scale * v + per_channel(bias);
      Vec<A> first, second;
      Smooth<act, A>::derivatives(u, first, second);
      d = gradient * gain * first;
      if (limited) d = limit.pass(gain * Smooth<act, A>::value(u), d);
    }
    store(dx + i, scale * d, n);
    return d;
  });
}

template <Act act, class T>
void double_backward(const ActivationDoubleBackward& a, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const A *bias = padded<A>(a.bias, a.shape.c, 0), *g_bias = padded<A>(a.g_bias, a.shape.c, 3);
  const Activation<A> piecewise({a.scale, a.slope, a.gain, 0, false});
  const Vec<A> scale = broadcast<A>(A(a.scale)), gain = broadcast<A>(A(a.gain));
  const Limit<A> limit{broadcast<A>(A(a.clamp))};
  const bool limited = a.clamp == a.clamp;
  [[maybe_unused]] const OfSigmoid<A> of_sigmoid(a.gain);
  const T *g = static_cast<const T*>(a.g), *dy = static_cast<const T*>(a.dy), *source = static_cast<const T*>(a.source);
  T *d_dy = static_cast<T*>(a.d_dy), *d_x = static_cast<T*>(a.d_x);
  walk<T>(a.shape, begin, end, a.d_bias, [&](int64_t i, auto n, const auto& per_channel) {
    const Vec<A> v = load(source + i, n);
    Vec<A> h = g ? scale * load(g + i, n) : Vec<A>{};
    h += per_channel(g_bias);
    if constexpr (act == Act::piecewise) {
      store(d_dy + i, limit.pass(v, piecewise(h, v)), n);
      return Vec<A>{};
    } else if constexpr (reads_sigmoid<act, T>) {
      h = limit.pass(v, h);
      store(d_dy + i, h * of_sigmoid.first(v), n);
      store(d_x + i, h * load(dy + i, n) * of_sigmoid.second(v), n);
      return Vec<A>{};
    } else {
      const Vec<A> u = scale * v + per_channel(bias);
      Vec<A> first, second;
      Smooth<act, A>::derivatives(u, first, second);
      if (limited) h = limit.pass(gain * Smooth<act, A>::value(u), h);
      const Vec<A> d = h * load(dy + i, n) * gain * second;
      store(d_dy + i, h * gain * first, n);
      store(d_x + i, scale * d, n);
      return d;
    }
  });
}

// The table's entries

inline void activation_forward(const ActivationForward& a, int64_t begin, int64_t end) {
  with_type(a.dtype, [&](auto type) {
    with_act(a.act, [&](auto act) { forward<act, decltype(type)>(a, begin, end); });
  });
}

inline void activation_backward(const ActivationBackward& a, int64_t begin, int64_t end) {
  with_type(a.dtype, [&](auto type) {
    with_act(a.act, [&](auto act) { backward<act, decltype(type)>(a, begin, end); });
  });
}

inline void activation_double_backward(const ActivationDoubleBackward& a, int64_t begin, int64_t end) {
  with_type(a.dtype, [&](auto type) {
    with_act(a.act, [&](auto act) { double_backward<act, decltype(type)>(a, begin, end); });
  });
}

}  // namespace pggan_fast::LEVEL
