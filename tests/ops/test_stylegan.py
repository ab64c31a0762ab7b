"""The StyleGAN family of ops against published numbers, finite differences, and formulas of their own."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from pggan_fast import ops
from pggan_fast.ops.activations import ACTIVATIONS
from pggan_fast.ops.dispatch import unavailable_reason
from tests.ops import stylegan_golden as golden
from tests.tolerances import COMPILED, EXACT, GRADCHECK

DTYPES = (torch.float64, torch.float32)
FILTERS = ("f", "fu", "fd", "resample_filter")


@pytest.fixture(params=["native", "reference"])
def impl(request):
    if (reason := unavailable_reason(request.param, "cpu")) is not None:
        pytest.skip(reason)
    with ops.use_impl(request.param):
        yield request.param


def bias_act(x, b=None, *, dim=1, act="linear", alpha=None, gain=None, clamp=None):
    """Arguments as published: gains and slopes default to the activation's."""
    default = ACTIVATIONS[act]
    slope, gain = default.slope if alpha is None else alpha, default.gain if gain is None else gain
    return ops.bias_act(x, b, dim=dim, act=act, slope=slope, gain=gain, clamp=clamp)


def conv2d_resample(x, w, f=None, **options):
    return ops.conv2d_resample(x, w, f, **options)


def modulated_conv2d_sg3(x, w, s, input_gain=None, **options):
    return ops.modulated_conv2d_stylegan3(x, w, s, input_gain=input_gain, **options)


def filtered_lrelu(x, fu=None, fd=None, b=None, **options):
    return ops.filtered_lrelu(x, fu, fd, b, **options)


FUNCTIONS = {
    "bias_act": bias_act,
    "conv2d_resample": conv2d_resample,
    "modulated_conv2d": ops.modulated_conv2d,
    "modulated_conv2d_sg3": modulated_conv2d_sg3,
    "filtered_lrelu": filtered_lrelu,
}


# On a kink the derivative is a convention: torch's there, and others' elsewhere.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [c for c in golden.cases(*FUNCTIONS) if "_bound_" not in c.name], ids=str)
def test_golden(case, dtype, impl):
    golden.check(case, FUNCTIONS[case.op], dtype, fp32=FILTERS)


@pytest.mark.parametrize("case", [c for c in golden.cases(*FUNCTIONS) if "_bound_" in c.name], ids=str)
def test_golden_values_on_kinks(case, impl):
    out = FUNCTIONS[case.op](**golden.inputs(case, torch.float64, FILTERS), **case.kwargs)
    torch.testing.assert_close(out, golden.array(f"{case.name}/out"), **EXACT)


@pytest.mark.parametrize("way", ["torch", "composite"])
@pytest.mark.parametrize("case", golden.cases("grid_sample"), ids=str)
def test_golden_grid_sample(case, way):
    from pggan_fast.ops import grid_sample as function
    from pggan_fast.ops.grid_sample import composite, torch_differentiates_twice

    if way == "torch" and not torch_differentiates_twice():
        pytest.skip("this torch has no second derivative of grid_sample")

    def run(input, grid, mode, padding_mode, align_corners):
        assert mode == "bilinear"
        if way == "composite":
            return composite(input, grid, padding_mode, align_corners)
        return function(input, grid, padding_mode=padding_mode, align_corners=align_corners)

    golden.check(case, run, torch.float64)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("clamp", [None, 0.4])
def test_bias_act_gradients(act, dim, clamp, impl):
    random = torch.Generator().manual_seed(4)
    x = torch.randn(3, 4, 5, dtype=torch.float64, generator=random)
    bias = torch.randn(x.shape[dim], dtype=torch.float64, generator=random)
    leaves = [x.requires_grad_(), bias.requires_grad_()]

    def function(x, bias):
        return ops.bias_act(x, bias, scale=0.7, act=act, slope=0.1, gain=1.3, dim=dim, clamp=clamp)

    assert gradcheck(function, leaves, fast_mode=True, **GRADCHECK)
    assert gradgradcheck(function, leaves, fast_mode=True, **GRADCHECK)


