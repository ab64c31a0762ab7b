// AVX-512 where bfloat16 conversions are instructions too. An older compiler makes a second AVX-512 level of this,
// which nothing chooses.
#if defined(__GNUC__) && __GNUC__ >= 12
#pragma GCC target("avx512bf16")
#define BF16_INSTRUCTIONS
#endif
#define LEVEL level_avx512_bf16
#define KERNELS kernels_avx512_bf16
#include "level.h"
