#include "kernels.h"

namespace pggan_fast {

const Kernels& kernels() {
#ifndef PGGAN_FAST_NO_X86
  static const Kernels& best = []() -> const Kernels& {
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")))
      return kernels_baseline;
    if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")))
      return kernels_avx2;
#if defined(__GNUC__) && __GNUC__ >= 12
    if (__builtin_cpu_supports("avx512bf16")) return kernels_avx512_bf16;
#endif
    return kernels_avx512;
  }();
  return best;
#else
  return kernels_baseline;
#endif
}

}  // namespace pggan_fast
