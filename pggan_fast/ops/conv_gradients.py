"""The bare convolution of equalized_conv2d and its gradients, each by torch's kernels or by ours."""

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from pggan_fast.ops.closed_conv import conv_gradients
from pggan_fast.ops.fold import empty_folded, fold_weight, unfold_gradient
from pggan_fast.ops.layout import in_layout, is_channels_last, to_layout
from pggan_fast.ops.narrow_cpu import computed_dtype, convolution, convolution_backward
from pggan_fast.ops.registry import TRITON_INSTALLED, OpFunction, will_need_grad


def fused() -> ModuleType:
    """Return ops.conv_fused, imported at its first use, since Triton may not be installed."""
    from pggan_fast.ops import conv_fused

    return conv_fused


def takes_own_kernel(direction: str, x: Tensor, weight: Tensor, geometry: tuple, impl: str, pixel_norm=False) -> bool:
    """Whether a direction of the convolution runs in a Triton kernel: by name, or on a GPU where that is faster.

    direction: "forward", with the epilogue in the same launch, "input gradient" or "weight gradient".
    """
    if impl == "triton":
        return fused().is_possible(weight, pixel_norm)
    return x.is_cuda and TRITON_INSTALLED and fused().is_faster(direction, x, weight, geometry, pixel_norm)


def _arguments(k: int, padding: int, up: int, down: int) -> tuple:
    """(stride, padding, dilation, transposed, output_padding, groups) of the folded weight's convolution."""
    stride = max(up, down)
    padding = k - 1 - padding if up == 2 else padding
    return [stride, stride], [padding, padding], [1, 1], up == 2, [0, 0], 1


def is_without_blocks(x_shape: torch.Size, k: int, geometry: tuple) -> bool:
    """Whether down=2 has no 2x2 block to take the mean of: the convolution's output is one row or column."""
    padding, _, down = geometry
    return down == 2 and 1 in (x_shape[2] + 2 * padding - k + 1, x_shape[3] + 2 * padding - k + 1)


