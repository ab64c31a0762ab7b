#include "kernels.h"

namespace pggan_fast {

const Kernels& kernels() {
#ifndef PGGAN_FAST_NO_X86
  static const Kernels& best = [&]() -> const Kernels& {
    const auto has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const auto has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    return has_avx512 && has_avx2 ? kernels_avx512 : has_avx2 ? kernels_avx2 : kernels_baseline;
  }();
  return best;
#else
  return kernels_baseline;
#endif
}

}  // namespace pggan_fast
