// What the CUDA ops share on the host: device, stream, launches, and the choice of a kernel's template arguments.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <type_traits>

#include "../shared/tensors.h"

namespace pggan_fast {

// tests/cuda_on_cpu compiles these sources with a C++ compiler and runs them on CPU tensors.
#ifdef PGGAN_FAST_CUDA_ON_CPU
#define PGGAN_FAST_CUDA_LIBRARY STABLE_TORCH_LIBRARY_IMPL(pggan_fast_cuda_on_cpu, CPU, library)

inline int32_t device_type() { return aoti_torch_device_type_cpu(); }
inline int32_t device_index() { return 0; }
inline cudaStream_t current_stream() { return nullptr; }
struct TorchsDevice {
  explicit TorchsDevice(const Tensor&) {}
};
#else
#define PGGAN_FAST_CUDA_LIBRARY STABLE_TORCH_LIBRARY_IMPL(pggan_fast, CUDA, library)

inline int32_t device_type() { return aoti_torch_device_type_cuda(); }
inline int32_t device_index() { return torch::stable::accelerator::getCurrentDeviceIndex(); }
inline cudaStream_t current_stream() {
  void* stream;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// While it lives, t's device is the current one of torch's CUDA runtime.
struct TorchsDevice : torch::stable::accelerator::DeviceGuard {
  explicit TorchsDevice(const Tensor& t) : DeviceGuard(t.get_device_index()) {}
};
#endif

// While it lives, t's device is the current one, also of this module's own CUDA runtime: nvcc links one into it, so that
// it runs beside the runtime of whichever torch, and launches must not depend on one runtime's knowing what another set.
// Both have a device's one primary context; torch's guard sets the former device's again in the end.
struct OnDeviceOf : TorchsDevice {
  explicit OnDeviceOf(const Tensor& t) : TorchsDevice(t) {
    const cudaError_t error = cudaSetDevice(device_index());
    STD_TORCH_CHECK(error == cudaSuccess, "GPU ", device_index(), " cannot be used: ", cudaGetErrorString(error));
  }
};

// The dispatcher comes here if any argument is on a GPU; a kernel cannot read the others from elsewhere.
inline void check_device(const char* op, const char* name, const Tensor& t, const Tensor& x) {
  STD_TORCH_CHECK(t.is_cuda() == x.is_cuda() && t.get_device_index() == x.get_device_index(), op, ": ", name,
                  " must be on the same device as the other tensors");
}
inline void check_device(const char* op, const char* name, const std::optional<Tensor>& t, const Tensor& x) {
  if (t) check_device(op, name, *t, x);
}

// Threads in every block: a multiple of the warp and a power of two.
constexpr int kThreads = 256;

// Blocks of a kernel for T that a multiprocessor has room for at least, so that one loads while another waits for its
// barrier. In fp64, which is for checks, a thread may have all the registers there are.
template <class T>
constexpr int kBlocks = sizeof(T) == 8 ? 1 : 2;

// Runs kernel(arguments...) on the current stream of the current device, with so many bytes of shared memory beside what
// it was compiled with.
template <class... Parameters, class... Arguments>
void launch_with_memory(const char* name, void (*kernel)(Parameters...), int64_t blocks, int bytes,
                        const Arguments&... arguments) {
  if (blocks == 0) return;
  STD_TORCH_CHECK(blocks <= INT32_MAX, name, ": ", blocks, " blocks of threads are more than a GPU takes");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = bytes;
  config.stream = current_stream();
#ifdef PGGAN_FAST_CUDA_ON_CPU
  cuda_on_cpu::name_next_launch(name);
#endif
  cudaError_t error = cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
  if (error == cudaSuccess) error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, name, ": the kernel cannot be launched: ", cudaGetErrorString(error));
}

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), int64_t blocks, const Arguments&... arguments) {
  launch_with_memory(name, kernel, blocks, 0, arguments...);
}

// As many blocks of this kernel as the GPU runs at once, by the registers and the shared memory that it was compiled to,
// and no more than there are tiles: blocks that take tile after tile, where more would wait for a second wave. `bytes` as
// for launch_with_memory, which may then ask for them.
template <class... Parameters>
int64_t blocks_at_once(const char* name, void (*kernel)(Parameters...), int64_t tiles, int bytes = 0) {
  int multiprocessors = 1, resident = 1;
  cudaError_t error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device_index());
  if (error == cudaSuccess && bytes)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess) error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads, bytes);
  STD_TORCH_CHECK(error == cudaSuccess, name, ": the kernel cannot be loaded: ", cudaGetErrorString(error));
  return std::min(tiles, int64_t(multiprocessors) * std::max(resident, 1));
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// f(std::bool_constant): from a value to a template argument.
template <class F>
void with_bool(bool value, F f) {
  if (value) f(std::true_type{});
  else f(std::false_type{});
}

// f(std::integral_constant<int, V>): V elements of T fill 16 bytes, or V is 1 where vectors do not fit.
template <class T, class F>
void with_vector(bool fits, F f) {
  if (fits) f(std::integral_constant<int, 16 / sizeof(T)>{});
  else f(std::integral_constant<int, 1>{});
}

// Whether vectors of 16 bytes can be read or written from here; also true of a tensor that is not there.
inline bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

template <class T>
const T* pointer(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <class T>
const T* pointer(const std::optional<Tensor>& t) {
  return t ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}
template <class T>
T* output(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

}  // namespace pggan_fast
