#define LEVEL level_avx512
#define KERNELS kernels_avx512
#include "level.h"
