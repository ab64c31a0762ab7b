"""Names of op modules beside their main functions: what other code imports, calls and writes over."""

import importlib
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pggan_fast import compat, reference
from pggan_fast.compat import rosinality
from tests.compat import standins
from tests.compat.test_install import imports  # noqa: F401  (a fixture)

PACKAGES = {
    "rosinality": ("op.fused_act", "op.upfirdn2d"),
    "basicsr": ("basicsr.ops.fused_act.fused_act", "basicsr.ops.upfirdn2d.upfirdn2d"),
}
# (up, down, padding: x0, x1, y0, y1), each with values that differ between the axes
FILTERINGS = [((1, 1), (1, 1), (1, 2, 0, 1)), ((2, 1), (1, 2), (2, 1, 1, 3)), ((2, 3), (3, 2), (-1, 3, 2, -1))]


def random(*shape: int, seed: int = 0, **options) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(**options)


@pytest.fixture(params=PACKAGES)
def modules(imports, request) -> tuple[ModuleType, ModuleType]:  # noqa: F811
    imports({**standins.ROSINALITY, **standins.BASICSR})
    compat.install(request.param)
    return tuple(importlib.import_module(name) for name in PACKAGES[request.param])


@pytest.fixture
def stylegan(imports):  # noqa: F811
    imports(standins.STYLEGAN)
    compat.install("stylegan3")
    return lambda name: importlib.import_module(f"torch_utils.ops.{name}")


def check_two_orders(function, expected, *inputs: Tensor) -> None:
    """fp64 to fp64's rounding: values, gradients and gradients of those. expected: the plain PyTorch definition."""
    results = []
    for f in (function, expected):
        y = f(*inputs)
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
        first = torch.autograd.grad((y * weights).square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        results.append((y, *first, *second))
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)


def leaky(x: Tensor, bias: Tensor | None, slope: float, scale: float) -> Tensor:
    x = x if bias is None else x + bias.reshape(1, -1, *[1] * (x.ndim - 2))
    return F.leaky_relu(x, slope) * scale


@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 3, 5)], ids=str)
def test_functions_of_leaky_relu(modules, shape):
    apply = modules[0].FusedLeakyReLUFunction.apply
    x, bias = random(*shape), random(4, seed=1)
    check_two_orders(lambda x, b: apply(x, b, 0.3, 1.5), lambda x, b: leaky(x, b, 0.3, 1.5), x, bias)
    check_two_orders(lambda x: apply(x, None, 0.2, 2**0.5), lambda x: leaky(x, None, 0.2, 2**0.5), x)


@pytest.mark.parametrize("options", [(True, 0.3, 1.5), (0.3, 1.5), (True, -0.5, -2.0)], ids=str)
def test_their_gradients_of_leaky_relu(modules, options):
    """With the bias's flag and without it, as older copies; the sign is that of the output."""
    slope, scale = options[-2:]
    apply = modules[0].FusedLeakyReLUFunctionBackward.apply
    x, bias, gradient = random(2, 4, 3, 5), random(4, seed=1), random(2, 4, 3, 5, seed=2)
    out = leaky(x, bias, abs(slope), abs(scale))

    def expected(gradient: Tensor) -> Tensor:
        d = gradient * scale * torch.where(out > 0, torch.ones_like(out), slope)
        return torch.cat([d.flatten(), d.sum([0, 2, 3])])

    def ours(gradient: Tensor) -> Tensor:
        return torch.cat([t.flatten() for t in apply(gradient, out.detach(), *options)])

    check_two_orders(ours, expected, gradient)
    if slope > 0:
        of_autograd = torch.autograd.grad(out, (x, bias), gradient)
        torch.testing.assert_close(apply(gradient, out, *options), of_autograd)
    if len(options) == 3:
        assert apply(gradient, out, False, *options[1:])[1].numel() == 0


@pytest.mark.parametrize("size", [(5,), (3, 4)], ids=str)
def test_filters_of_alias_free_gan(size):
    """rosinality's upfirdn2d as it is there: one filter along both axes too, flipped or not, and a gain."""
    x, kernel = random(2, 3, 7, 6), random(*size, seed=1, requires_grad=False)
    options = dict(up=(2, 1), down=(1, 2), padding=(2, 1, 0, 3), flip_filter=True, gain=4)
    calls = (
        lambda x: rosinality.upfirdn2d(x, kernel, (2, 1), (1, 2), (2, 1, 0, 3), flip_filter=True, gain=4),
        lambda x: rosinality.upfirdn2d_native(x, kernel, 2, 1, 1, 2, 2, 1, 0, 3, flip_filter=True, gain=4),
        lambda x: rosinality.UpFirDn2d.apply(x, kernel, (2, 1), (1, 2), (2, 1, 0, 3), True, 4),
    )
    for ours in calls:
        check_two_orders(ours, lambda x: reference.upfirdn2d(x, kernel, **options), x)


