"""Small work on the CPU, where calling costs more than computing, and additions: ATen's own ops, all of whose gradients
are C++.

An autograd function of Python costs 5 to 20 us more than one of C++, forward and backward together; below the limits
here that is more than a fused kernel saves. The formulas are those of `pggan_fast.reference`. An `impl` that is asked
for by name is always taken, and torch.compile and torch.func see one op.
"""

import torch
from torch import Tensor

from pggan_fast.ops import dispatch
from pggan_fast.ops.registry import is_transformed
from pggan_fast.reference import effective_slope

# In elements of the large side: up to here ATen is as fast as the kernel (bench/bench_small.py, one thread).
ELEMENTWISE = 2048
RESCALED = 2048
RESCALED_CHANNELS_LAST = 1 << 17  # ATen's loops are good in this layout
# In multiply-adds.
PRODUCTS = 1 << 20
# The same of a convolution that is ATen's either way, up to where its double backward costs more than our calls.
CONVOLVED = 1 << 26
# In elements of the weights of all samples: up to here one product each costs less than the ops that do without.
MODULATED = 1 << 16
PLAIN_CHANNELS = 16  # of an output from which a sum for each is as fast as the kernel's
# In pixels of the large side, of the whole batch: up to here folding a weight for a 2x rescaling costs more than the
# multiply-adds that it saves, the more so where the weight is larger than a core's cache.
UNFOLDED = 256
UNFOLDED_WIDE = 1024
WIDE = 1 << 20  # elements of a weight


def is_eager(x: Tensor, impl: str) -> bool:
    """Whether x is a plain dense tensor on the CPU, outside any transform, and which implementation runs is open."""
    return (
        impl == "auto"
        and x.is_cpu
        and type(x) is Tensor
        and not torch.compiler.is_compiling()
        and not is_transformed()
        and (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last))
        and dispatch.is_native_by_default()
    )


def takes_bias_act(
    x: Tensor, bias: Tensor | None, scale: float, act: str, slope: float, gain: float, pixel_norm: bool, impl: str
) -> bool:
    """Whether `bias_act` below is faster than the kernel: for few values, and where there is nothing to fuse."""
    if pixel_norm or gain != 1 or bias is None or bias.dtype is not x.dtype or not is_eager(x, impl):
        return False
    if act == "linear" and scale == 1:  # an addition hands its gradient on without a copy
        return True
    # Not in half precision, which ATen rounds after each op.
    return x.dtype is torch.float32 and 0 < x.numel() <= ELEMENTWISE


def bias_act(x: Tensor, bias: Tensor, scale: float, act: str, slope: float) -> Tensor:
    """Return `act(scale * x + bias)` of x [N, C, *spatial]."""
    if x.ndim > 2:
        bias = bias.view(-1, 1, 1) if x.ndim == 4 else bias.view(-1, *(1,) * (x.ndim - 2))
    return activation(x + bias if scale == 1 else torch.add(bias, x, alpha=scale), act, slope)


def activation(u: Tensor, act: str, slope: float) -> Tensor:
    slope = effective_slope(act, slope)
    if slope == 0:  # a product with 0 would make NaN of infinity
        return torch.relu(u)
    return u if slope == 1 else torch._C._nn.leaky_relu(u, slope)


def takes_rescaling(x: Tensor, up: int, impl: str) -> bool:
    """Whether ATen resamples x, which is the large side or becomes `up` times as high and wide, faster."""
    if not is_eager(x, impl):  # first, since a graph must not be guarded on sizes
        return False
    return 0 < x.numel() * up * up <= (RESCALED if x.is_contiguous() else RESCALED_CHANNELS_LAST)


def takes_products(x: Tensor, weight: Tensor, pixels: int = 1) -> bool:
    """Whether ATen's convolution or product is faster: of `pixels` per sample, each the whole weight times x."""
    return 0 < x.shape[0] * pixels * weight.numel() <= PRODUCTS and weight.dtype is x.dtype


def takes_convolution(x: Tensor, weight: Tensor, pixels: int) -> bool:
    """Whether ATen's autograd of a convolution, `pixels` per sample, is faster than `closed_conv`: 60 us, both ways.

    Not in half precision, where oneDNN may leave the gradients of unreached taps unwritten.
    """
    return is_eager(x, "auto") and x.dtype.itemsize > 2 and 0 < x.shape[0] * pixels * weight.numel() <= CONVOLVED


def takes_own_weights(x: Tensor, weight: Tensor) -> bool:
    """Whether sums over a modulated weight of each sample are faster than products of squares."""
    return is_eager(x, "auto") and x.shape[0] * weight.numel() <= MODULATED


def takes_unfolded(x: Tensor, weight: Tensor, up: int, down: int) -> bool:
    """Whether a 2x rescaling and a convolution are faster one after the other than as one with a folded weight."""
    n, _, h, w = x.shape
    return up != down and n * h * w * up * up <= (UNFOLDED_WIDE if weight.numel() >= WIDE else UNFOLDED)