@pytest.mark.parametrize("act", ["linear", "relu", "lrelu"])
@pytest.mark.parametrize("clamp", [None, 0.4])
def test_bias_act_second_derivatives_that_are_zero(act, clamp, impl):
    """Those of torch's activations are zeros; a bias and a clamp have none: an optimizer tells one from the other."""
    x, weight = (torch.randn(2, 3, 4, dtype=torch.float64).requires_grad_() for _ in range(2))
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    y = ops.bias_act(x * weight, bias, act=act, clamp=clamp)
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    by_bias, by_weight = torch.autograd.grad(gradient.square().sum(), (bias, weight), allow_unused=True)
    assert by_weight.any()
    assert by_bias is None if act == "linear" else impl == "reference" or not by_bias.any()


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_bias_act_rounds_half_precision_once(act, dtype, impl):
    random = torch.Generator().manual_seed(4)
    x, bias = torch.randn(3, 4, 5, generator=random).to(dtype), torch.randn(4, generator=random)
    options = dict(act=act, gain=1.3, clamp=1.0)
    expected = ops.bias_act(x.double(), bias.double(), **options)
    torch.testing.assert_close(
        ops.bias_act(x, bias, **options), expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=0
    )


def test_bias_act_with_pixel_norm_behind_it(impl):
    x, bias = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    y = ops.bias_act(x, bias, act="swish", clamp=1.0, pixel_norm=True)
    torch.testing.assert_close(y, ops.pixel_norm(ops.bias_act(x, bias, act="swish", clamp=1.0)), **EXACT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(act="gelu"), "act is 'gelu', allowed: linear, relu, lrelu, tanh, "),
        (dict(clamp=-1.0), "clamp is -1.0, must be at least 0"),
        (dict(dim=-1), "dim is -1, must be 0 to 3"),
        (dict(dim=4), "dim is 4, must be 0 to 3"),
        (dict(dim=2), r"bias has shape \[3\], must be \[4\]"),
        (dict(act="tanh", gain=-1.0), "gain is -1.0, both must be at least 0"),
    ],
    ids=str,
)
def test_bias_act_errors(options, message):
    with pytest.raises(ValueError, match=f"^bias_act: .*{message}"):
        ops.bias_act(torch.zeros(2, 3, 4, 5), torch.zeros(3), **options)


GEOMETRIES = [
    dict(),
    dict(padding=1),
    dict(padding=(2, -1, 0, 3)),
    dict(up=2, padding=1),
    dict(down=2, padding=1),
    dict(up=2, down=2, padding=1),
    dict(up=3, padding=(1, 2)),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("kernel", [1, 3, (2, 3)], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_conv2d_resample_is_its_definition(geometry, kernel, groups, impl):
    """Every shortcut against filters and a convolution one after the other."""
    random = torch.Generator().manual_seed(5)
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64, generator=random)
    weight = torch.randn(6, 4 // groups, *size, dtype=torch.float64, generator=random)
    f = torch.randn(4, 3, generator=random)
    up, down = geometry.get("up", 1), geometry.get("down", 1)
    x0, x1, y0, y1 = (torch.tensor(0), 0, 0, 0) if "padding" not in geometry else _sides(geometry["padding"])
    if up > 1:
        x0, x1, y0, y1 = x0 + (3 + up - 1) // 2, x1 + (3 - up) // 2, y0 + (4 + up - 1) // 2, y1 + (4 - up) // 2
    if down > 1:
        x0, x1, y0, y1 = x0 + (3 - down + 1) // 2, x1 + (3 - down) // 2, y0 + (4 - down + 1) // 2, y1 + (4 - down) // 2
    sides = tuple(int(s) for s in (x0, x1, y0, y1))
    y = ops.upfirdn2d(x, f if up > 1 else None, up=up, padding=sides, gain=up**2)
    y = torch.nn.functional.conv2d(y, weight.flip((2, 3)), groups=groups)
    expected = ops.upfirdn2d(y, f if down > 1 else None, down=down)
    actual = ops.conv2d_resample(x, weight, f, groups=groups, flip_weight=False, **geometry)
    torch.testing.assert_close(actual, expected, **EXACT)


@pytest.mark.parametrize("padding", [(-5, 8, 0, 0), (8, -5, 1, 1), (0, 0, -6, 9)], ids=str)
def test_conv2d_resample_crops_beyond_the_image(padding, impl):
    random = torch.Generator().manual_seed(5)
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64, generator=random)
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64, generator=random)
    expected = torch.nn.functional.conv2d(ops.upfirdn2d(x, None, padding=padding), weight)
    torch.testing.assert_close(ops.conv2d_resample(x, weight, padding=padding), expected, **EXACT)


