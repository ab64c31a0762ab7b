"""grid_sample that can be differentiated twice, as augmentations under a gradient penalty are.

torch's own is from some release on; for those before it stands a composite that gathers the four neighbours.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


def grid_sample(
    input: Tensor,
    grid: Tensor,
    *,
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Tensor:
    """Bilinear samples of images at points of a grid, as `torch.nn.functional.grid_sample`, twice differentiable.

    input [N, C, H, W], grid [N, OH, OW, 2] in -1..1 (x, y) -> [N, C, OH, OW].
    padding_mode: "zeros", "border" or "reflection".
    """
    if padding_mode not in ("zeros", "border", "reflection"):
        raise ValueError(f"grid_sample: padding_mode is {padding_mode!r}, allowed: zeros, border, reflection")
    if input.ndim != 4 or grid.ndim != 4 or grid.shape[3] != 2 or input.shape[0] != grid.shape[0]:
        raise ValueError(
            "grid_sample: input must be [N, C, H, W] and grid [N, OH, OW, 2], "
            f"got {list(input.shape)} and {list(grid.shape)}"
        )
    if torch.compiler.is_exporting() or torch_differentiates_twice():
        return F.grid_sample(input, grid, mode="bilinear", padding_mode=padding_mode, align_corners=align_corners)
    return composite(input, grid, padding_mode, align_corners)


def torch_differentiates_twice() -> bool:
    """Whether this release of torch has the second derivative of its grid_sample, which compilation takes as it is."""
    return _has_second_derivative()


# torch.compiler.assume_constant_result sets this too, and imports TorchDynamo, which takes seconds.
torch_differentiates_twice._dynamo_marked_constant = True


@functools.cache
def _has_second_derivative() -> bool:
    """Whether torch gives one that is asked for."""
    with torch.enable_grad():
        image, grid = torch.ones(1, 1, 2, 2, requires_grad=True), torch.zeros(1, 1, 1, 2, requires_grad=True)
        y = F.grid_sample(image, grid, align_corners=False)
        try:
            (gradient,) = torch.autograd.grad(y.sum(), grid, create_graph=True)
            torch.autograd.grad(gradient.sum(), image)
        except (RuntimeError, NotImplementedError):
            return False
    return True


def composite(input: Tensor, grid: Tensor, padding_mode: str, align_corners: bool) -> Tensor:
    """The same from gathers and products, which torch differentiates to any order."""
    n, c, h, w = input.shape
    x, y = (_pixels(grid[..., i], size, align_corners, padding_mode) for i, size in enumerate((w, h)))
    left, top = x.detach().floor(), y.detach().floor()
    right, bottom = x - left, y - top
    flat, total = input.flatten(2), 0
    for row, weight_y in ((top, 1 - bottom), (top + 1, bottom)):
        for column, weight_x in ((left, 1 - right), (left + 1, right)):
            inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
            index = (row.clamp(0, h - 1) * w + column.clamp(0, w - 1)).long().flatten(1)
            values = flat.gather(2, index[:, None].expand(-1, c, -1)).unflatten(2, grid.shape[1:3])
            total = total + values * (weight_x * weight_y * inside)[:, None]
    return total


def _pixels(at: Tensor, size: int, align_corners: bool, padding_mode: str) -> Tensor:
    """Coordinates in pixels of coordinates in -1..1 along an axis."""
    at = (at + 1) * ((size - 1) / 2) if align_corners else ((at + 1) * size - 1) / 2
    if padding_mode == "reflection":
        first, span = (0.0, size - 1) if align_corners else (-0.5, size)
        at = (at - first).abs()
        times = (at.detach() / max(span, 1)).floor()
        rest = at - times * span
        at = torch.where(times % 2 == 0, rest, span - rest) + first
    return at if padding_mode == "zeros" else at.clamp(0, size - 1)
