"""Geometries of filter ops and convolutions: numbers of any kind, and one line for what is none."""

import re

import numpy as np
import pytest
import torch

from pggan_fast import ops

X, W, S, F = torch.ones(2, 4, 8, 8), torch.ones(4, 4, 3, 3), torch.ones(2, 4), torch.ones(4, 4)
GRID = torch.zeros(2, 5, 5, 2)

WRONG = [
    ("upfirdn2d", (X, F), dict(padding=1.5), "padding is 1.5, must be a number, (x, y) or (x0, x1, y0, y1)"),
    ("upfirdn2d", (X, F), dict(padding=None), "padding is None, must be a number"),
    ("upfirdn2d", (X, F), dict(padding="ab"), "padding is ab, must be a number"),
    ("upfirdn2d", (X, F), dict(up=2.0), "up is 2.0, must be a number from 1 or a pair (x, y) of them"),
    ("upfirdn2d", (X, F), dict(down=(1, 0.5)), "down is (1, 0.5), must be a number from 1"),
    ("upfirdn2d", (X, [1.0, 2.0]), {}, "f is a list, must be a tensor or None; see setup_filter"),
    ("filter2d", (X, torch.tensor(1.0)), {}, "f has shape [], must be [taps] or [fh, fw]"),
    ("filter2d", (X, F), dict(padding=(1, 2, 3)), "padding is (1, 2, 3), must be a number"),
    ("upsample2d", (X, torch.ones(0)), {}, "f has shape [0], must be [taps] or [fh, fw]"),
    ("upsample2d", (X, F, 0), {}, "up is 0, must be a number from 1 or a pair (x, y) of them"),
    ("downsample2d", (X, F, (1, 2, 3)), {}, "down is (1, 2, 3), must be a number from 1 or a pair (x, y) of them"),
    ("setup_filter", ([[1, 2], [3]],), {}, "f is [[1, 2], [3]], must be None, a number, or taps as a list or tensor"),
    ("setup_filter", ("1331",), {}, "f is '1331', must be None, a number, or taps as a list or tensor"),
    ("setup_filter", ([1.0] * 9,), dict(gain=-1), "gain is -1, must be at least 0"),
    ("filtered_lrelu", (X,), dict(padding=1.5), "padding is 1.5, must be a number"),
    ("filtered_lrelu", (X,), dict(up=2.0), "up is 2.0, must be a number from 1"),
    ("filtered_lrelu", (X, [1.0, 2.0]), {}, "fu is a list, must be a tensor or None"),
    ("filtered_lrelu", (X,), dict(gain=float("nan")), "gain is nan and slope is 0.2, must be above 0 and at least 0"),
    ("filtered_lrelu", (X,), dict(clamp=float("nan")), "clamp is nan, must be at least 0"),
    ("bias_act", (X,), dict(gain=float("nan")), "slope is 0.2 and gain is nan, both must be at least 0"),
    ("bias_act", (X,), dict(clamp=float("nan")), "clamp is nan, must be at least 0"),
    (
        "bias_act",
        (X[0, 0, 0],),
        dict(act="swish"),
        "x has shape [8], must be [N, C, ...], or of any shape with another",
    ),
    ("conv2d", (X, W), dict(stride=1.5), "stride is 1.5, must be a number from 1 or a pair (y, x) of them"),
    ("conv2d", (X, W), dict(padding="same"), "padding is same, must be a number from 0 or a pair (y, x) of them"),
    ("conv2d_resample", (X, W), dict(padding=(1, 2, 3)), "padding is (1, 2, 3), must be a number"),
    ("conv2d_resample", (X, W), dict(up=(2, 2)), "up is (2, 2), must be a number from 1"),
    (
        "conv2d_resample",
        (X, torch.ones(3, 2, 3, 3)),
        dict(groups=2),
        "weight has 3 output channels, must be a multiple",
    ),
    ("conv2d_resample", (X, W, torch.ones(0)), {}, "f has shape [0], must be [taps] or [fh, fw]"),
    ("conv2d_resample", (X[..., :2, :1], W), {}, "the padded image is 2 x 1, must be at least 3 x 3"),
    ("conv2d_resample", (X[..., :1, :1], W, F), dict(up=2, down=2), "image is 7 x 7, must be at least 9 x 9"),
    ("modulated_conv2d", (X, W[:, :2], S), {}, "weight [C_out, C_in, kh, kw], got [2, 4, 8, 8] and [4, 2, 3, 3]"),
    ("modulated_conv2d", (X, W[0], S), {}, "weight [C_out, C_in, kh, kw], got [2, 4, 8, 8] and [4, 3, 3]"),
    ("modulated_conv2d", (X, W, S[:1]), {}, "styles has shape [1, 4], must be [2, 4]"),
    *(
        ("modulated_conv2d", (X, W, S), dict(noise=torch.ones(shape), demodulate=demodulate, fused_modconv=fused), line)
        for shape, line in (
            ((2, 1, 9, 9), "noise has shape [2, 1, 9, 9], must broadcast to [2, 4, 6, 6]"),
            ((5, 2, 1, 6, 6), "noise has shape [5, 2, 1, 6, 6], must broadcast to [2, 4, 6, 6]"),
        )
        for demodulate in (True, False)
        for fused in (True, False)
    ),
    ("modulated_conv2d_stylegan3", (X, W, S[:1]), {}, "styles has shape [1, 4], must be [2, 4]"),
    ("modulated_conv2d_stylegan3", (X[0], W, S), {}, "x must be [N, C_in, H, W] and weight [C_out, C_in, kh, kw], got"),
    ("modulated_conv2d_stylegan3", (X, W, S), dict(padding=(1, 1, 1)), "padding is (1, 1, 1), must be a number from 0"),
    ("grid_sample", (X[0], GRID), {}, "input must be [N, C, H, W] and grid [N, OH, OW, 2], got [4, 8, 8] and [2, 5, 5"),
    ("grid_sample", (X, GRID[:1]), {}, "grid [N, OH, OW, 2], got [2, 4, 8, 8] and [1, 5, 5, 2]"),
]


@pytest.mark.parametrize(("op", "args", "kwargs", "message"), WRONG)
def test_one_line(op, args, kwargs, message):
    with pytest.raises(ValueError, match=f"^{op}: .*{re.escape(message)}") as caught:
        getattr(ops, op)(*args, **kwargs)
    assert "\n" not in str(caught.value)


CALLS = {
    "upfirdn2d": lambda two, pair, four: ops.upfirdn2d(X, F, up=two, down=pair, padding=four),
    "upsample2d": lambda two, pair, four: ops.upsample2d(X, F, two, padding=pair),
    "filtered_lrelu": lambda two, pair, four: ops.filtered_lrelu(X, F, F, up=two, down=two, padding=four),
    "conv2d": lambda two, pair, four: ops.conv2d(X, W, stride=two, padding=pair),
    "conv2d_resample": lambda two, pair, four: ops.conv2d_resample(X, W, F, up=two, padding=four),
    "modulated_conv2d_stylegan3": lambda two, pair, four: ops.modulated_conv2d_stylegan3(X, W, S, padding=pair),
}


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("name", CALLS)
def test_numbers_of_numpy_count_as_numbers(name, impl):
    with ops.use_impl(impl):
        expected = CALLS[name](2, (1, 2), (4, 3, 2, 5))
        actual = CALLS[name](np.int64(2), [np.int32(1), np.int64(2)], torch.tensor([4, 3, 2, 5]).tolist())
    assert torch.equal(actual, expected)
