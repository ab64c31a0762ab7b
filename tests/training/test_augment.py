"""Augmentations: what each transform does to an image, that gradients pass, and how often they come."""

import colorsys

import pytest
import torch

from pggan_fast.training.augment import AUGMENTS, AdaptiveAugment, DiffAugment, _rotation, _scaling, _translation
from tests.tolerances import GRADCHECK

EACH = pytest.mark.parametrize("name", AUGMENTS)


@pytest.fixture(autouse=True)
def one_thread(threads):
    """Tensors are tiny: a second thread gains nothing, and on a busy machine it is waited for."""
    torch.set_num_threads(1)


def images(n=4, channels=3, height=8, width=8):
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def numbers(augment, n=4, seed=1):
    return torch.rand(n, augment.draws, generator=torch.Generator().manual_seed(seed))


def adaptive(p=1.0):
    augment = AdaptiveAugment()
    augment.p.fill_(p)
    return augment


@EACH
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(4, 4), (8, 12), (28, 16)])
def test_sizes_and_channels(name, channels, size):
    augment = AUGMENTS[name]() if name != "ada" else adaptive()
    x = images(4, channels, *size)
    y = augment(x, numbers(augment))
    assert y.shape == x.shape and y.dtype == x.dtype and y.isfinite().all()
    assert not torch.allclose(y[:, 0], x[:, 0])
    if channels in (2, 4):
        # Moved, and cut out, but never recoloured.
        assert y[:, -1].abs().max() <= x[:, -1].abs().max() + 1e-5


