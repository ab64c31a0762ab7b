"""The specification against compositions of torch's own functions, in fp64: what every other test relies on."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pggan_fast import reference
from tests.ops.samples import SAMPLES
from tests.tolerances import EXACT


def _act(x: Tensor, act: str, slope: float) -> Tensor:
    return {"linear": lambda: x, "relu": lambda: F.relu(x), "lrelu": lambda: F.leaky_relu(x, slope)}[act]()


def bias_act(x, bias=None, *, scale=1.0, act="lrelu", slope=0.2, gain=1.0, pixel_norm=False, eps=1e-8):
    channels_last = (x * scale).movedim(1, -1)
    y = _act(channels_last if bias is None else channels_last + bias, act, slope) * gain
    if pixel_norm:
        y = y / (y.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return y.movedim(-1, 1)


def equalized_conv2d(x, weight, bias=None, *, weight_scale=None, padding=None, up=1, down=1, act="linear", **epilogue):
    fan_in = weight.shape[1] * weight.shape[2] * weight.shape[3]
    weight_scale = math.sqrt(2 / fan_in) if weight_scale is None else weight_scale
    x = F.interpolate(x, scale_factor=2.0, mode="nearest") if up == 2 else x
    y = F.conv2d(x, weight * weight_scale, padding=weight.shape[2] // 2 if padding is None else padding)
    return bias_act(F.avg_pool2d(y, 2) if down == 2 else y, bias, act=act, **epilogue)


def equalized_linear(x, weight, bias=None, *, weight_scale=None, act="linear", **epilogue):
    weight_scale = math.sqrt(2 / weight.shape[1]) if weight_scale is None else weight_scale
    return bias_act(F.linear(x, weight * weight_scale), bias, act=act, **epilogue)


def upsample2x(x):
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def downsample2x(x):
    return F.avg_pool2d(x, 2)


def fade_in(low, high, alpha):
    return (1 - alpha) * upsample2x(low) + alpha * high


def fade_reals(images, alpha, dtype=None):
    x = images.double() / 127.5 - 1 if images.dtype == torch.uint8 else images
    return fade_in(downsample2x(x), x, alpha)


def minibatch_stddev(x, group_size=4, num_channels=1, eps=1e-8, grouping="strided", correction=0):
    n, c = x.shape[:2]
    group = next(g for g in range(group_size, 0, -1) if n % g == 0)
    of_sample = [i % (n // group) if grouping == "strided" else i // group for i in range(n)]
    maps = []
    for i in range(n):
        members = x[[j for j in range(n) if of_sample[j] == of_sample[i]]]
        # The deviation of a sample alone is 0, which torch's unbiased variance calls NaN.
        variance = members.var(0, correction=correction) if group > 1 else torch.zeros_like(members[0])
        deviation = (variance + eps).sqrt()
        maps.append(torch.stack([run.mean() for run in deviation.split(c // num_channels)]))
    return torch.cat([x, torch.stack(maps)[:, :, None, None].expand(-1, -1, *x.shape[2:])], 1)


def _axis(size: int, taps: torch.Tensor, up: int, down: int, before: int, after: int) -> torch.Tensor:
    """The matrix [out, in] of one axis for correlation with taps, entry by entry."""
    out = (size * up + before + after - len(taps)) // down + 1
    matrix = torch.zeros(out, size, dtype=taps.dtype)
    for o in range(out):
        for k, tap in enumerate(taps):
            at = o * down + k - before
            if at % up == 0 and 0 <= at // up < size:
                matrix[o, at // up] += tap
    return matrix


def upfirdn2d(x, f=None, *, up=1, down=1, padding=0, flip_filter=False, gain=1.0):
    """One dense matrix per axis for each rank of the filter."""
    (upx, upy), (downx, downy), (x0, x1, y0, y1) = (
        *(reference.each_axis(v) for v in (up, down)),
        reference.each_side(padding),
    )
    f = torch.ones(1, 1, dtype=x.dtype) if f is None else f.double()
    f = torch.outer(f, f) if f.ndim == 1 else f
    u, s, v = torch.linalg.svd(f if flip_filter else f.flip((0, 1)))
    y = 0
    for column, value, row in zip(u.T, s, v, strict=False):
        rows, columns = _axis(x.shape[2], column, upy, downy, y0, y1), _axis(x.shape[3], row, upx, downx, x0, x1)
        y = y + gain * value * torch.einsum("oh,nchw,pw->ncop", rows, x, columns)
    return y


def filtered_lrelu(
    x, fu, fd, bias=None, *, up=1, down=1, padding=0, gain=2**0.5, slope=0.2, clamp=None, flip_filter=False
):
    """The dense matrices of upfirdn2d with the activation between them."""
    x = x if bias is None else x + bias.reshape(-1, 1, 1)
    u = upfirdn2d(x, fu, up=up, padding=padding, flip_filter=flip_filter, gain=gain * up**2)
    u = torch.maximum(u, torch.zeros_like(u)) + slope * torch.minimum(u, torch.zeros_like(u))
    u = u if clamp is None else torch.minimum(torch.maximum(u, u.new_tensor(-clamp)), u.new_tensor(clamp))
    return upfirdn2d(u, fd, down=down, flip_filter=flip_filter)


def pixel_norm(x, eps=1e-8):
    return x / (x.pow(2).mean(1, keepdim=True) + eps).sqrt()


COMPARABLE = [
    s
    for s in SAMPLES
    # torch's pooling and interpolation refuse results without pixels, and a batch of none has no samples to loop over.
    if not (s.op == "downsample2x" and s.label in ("one_pixel", "row")) and not s.label.startswith("n0")
]


@pytest.mark.parametrize("sample", COMPARABLE, ids=str)
def test_reference(sample):
    def run(function, **changed):
        tensors = [t.double() if t.is_floating_point() else t for t in sample.tensors(torch.float64).values()]
        inputs = [t.requires_grad_() for t in tensors if t.is_floating_point()]
        y = function(*tensors, **sample.options | changed)
        random = torch.Generator().manual_seed(2)
        dy = torch.randn(y.shape, dtype=torch.float64, generator=random)
        return y, *(torch.autograd.grad(y, inputs, dy) if y.requires_grad else ())

    wide = {"dtype": torch.float64} if sample.op == "fade_reals" else {}
    actual, expected = run(getattr(reference, sample.op), **wide), run(globals()[sample.op])
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sample", [s for s in SAMPLES if not s.pinned], ids=str)
def test_results_have_the_dtype_of_x(sample, dtype):
    assert getattr(reference, sample.op)(*sample.tensors(dtype).values(), **sample.options).dtype == dtype


@pytest.mark.parametrize("sample", [s for s in SAMPLES if "weight" not in s.shapes and not s.pinned], ids=str)
def test_half_precision_is_rounded_once(sample):
    """Computing in fp32 from the rounded inputs and rounding the result is all that may happen."""
    tensors = sample.tensors(torch.bfloat16).values()
    function = getattr(reference, sample.op)
    wide = function(*(t.float() for t in tensors), **sample.options)
    assert torch.equal(function(*tensors, **sample.options), wide.bfloat16())


@pytest.mark.parametrize(
    ("batch", "group_size", "group"), [(0, 4, 4), (1, 4, 1), (4, 4, 4), (5, 4, 1), (6, 4, 3), (8, 4, 4), (8, 3, 2)]
)
def test_group_is_the_largest_divisor(batch, group_size, group):
    assert reference.stddev_group(batch, group_size) == group
