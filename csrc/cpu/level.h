// All kernels of one instruction set. The includer defines LEVEL, a namespace, and KERNELS, the name of the table.
#include "activation_kernels.h"
#include "bias_act_kernels.h"
#include "fade_kernels.h"
#include "filtered_lrelu_kernels.h"
#include "kernels.h"
#include "layout_kernels.h"
#include "stddev_kernels.h"
#include "upfirdn2d_kernels.h"
#include "upsample_pixels.h"

namespace pggan_fast {

const Kernels KERNELS = {
    LEVEL::bias_act_forward,
    LEVEL::bias_act_backward,
    LEVEL::bias_act_double_backward,
    LEVEL::upsample,
    LEVEL::downsample,
    LEVEL::fade_in,
    LEVEL::fade_in_backward,
    LEVEL::fade_reals,
    LEVEL::stddev_forward,
    LEVEL::stddev_backward,
    LEVEL::stddev_double_backward,
    LEVEL::stddev_read_maps,
    LEVEL::stddev_write_maps,
    LEVEL::relayout,
    LEVEL::upfirdn2d,
    LEVEL::filtered_lrelu,
    LEVEL::activation_forward,
    LEVEL::activation_backward,
    LEVEL::activation_double_backward,
};

}  // namespace pggan_fast
