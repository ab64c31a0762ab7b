"""Wrong arguments: one line that names the argument, its value and what is allowed."""

import re

import pytest
import torch

from pggan_fast import _native, ops

NATIVE = pytest.mark.skipif(not _native.cpu_available, reason=_native.cpu_reason)

X = torch.zeros(4, 6, 4, 4)
Y = torch.zeros(4, 7, 4, 4)
W = torch.zeros(5, 6, 3, 3)
L = torch.zeros(5, 6)
HALF = torch.tensor(0.5)
NORM = (1.0, "lrelu", 0.2, 1.0, True)

CASES = [
    ("bias_act", (X,), {"act": "gelu"}, "act is 'gelu', allowed: linear, relu, lrelu, tanh, sigmoid, elu, selu, "),
    ("bias_act", (X,), {"slope": -0.1}, "slope is -0.1 and gain is 1.0, both must be at least 0"),
    ("bias_act", (X,), {"gain": -2.0}, "slope is 0.2 and gain is -2.0, both must be at least 0"),
    ("bias_act", (X, torch.zeros(5)), {}, "bias has shape [5], must be [6]"),
    ("bias_act", (X, torch.zeros(6, 1, 1)), {}, "bias has shape [6, 1, 1], must be [6]"),
    ("bias_act", (torch.zeros(7),), {}, "x must be [N, C, ...] with at least one channel"),
    ("bias_act", (torch.zeros(2, 0, 4, 4),), {}, "x must be [N, C, ...] with at least one channel"),
    ("bias_act", ("x",), {}, "x is a str, must be a tensor"),
    (
        "fade_reals",
        (X, 0.5),
        {"dtype": torch.int32},
        "dtype is torch.int32, allowed: float32, bfloat16, float16, float64",
    ),
    ("pixel_norm", (torch.zeros(7),), {}, "x must be [N, C, ...] with at least one channel"),
    ("equalized_conv2d", (X, torch.zeros(5, 7, 3, 3)), {}, "got [4, 6, 4, 4] and [5, 7, 3, 3]"),
    (
        "equalized_conv2d",
        (X, torch.zeros(5, 6, 3, 1)),
        {},
        "[C_out, C_in, k, k], got [4, 6, 4, 4] and [5, 6, 3, 1]",
    ),
    ("equalized_conv2d", (X[0], W), {}, "x must be [N, C_in, H, W] and weight"),
    ("equalized_conv2d", (X, W), {"up": 3}, "up=3 and down=1, each must be 1 or 2, and not both 2"),
    ("equalized_conv2d", (X, W), {"up": 2, "down": 2}, "up=2 and down=2, each must be 1 or 2, and not both 2"),
    ("equalized_conv2d", (X, W), {"padding": -1}, "padding is -1, must be 0 to 3"),
    ("equalized_conv2d", (X, W), {"padding": 3, "up": 2}, "padding is 3, must be 0 to 2"),
    ("equalized_conv2d", (X, torch.zeros(5, 6, 4, 4)), {}, "a kernel of even size 4 needs an explicit padding"),
    ("equalized_conv2d", (X, W, torch.zeros(6)), {}, "bias has shape [6], must be [5]"),
    ("equalized_conv2d", (X, W), {"act": "tanh"}, "act is 'tanh', allowed: linear, relu, lrelu"),
    (
        "equalized_linear",
        (L, torch.zeros(5, 7)),
        {},
        "weight [C_out, C_in], got [5, 6] and [5, 7]",
    ),
    ("equalized_linear", (X, L), {}, "x must be [N, C_in] and weight [C_out, C_in]"),
    ("equalized_linear", (L, L, torch.zeros(6)), {}, "bias has shape [6], must be [5]"),
    ("upsample2x", (X[0],), {}, "x must be [N, C, H, W], got [6, 4, 4]"),
    ("downsample2x", (X[None],), {}, "x must be [N, C, H, W], got [1, 4, 6, 4, 4]"),
    ("fade_in", (X, X, 0.5), {}, "high [N, C, 2H, 2W], got [4, 6, 4, 4] and [4, 6, 4, 4]"),
    ("fade_in", (X[..., :2, :2], X.double(), 0.5), {}, "low is torch.float32 and high is torch.float64"),
    (
        "fade_in",
        (X[..., :2, :2], X, HALF[None]),
        {},
        "alpha must be a float or a 0-d fp32 tensor, got [1]",
    ),
    (
        "fade_in",
        (X[..., :2, :2], X, HALF.double()),
        {},
        "a float or a 0-d fp32 tensor, got [] torch.float64",
    ),
    ("fade_reals", (X[..., :3, :], 0.5), {}, "images are 3 x 4, height and width must be even"),
    ("fade_reals", (X.long(), 0.5), {}, "images is torch.int64, allowed: float32, bfloat16, float16, float64, uint8"),
    ("fade_reals", (X[0], 0.5), {}, "must be [N, C, H, W], got [6, 4, 4]"),
    ("fade_reals", (X, HALF.half()), {}, "alpha must be a float or a 0-d fp32 tensor, got [] torch.float16"),
    ("upfirdn2d", (X[0],), {}, "x must be [N, C, H, W], got [6, 4, 4]"),
    ("upfirdn2d", (X, W), {}, "f has shape [5, 6, 3, 3], must be [taps] or [fh, fw]"),
    ("upfirdn2d", (X, torch.zeros(0)), {}, "f has shape [0], must be [taps] or [fh, fw]"),
    ("upfirdn2d", (X, torch.ones(2, requires_grad=True)), {}, "f requires a gradient, must be a constant (f.detach())"),
    ("upfirdn2d", (X,), {"up": 0}, "up is 0, must be a number from 1 or a pair (x, y) of them"),
    ("upfirdn2d", (X,), {"down": (1, 2, 3)}, "down is (1, 2, 3), must be a number from 1 or a pair (x, y) of them"),
    ("upfirdn2d", (X,), {"padding": (1, 2, 3)}, "padding is (1, 2, 3), must be a number, (x, y) or (x0, x1, y0, y1)"),
    ("upfirdn2d", (X, L), {"padding": (0, 1)}, "the padded image is 6 x 4, must be at least the filter's 5 x 6"),
    ("filtered_lrelu", (X[0],), {}, "x must be [N, C, H, W], got [6, 4, 4]"),
    ("filtered_lrelu", (X,), {"up": 0}, "up is 0, must be a number from 1"),
    ("filtered_lrelu", (X,), {"down": (2, 2)}, "down is (2, 2), must be a number from 1"),
    ("filtered_lrelu", (X, W), {}, "fu has shape [5, 6, 3, 3], must be [taps] or [fh, fw]"),
    ("filtered_lrelu", (X, None, torch.zeros(0)), {}, "fd has shape [0], must be [taps] or [fh, fw]"),
    ("filtered_lrelu", (X, torch.ones(2, requires_grad=True)), {}, "fu requires a gradient, must be a constant"),
    ("filtered_lrelu", (X, None, None, torch.zeros(2)), {}, "bias has shape [2], must be [6]"),
    ("filtered_lrelu", (X,), {"gain": 0.0}, "gain is 0.0 and slope is 0.2, must be above 0 and at least 0"),
    ("filtered_lrelu", (X,), {"slope": -1.0}, "slope is -1.0, must be above 0 and at least 0"),
    ("filtered_lrelu", (X,), {"clamp": -1.0}, "clamp is -1.0, must be at least 0"),
    ("filtered_lrelu", (X,), {"padding": (1, 2, 3)}, "padding is (1, 2, 3), must be a number, (x, y)"),
    ("filtered_lrelu", (X, L), {"padding": (0, 1)}, "the padded image is 6 x 4, must be at least the filters' 5 x 6"),
    ("minibatch_stddev", (X,), {"grouping": "random"}, "grouping is 'random', allowed: strided, consecutive"),
    ("minibatch_stddev", (X, 0), {}, "group_size is 0 and num_channels 1, both must be at least 1"),
    ("minibatch_stddev", (X, 4, 4), {}, "num_channels must divide the 6 channels"),
    ("minibatch_stddev", (X, 4, 0), {}, "group_size is 4 and num_channels 0, both must be at least 1"),
    ("minibatch_stddev", (X[0],), {}, "x must be [N, C, H, W], got [6, 4, 4]"),
]


