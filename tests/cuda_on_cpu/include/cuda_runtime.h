// Replaces CUDA's header of this name: as much of CUDA as csrc/cuda uses, on the machine of ../machine.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "../machine.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

using std::max;
using std::min;
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }

inline void __syncthreads() { cuda_on_cpu::wait_for_block(); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int distance) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t word = 0;
  memcpy(&word, &value, sizeof value);
  word = cuda_on_cpu::exchange(word, cuda_on_cpu::thread_number() % cuda_on_cpu::kWarp ^ distance);
  memcpy(&value, &word, sizeof value);
  return value;
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorLaunchFailure };
inline std::string cuda_on_cpu_fault;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return cuda_on_cpu_fault.c_str(); }

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  try {
    cuda_on_cpu::run_grid(config->gridDim, config->blockDim, [&] { kernel(arguments...); });
  } catch (const cuda_on_cpu::Fault& fault) {
    cuda_on_cpu_fault = fault.what();
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}