def _sides(padding):
    return (
        (padding,) * 4
        if isinstance(padding, int)
        else padding
        if len(padding) == 4
        else [p for p in padding for _ in "ab"]
    )


@pytest.mark.parametrize("fused_modconv", [True, False, None])
@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("geometry", [dict(padding=1), dict(up=2, padding=1), dict(down=2, padding=1)], ids=str)
def test_modulated_conv2d_is_a_convolution_per_sample(geometry, n, fused_modconv, impl):
    random = torch.Generator().manual_seed(6)
    x, weight = torch.randn(n, 3, 6, 6, generator=random).double(), torch.randn(5, 3, 3, 3, generator=random).double()
    styles, f = torch.randn(n, 3, generator=random).double(), ops.setup_filter([1, 3, 3, 1])
    y = ops.modulated_conv2d(x, weight, styles, resample_filter=f, fused_modconv=fused_modconv, **geometry)
    size = {1: 6, 2: 12}[geometry.get("up", 1)] // geometry.get("down", 1)
    assert y.shape == (n, 5, size, size)
    for i in range(n):
        own = weight * styles[i][None, :, None, None]
        own = own / (own.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        expected = ops.conv2d_resample(x[i : i + 1], own, f, **geometry)
        torch.testing.assert_close(y[i : i + 1], expected, **EXACT)


def test_modulated_conv2d_in_fp16_does_not_overflow(impl):
    x, weight = torch.randn(2, 8, 6, 6).half(), torch.randn(4, 8, 3, 3)
    styles = 3e4 * torch.rand(2, 8)
    y = ops.modulated_conv2d(x, weight, styles, padding=1)
    expected = ops.modulated_conv2d(x.double(), weight.double(), styles.double(), padding=1)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=0.02 * expected.abs().max().item())


def fp16_cases():
    """x, weight and styles whose result fp16 holds, while the convolution before its scale would not fit."""
    random = torch.Generator().manual_seed(5)
    x, weight, styles = (torch.randn(s, generator=random) for s in ((2, 512, 8, 8), (4, 512, 3, 3), (2, 512)))
    zero_styles, zero_weight = styles.clone(), weight.clone()
    zero_styles[0], zero_weight[1] = 0, 0
    return {
        "large x": (4000 * x, weight, styles),
        "large everything": (4000 * x, 100 * weight, 1e4 * styles),
        "zero styles": (x, weight, zero_styles),
        "zero weight": (x, zero_weight, styles),
        "unlike samples": (1000 * x, weight, styles * torch.tensor([[1e-3], [1e3]])),
    }


@pytest.mark.parametrize("case", fp16_cases())
@pytest.mark.parametrize("fused_modconv", [True, False])
def test_modulated_conv2d_in_fp16_is_finite_where_the_result_is(case, fused_modconv):
    x, weight, styles = fp16_cases()[case]
    x = x.half()
    y = ops.modulated_conv2d(x, weight, styles, padding=1, fused_modconv=fused_modconv)
    expected = ops.modulated_conv2d(x.double(), weight.double(), styles.double(), padding=1)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=0.005 * expected.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)  # of the parameters
