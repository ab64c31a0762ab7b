#include "planted.h"

#include <memory>

#include "../../csrc/cuda/vec.cuh"

namespace planted {
namespace {

using pggan_fast::kThreads;
using pggan_fast::launch;
using pggan_fast::load_vec;
using pggan_fast::shared_array;
using pggan_fast::store;

struct Planted;

__global__ void write_up_to(float* out, int end) {
  for (int i = threadIdx.x; i < end; i += kThreads) store(out + i, 1.0f);
}

__global__ void read_neighbour(float* out, int distance) {
  float* shared = shared_array<Planted, float, kThreads>();
  shared[threadIdx.x] = float(threadIdx.x);
  __syncthreads();
  store(out + threadIdx.x, shared[threadIdx.x + distance]);
}

__global__ void load_from(const float* in, float* out) {
  if (threadIdx.x == 0) store(out, load_vec<float, 4>(in).v[0]);
}

__global__ void wait_below(float* out, int end) {
  if (int(threadIdx.x) < end) __syncthreads();
  store(out + threadIdx.x, 1.0f);
}

__global__ void reverse(float* out, bool wait) {
  float* shared = shared_array<Planted, float, kThreads>();
  shared[threadIdx.x] = float(threadIdx.x);
  if (wait) __syncthreads();
  store(out + threadIdx.x, shared[kThreads - 1 - threadIdx.x]);
}

// Not in the vector that is returned, whose memory may be larger than its size.
struct Array {
  std::unique_ptr<float[]> values{new float[kThreads]()};
  std::vector<float> copy() const { return {values.get(), values.get() + kThreads}; }
};

}  // namespace

std::vector<float> overrun(bool right) {
  const Array out;
  launch("overrun", write_up_to, 1, out.values.get(), kThreads + !right);
  return out.copy();
}

std::vector<float> shared_overrun(bool right) {
  const Array out;
  launch("shared_overrun", read_neighbour, 1, out.values.get(), int(!right));
  return out.copy();
}

std::vector<float> misaligned(bool right) {
  const Array in, out;
  launch("misaligned", load_from, 1, in.values.get() + !right, out.values.get());
  return out.copy();
}

std::vector<float> divergent_barrier(bool right) {
  const Array out;
  launch("divergent_barrier", wait_below, 1, out.values.get(), right ? kThreads : kThreads / 2);
  return out.copy();
}

std::vector<float> missing_barrier(bool right) {
  const Array out;
  launch("missing_barrier", reverse, 1, out.values.get(), right);
  return out.copy();
}

}  // namespace planted
