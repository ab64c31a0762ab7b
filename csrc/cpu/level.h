// All kernels of one instruction set. The includer defines LEVEL, a namespace, and KERNELS, the name of the table.
#include "bias_act_kernels.h"
#include "kernels.h"

namespace pggan_fast {

const Kernels KERNELS = {
    LEVEL::bias_act_forward,
    LEVEL::bias_act_backward,
    LEVEL::bias_act_double_backward,
};

}  // namespace pggan_fast