def test_modulated_conv2d_stylegan3_in_fp16_is_finite_where_the_result_is(dtype):
    random = torch.Generator().manual_seed(5)
    x, weight, styles = (torch.randn(s, generator=random) for s in ((2, 512, 8, 8), (4, 512, 3, 3), (2, 512)))
    x, weight, styles = (4000 * x).half(), weight.to(dtype), (100 * styles).to(dtype)
    y = ops.modulated_conv2d_stylegan3(x, weight, styles, padding=1)
    expected = ops.modulated_conv2d_stylegan3(x.double(), weight.double(), styles.double(), padding=1)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=0.005 * expected.abs().max().item())


@pytest.mark.parametrize("fused_modconv", [True, False])
def test_modulated_conv2d_without_demodulation_in_fp16(fused_modconv):
    random = torch.Generator().manual_seed(5)
    x, weight, styles = (torch.randn(s, generator=random) for s in ((2, 64, 8, 8), (3, 64, 1, 1), (2, 64)))
    x, weight, styles = (2000 * x).half(), 1e-3 * weight, 100 * styles
    options = dict(demodulate=False, fused_modconv=fused_modconv)
    y = ops.modulated_conv2d(x, weight, styles, **options)
    expected = ops.modulated_conv2d(x.double(), weight.double(), styles.double(), **options)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=0.005 * expected.abs().max().item())


def test_modulated_conv2d_gradients_in_fp16():
    """Factors moved between styles and output for fp16's range change no gradient."""
    random = torch.Generator().manual_seed(5)
    shapes = (3, 16, 8, 8), (4, 16, 3, 3), (3, 16)
    tensors = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]
    gradients = []
    for x_dtype, dtype in ((torch.float16, torch.float32), (torch.float64, torch.float64)):
        x, weight, styles = (t.to(d).requires_grad_() for t, d in zip(tensors, (x_dtype, dtype, dtype), strict=True))
        y = ops.modulated_conv2d(x, weight, styles, padding=1, fused_modconv=False)
        gradients.append(torch.autograd.grad(y.double().square().sum(), (x, weight, styles)))
    for actual, expected in zip(*gradients, strict=True):
        bound = 0.01 * expected.abs().max().item()  # sums of some hundred products rounded to 11 bits
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=bound)


COMPILABLE = {
    "modulated_conv2d": lambda x, w, s, f: ops.modulated_conv2d(x, w, s, up=2, padding=1, resample_filter=f),
    "conv2d_resample": lambda x, w, s, f: ops.conv2d_resample(x, w, f, down=2, padding=1),
    "filtered_lrelu": lambda x, w, s, f: ops.filtered_lrelu(x, f, f, s[0], up=2, down=2, padding=3, clamp=0.5),
    "bias_act": lambda x, w, s, f: ops.bias_act(x, s[0], act="swish", clamp=1.0),
    "bias_act_fused": lambda x, w, s, f: ops.bias_act(x, s[0], clamp=1.0),
}


@pytest.mark.parametrize("name", COMPILABLE)
def test_fullgraph_compilation(name, impl):
    torch._dynamo.reset()
    random = torch.Generator().manual_seed(7)
    shapes = [(2, 3, 6, 6), (4, 3, 3, 3), (2, 3)]
    tensors = [torch.randn(s, generator=random, requires_grad=True) for s in shapes]
    f, function = ops.setup_filter([1, 3, 3, 1]), COMPILABLE[name]

    def results(function):
        y = function(*tensors, f)
        return y, *torch.autograd.grad(y.square().sum(), tensors, allow_unused=True)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(results(compiled), results(function), strict=True):
        assert (actual is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(actual, expected, **COMPILED)


def test_grid_sample_refuses_modes_it_has_not():
    with pytest.raises(ValueError, match="^grid_sample: padding_mode is 'wrap', allowed: zeros, border, reflection"):
        ops.grid_sample(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 2), padding_mode="wrap")
