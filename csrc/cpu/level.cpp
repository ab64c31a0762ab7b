#include <cstdlib>
#include <string>

#include "kernels.h"

namespace pggan_fast {
namespace {

// torch's own variable, which keeps its kernels from newer instructions: "default", "avx2" or "avx512".
[[maybe_unused]] bool is_allowed(const std::string& level) {
  const char* limit = std::getenv("ATEN_CPU_CAPABILITY");
  if (!limit) return true;
  return limit == std::string("avx2") ? level == "avx2" : limit != std::string("default");
}

}  // namespace

const Kernels& kernels() {
#ifndef PGGAN_FAST_NO_X86
  static const Kernels& best = [&]() -> const Kernels& {
    const auto has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const auto has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (has_avx512 && has_avx2 && is_allowed("avx512")) return kernels_avx512;
    return has_avx2 && is_allowed("avx2") ? kernels_avx2 : kernels_baseline;
  }();
  return best;
#else
  return kernels_baseline;
#endif
}

}  // namespace pggan_fast
