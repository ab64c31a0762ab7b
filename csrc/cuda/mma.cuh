// Tensor cores and asynchronous copies: mma.sync, ldmatrix and cp.async of compute capability 8.0, by PTX's names.
// tests/cuda_on_cpu runs the same fragments on the CPU.
#pragma once

#include "vec.cuh"

namespace pggan_fast {

// Where something is in shared memory, as PTX addresses it; bytes are added to it.
#ifdef PGGAN_FAST_CUDA_ON_CPU
using SharedAddress = char*;
inline SharedAddress shared_address(void* p) { return static_cast<char*>(p); }
#else
using SharedAddress = unsigned;
__device__ inline SharedAddress shared_address(void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }
#endif

// The most that a kernel may be compiled with; what is beyond, its launch asks for: launch_with_memory.
constexpr int kStaticBytes = 48 * 1024;
template <int bytes>
constexpr int kLaunchBytes = bytes > kStaticBytes ? bytes : 0;

// The same for a kernel's one array, which may be larger than that.
template <class Tag, class A, int N>
__device__ inline A* large_shared_array() {
#ifndef PGGAN_FAST_CUDA_ON_CPU
  if constexpr (N * sizeof(A) > kStaticBytes) {
    extern __shared__ uint4 launch_memory[];
    return reinterpret_cast<A*>(launch_memory);
  }
#endif
  return shared_array<Tag, A, N>();
}

// Channels that one mma multiplies: 32 bytes.
template <class T>
constexpr int kDepth = 32 / sizeof(T);

// Copies 16 bytes to shared memory without waiting, or writes zeros where `exists` is false.
__device__ inline void copy_async(SharedAddress to, const void* from, bool exists) {
#ifdef PGGAN_FAST_CUDA_ON_CPU
  if (exists) cuda_on_cpu::count_load(16);
  cuda_on_cpu::copy_async(to, exists ? from : nullptr);
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(exists ? 16 : 0) : "memory");
#endif
}

// Waits until this thread's copies are there; other threads see them after the next barrier.
__device__ inline void wait_for_copies() {
#ifdef PGGAN_FAST_CUDA_ON_CPU
  cuda_on_cpu::wait_for_copies();
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Four matrices of 8 rows of 16 bytes. Lane l gives the address of row l % 8 of matrix l / 8 and gets four bytes of
// each: bytes 4 (l % 4) of row l / 4; transposed, of rows 2 (l % 4) and the next one the two bytes of column l / 4.
template <bool transposed>
__device__ inline void load_matrices(unsigned (&to)[4], SharedAddress row) {
#ifdef PGGAN_FAST_CUDA_ON_CPU
  cuda_on_cpu::load_matrices(to, row, transposed);
#elif __CUDA_ARCH__ >= 800
  if constexpr (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row));
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row));
#endif
}

// Two words at an address that 8 divides.
__device__ inline void load_pair(unsigned& first, unsigned& second, SharedAddress at) {
#ifdef PGGAN_FAST_CUDA_ON_CPU
  memcpy(&first, at, 4);
  memcpy(&second, at + 4, 4);
#else
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(first), "=r"(second) : "r"(at));
#endif
}

// d += a b with a [16, depth] and b [depth, 8]. With row = lane / 4 and i = lane % 4, in elements of two bytes:
//   a: rows row, row + 8, row, row + 8; columns 2 i and 2 i + 1, in the last two registers 8 further
//   b: rows 2 i and 2 i + 1, and 8 further; column `row`
//   d: [row][2 i], [row][2 i + 1], [row + 8][2 i], [row + 8][2 i + 1]
// In fp32, rounded to tf32: one column i of a, one row i of b, and 4 further.
template <class T>
__device__ inline void multiply_add(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#ifdef PGGAN_FAST_CUDA_ON_CPU
  cuda_on_cpu::multiply_add<T>(d, a, b0, b1);
#elif __CUDA_ARCH__ >= 800
#define PGGAN_FAST_MMA(shape, type)                           \
  asm("mma.sync.aligned." shape ".row.col.f32." type "." type \
      ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "             \
      "{%8, %9}, {%0, %1, %2, %3};"                           \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])        \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
  if constexpr (std::is_same_v<T, float>) PGGAN_FAST_MMA("m16n8k8", "tf32");
  else if constexpr (std::is_same_v<T, torch::headeronly::BFloat16>) PGGAN_FAST_MMA("m16n8k16", "bf16");
  else PGGAN_FAST_MMA("m16n8k16", "f16");
#undef PGGAN_FAST_MMA
#endif
}

// fp32 to the nearest tf32, halves away from zero; what the tensor cores cut off would pull products towards zero.
__device__ inline unsigned rounded_to_tf32(unsigned bits) {
#ifdef PGGAN_FAST_CUDA_ON_CPU
  return (bits & 0x7f800000) == 0x7f800000 ? bits : (bits + 0x1000) & ~0x1fffu;
#elif __CUDA_ARCH__ >= 800
  unsigned rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
#else
  return bits;
#endif
}

// Stores the words at once.
template <int words>
__device__ inline void store_words(void* p, const unsigned (&from)[words]) {
#ifdef PGGAN_FAST_CUDA_ON_CPU
  store_vec(static_cast<unsigned*>(p), Vec<unsigned, words>(reinterpret_cast<const Vec<unsigned, words>&>(from)));
#else
  // In PTX, since the compiler takes a vector apart that it holds in registers far from each other.
  if constexpr (words == 1) asm volatile("st.global.b32 [%0], %1;" ::"l"(p), "r"(from[0]) : "memory");
  else if constexpr (words == 2)
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(p), "r"(from[0]), "r"(from[1]) : "memory");
  else
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(from[0]), "r"(from[1]), "r"(from[2]),
                 "r"(from[3])
                 : "memory");
#endif
}

// Within two units of the last place; what is subnormal counts as zero.
__device__ inline float approximate_reciprocal_root(float x) {
#if !defined(PGGAN_FAST_CUDA_ON_CPU) && __CUDA_ARCH__ >= 800
  float root;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
#else
  return rsqrtf(x);
#endif
}

}  // namespace pggan_fast
