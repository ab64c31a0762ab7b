#define LEVEL level_avx2
#define KERNELS kernels_avx2
#include "level.h"
