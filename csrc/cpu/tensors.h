// What the CPU ops share: torch's stable tensors, and its threads.
#pragma once

#include "../shared/tensors.h"
#include "kernels.h"

namespace pggan_fast {

inline int32_t device_type() { return aoti_torch_device_type_cpu(); }
inline int32_t device_index() { return 0; }

// Runs f(begin, end) over `items` on torch's threads; work of under 32k elements stays on this thread.
template <class F>
void parallel(int64_t items, int64_t elements_per_item, const F& f) {
  const int64_t grain = std::max<int64_t>(1, 16 * 1024 / std::max<int64_t>(1, elements_per_item));
  if (items <= 2 * grain && items * elements_per_item <= 32 * 1024) {
    if (items > 0) f(0, items);
  } else {
    torch::stable::parallel_for(0, items, grain, f);
  }
}

}  // namespace pggan_fast
