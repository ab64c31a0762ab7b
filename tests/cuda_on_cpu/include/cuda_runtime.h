// Replaces CUDA's header of this name: as much of CUDA as csrc/cuda uses, on the machine of ../machine.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "../machine.h"
#include "../tensor_cores.h"

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
T __shfl_sync(unsigned, T value, int lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  const char* warp = cuda_on_cpu::gather(&value, sizeof value);
  memcpy(&value, warp + lane % cuda_on_cpu::kWarp * cuda_on_cpu::kGathered, sizeof value);
  return value;
}
template <class T>
T __shfl_xor_sync(unsigned all, T value, int distance) {
  return __shfl_sync(all, value, cuda_on_cpu::thread_number() % cuda_on_cpu::kWarp ^ distance);
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorLaunchFailure };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline std::string cuda_on_cpu_fault;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return cuda_on_cpu_fault.c_str(); }

inline cudaError_t cudaSetDevice(int index) {
  cuda_on_cpu::current_device = index;
  return cudaSuccess;
}
template <class... Parameters>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*)(Parameters...), int, size_t) {
  *blocks = cuda_on_cpu::resident_blocks;
  return cudaSuccess;
}
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*)(Parameters...), cudaFuncAttribute, int) {
  return cudaSuccess;
}
// A small GPU, so that blocks take several tiles.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount      ? 1
           : attribute == cudaDevAttrComputeCapabilityMajor ? 8
                                                            : 164 << 10;
  return cudaSuccess;
}

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  try {
    if (cuda_on_cpu::current_device != 0) throw cuda_on_cpu::Fault("another device than the tensors' is current");
    cuda_on_cpu::run_grid(config->gridDim, config->blockDim, [&] { kernel(arguments...); });
  } catch (const cuda_on_cpu::Fault& fault) {
    cuda_on_cpu_fault = fault.what();
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}
