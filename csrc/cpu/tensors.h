// What the CPU ops share: torch's stable tensors, and its threads.
#pragma once

#include "../shared/tensors.h"
#include "kernels.h"

namespace pggan_fast {

inline int32_t device_type() { return aoti_torch_device_type_cpu(); }
inline int32_t device_index() { return 0; }

// Runs f(begin, end) over `units` on torch's threads; work of under 32k elements stays on this thread.
template <class F>
void parallel(int64_t units, int64_t elements_per_unit, const F& f) {
  const int64_t grain = std::max<int64_t>(1, 16 * 1024 / std::max<int64_t>(1, elements_per_unit));
  if (units <= 2 * grain && units * elements_per_unit <= 32 * 1024) {
    if (units > 0) f(0, units);
  } else {
    torch::stable::parallel_for(0, units, grain, f);
  }
}

}  // namespace pggan_fast