def _empty_output(x: Tensor, weight: Tensor, geometry: tuple) -> Tensor:
    n, _, h, w = x.shape
    h, w = ((size + 2 * geometry[0] - weight.shape[-1] + 1) // 2 for size in (h, w))
    return in_layout(x.new_empty(n, weight.shape[0], h, w), is_channels_last(x))


class ScaledConvolution(NamedTuple):
    """A `closed_conv.BareConvolution`: that of equalized_conv2d, with weights times `factor`."""

    geometry: tuple[int, int, int]
    """(padding, up, down)"""
    factor: float
    impl: str

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return raw_convolution(x, weight, *self, bias)

    def gradients(
        self, dz: Tensor, x: Tensor, weight: Tensor, output_mask: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        return self.all_gradients(dz, x, weight, (*output_mask, False))[:2]

    def all_gradients(
        self, dz: Tensor, x: Tensor, weight: Tensor, output_mask: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return also the gradient of a bias, which is computed in the same pass as the weight's."""
        return raw_gradients(dz, x, weight, output_mask, *self)


class BiasedConvolution(OpFunction):
    """(x, weight, bias, conv) -> F(x, w) + bias, which torch's convolution adds as it writes."""

    @staticmethod
    def forward(ctx, x, weight, bias, conv):
        ctx.save_for_backward(x, weight)
        ctx.conv = conv
        return conv.forward(x, weight, bias)

    @staticmethod
    def backward(ctx, dz):
        x, weight = ctx.saved_tensors
        output_mask = (ctx.needs_input_grad[0], will_need_grad(ctx, 1), will_need_grad(ctx, 2))
        if not torch.is_grad_enabled():
            return *ctx.conv.all_gradients(dz, x, weight, output_mask), None
        *others, needs_db = output_mask
        return *conv_gradients(dz, x, weight, others, ctx.conv), dz.sum((0, 2, 3)) if needs_db else None, None


def raw_convolution(x, weight, geometry, factor, impl, bias=None) -> Tensor:
    """Return the convolution; with a bias, which only torch's takes, there must be an output."""
    if is_without_blocks(x.shape, weight.shape[-1], geometry):
        return _empty_output(x, weight, geometry)
    if takes_own_kernel("forward", x, weight, geometry, impl):
        return fused().convolution(x, weight, geometry, factor)
    padding, up, down = geometry
    arguments = _arguments(weight.shape[-1], padding, up, down)
    channels_last = is_channels_last(x)
    with torch._C._AutoDispatchBelowAutograd():
        if up == 2 and _slow_transposed(x):
            return _transposed(x, weight, arguments, up, down, factor, bias)
        x = x if channels_last or not x.is_contiguous() else in_layout(x, False)
        filters = fold_weight(weight, computed_dtype(x), channels_last, up, down, factor)
        return in_layout(convolution(x, filters, *arguments, bias=bias), channels_last)


def raw_gradients(dz, x, weight, output_mask, geometry, factor, impl) -> tuple[Tensor | None, ...]:
    needs_dx, needs_dw, needs_db = output_mask
    if is_without_blocks(x.shape, weight.shape[-1], geometry):
        return torch.zeros_like(x) if needs_dx else None, torch.zeros_like(weight) if needs_dw else None, None
    ours = (
        needs_dx and takes_own_kernel("input gradient", x, weight, geometry, impl),
        needs_dw and takes_own_kernel("weight gradient", x, weight, geometry, impl),
    )
    dx, dw = fused().gradients(dz, x, weight, geometry, ours, factor) if any(ours) else (None, None)
    needs_dx, needs_dw = needs_dx and not ours[0], needs_dw and not ours[1]
    if not needs_dx and not needs_dw and not needs_db:
        return dx, dw, None
    padding, up, down = geometry
    arguments = _arguments(weight.shape[-1], padding, up, down)
    channels_last = is_channels_last(x)
    with torch._C._AutoDispatchBelowAutograd():
        if needs_dx and down == 2 and _slow_transposed(x):
            needs_dx, dx = False, _input_gradient_of_down(dz, x, weight, arguments, factor)
            if not needs_dw and not needs_db:
                return dx, dw, None
        # A weight's gradient reads the weight's shape alone.
        if needs_dx:
            filters = fold_weight(weight, computed_dtype(x), channels_last, up, down, factor)
        else:
            filters = empty_folded(weight, computed_dtype(x), channels_last, up, down)
        mask = (needs_dx, needs_dw, needs_db and up == 1)  # oneDNN's transposed convolution sums by a slow loop
        found_dx, found_dw, db = convolution_backward(dz, x, filters, *arguments, output_mask=mask)
        dx = in_layout(found_dx, channels_last) if needs_dx else dx
        if needs_db:
            db = (dz.sum((0, 2, 3)) if db is None else db).to(x.dtype)
    return dx, unfold_gradient(found_dw, weight, up, down, factor) if needs_dw else dw, db


# oneDNN's transposed convolution is 2 to 6 times as fast on channels_last tensors, more than the copies cost.


def _slow_transposed(x: Tensor) -> bool:
    traced = type(x) is not Tensor  # a graph is better off with one convolution
    return x.is_cpu and x.dtype in (torch.float32, torch.bfloat16) and x.is_contiguous() and not traced


def _transposed(x, weight, arguments, up, down, factor, bias=None) -> Tensor:
    """The transposed convolution of a contiguous x, computed in channels_last; returns a contiguous tensor."""
    folded = fold_weight(weight, computed_dtype(x), True, up, down, factor)
    return to_layout(convolution(to_layout(x, True), folded, *arguments, bias=bias), False)


def _input_gradient_of_down(dz, x, weight, arguments, factor) -> Tensor:
    stride, padding, dilation, _, _, groups = arguments
    k = weight.shape[-1] + 1
    # What the forward convolution's rounding down of odd sizes left out.
    rest = [(size + 2 * p - k) % 2 for size, p in zip(x.shape[2:], padding, strict=True)]
    return _transposed(dz, weight, (stride, padding, dilation, True, rest, groups), 1, 2, factor)
