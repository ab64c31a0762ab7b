// A CUDA device on the CPU, as kernels see it through include/cuda_runtime.h. Two machines implement it: fibers.cpp
// runs one thread at a time in an order that can be chosen, threads.cpp runs a block's threads at once, for
// ThreadSanitizer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef PGGAN_FAST_CUDA_THREADS
#define PGGAN_FAST_OF_A_THREAD thread_local
#else
#define PGGAN_FAST_OF_A_THREAD
#endif

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Where the running thread is, by CUDA's names.
inline PGGAN_FAST_OF_A_THREAD dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr size_t kGathered = 32;

inline unsigned thread_number() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }

// A kernel did what no GPU allows.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Runs `kernel` as every thread of every block, the blocks one after the other. Throws Fault.
void run_grid(dim3 grid, dim3 block, const std::function<void()>& kernel);

// Called by the threads of a kernel:
void wait_for_block();                               // __syncthreads
const char* gather(const void* mine, size_t bytes);  // what each lane gave in the same call, kGathered bytes apart
void* shared_memory(const void* key, size_t bytes);  // the block's memory of this key, all bits set at first

// Threads of a block start, and continue after waiting, in this order.
enum class Order { ascending, descending, shuffled };
void set_order(Order order, uint32_t seed);

// Of each grid only so many blocks run from either end; 0: all.
void set_ends(unsigned blocks);

// The current device, of which there is one, 0; and the blocks that its multiprocessor holds, few enough that they take
// several tiles.
inline int current_device = 0, resident_blocks = 4;

// What a launch read from and wrote to global memory.
struct Launch {
  std::string name;
  int64_t threads, loaded, stored;
};
inline std::vector<Launch> launches;
inline std::string next_name;
inline PGGAN_FAST_OF_A_THREAD int64_t loaded, stored;

inline void name_next_launch(const char* name) { next_name = name; }
inline void count_load(size_t bytes) { loaded += bytes; }
inline void count_store(size_t bytes) { stored += bytes; }

}  // namespace cuda_on_cpu
