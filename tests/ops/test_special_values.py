"""Infinities, NaN, zeros of either sign, subnormals and the largest values through every op and its gradients.

What is right is what plain torch functions give, chosen here without the package: a broken step shows as it would
there, and is not made worse.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pggan_fast import reference
from tests.ops.samples import laid_out

LAYOUT = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
DTYPE = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])


def specials(dtype: torch.dtype, share: float = 1.0) -> Tensor:
    """The largest values times `share`: torch multiplies what it squared by two, and makes NaN of the very largest."""
    info = torch.finfo(dtype)
    inf = float("inf")
    values = [inf, -inf, float("nan"), 0.0, -0.0, info.smallest_normal / 4, -info.smallest_normal / 4]
    return torch.tensor([*values, info.smallest_normal, share * info.max, share * info.min, 1.0, -2.0], dtype=dtype)


def crossed(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[1, S, 1, S] twice: every special value beside every other."""
    values = specials(dtype)
    size = len(values)
    first, second = torch.meshgrid(values, values, indexing="ij")
    return first.reshape(1, size, 1, size).clone(), second.reshape(1, size, 1, size).clone()


def doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def assert_same(actual: Tensor, expected: Tensor, what: object) -> None:
    """The same NaNs and infinities, and other values to a few roundings of their dtype."""
    expected = expected.to(actual.dtype)
    eps, least = torch.finfo(actual.dtype).eps, torch.finfo(actual.dtype).smallest_normal
    # Below the smallest normal number the spacing does not shrink with the value.
    torch.testing.assert_close(
        actual, expected, rtol=4 * eps, atol=4 * eps * least, equal_nan=True, msg=lambda m: f"{what}: {m}"
    )


