"""filtered_lrelu: StyleGAN3's activation, which works at a higher resolution to keep what it makes free of aliases."""

from torch import Tensor

from pggan_fast.ops.activations import bias_act
from pggan_fast.ops.upfirdn2d import Pair, upfirdn2d


def filtered_lrelu(
    x: Tensor,
    fu: Tensor | None = None,
    fd: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    up: int = 1,
    down: int = 1,
    padding: Pair = 0,
    gain: float = 2**0.5,
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Add a bias, upsample with fu, activate, clamp, downsample with fd (Karras et al. 2021, section 3.2):

    1. `x + bias` along channels;
    2. `upfirdn2d(..., fu, up=up, padding=padding, gain=up**2)`: the padding comes after the bias and is zero;
    3. leaky ReLU of this slope, `* gain`, limits of -clamp and clamp if given;
    4. `upfirdn2d(..., fd, down=down)`.

    x [N, C, H, W] -> [N, C, (H * up + y0 + y1 - (fu_h - 1) - (fd_h - 1) + down - 1) // down, likewise W]. fu and fd are
    constants. Twice differentiable in x and bias.
    """
    if gain <= 0:
        raise ValueError(f"filtered_lrelu: gain is {gain}, must be above 0")
    if bias is not None:
        x = bias_act(x, bias, act="linear", impl=impl)
    y = upfirdn2d(x, fu, up=up, padding=padding, flip_filter=flip_filter, gain=up**2, impl=impl)
    y = bias_act(y, act="lrelu", slope=slope, gain=gain, clamp=clamp, impl=impl)
    return upfirdn2d(y, fd, down=down, flip_filter=flip_filter, impl=impl)
