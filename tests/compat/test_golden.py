"""Functions under other codebases' names and signatures against the numbers that the originals gave."""

from types import ModuleType

import pytest
import torch

from pggan_fast.compat import basicsr, rosinality, stylegan
from pggan_fast.compat.gradfix import conv2d_gradfix
from tests.ops import stylegan_golden as golden

FUNCTIONS = {
    name: getattr(stylegan, name)
    for name in ("upfirdn2d", "filter2d", "upsample2d", "downsample2d", "bias_act", "conv2d_resample", "filtered_lrelu")
}


def _without_filter(function):
    return lambda x, f=None, **options: function(x, f, **options)


for _name in ("upfirdn2d", "filter2d", "upsample2d", "downsample2d"):
    FUNCTIONS[_name] = _without_filter(FUNCTIONS[_name])
for _project, _module in (("rosinality", rosinality), ("basicsr", basicsr)):
    FUNCTIONS[f"{_project}.fused_leaky_relu"] = _module.fused_leaky_relu
    FUNCTIONS[f"{_project}.upfirdn2d"] = _module.upfirdn2d


def _of_module(kind):
    def call(input, bias=None, **options):
        # The channels are the module's first argument; it makes its own bias, which the case sets.
        options.pop("channel", None)
        if not isinstance(bias, torch.Tensor):
            return kind(input.shape[1], **options, **({} if bias is None else {"bias": bias}))(input)
        return torch.func.functional_call(kind(input.shape[1], **options), {"bias": bias}, (input,))

    return call


FUNCTIONS["rosinality.FusedLeakyReLU"] = _of_module(rosinality.FusedLeakyReLU)
FUNCTIONS["basicsr.FusedLeakyReLU"] = _of_module(basicsr.FusedLeakyReLU)


CASES = [
    (case, given)
    for case in golden.cases(*FUNCTIONS)
    if "_bound_" not in case.name
    for given in ([{}] if "." in case.op or case.op == "conv2d_resample" else [{}, {"impl": "ref"}])
]


@pytest.mark.parametrize(("case", "given"), CASES, ids=str)
def test_golden(case, given):
    golden.check(case, lambda **k: FUNCTIONS[case.op](**k, **given), torch.float64, fp32=("f", "fu", "fd"))


@pytest.mark.parametrize("case", golden.cases("setup_filter"), ids=str)
def test_golden_setup_filter(case):
    torch.testing.assert_close(
        stylegan.setup_filter(**case.kwargs), golden.array(f"{case.name}/out"), rtol=3e-7, atol=0
    )


@pytest.mark.parametrize("call", [stylegan.upfirdn2d, stylegan.filtered_lrelu, stylegan.bias_act])
def test_an_unknown_impl_fails_an_assertion(call):
    with pytest.raises(AssertionError, match="impl is 'fast'"):
        call(torch.zeros(1, 1, 2, 2), None, impl="fast")


def test_negative_gains_and_slopes(golden_x=torch.randn(2, 3, 4, 4, dtype=torch.float64)):  # noqa: B008
    bias = torch.randn(3, dtype=torch.float64)
    biased = golden_x + bias[:, None, None]
    expected = (torch.nn.functional.leaky_relu(biased, -0.5) * -2).clamp(-1, 1)
    torch.testing.assert_close(stylegan.bias_act(golden_x, bias, act="lrelu", alpha=-0.5, gain=-2, clamp=1), expected)
    actual = rosinality.fused_leaky_relu(golden_x, bias, -0.5, -2.0)
    torch.testing.assert_close(actual, torch.nn.functional.leaky_relu(biased, -0.5) * -2)


def test_convolutions_take_torchs_arguments_in_their_own_order():
    module = ModuleType("gradfix")
    vars(module).update(conv2d_gradfix(module))
    x, w, b = torch.randn(1, 4, 9, 9), torch.randn(6, 2, 3, 3), torch.randn(6)
    torch.testing.assert_close(module.conv2d(x, w, b, 2, 1, 2, 2), torch.nn.functional.conv2d(x, w, b, 2, 1, 2, 2))
    w = torch.randn(4, 3, 3, 3)
    expected = torch.nn.functional.conv_transpose2d(x, w, b, 2, 1, 1, 2, 1)
    torch.testing.assert_close(module.conv_transpose2d(x, w, b, 2, 1, 1, 2, 1), expected)


def test_grid_sample_and_fma_broadcast():
    a, b, c = torch.randn(2, 3, 4), torch.randn(3, 1), torch.randn(1)
    torch.testing.assert_close(stylegan.fma(a, b, c), a * b + c)
    image, grid = torch.randn(1, 2, 5, 6), torch.rand(1, 3, 4, 2) * 2 - 1
    expected = torch.nn.functional.grid_sample(image, grid, align_corners=False)
    torch.testing.assert_close(stylegan.grid_sample(image, grid), expected)
