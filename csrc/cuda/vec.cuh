// What the CUDA kernels share on the device: vectors of up to 16 bytes, and sums over the threads of a block.
#pragma once

#include <cstdint>
#include <cstring>

#include "launch.cuh"

namespace pggan_fast {

// What T is accumulated in.
template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

// V elements that are loaded and stored at once.
template <class T, int V>
struct alignas(sizeof(T) * V) Vec {
  T v[V];
};

// A type that the compiler loads and stores in one instruction.
template <int bytes>
struct Word;
template <> struct Word<16> { using Type = uint4; };
template <> struct Word<8> { using Type = uint2; };
template <> struct Word<4> { using Type = unsigned; };
template <> struct Word<2> { using Type = unsigned short; };
template <> struct Word<1> { using Type = unsigned char; };

// A vector as it was loaded: elements of two bytes take half a register each, and a whole one once they are unpacked.
template <class T, int V>
struct Packed {
  typename Word<sizeof(Vec<T, V>)>::Type word;

  __device__ Vec<T, V> unpack() const {
    Vec<T, V> vec;
    memcpy(&vec, &word, sizeof vec);
    return vec;
  }
  // Accumulated in A. The bits of a bf16 value are the upper half of the same fp32 value's: one instruction each.
  template <class A>
  __device__ void unpack(A (&to)[V]) const {
    if constexpr (std::is_same_v<T, torch::headeronly::BFloat16> && V % 2 == 0) {
      unsigned pairs[V / 2];
      memcpy(pairs, &word, sizeof pairs);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const unsigned bits = i % 2 ? pairs[i / 2] & 0xffff0000u : pairs[i / 2] << 16;
        memcpy(&to[i], &bits, sizeof bits);
      }
    } else {
      const Vec<T, V> vec = unpack();
#pragma unroll
      for (int i = 0; i < V; ++i) to[i] = A(vec.v[i]);
    }
  }
  // Keeps the compiler from keeping what was unpacked before for what is unpacked later.
  __device__ void pack_again() {
    if constexpr (sizeof(T) == 2 && sizeof(word) == 16)
      asm volatile("" : "+r"(word.x), "+r"(word.y), "+r"(word.z), "+r"(word.w));
  }
};

// All reading and writing of global memory goes through these two, so that tests can count the bytes.
template <class T, int V>
__device__ inline Packed<T, V> load_packed(const T* p) {
#ifdef PGGAN_FAST_CUDA_ON_CPU
  cuda_on_cpu::count_load(sizeof(Vec<T, V>));
#endif
  return {*reinterpret_cast<const typename Word<sizeof(Vec<T, V>)>::Type*>(p)};
}

template <class T, int V>
__device__ inline void store_vec(T* p, const Vec<T, V>& vec) {
#ifdef PGGAN_FAST_CUDA_ON_CPU
  cuda_on_cpu::count_store(sizeof(Vec<T, V>));
#endif
  typename Word<sizeof(Vec<T, V>)>::Type word;
  memcpy(&word, &vec, sizeof vec);
  *reinterpret_cast<decltype(word)*>(p) = word;
}

template <class T, int V>
__device__ inline Vec<T, V> load_vec(const T* p) {
  return load_packed<T, V>(p).unpack();
}

template <class T>
__device__ inline T load(const T* p) {
  return load_vec<T, 1>(p).v[0];
}

template <class T>
__device__ inline void store(T* p, T value) {
  store_vec<T, 1>(p, Vec<T, 1>{{value}});
}

// Rounded to T.
template <int V, class T, class A>
__device__ inline void store_rounded(T* p, const A (&values)[V]) {
  Vec<T, V> vec;
#pragma unroll
  for (int i = 0; i < V; ++i) vec.v[i] = static_cast<T>(values[i]);
  store_vec(p, vec);
}

// Two values of two bytes in a register, the first in its lower half, rounded to nearest even.
template <class T>
__device__ inline unsigned packed_pair(float low, float high) {
#if !defined(PGGAN_FAST_CUDA_ON_CPU) && __CUDA_ARCH__ >= 800
  unsigned pair;
  if constexpr (std::is_same_v<T, torch::headeronly::BFloat16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  const T values[2] = {static_cast<T>(low), static_cast<T>(high)};
  unsigned pair;
  memcpy(&pair, values, sizeof pair);
  return pair;
#endif
}

// N values of shared memory, the same ones for each call with the same template arguments. Tag is any name.
template <class Tag, class A, int N>
__device__ inline A* shared_array() {
#ifdef PGGAN_FAST_CUDA_ON_CPU
  static char key;
  return static_cast<A*>(cuda_on_cpu::shared_memory(&key, N * sizeof(A)));
#else
  __shared__ A values[N];
  return values;
#endif
}

struct Sums;

// What follows, for threads of one warp.
template <int W, class A>
__device__ inline void sum_in_warp(A* v, int stride, int count) {
  for (int distance = stride; distance < min(stride * count, 32); distance *= 2)
#pragma unroll
    for (int w = 0; w < W; ++w) v[w] += __shfl_xor_sync(~0u, v[w], distance);
}

// Replaces each v[w] by its sum over the `count` threads of the block whose indices differ by multiples of `stride`,
// from 0 to count - 1 times. Both are powers of two. Every thread of the block must call it; each gets the same sum,
// added in an order that depends on nothing but `stride` and `count`.
template <int W, class A>
__device__ inline void sum_over_threads(A (&v)[W], int stride, int count) {
  const int end = stride * count;
  sum_in_warp<W>(v, stride, count);
  if (end <= 32) return;
  constexpr int kAtOnce = 32 / sizeof(A);
  A* shared = shared_array<Sums, A, kAtOnce * kThreads>();
  const int thread = threadIdx.x, first = thread / end * end + thread % stride, step = max(stride, 32);
#pragma unroll
  for (int begin = 0; begin < W; begin += kAtOnce) {
    __syncthreads();  // the last values have been read
    // Of the threads that the shuffles summed up, one writes.
    if (thread % step < stride)
#pragma unroll
      for (int w = 0; w < kAtOnce; ++w)
        if (begin + w < W) shared[w * kThreads + thread] = v[begin + w];
    __syncthreads();
#pragma unroll
    for (int w = 0; w < kAtOnce; ++w)
      if (begin + w < W) {
        v[begin + w] = shared[w * kThreads + first];
        for (int i = first + step; i < first + end; i += step) v[begin + w] += shared[w * kThreads + i];
      }
  }
}

__device__ inline float reciprocal_root(float x) { return rsqrtf(x); }
__device__ inline double reciprocal_root(double x) { return rsqrt(x); }

}  // namespace pggan_fast
