// All threads of a block at once, each a thread of the operating system, so that ThreadSanitizer sees which of their
// accesses no barrier orders. Slow: for tiny grids.
#include <atomic>
#include <barrier>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "tensor_cores.h"

namespace cuda_on_cpu {
namespace {

std::unique_ptr<std::barrier<>> of_block;
std::vector<std::unique_ptr<std::barrier<>>> of_warp;
// Two of each, so that the next call may begin before every lane has read what this one gave.
char given[2][kMaxThreads * kGathered];
thread_local unsigned calls;

// What orders one thread after another hides a race between them from ThreadSanitizer. So totals are added without
// an order, and the mutex is taken once by a thread for a key, before its first access.
std::atomic<int64_t> total_loaded, total_stored;
std::mutex mutex;
std::map<const void*, std::unique_ptr<char[]>> shared;
thread_local std::map<const void*, void*> known;

// So many threads, kept from one block to the next: ThreadSanitizer takes a millisecond to start one.
class Crew {
 public:
  explicit Crew(unsigned n) : turn(n + 1) {
    for (unsigned i = 0; i < n; ++i)
      std::thread([this, i] {
        for (;;) {
          turn.arrive_and_wait();
          (*work)(i);
          turn.arrive_and_wait();
        }
      }).detach();
  }
  void run(const std::function<void(unsigned)>& function) {
    work = &function;
    turn.arrive_and_wait();
    turn.arrive_and_wait();
  }

 private:
  std::barrier<> turn;
  const std::function<void(unsigned)>* work = nullptr;
};

Crew& crew_of(unsigned n) {
  static std::map<unsigned, Crew*> crews;  // never ended: at the process's end they wait for work
  Crew*& crew = crews[n];
  if (!crew) crew = new Crew(n);
  return *crew;
}

void run_block(const std::function<void()>& kernel, dim3 index, dim3 size, dim3 grid) {
  const unsigned n = size.x * size.y * size.z;
  shared.clear();
  of_block = std::make_unique<std::barrier<>>(n);
  of_warp.clear();
  for (unsigned first = 0; first < n; first += kWarp)
    of_warp.push_back(std::make_unique<std::barrier<>>(std::min(kWarp, n - first)));
  crew_of(n).run([&](unsigned i) {
    known.clear();
    copies[i].clear();
    loaded = stored = 0;
    gridDim = grid;
    blockDim = size;
    blockIdx = index;
    threadIdx = dim3(i % size.x, i / size.x % size.y, i / size.x / size.y);
    kernel();
    total_loaded.fetch_add(loaded, std::memory_order_relaxed);
    total_stored.fetch_add(stored, std::memory_order_relaxed);
  });
}

}  // namespace

void run_grid(dim3 grid, dim3 block, const std::function<void()>& kernel) {
  total_loaded = total_stored = 0;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) run_block(kernel, dim3(x, y, z), block, grid);
  const int64_t threads = int64_t(block.x) * block.y * block.z * grid.x * grid.y * grid.z;
  launches.push_back({next_name, threads, total_loaded, total_stored});
}

void wait_for_block() { of_block->arrive_and_wait(); }

const char* gather(const void* mine, size_t bytes) {
  const unsigned me = thread_number(), warp = me / kWarp;
  char* of_call = given[calls++ % 2];
  std::memcpy(of_call + me * kGathered, mine, bytes);
  of_warp[warp]->arrive_and_wait();
  return of_call + warp * kWarp * kGathered;
}

void* shared_memory(const void* key, size_t bytes) {
  void*& mine = known[key];
  if (!mine) {
    const std::lock_guard lock(mutex);
    auto& memory = shared[key];
    if (!memory) {
      memory.reset(new char[bytes]);
      std::memset(memory.get(), 0xff, bytes);
    }
    mine = memory.get();
  }
  return mine;
}

void set_order(Order, uint32_t) {}
void set_ends(unsigned) {}

}  // namespace cuda_on_cpu