@pytest.mark.parametrize(("up", "down", "pad"), FILTERINGS, ids=str)
def test_functions_of_filters(modules, up, down, pad):
    """The gradient's own function takes what the codebase's forward keeps for it, and gives autograd's gradient."""
    x, kernel = random(2, 3, 7, 6), random(3, 4, seed=1, requires_grad=False)

    def expected(x: Tensor) -> Tensor:
        return reference.upfirdn2d(x, kernel, up=up, down=down, padding=pad)

    def ours(x: Tensor) -> Tensor:
        return modules[1].UpFirDn2d.apply(x, kernel, up, down, pad)

    check_two_orders(ours, expected, x)
    torch.testing.assert_close(modules[1].upfirdn2d_native(x, kernel, *up, *down, *pad), expected(x))

    # Of the transposed filtering: zeros before are the kernel's length less one less those before the forward's.
    (height, width), (kh, kw) = x.shape[2:], kernel.shape
    out_height, out_width = expected(x).shape[2:]
    after_x = width * up[0] - out_width * down[0] + pad[0] - up[0] + 1
    after_y = height * up[1] - out_height * down[1] + pad[2] - up[1] + 1
    g_pad = (kw - pad[0] - 1, after_x, kh - pad[2] - 1, after_y)
    sizes = (x.shape, (out_height, out_width))

    def gradient(dy: Tensor) -> Tensor:
        return modules[1].UpFirDn2dBackward.apply(dy, kernel, kernel.flip([0, 1]), up, down, pad, g_pad, *sizes)

    def of_autograd(dy: Tensor) -> Tensor:
        return torch.autograd.grad(expected(x), x, dy, create_graph=True)[0]

    check_two_orders(gradient, of_autograd, random(*expected(x).shape, seed=2))


def test_functions_of_filters_take_short_arguments(modules):
    x, kernel = random(1, 2, 5, 5), torch.ones(2, 2, dtype=torch.float64)
    y = modules[1].UpFirDn2d.apply(x, kernel, (2, 2), (1, 1), (1, 0))
    torch.testing.assert_close(y, reference.upfirdn2d(x, kernel, up=2, padding=(1, 0, 1, 0)))


