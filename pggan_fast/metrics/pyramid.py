"""The Laplacian pyramid that the sliced Wasserstein distance looks at (paper, section 5).

Written as shifted sums instead of convolutions: every weight is a power of two, so the sums of the first levels are
exact, and TF32 convolutions would round pixels to 11 bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 16  # pixels; the side of the last level is at least this


def level_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """(height, width) of every level, the image's own first.

    Raises ValueError if the image is below 16 px or if a side that has to be halved is odd.
    """
    sizes = [(height, width)]
    if min(height, width) < SMALLEST:
        raise ValueError(f"images {height}x{width}: sides must be {SMALLEST} px or more")
    while min(sizes[-1]) // 2 >= SMALLEST:
        h, w = sizes[-1]
        if h % 2 or w % 2:
            raise ValueError(f"images {height}x{width}: sides must stay even until they are below {2 * SMALLEST} px")
        sizes.append((h // 2, w // 2))
    return sizes


def pyr_down(x: Tensor) -> Tensor:
    """Blur with the 5x5 binomial filter and drop every second row and column: [N, C, H, W] -> [N, C, H/2, W/2].

    Beyond the border lies the mirrored image, without the edge pixel twice. H and W must be even.
    """
    x = F.pad(x, (2, 1, 2, 1), mode="reflect")
    return _halve(_halve(x, 2), 3).div_(256)


def pyr_up(x: Tensor) -> Tensor:
    """Put zeros between pixels and blur with 4 times the same filter: [N, C, H, W] -> [N, C, 2H, 2W].

    The border is mirrored after the zeros are in, so the pixel before the first is the second one, and the pixel
    after the last is the last one again.
    """
    return _double(_double(x, 2), 3)


def _halve(x: Tensor, axis: int) -> Tensor:
    """The sums of 5 neighbours with weights 1, 4, 6, 4, 1, at every second place: [..., 2n + 3] -> [..., n]."""
    taken = [slice(None)] * x.ndim

    def places(first: int) -> Tensor:
        taken[axis] = slice(first, x.shape[axis] + first - 4, 2)
        return x[tuple(taken)]

    return (places(0) + places(4)).add_(places(1), alpha=4).add_(places(3), alpha=4).add_(places(2), alpha=6)


def _double(x: Tensor, axis: int) -> Tensor:
    size = x.shape[axis]
    before = torch.cat([x.narrow(axis, 1, 1), x.narrow(axis, 0, size - 1)], axis)
    after = torch.cat([x.narrow(axis, 1, size - 1), x.narrow(axis, size - 1, 1)], axis)
    even = before.add_(after).add_(x, alpha=6).div_(8)
    odd = after.add_(x).div_(2)
    return torch.stack((even, odd), axis + 1).flatten(axis, axis + 1)


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """float32 levels of images [N, C, H, W] (any dtype): details at each scale, then the small blurred image.

    Raises ValueError for sizes that `level_sizes` refuses.
    """
    levels = [images.float()]
    for _ in level_sizes(*images.shape[2:])[1:]:
        smaller = pyr_down(levels[-1])
        levels[-1] = levels[-1] - pyr_up(smaller)
        levels.append(smaller)
    return levels