@EACH
def test_a_batch_in_parts_is_augmented_as_the_whole(name):
    augment = AUGMENTS[name]() if name != "ada" else adaptive(0.5)
    x, uniform = images(), numbers(augment)
    parts = torch.cat([augment(x[i : i + 1], uniform[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(parts, augment(x, uniform))


@EACH
@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_reach_images(name, channels):
    augment = AUGMENTS[name]() if name != "ada" else adaptive()
    x, uniform = images(2, channels, 4, 4).double().requires_grad_(), numbers(augment, 2)
    function = lambda x: augment(x, uniform)  # noqa: E731
    assert torch.autograd.gradcheck(function, (x,), **GRADCHECK)
    # Penalties on raw images differentiate an augmentation's gradient again.
    assert torch.autograd.gradgradcheck(function, (x,), **GRADCHECK)


# DiffAugment, its numbers chosen one by one: brightness, saturation, contrast, shift y and x, cut y and x

MIDDLE = [0.5, 0.5, 0.5, 0.5, 0.5]


def diff(x, *values):
    return DiffAugment()(x, torch.tensor([values]).expand(len(x), -1))


def test_diffaugment_cuts_a_square_of_half_the_side():
    x = torch.ones(1, 3, 8, 8)
    y = diff(x, *MIDDLE, 0.5, 0.5)  # its centre in the image's
    assert torch.equal(y[0, 0] == 0, torch.tensor([[2 <= i < 6 and 2 <= j < 6 for j in range(8)] for i in range(8)]))
    assert (diff(x, *MIDDLE, 0.0, 0.0)[0, 0] == 0).nonzero().tolist() == [[i, j] for i in (0, 1) for j in (0, 1)]


def test_diffaugment_shifts_by_up_to_an_eighth():
    x = images(1)
    seen = set()
    for dy in (0.0, 0.5, 0.999):
        for dx in (0.0, 0.5, 0.999):
            y = diff(x, 0.5, 0.5, 0.5, dy, dx, 0.0, 0.0)[0, :, 3:6, 3:6]
            moved = [
                (a, b)
                for a in (-1, 0, 1)
                for b in (-1, 0, 1)
                if torch.allclose(y, x[0, :, 3 + a :, 3 + b :][:, :3, :3])
            ]
            seen |= set(moved)
    assert len(seen) == 9
    y = diff(x, 0.5, 0.5, 0.5, 0.0, 0.5, 0.999, 0.999)
    assert not y[0, :, 0].any() and torch.allclose(y[0, :, 1:4, :4], x[0, :, 0:3, :4])


def test_diffaugment_colours():
    x = images(2)
    inside = (..., slice(0, 4), slice(0, 4))
    kept = (0.5, 0.5, 0.999, 0.999)  # no shift; a corner is cut

    def look(*color):
        return diff(x, *color, *kept)[inside]

    torch.testing.assert_close(look(0.5, 0.5, 0.5), x[inside])
    torch.testing.assert_close(look(0.75, 0.5, 0.5), x[inside] + 0.25)
    torch.testing.assert_close(look(0.5, 0.0, 0.5), x.mean(1, keepdim=True).expand_as(x)[inside])
    mean = x.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(look(0.5, 0.5, 0.0), (mean + (x - mean) / 2)[inside])


# ADA


def test_ada_leaves_images_alone_at_first():
    augment, x = AdaptiveAugment(), images()
    # Sampling at the places themselves rounds them in fp32.
    torch.testing.assert_close(augment(x, numbers(augment)), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_ada_uses_every_number_once(channels):
    """So that no two transforms are drawn alike."""
    augment = adaptive(0.8)
    uniform = numbers(augment)
    x = images(4, channels)
    before = augment(x, uniform)
    used = [i for i in range(augment.draws) if _matters(augment, x, uniform, i, before)]
    # Grey images have no hue and no saturation: the last four.
    assert used == list(range(augment.draws - (0 if channels == 3 else 4)))


def _matters(augment, x, uniform, column, before) -> bool:
    """Whether other numbers in this column make another image, for some choice of the gates."""
    for seed in range(12):
        changed = uniform.clone()
        changed[:, column] = torch.rand(4, generator=torch.Generator().manual_seed(seed))
        if not torch.allclose(augment(x, changed), before, atol=1e-4):
            return True
    return False


def test_ada_moves_pixels_by_rigid_turns():
    """A quarter turn, through the same matrices, is torch's own rot90; a mirror is flip; a shift is roll."""
    x = images(1)
    one = torch.ones(1)

    def look(place):
        grid = torch.nn.functional.affine_grid(place[:, :2], list(x.shape), align_corners=False)
        return torch.nn.functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)

    torch.testing.assert_close(look(_rotation(one * torch.pi / 2)), x.rot90(1, (2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(look(_scaling(-one, one)), x.flip(3), rtol=0, atol=1e-5)
    shifted = look(_translation(2 * one / 8, 0 * one))
    torch.testing.assert_close(shifted[..., :-1], x.roll(-1, 3)[..., :-1], rtol=0, atol=1e-5)


def test_ada_rotates_pixels_not_units():
    """In a wide image: a ring around the middle stays as it is, whatever the rotation."""
    height, width = 32, 48
    rows = torch.arange(height)[:, None] - (height - 1) / 2
    columns = torch.arange(width)[None] - (width - 1) / 2
    distance = (rows**2 + columns**2).sqrt()
    ring = (-((distance - 9) ** 2) / 8).exp().expand(8, 1, height, width)
    augment = adaptive()
    uniform = torch.full((8, augment.draws), 0.5)  # every gate open at p = 1; no scale, no shift, no turn
    uniform[:, 0] = 0.9  # not mirrored
    uniform[:, 8] = torch.rand(8, generator=torch.Generator().manual_seed(0))
    moved = augment._move(ring, *_fixed(uniform, augment))
    # Bilinear sampling of a curve that bends by 1/4 per pixel^2 at most errs by up to 1/8 of that.
    inside = distance < 14  # further out the mirrored border shows
    torch.testing.assert_close(moved[..., inside], ring[..., inside], rtol=0, atol=0.04)


def _fixed(uniform, augment):
    """The functions that `forward` hands on."""
    columns = iter(uniform.T)
    return (
        lambda p: (next(columns) < p).float(),
        lambda width: (next(columns) - 0.5) * width,
        lambda deviation: torch.special.ndtri(next(columns)) * deviation,
    )


def _recolored(x, *, brightness=0.5, contrast=0.5, flip=0.9, hue=0.5, saturation=0.5):
    """With open gates; 0.5 is no change."""
    uniform = torch.tensor([[brightness, 0, contrast, 0, flip, hue, 0, saturation, 0]]).expand(len(x), -1)
    return adaptive()._recolor(x, *_fixed(uniform, None))


def test_ada_colours():
    x = images(1)
    torch.testing.assert_close(_recolored(x), x)
    torch.testing.assert_close(_recolored(x, brightness=0.8413447), x + 0.2)  # one deviation
    torch.testing.assert_close(_recolored(x, contrast=0.8413447), x * 2**0.5)
    gray = x.mean(1, keepdim=True)
    torch.testing.assert_close(_recolored(x, saturation=0.8413447), gray + 2 * (x - gray))
    torch.testing.assert_close(_recolored(x, flip=0.0), x - 2 * gray)


def test_ada_turns_hues():
    """A third of a turn makes red green, green blue and blue red."""
    x = images(1)
    turned = _recolored(x, hue=0.5 + 1 / 3)
    assert torch.allclose(turned, x.roll(1, 1), atol=1e-5) or torch.allclose(turned, x.roll(-1, 1), atol=1e-5)
    red = torch.tensor([0.6, 0.3, 0.3]).reshape(1, 3, 1, 1)
    hue = colorsys.rgb_to_hsv(*_recolored(red, hue=0.5 + 1 / 3).flatten().tolist())[0]
    assert hue == pytest.approx(1 / 3, abs=1e-3) or hue == pytest.approx(2 / 3, abs=1e-3)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_ada_draws_with_probability_p(p):
    """Shares of images whose colours changed: brightness, contrast, hue or saturation with p, the flip with p / 2."""
    augment, x = adaptive(p), images(1).expand(2000, -1, -1, -1)
    uniform = numbers(augment, 2000)
    columns = iter(uniform.T[17:])
    drawn = lambda p: (next(columns) < p).float()  # noqa: E731
    around = lambda width: (next(columns) - 0.5) * width  # noqa: E731
    normal = lambda deviation: torch.special.ndtri(next(columns).clamp(1e-6, 1 - 1e-6)) * deviation  # noqa: E731
    y = augment._recolor(x, drawn, around, normal)
    same = (y - x).abs().flatten(1).amax(1) < 1e-5
    expected = (1 - p) ** 4 * (1 - p / 2)
    # A binomial share of 2,000: three deviations are 0.034 at most.
    assert same.float().mean() == pytest.approx(expected, abs=0.034)


def test_ada_follows_its_target():
    augment = AdaptiveAugment(target=0.6, full_kimg=1.0)
    for _ in range(20):
        augment.update(torch.tensor(1.0), 10)
    # The running mean passes 0.6 with the fourth update; 10 images are 0.01 of p.
    assert augment.p == pytest.approx(0.17, abs=1e-5)
    for _ in range(50):
        augment.update(torch.tensor(0.0), 10)
    assert augment.p == 0
    for _ in range(200):
        augment.update(torch.tensor(1.0), 10)
    assert augment.p == 1
