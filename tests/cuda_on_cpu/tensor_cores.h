// mma.sync, ldmatrix and cp.async for csrc/cuda/mma.cuh, by the PTX ISA's description of their fragments.
#pragma once

#include <cstring>
#include <vector>

#include "machine.h"

namespace cuda_on_cpu {

struct Copy {
  char* to;
  const void* from;  // or null, for zeros
};
// Each thread's copies on the way. They arrive no earlier than the thread waits: what reads them before reads NaN.
inline std::vector<Copy> copies[kMaxThreads];

inline void check_alignment(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16) throw Fault("an address of 16 bytes is misaligned");
}

inline void copy_async(char* to, const void* from) {
  check_alignment(to);
  check_alignment(from);
  copies[thread_number()].push_back({to, from});
}

inline void wait_for_copies() {
  for (const Copy& copy : copies[thread_number()])
    if (copy.from) std::memcpy(copy.to, copy.from, 16);
    else std::memset(copy.to, 0, 16);
  copies[thread_number()].clear();
}

inline void load_matrices(unsigned (&to)[4], char* row, bool transposed) {
  check_alignment(row);
  const char* warp = gather(&row, sizeof row);
  const unsigned lane = thread_number() % kWarp;
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    const auto address = [&](unsigned r) {
      char* found;
      std::memcpy(&found, warp + (8 * matrix + r) * kGathered, sizeof found);
      return found;
    };
    if (!transposed) {
      std::memcpy(&to[matrix], address(lane / 4) + lane % 4 * 4, 4);
      continue;
    }
    uint16_t pair[2];
    for (unsigned i = 0; i < 2; ++i) std::memcpy(&pair[i], address(lane % 4 * 2 + i) + lane / 4 * 2, 2);
    std::memcpy(&to[matrix], pair, 4);
  }
}

// Sums of products in fp32; the hardware's order of adding is its own.
template <class T>
void multiply_add(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  constexpr int kPerRegister = 4 / sizeof(T), kDepth = 32 / sizeof(T);
  const unsigned mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const char* warp = gather(mine, sizeof mine);
  const unsigned lane = thread_number() % kWarp;
  // Element k of the row `row` of a, or of the column `row` of b, is in register `which`, or k's half further.
  const auto element = [&](unsigned row, unsigned which, unsigned step, int k) {
    const int half = k / (kDepth / 2), within = k % (kDepth / 2);
    T value;
    std::memcpy(&value,
                warp + (row * 4 + within / kPerRegister) * kGathered + (which + half * step) * 4 +
                    within % kPerRegister * sizeof(T),
                sizeof value);
    return static_cast<float>(value);
  };
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane / 4, column = lane % 4 * 2 + i % 2;
    double sum = d[i];
    for (int k = 0; k < kDepth; ++k) sum += double(element(row, i / 2, 2, k)) * element(column, 4, 1, k);
    d[i] = static_cast<float>(sum);
  }
}

}  // namespace cuda_on_cpu
