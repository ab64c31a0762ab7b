// What the kernels of one instruction set share beside vectors: dispatch on the dtype, loops, a thread's memory.
// Included by level_*.cpp only. No template of the standard library that needs code of its own may be used here:
// each level would emit it for itself under one name, and the linker keeps any one of them.
#pragma once

#include <cstdlib>
#include <type_traits>

#include "kernels.h"
#include "vec.h"

namespace pggan_fast::LEVEL {

template <class F>
inline void with_type(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::f64: return f(double{});
    case Dtype::f32: return f(float{});
    case Dtype::bf16: return f(BFloat16{});
    case Dtype::f16: return f(Half{});
  }
}

inline int64_t rounded_up(int64_t count, int64_t width) { return (count + width - 1) / width * width; }

// A count known to be a whole vector: loads and stores with it are never partial.
template <class A>
using Whole = std::integral_constant<int64_t, kWidth<A>>;

// f(offset, count) for each vector of `size` elements, the last one partial if need be.
template <class A, class F>
inline void for_vectors(int64_t size, const F& f) {
  int64_t i = 0;
  for (; i + kWidth<A> <= size; i += kWidth<A>) f(i, Whole<A>{});
  if (i < size) f(i, size - i);
}

// Write f(offset, count) to y for each vector of `size` elements, two at a time, in which bfloat16 is rounded sooner.
template <class T, class F>
inline void store_vectors(T* y, int64_t size, const F& f) {
  using A = Acc<T>;
  constexpr int W = kWidth<A>;
  int64_t i = 0;
  for (; i + 2 * W <= size; i += 2 * W) {
    const Vec<A> first = f(i, Whole<A>{}), second = f(i + W, Whole<A>{});
    store_two(y + i, first, second);
  }
  for (; i + W <= size; i += W) store(y + i, f(i, Whole<A>{}));
  if (i < size) store(y + i, f(i, size - i), size - i);
}

// Working memory of one thread, kept from call to call: a fresh buffer would cost page faults.
template <class A>
struct Buffer {
  A* values = nullptr;
  int64_t size = 0;
  ~Buffer() { std::free(values); }
  A* grow(int64_t count) {
    if (count > size) {
      std::free(values);
      size = rounded_up(count, 64);
      values = static_cast<A*>(std::aligned_alloc(64, size * sizeof(A)));
      // No kernel can continue, nor may an exception leave a thread of torch's.
      if (!values) std::abort();
    }
    return values;
  }
};

template <class A>
inline A* scratch(int which, int64_t count) {
  static thread_local Buffer<A> buffers[4];
  return buffers[which].grow(count);
}

}  // namespace pggan_fast::LEVEL