@pytest.mark.parametrize("impl", ["reference", "auto"])
@pytest.mark.parametrize(("op", "args", "kwargs", "message"), CASES)
def test_one_line(op, args, kwargs, message, impl):
    with pytest.raises(ValueError, match=f"^{op}: .*{re.escape(message)}") as caught:
        getattr(ops, op)(*args, **kwargs, impl=impl)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("up", [1, 2])
def test_the_filter_of_a_modulated_convolution(up):
    """It is refused by the name that it has there, where nothing is resampled too."""
    trained = torch.ones(4, requires_grad=True)
    for f, problem in ((W, "has shape [5, 6, 3, 3], must be"), (trained, "requires a gradient")):
        with pytest.raises(ValueError, match=f"^modulated_conv2d: resample_filter {re.escape(problem)}"):
            ops.modulated_conv2d(X, W, torch.ones(4, 6), up=up, padding=1, resample_filter=f)


# Where torch's own functions would give integers, or fail in lines of their own.
FLOATING = {
    "bias_act": (X,),
    "pixel_norm": (X,),
    "equalized_conv2d": (X, W),
    "equalized_linear": (L, L),
    "upsample2x": (X,),
    "downsample2x": (X,),
    "minibatch_stddev": (X,),
    "fade_in": (X[..., :2, :2], X, 0.5),
    "upfirdn2d": (X,),
    "filtered_lrelu": (X,),
    "conv2d": (X, W),
    "conv2d_resample": (X, W),
    "modulated_conv2d": (X, W, torch.ones(4, 6)),
    "modulated_conv2d_stylegan3": (X, W, torch.ones(4, 6)),
}