def test_functions_compile(modules):
    x, bias, kernel = random(1, 4, 5, 5), random(4, seed=1), torch.ones(2, 2, dtype=torch.float64)

    def function(x: Tensor, bias: Tensor) -> Tensor:
        y = modules[0].FusedLeakyReLUFunction.apply(x, bias, 0.2, 1.0)
        return modules[1].UpFirDn2d.apply(y, kernel, (1, 1), (1, 1), (0, 0, 0, 0))

    compiled = torch.compile(function, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, bias), function(x, bias))


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("flip_weight", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_convolution_inside(stylegan, transpose, flip_weight, stride):
    wrapper = stylegan("conv2d_resample")._conv2d_wrapper
    plain = F.conv_transpose2d if transpose else F.conv2d
    x, w = random(2, 4, 6, 5), random(4, 2, 3, 3, seed=1)
    options = dict(stride=stride, padding=[1, 0], groups=2)

    def expected(x: Tensor, w: Tensor) -> Tensor:
        # torch's conv2d correlates, which is the flipped convolution.
        return plain(x, w if flip_weight else w.flip([2, 3]), **options)

    check_two_orders(
        lambda x, w: wrapper(x, w, transpose=transpose, flip_weight=flip_weight, **options), expected, x, w
    )
    torch.testing.assert_close(wrapper(x, w[:, :1], groups=4), F.conv2d(x, w[:, :1], groups=4))


def test_names_that_one_module_takes_from_another(stylegan):
    """Code imports them from either."""
    resample, filters = stylegan("conv2d_resample"), stylegan("upfirdn2d")
    assert resample._parse_padding([1, 2]) == filters._parse_padding((1, 2)) == (1, 1, 2, 2)
    f = filters.setup_filter([1, 3, 3, 1])
    assert resample._get_filter_size(f) == filters._get_filter_size(f) == (4, 4)
    assert resample._get_filter_size(None) == (1, 1) and resample._get_weight_shape(torch.ones(2, 3)) == [2, 3]
    assert filters._parse_scaling(2) == (2, 2)


@pytest.mark.parametrize("function", ["conv2d_resample", "_conv2d_wrapper"])
def test_convolutions_inside_obey_no_weight_gradients(stylegan, function):
    """They are conv2d_gradfix's own there."""
    gradfix = stylegan("conv2d_gradfix")
    convolution = getattr(stylegan("conv2d_resample"), function)
    x, w = random(1, 2, 5, 5), random(3, 2, 3, 3, seed=1)
    with gradfix.no_weight_gradients():
        dx, dw = torch.autograd.grad(convolution(x=x, w=w).sum(), (x, w), allow_unused=True)
    assert dx is not None and dw is None
    (dw,) = torch.autograd.grad(convolution(x, w).sum(), w)
    torch.testing.assert_close(dw, torch.autograd.grad(F.conv2d(x, w).sum(), w)[0])
    of_function = torch.func.grad(lambda w: convolution(x, w).sum())(w)
    torch.testing.assert_close(of_function, dw)
    of_samples = torch.vmap(torch.func.grad(lambda w, x: convolution(x, w).sum()), (None, 0))(w, torch.stack([x, x]))
    torch.testing.assert_close(of_samples, torch.stack([dw, dw]))


def test_functions_of_samples_of_a_grid(stylegan):
    gradfix = stylegan("grid_sample_gradfix")
    image, grid = random(2, 3, 5, 6), (random(2, 4, 3, 2, seed=1) / 2).detach().requires_grad_()

    def plain(image: Tensor, grid: Tensor) -> Tensor:
        return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    check_two_orders(gradfix._GridSample2dForward.apply, plain, image, grid)
    dy = random(2, 3, 4, 3, seed=2)
    expected = torch.autograd.grad(plain(image, grid), (image, grid), dy)
    torch.testing.assert_close(gradfix._GridSample2dBackward.apply(dy, image, grid), expected)
    with torch.no_grad():
        constant = gradfix._GridSample2dBackward.apply(dy, image.detach(), grid.detach())
    torch.testing.assert_close(constant, expected)
    assert not constant[0].requires_grad

    def gradients(gradient_of, *inputs: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in gradient_of(*inputs)])

    def of_autograd(dy: Tensor, image: Tensor, grid: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(plain(image, grid), (image, grid), dy, create_graph=True)

    # dy alone: torch's own grid_sample has no third derivative, which the other inputs' second order would be.
    check_two_orders(
        lambda dy: gradients(gradfix._GridSample2dBackward.apply, dy, image, grid),
        lambda dy: gradients(of_autograd, dy, image, grid),
        dy,
    )


@pytest.mark.parametrize("name", ["bias_act", "upfirdn2d", "filtered_lrelu"])
def test_extensions_count_as_loaded(stylegan, name):
    """Scripts that compile ahead call `_init`, some with how much to print, and end where `_plugin` is None."""
    module = stylegan(name)
    assert module._init() is module._init("brief") is module._init(verbosity="none") is True
    assert module._plugin is not None and module._inited


def test_switching_extensions_off_changes_nothing(stylegan):
    """The many ways in which scripts do so, all by writing over names."""
    x, f, w = random(1, 2, 6, 6), torch.ones(4, 4) / 16, random(2, 2, 3, 3, seed=1)
    activation, filters, convolution = stylegan("bias_act"), stylegan("upfirdn2d"), stylegan("conv2d_resample")

    def run() -> Tensor:
        y = convolution.conv2d_resample(x, w, f, up=2, padding=1)
        return activation.bias_act(filters.downsample2d(y, f), act="lrelu")

    before = run()
    for module in (activation, filters):
        module._init, module._plugin, module._inited = lambda: False, None, True
    ours = activation.bias_act
    activation.bias_act = lambda *args, **kwargs: ours(*args, **{**kwargs, "impl": "ref"})
    gradfix, grids = stylegan("conv2d_gradfix"), stylegan("grid_sample_gradfix")
    assert gradfix._should_use_custom_op(x) and grids._should_use_custom_op()
    gradfix.enabled = grids.enabled = False
    assert not gradfix._should_use_custom_op(x) and not grids._should_use_custom_op()
    gradfix._should_use_custom_op = lambda input: False
    grids._GridSample2dBackward.forward = staticmethod(lambda ctx, *args: None)
    del grids._GridSample2dBackward.forward
    assert torch.equal(run(), before)