def gradients(function: Callable, inputs: list[Tensor], dy: Tensor, g: Tensor | None = None) -> list[Tensor]:
    """y, its gradients in the inputs and, if g is given, the gradient in dy of the first one's product with g."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    dy = dy.detach().clone().requires_grad_()
    y = function(*leaves)
    first = torch.autograd.grad(y, leaves, dy.to(y.dtype), create_graph=g is not None)
    if g is None:
        return [y.detach(), *first]
    return [y.detach(), *(t.detach() for t in first), *torch.autograd.grad(first[0], dy, g.to(first[0].dtype))]


@LAYOUT
@DTYPE
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    ("options", "composite"),
    [
        ({"act": "relu"}, F.relu),
        ({"act": "relu", "gain": 2.0}, lambda u: F.relu(u) * 2),
        ({"act": "lrelu", "slope": 0.0}, F.relu),
        ({"act": "lrelu", "slope": 0.25}, lambda u: F.leaky_relu(u, 0.25)),
        ({"act": "lrelu", "slope": 2.0}, lambda u: F.leaky_relu(u, 2.0)),
        ({"act": "linear", "gain": 0.5}, lambda u: u * 0.5),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "as in torch",  # a function's name holds its address
)
def test_activations(implementation, options, composite, with_bias, dtype, layout):
    """Forward, the gradients of x and of the bias, and the gradient of those."""
    if dtype not in implementation.dtypes:
        return
    x, dy = crossed(dtype)
    g = dy.flip(1)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    bias = [torch.zeros(x.shape[1], dtype=wide)] if with_bias else []

    def plain(x: Tensor, *bias: Tensor) -> Tensor:
        u = x.to(wide)
        return composite(u + bias[0].view(1, -1, 1, 1) if bias else u).to(dtype)

    def fused(x: Tensor, *bias: Tensor) -> Tensor:
        return implementation.function("bias_act")(laid_out(x, layout), *bias, **options)

    found = gradients(fused, [x, *bias], laid_out(dy, layout), laid_out(g, layout))
    expected = gradients(plain, [x, *bias], dy, g)
    names = ["y", "dx", *(["db"] if bias else []), "d_dy"]
    for name, actual, right in zip(names, found, expected, strict=True):
        assert_same(actual, right, name)


@LAYOUT
@DTYPE
def test_pixel_norm(implementation, dtype, layout):
    """A special value in a pixel spoils that pixel as it does in torch, and no other."""
    if dtype not in implementation.dtypes:
        return
    values = specials(dtype, 0.25)
    x = torch.tensor([1.0, -2.0, 0.5], dtype=dtype).view(1, 3, 1, 1).repeat(1, 1, 1, len(values))
    x[0, 1, 0] = values
    dy = torch.tensor([0.5, 1.0, -1.0], dtype=dtype).view(1, 3, 1, 1).expand_as(x)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def plain(x: Tensor) -> Tensor:
        u = x.to(wide)
        return (u * torch.rsqrt(u.square().mean(1, keepdim=True) + 1e-8)).to(dtype)

    y, dx = gradients(lambda t: implementation.function("pixel_norm")(laid_out(t, layout)), [x], dy)
    y_right, dx_right = gradients(plain, [x], dy)
    assert_same(y, y_right, "y")
    assert torch.equal(dx.isnan(), dx_right.isnan())
    finite = dx_right.isfinite()
    # From a rounded y, with terms that cancel.
    torch.testing.assert_close(dx[finite], dx_right[finite], rtol=0, atol=8 * torch.finfo(dtype).eps)


@LAYOUT
@DTYPE
@pytest.mark.parametrize("op", ["upsample2x", "downsample2x"])
def test_resampling(implementation, op, dtype, layout):
    if dtype not in implementation.dtypes:
        return
    values = specials(dtype)
    x = torch.ones(1, 2, 2, 2 * len(values), dtype=dtype)
    x[0, 0, 0, ::2] = values

    def plain(x: Tensor) -> Tensor:
        wide = x.to(torch.float32) if dtype.itemsize == 2 else x
        return (doubled(wide) if op == "upsample2x" else F.avg_pool2d(wide, 2)).to(dtype)

    dy = torch.ones_like(plain(x))
    dy[0, 0, 0, :: dy.shape[-1] // len(values)] = values

    found = gradients(lambda t: implementation.function(op)(laid_out(t, layout)), [x], laid_out(dy, layout))
    for name, actual, right in zip(("y", "dx"), found, gradients(plain, [x], dy), strict=True):
        assert_same(actual, right, name)


ALPHAS = [0.0, 0.25, 0.5, 1.0]


@LAYOUT
@DTYPE
@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_fade_in(implementation, alpha, as_tensor, dtype, layout):
    """torch.lerp, every old value beside every new one, and its gradients."""
    if dtype not in implementation.dtypes:
        return
    low, high = crossed(dtype)
    high = doubled(high)
    dy = doubled(low.flip(1))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight = torch.tensor(alpha) if as_tensor else alpha

    def plain(low: Tensor, high: Tensor) -> Tensor:
        return torch.lerp(doubled(low.to(wide)), high.to(wide), alpha).to(dtype)

    def fused(low: Tensor, high: Tensor) -> Tensor:
        return implementation.function("fade_in")(laid_out(low, layout), laid_out(high, layout), weight)

    found, expected = gradients(fused, [low, high], laid_out(dy, layout)), gradients(plain, [low, high], dy)
    for name, actual, right in zip(("y", "d_low", "d_high"), found, expected, strict=True):
        assert_same(actual, right, name)


@LAYOUT
@DTYPE
@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_fade_reals(implementation, alpha, as_tensor, dtype, layout):
    if dtype not in implementation.dtypes:
        return
    values = specials(dtype)
    images = torch.ones(1, 2, 2, 2 * len(values), dtype=dtype)
    images[0, 0, 0, ::2] = values
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight = torch.tensor(alpha) if as_tensor else alpha

    def plain(x: Tensor) -> Tensor:
        x = x.to(wide)
        return torch.lerp(doubled(F.avg_pool2d(x, 2)), x, alpha).to(dtype)

    found = implementation.function("fade_reals")(laid_out(images, layout), weight)
    assert_same(found, plain(images), "y")


@DTYPE
def test_the_ends_of_the_fades_are_exact(implementation, dtype):
    """Beside values of any size: neither image's rounding reaches the other's digits."""
    if dtype not in implementation.dtypes:
        return
    random = torch.Generator().manual_seed(0)
    low, high = (torch.randn(s, generator=random).to(dtype) for s in ((2, 3, 5, 9), (2, 3, 10, 18)))
    for factor in (1, 1e-4, 1e4):
        old = (low * factor).to(dtype)
        for layout in ("contiguous", "channels_last"):
            fade_in, inputs = implementation.function("fade_in"), (laid_out(old, layout), laid_out(high, layout))
            fade_reals = implementation.function("fade_reals")
            for one, zero in ((1.0, 0.0), (torch.tensor(1.0), torch.tensor(0.0))):
                assert torch.equal(fade_in(*inputs, one), high), (factor, layout)
                assert torch.equal(fade_in(*inputs, zero), doubled(old)), (factor, layout)
                assert torch.equal(fade_reals(inputs[1], one), high), layout


@LAYOUT
@DTYPE
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_stddev(implementation, batch, dtype, layout):
    """In a group with a special value its position and the map break as in torch, and the copy does not."""
    if dtype not in implementation.dtypes:
        return
    random = torch.Generator().manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def plain(x: Tensor) -> Tensor:
        u = x.to(wide)
        s = ((u - u.mean(0, keepdim=True)).square().mean(0) + 1e-8).sqrt().mean().to(dtype)
        return torch.cat([x, s.expand(batch, 1, *x.shape[2:])], 1)

    for value in specials(dtype, 0.25):
        x = torch.randn(batch, 3, 2, 5, generator=random).to(dtype)
        x[0, 1, 1, 2] = value
        dy = torch.randn(batch, 4, 2, 5, generator=random).to(dtype)
        function = implementation.function("minibatch_stddev")
        y, dx = gradients(lambda t, f=function: f(laid_out(t, layout)), [x], dy)
        y_right, dx_right = gradients(plain, [x], dy)
        assert torch.equal(y[:, :3].isnan(), x.isnan()) and torch.equal(y[:, :3].nan_to_num(), x.nan_to_num()), value
        assert_same(y[:, 3:], y_right[:, 3:], value)
        assert torch.equal(dx.isnan(), dx_right.isnan()), value
        torch.testing.assert_close(dx.nan_to_num(), dx_right.nan_to_num(), rtol=0, atol=16 * torch.finfo(dtype).eps)


@LAYOUT
@pytest.mark.parametrize("pixel_norm", [True, False])
@pytest.mark.parametrize("options", [{"act": "relu"}, {"act": "lrelu"}, {"act": "lrelu", "slope": 3.0}], ids=str)
def test_a_value_that_rounds_to_zero_keeps_its_sign(implementation, options, pixel_norm, layout):
    """In fp16, where it happens: backward takes the slope of a value above zero, as eager does before a norm."""
    if torch.float16 not in implementation.dtypes:
        return
    x = torch.tensor([6e-8, -6e-8, 200.0], dtype=torch.float16).reshape(1, 3, 1, 1).repeat(1, 1, 2, 5)
    options = {**options, "scale": 0.1, "pixel_norm": pixel_norm}

    def computed(x: Tensor, function: Callable) -> list[Tensor]:
        return gradients(lambda x: function(x, **options), [x], torch.ones_like(x))

    y, dx = computed(laid_out(x, layout), implementation.function("bias_act"))
    _, exact = computed(x.double(), reference.bias_act)
    # Slopes differ by a factor of 3 at least; fp16 rounds the gradient to 2 ** -11 and its sums over channels more.
    torch.testing.assert_close(dx[:, :2].double(), exact[:, :2], rtol=1e-2, atol=0)
    assert (y[:, :2].abs() <= 2.0**-24).all()