@pytest.mark.parametrize("op", FLOATING)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_other_dtypes_are_refused(op, dtype):
    args = [a.to(dtype) if a is X else a for a in FLOATING[op]]
    args[0] = args[0].to(dtype)
    with pytest.raises(ValueError, match=rf"^{op}: (x|low) is {dtype}, allowed: float32, bfloat16, float16, float64$"):
        getattr(ops, op)(*args)


@NATIVE
@pytest.mark.parametrize(
    "call",
    [
        lambda op: op.bias_act(X, torch.zeros(5)),
        lambda op: op.bias_act(X, None, 1.0, "swish"),
        lambda op: op.bias_act(X, None, 1.0, "lrelu", -1.0),
        lambda op: op.bias_act(X.long()),
        lambda op: op.bias_act_(X.clone(), torch.zeros(7)),
        lambda op: op.bias_act_backward(X, None, X[:2], None),
        lambda op: op.bias_act_backward(X[:, :5], None, X, None),
        lambda op: op.bias_act_backward(X, X[:1, :1], X, X[:, :1], *NORM),
        lambda op: op.bias_act_backward(X, None, X, X[:2, :1], *NORM),
        lambda op: op.bias_act_backward(X, None, X, X, *NORM),
        lambda op: op.bias_act_backward(X, None, X, None, *NORM),
        lambda op: op.bias_act_double_backward(X[:3], None, X, None, X, X[:, :1], *NORM),
        lambda op: op.bias_act_double_backward(X, torch.zeros(5), X, None, X, X[:, :1], *NORM),
        lambda op: op.bias_act_double_backward(X, None, X[:3], None, X, X[:, :1], *NORM),
        lambda op: op.fold_weight(W[..., :2], 1.0, True, torch.float32, False),
        lambda op: op.fold_weight(W[0], 1.0, True, torch.float32, False),
        lambda op: op.unfold_weight(W[..., :2, :], 1.0, True, torch.float32, False),
        lambda op: op.fade_in(X, X, None, 0.5),
        lambda op: op.fade_reals(X[..., :3, :], None, 0.5, torch.float32),
        lambda op: op.minibatch_stddev(X, 3, 1, 1e-8, True, 0),
        lambda op: op.minibatch_stddev(X, 4, 4, 1e-8, True, 0),
        lambda op: op.minibatch_stddev_backward(X, X, 4, 1, 1e-8, True, 0),
        lambda op: op.minibatch_stddev_double_backward(X[:2], Y, X, 4, 1, 1e-8, True, 0),
        lambda op: op.minibatch_stddev_double_backward(X, Y[:2], X, 4, 1, 1e-8, True, 0),
        lambda op: op.downsample2x(X[0]),
        lambda op: op.upsample2x(X.long()),
        lambda op: op.upfirdn2d(X[0], L),
        lambda op: op.upfirdn2d(X, W),
        lambda op: op.upfirdn2d(X, torch.zeros(0)),
        lambda op: op.upfirdn2d(X, L[:1, :1], 0),
        lambda op: op.upfirdn2d(X, torch.ones(9)),
        lambda op: op.upfirdn2d(X.long(), L[:1, :1]),
    ],
)
def test_ops_called_directly_check_too(call):
    """A kernel in C++ would read past its arguments' ends."""
    with pytest.raises((ValueError, RuntimeError, IndexError, TypeError)):
        call(torch.ops.pggan_fast)
