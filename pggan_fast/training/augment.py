"""Augmentation of what D sees, reals and fakes alike, so that it does not learn a small dataset by heart.

G's gradient comes through the augmentation of its images. Penalties are on gradients in D's input, the augmented
images, unless `TrainStep(penalty_on="raw")` takes them through the augmentation, whose second derivative that needs.

An augmentation is a function of the images and of `draws` uniform random numbers for each, so that a batch in parts,
on several processes too, is augmented as it would be whole.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pggan_fast.ops import grid_sample


class DiffAugment(nn.Module):
    """Colour, translation and cutout of every image (Zhao et al. 2020, "color,translation,cutout").

    Brightness +-0.5, saturation 0 to 2, contrast 0.5 to 1.5; a shift by up to 1/8 of the side; a square of half the
    side, anywhere, all filled with 0.

    `forward(images [N, C, H, W] in -1..1, uniform [N, draws] in 0..1)`, C from 1 to 4; an alpha channel (the last of 2
    or 4) is moved and cut, but keeps its values. Twice differentiable.
    """

    draws = 7

    def forward(self, images: Tensor, uniform: Tensor) -> Tensor:
        brightness, saturation, contrast = uniform[:, :3].T.reshape(3, -1, 1, 1, 1)
        color, alpha = _split_alpha(images)
        color = color + (brightness - 0.5)
        gray = color.mean(dim=1, keepdim=True)
        color = gray + (color - gray) * (2 * saturation)
        mean = color.mean(dim=(1, 2, 3), keepdim=True)
        color = mean + (color - mean) * (0.5 + contrast)
        images = _shift(torch.cat([color, alpha], dim=1), uniform[:, 3:5])
        return _cut_out(images, uniform[:, 5:7])


def _shift(images: Tensor, uniform: Tensor) -> Tensor:
    """By up to 1/8 of the side each way, zeros moving in; uniform [N, 2]."""
    n, _, height, width = images.shape
    places, inside = [], []
    for size, share in zip((height, width), uniform.T, strict=True):
        reach = round(size / 8)
        shift = (share * (2 * reach + 1)).long() - reach
        place = torch.arange(size, device=images.device) + shift[:, None]
        places.append(place.clamp(0, size - 1))
        inside.append((place >= 0) & (place < size))
    sample = torch.arange(n, device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[sample, places[0][:, :, None], places[1][:, None, :]].permute(0, 3, 1, 2)
    return moved * (inside[0][:, None, :, None] & inside[1][:, None, None, :])


def _cut_out(images: Tensor, uniform: Tensor) -> Tensor:
    """Zeros in a square of half the side whose centre is anywhere in the image; uniform [N, 2]."""
    inside = []
    for size, share in zip(images.shape[2:], uniform.T, strict=True):
        start = (share * (size + 1)).long()[:, None] - size // 4
        place = torch.arange(size, device=images.device)
        inside.append((place >= start) & (place < start + size // 2))
    return images * ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])


class AdaptiveAugment(nn.Module):
    """ADA (Karras et al. 2020): geometric and colour transforms, each with a probability p that follows overfitting.

    Args:
        target: of the share of reals above D's boundary minus the share below (their r_t). p rises while it is
            exceeded and falls otherwise.
        full_kimg: thousand images in which p would go from 0 to 1.
        p: a probability to keep, which does not adapt (but see `TrainStep.set_hyperparameters`); None adapts from 0.

    Transforms and strengths are those of their appendix B, "bgc": mirroring, turns by 90 degrees, shifts by whole
    pixels, scaling, rotation, stretching, shifts; brightness, contrast, inverted luma, hue, saturation. Two things
    differ: images are sampled bilinearly with mirrored borders instead of through wavelet filters, and the boundary is
    the middle between the mean scores of reals and fakes, since 0 means nothing to most objectives.

    `forward(images [N, C, H, W] in -1..1, uniform [N, draws] in 0..1)`, C from 1 to 4; an alpha channel (the last of 2
    or 4) is moved, but keeps its values. An image that no transform was drawn for stays as it is, to rounding. p and
    the running share are buffers: part of the state, and never read by the host. Twice differentiable in the images.
    """

    draws = 26

    def __init__(self, target: float = 0.6, full_kimg: float = 500.0, p: float | None = None):
        super().__init__()
        self.target, self.full_kimg, self.adapts = target, full_kimg, p is None
        self.register_buffer("p", torch.full((), p or 0.0))
        self.register_buffer("overfitting", torch.zeros(()))

    @torch.no_grad()
    def update(self, overfitting: Tensor, count: int) -> None:
        """After each step of D on `count` reals, with the share of them above the boundary minus that below."""
        self.overfitting.lerp_(overfitting, 0.25)  # a mean over about four batches
        self.p.add_((self.overfitting - self.target).sign() * (count / (1000 * self.full_kimg))).clamp_(0, 1)

    def forward(self, images: Tensor, uniform: Tensor) -> Tensor:
        columns = iter(uniform.T)  # each [N]

        def drawn(p: Tensor) -> Tensor:
            """1 with probability p, and 0 otherwise."""
            return (next(columns) < p).float()

        def around(width: float) -> Tensor:
            return (next(columns) - 0.5) * width

        def normal(deviation: float) -> Tensor:
            # Away from the ends, where the normal distribution has no value.
            return torch.special.ndtri(next(columns).clamp(1e-6, 1 - 1e-6)) * deviation

        return self._recolor(self._move(images, drawn, around, normal), drawn, around, normal)

    def _move(self, images, drawn, around, normal) -> Tensor:
        height, width = images.shape[2:]
        p, none = self.p, torch.zeros(len(images), device=images.device)
        p_rotation = 1 - (1 - p).sqrt()  # of each of two, so that one happens with p

        def pixels(size: int) -> Tensor:
            return (around(0.25) * size).round() / size

        # Where a place in the output is taken from, in units of half the side. Each factor is as likely as its
        # inverse, so that they are in the order of the transforms.
        place = _scaling(1 - 2 * drawn(p / 2), none + 1)
        place = place @ _rotation((around(4).ceil() * drawn(p)) * (math.pi / 2))
        shifted = drawn(p)
        place = place @ _translation(2 * pixels(width) * shifted, 2 * pixels(height) * shifted)
        scale = (normal(0.2) * drawn(p)).exp2()
        place = place @ _scaling(scale, scale)
        place = place @ _rotation(around(2 * math.pi) * drawn(p_rotation))
        stretch = (normal(0.2) * drawn(p)).exp2()
        place = place @ _scaling(stretch, 1 / stretch)
        place = place @ _rotation(around(2 * math.pi) * drawn(p_rotation))
        shifted = drawn(p)
        place = place @ _translation(2 * normal(0.125) * shifted, 2 * normal(0.125) * shifted)

        # Rotations are of pixels, which these units are not in an image that is no square.
        place[:, 0, 1] *= height / width
        place[:, 1, 0] *= width / height
        grid = F.affine_grid(place[:, :2].to(images.dtype), list(images.shape), align_corners=False)
        return grid_sample(images, grid, padding_mode="reflection")

    def _recolor(self, images, drawn, around, normal) -> Tensor:
        color, alpha = _split_alpha(images)
        channels, p = color.shape[1], self.p
        identity = torch.eye(channels, device=images.device)
        gray = torch.full((channels, channels), 1 / channels, device=images.device)  # projects on the luma axis

        def wide(values: Tensor) -> Tensor:
            return values[:, None, None]

        brightness = normal(0.2) * drawn(p)
        contrast = (normal(0.5) * drawn(p)).exp2()
        matrix = wide(contrast) * (identity - 2 * wide(drawn(p / 2)) * gray)
        if channels == 3:
            angle, saturation = wide(around(2 * math.pi) * drawn(p)), wide((normal(1.0) * drawn(p)).exp2())
            turned = (identity.roll(1, 0) - identity.roll(-1, 0)) / math.sqrt(3)  # a quarter turn around that axis
            hue = gray + angle.cos() * (identity - gray) + angle.sin() * turned
            matrix = (gray + saturation * (identity - gray)) @ hue @ matrix
        color = torch.einsum("nij,njhw->nihw", matrix.to(color.dtype), color + brightness[:, None, None, None])
        return torch.cat([color, alpha], dim=1)


def _split_alpha(images: Tensor) -> tuple[Tensor, Tensor]:
    """Colour (1 or 3 channels) and alpha (1 or none)."""
    channels = images.shape[1] - (images.shape[1] % 2 == 0)
    return images[:, :channels], images[:, channels:]


def _matrices(*rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """[N, 3, 3] of entries [N]."""
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _matrices((x, zero, zero), (zero, y, zero), (zero, zero, one))


def _rotation(angle: Tensor) -> Tensor:
    sin, cos = angle.sin(), angle.cos()
    zero, one = torch.zeros_like(sin), torch.ones_like(sin)
    return _matrices((cos, -sin, zero), (sin, cos, zero), (zero, zero, one))


def _translation(x: Tensor, y: Tensor) -> Tensor:
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _matrices((one, zero, x), (zero, one, y), (zero, zero, one))


AUGMENTS = {"diffaugment": DiffAugment, "ada": AdaptiveAugment}
