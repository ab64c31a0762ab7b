// One thread of a block at a time, switched where it waits. A fiber runs threads to their end, one after the other,
// until one of them waits; then another fiber continues with the rest, so a kernel that never waits needs one fiber.
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <random>

#include "tensor_cores.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_on_cpu {
namespace {

constexpr size_t kStack = 256 * 1024;

// A stack to run on; ASan is told of every switch between two.
struct Stack {
  ucontext_t context{};
  const void* bottom = nullptr;
  size_t size = 0;
  void* fake = nullptr;
};

void switch_stacks(Stack& from, Stack& to) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&from.fake, to.bottom, to.size);
#endif
  swapcontext(&from.context, &to.context);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(from.fake, nullptr, nullptr);
#endif
}

struct Fiber : Stack {
  std::unique_ptr<char[]> memory{new char[kStack]};
};

enum class State { running, waits_for_block, waits_for_warp, done };

struct Thread {
  dim3 index;
  State state = State::running;
  Fiber* fiber = nullptr;  // where it waits
  const void* given = nullptr;
  size_t given_bytes = 0;
};

Order order = Order::ascending;
std::mt19937 shuffle;
unsigned ends = 0;

Stack scheduler;
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Fiber*> idle;
Fiber* running;

const std::function<void()>* kernel;
std::vector<Thread> threads;
std::vector<char> gathered;       // kGathered bytes of each
std::vector<unsigned> sequence;  // the order of the threads
size_t started;                  // of `sequence`
unsigned current;                // the thread that runs

struct SharedMemory {
  size_t bytes;
  std::unique_ptr<char[]> memory;  // of just this size, so that ASan sees an overrun
};
std::map<const void*, SharedMemory> shared;

void become(unsigned thread) {
  current = thread;
  threadIdx = threads[thread].index;
}

void run_threads() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.bottom, &scheduler.size);
#endif
  for (;;) {
    while (started < sequence.size()) {
      become(sequence[started++]);
      (*kernel)();
      threads[current].state = State::done;
    }
    idle.push_back(running);
    switch_stacks(*running, scheduler);
  }
}

Fiber* idle_fiber() {
  if (idle.empty()) {
    fibers.push_back(std::make_unique<Fiber>());
    Fiber* fiber = fibers.back().get();
    fiber->bottom = fiber->memory.get();
    fiber->size = kStack;
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->memory.get();
    fiber->context.uc_stack.ss_size = kStack;
    makecontext(&fiber->context, run_threads, 0);
    return fiber;
  }
  Fiber* fiber = idle.back();
  idle.pop_back();
  return fiber;
}

void resume(Fiber* fiber) {
  running = fiber;
  switch_stacks(scheduler, *fiber);
}

void wait(State state) {
  const unsigned me = current;
  threads[me].state = state;
  threads[me].fiber = running;
  switch_stacks(*running, scheduler);
  become(me);
}

void resume_threads(unsigned first, unsigned end) {
  for (const unsigned thread : sequence)
    if (thread >= first && thread < end && threads[thread].state != State::done) {
      threads[thread].state = State::running;
      resume(threads[thread].fiber);
    }
}

unsigned count(unsigned first, unsigned end, State state) {
  return std::count_if(threads.begin() + first, threads.begin() + end,
                       [&](const Thread& t) { return t.state == state; });
}

// Lets warps continue whose threads all exchange; false if there was none.
bool release_warps() {
  const unsigned n = threads.size();
  bool any = false;
  for (unsigned first = 0; first < n; first += kWarp) {
    const unsigned end = std::min(n, first + kWarp);
    if (count(first, end, State::waits_for_warp) < end - first) continue;
    for (unsigned i = first; i < end; ++i)
      std::memcpy(&gathered[i * kGathered], threads[i].given, threads[i].given_bytes);
    resume_threads(first, end);
    any = true;
  }
  return any;
}

void run_block() {
  const unsigned n = threads.size();
  shared.clear();
  for (unsigned i = 0; i < n; ++i) copies[i].clear();
  for (Thread& thread : threads) thread.state = State::running;
  std::iota(sequence.begin(), sequence.end(), 0);
  if (order == Order::descending) std::reverse(sequence.begin(), sequence.end());
  if (order == Order::shuffled) std::shuffle(sequence.begin(), sequence.end(), shuffle);
  started = 0;
  while (started < n) resume(idle_fiber());
  for (;;) {
    if (release_warps()) continue;
    if (count(0, n, State::done) == n) return;
    const unsigned waiting = count(0, n, State::waits_for_block);
    if (waiting == n) {
      resume_threads(0, n);
      continue;
    }
    // The stacks of the threads that wait are lost, with what is on them.
    fibers.clear();
    idle.clear();
    if (waiting == 0) throw Fault("only some threads of a warp reach an exchange");
    throw Fault("__syncthreads is reached by " + std::to_string(waiting) + " of " + std::to_string(n) + " threads");
  }
}

}  // namespace

void run_grid(dim3 grid, dim3 block, const std::function<void()>& function) {
  kernel = &function;
  loaded = stored = 0;
  threads.assign(block.x * block.y * block.z, Thread{});
  sequence.resize(threads.size());
  gathered.resize(threads.size() * kGathered);
  blockDim = block;
  gridDim = grid;
  for (unsigned i = 0; i < threads.size(); ++i)
    threads[i].index = dim3(i % block.x, i / block.x % block.y, i / block.x / block.y);
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        if (ends && x >= ends && x + ends < grid.x) continue;
        blockIdx = dim3(x, y, z);
        run_block();
      }
  launches.push_back({next_name, int64_t(threads.size()) * grid.x * grid.y * grid.z, loaded, stored});
}

void wait_for_block() { wait(State::waits_for_block); }

const char* gather(const void* mine, size_t bytes) {
  threads[current].given = mine;
  threads[current].given_bytes = bytes;
  wait(State::waits_for_warp);
  return &gathered[current / kWarp * kWarp * kGathered];
}

void* shared_memory(const void* key, size_t bytes) {
  SharedMemory& found = shared[key];
  if (!found.memory) {
    found.memory.reset(new char[bytes]);
    std::memset(found.memory.get(), 0xff, bytes);
  }
  return found.memory.get();
}

void set_order(Order requested, uint32_t seed) {
  order = requested;
  shuffle.seed(seed);
}

void set_ends(unsigned blocks) { ends = blocks; }

}  // namespace cuda_on_cpu
