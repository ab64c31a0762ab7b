#define LEVEL level_baseline
#define KERNELS kernels_baseline
#include "level.h"
