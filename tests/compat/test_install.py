"""Other codebases' imports, before and after `compat.install`, and what is left when it is undone."""

import copy
import importlib
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pggan_fast import compat, ops
from tests.compat import standins

TOPS = ("torch_utils", "training", "op", "model", "basicsr", "vendored")


@pytest.fixture
def imports(tmp_path, monkeypatch):
    """Write stand-ins into a folder of the path; everything that is imported of them is forgotten at the end."""

    def forget():
        for name in [n for n in sys.modules if n.partition(".")[0] in TOPS]:
            del sys.modules[name]

    def write(files, compiles=True, under=""):
        standins.write(tmp_path / under, files, compiles)
        importlib.invalidate_caches()

    forget()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield write
    compat.uninstall()
    forget()


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["stylegan3", "stylegan2-ada", "all"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_stylegan(imports, name, when):
    imports(standins.STYLEGAN)
    if when == "before":
        from training import networks

        compat.install(name)
    else:
        compat.install(name)
        from training import networks
    layer = networks.Layer()
    y = layer(X)
    f = layer.resample_filter
    expected = ops.conv2d_resample(X, layer.weight, f, up=2, padding=1)
    expected = ops.bias_act(ops.downsample2d(expected, f), layer.bias, gain=2**0.5, clamp=256)
    torch.testing.assert_close(y, expected)
    assert isinstance(networks.filtered_lrelu(X), torch.Tensor)
    torch.testing.assert_close(networks.fma.fma(X, X, X), X * X + X)
    assert networks.bias_act.activation_funcs["lrelu"].def_gain == 2**0.5
    assert networks.upfirdn2d._get_filter_size(torch.zeros(3, 5)) == (5, 3)
    assert networks.upfirdn2d._parse_padding([1, 2]) == (1, 1, 2, 2)
    assert list(layer.state_dict()) == ["weight", "bias", "resample_filter"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_uninstall_gives_the_originals_back(imports, when):
    imports(standins.STYLEGAN)
    if when == "before":
        from training import networks
    with compat.install("stylegan3"):
        from training import networks

        assert isinstance(networks.filtered_lrelu(X), torch.Tensor)
    assert networks.upfirdn2d.upfirdn2d(X, None) == "the original upfirdn2d"
    assert networks.bias_act.bias_act(X) == "the original bias_act"
    assert networks.filtered_lrelu(X) == "the original filtered_lrelu"
    assert not hasattr(networks.upfirdn2d, "_parse_padding")
    from torch_utils.ops import fma, upfirdn2d

    assert fma.fma(1, 2, 3) == "the original fma"
    assert upfirdn2d is networks.upfirdn2d


def test_installing_twice_and_again(imports):
    imports(standins.STYLEGAN)
    from torch_utils.ops import upfirdn2d

    for _ in range(2):
        with compat.install("stylegan3"):
            with compat.install("stylegan2-ada"):  # the same modules
                assert isinstance(upfirdn2d.upfirdn2d(X, None), torch.Tensor)
            assert isinstance(upfirdn2d.upfirdn2d(X, None), torch.Tensor)
        assert upfirdn2d.upfirdn2d(X, None) == "the original upfirdn2d"


@pytest.mark.parametrize("when", ["before", "after"])
def test_rosinality(imports, when):
    imports(standins.ROSINALITY, compiles=when == "after")
    if when == "before":
        import model
    compat.install("rosinality")
    import model

    torch.manual_seed(0)
    D = model.Discriminator()
    assert list(D.state_dict()) == ["weight", "kernel", "activate.bias"]
    y = D(X)
    expected = nn.functional.conv2d(ops.upfirdn2d(X, D.kernel, padding=2), D.weight, stride=2)
    torch.testing.assert_close(y, nn.functional.leaky_relu(expected, 0.2) * 2**0.5)
    assert callable(model.upfirdn2d) and not isinstance(model.upfirdn2d, type(sys))


LAYER = """
import torch


class FusedLeakyReLU(torch.nn.Module):
    def __init__(self, channel, negative_slope=0.2, scale=2**0.5):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(channel))
        self.negative_slope, self.scale = negative_slope, scale

    def forward(self, input):
        return "the original FusedLeakyReLU"
"""


@pytest.mark.parametrize("codebase", ["rosinality", "basicsr"])
def test_layers_that_are_imported_stay_of_their_class(imports, codebase):
    """Models that live, classes derived from it and pickles go by the class; older copies take no `bias`."""
    package = {"rosinality": "op", "basicsr": "basicsr.ops.fused_act"}[codebase]
    source = {"rosinality": "op/fused_act.py", "basicsr": "basicsr/ops/fused_act/fused_act.py"}[codebase]
    layer = LAYER + standins.ORIGINAL.format(name="fused_leaky_relu")
    imports({**standins.ROSINALITY, **standins.BASICSR, source: layer}, compiles=False)
    layer_class = importlib.import_module(package).FusedLeakyReLU
    derived = type("Derived", (layer_class,), {})
    before = layer_class(3, 0.1)
    expected = nn.functional.leaky_relu(X, 0.1) * 2**0.5
    with compat.install(codebase):
        assert importlib.import_module(package).FusedLeakyReLU is layer_class
        for layer in (before, layer_class(3, 0.1), derived(3, 0.1), pickle.loads(pickle.dumps(before))):
            assert isinstance(layer, layer_class) and list(layer.state_dict()) == ["bias"]
            torch.testing.assert_close(layer(X), expected)
    assert before(X) == "the original FusedLeakyReLU"


def test_rosinality_nested_in_another_project(imports):
    """Encoders into its latent space carry a copy of it as models.stylegan2.op."""
    imports({"vendored/__init__.py": "", **{f"vendored/{k}": v for k, v in standins.ROSINALITY.items()}})
    compat.install("rosinality")
    from vendored.op import FusedLeakyReLU, upfirdn2d

    assert FusedLeakyReLU.__module__.startswith("pggan_fast")
    assert upfirdn2d(X, torch.ones(2, 2)).shape == (2, 3, 7, 7)


ACTIVATION = """{compiles}
from torch import nn


class FusedLeakyReLU(nn.Module):
    def __init__(self, channel, bias=True, negative_slope=0.2, scale=2**0.5):
        super().__init__()


def fused_leaky_relu(input, bias=None, negative_slope=0.2, scale=2**0.5):
    return "the original fused_leaky_relu"
"""
FILTERING = """{compiles}


def upfirdn2d(input, kernel, up=1, down=1, pad=(0, 0)):
    return "the original upfirdn2d"
"""
OTHERS = {  # of the same name, which do or take something else
    "extra": ACTIVATION + "\n\ndef of_its_own(x):\n    return x\n",
    "parameters": ACTIVATION.replace("negative_slope=0.2, scale=2**0.5):\n    return", "scale=1.0):\n    return"),
    "nothing": "fused_leaky_relu = None\n",
}


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_module_under_a_path_of_its_own(imports, when):
    """It is known by what its source defines."""
    package = {"vendored/__init__.py": "", "vendored/fused_act.py": ACTIVATION, "vendored/upfirdn2d.py": FILTERING}
    imports(package, compiles=when == "after")
    if when == "before":
        from vendored import upfirdn2d
        from vendored.fused_act import FusedLeakyReLU
    with compat.install():
        from vendored import upfirdn2d
        from vendored.fused_act import FusedLeakyReLU, fused_leaky_relu

        # BasicSR's takes the same, and would leave out the last two.
        assert upfirdn2d.upfirdn2d(X, torch.ones(2, 2), pad=(0, 0, 1, 1)).shape == (2, 3, 9, 7)

        torch.testing.assert_close(fused_leaky_relu(X), nn.functional.leaky_relu(X, 0.2) * 2**0.5)
        assert FusedLeakyReLU.forward.__module__ == "pggan_fast.compat.rosinality"
    imports(package, compiles=False)
    assert importlib.import_module("vendored.fused_act").fused_leaky_relu(X) == "the original fused_leaky_relu"
    assert importlib.import_module("vendored.upfirdn2d").upfirdn2d(X, None) == "the original upfirdn2d"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", OTHERS)
def test_another_module_of_the_same_name(imports, name, when):
    imports({"vendored/__init__.py": "", "vendored/fused_act.py": OTHERS[name]}, compiles=False)
    if when == "before":
        import vendored.fused_act
    compat.install()
    import vendored.fused_act

    assert vendored.fused_act.__file__.endswith("vendored/fused_act.py")
    assert not vendored.fused_act.fused_leaky_relu or isinstance(vendored.fused_act.fused_leaky_relu(X), str)


@pytest.mark.parametrize("when", ["before", "after"])
def test_basicsr(imports, when):
    imports(standins.BASICSR, compiles=when == "after")
    if when == "before":
        import basicsr.archs.arch as arch
    compat.install("basicsr")
    import basicsr.archs.arch as arch
    from basicsr.ops.fused_act.fused_act import FusedLeakyReLU
    from basicsr.ops.upfirdn2d.upfirdn2d import upfirdn2d

    assert arch.FusedLeakyReLU is FusedLeakyReLU and arch.upfirdn2d is upfirdn2d
    from basicsr.ops.upfirdn2d import upfirdn2d as of_package

    assert of_package is upfirdn2d
    assert list(FusedLeakyReLU(3).state_dict()) == ["bias"]
    torch.testing.assert_close(FusedLeakyReLU(3, 0.1, 2.0)(X), nn.functional.leaky_relu(X, 0.1) * 2.0)


def test_without_install_the_stand_ins_compile(imports):
    """Or the tests above would show nothing."""
    imports(standins.ROSINALITY)
    with pytest.raises(RuntimeError, match="would be compiled"):
        import model  # noqa: F401


def test_uninstalled_modules_are_forgotten(imports):
    imports(standins.ROSINALITY)
    with compat.install("rosinality"):
        import op.upfirdn2d  # noqa: F401
    sys.modules.pop("op", None)
    with pytest.raises(RuntimeError, match="would be compiled"):
        importlib.import_module("op")


def test_weight_gradients_can_be_switched_off(imports):
    imports(standins.STYLEGAN)
    compat.install("stylegan3")
    from torch_utils.ops import conv2d_gradfix

    assert conv2d_gradfix.weight_gradients_disabled is False
    conv2d_gradfix.enabled = True  # as trainers set it
    x, weight = X.clone().requires_grad_(), torch.randn(4, 3, 3, 3, requires_grad=True)
    for function in (conv2d_gradfix.conv2d, lambda x, w: conv2d_gradfix.conv_transpose2d(x, w.transpose(0, 1))):
        weight.grad = None
        with conv2d_gradfix.no_weight_gradients():
            assert conv2d_gradfix.weight_gradients_disabled is True
            y = function(x, weight)
            (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        assert conv2d_gradfix.weight_gradients_disabled is False
        dx.square().sum().backward()  # R1: the gradient of a gradient reaches the weights
        assert weight.grad is not None and weight.grad.any()
        weight.grad = None
        y = function(x, weight).sum()
        with conv2d_gradfix.no_weight_gradients():
            y.backward()
        assert weight.grad is None


@pytest.mark.parametrize("shape", [(5,), (), (2, 0, 4, 4), (0, 3)], ids=str)
@pytest.mark.parametrize("act", ["linear", "lrelu", "swish"])
def test_activations_take_any_shape(imports, shape, act):
    imports({**standins.STYLEGAN, **standins.ROSINALITY})
    compat.install()
    from op import fused_leaky_relu
    from torch_utils.ops import bias_act

    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = {"linear": lambda x: x, "lrelu": lambda x: nn.functional.leaky_relu(x, 0.2), "swish": nn.SiLU()}[act](x)
    torch.testing.assert_close(bias_act.bias_act(x, act=act, gain=2.0), expected * 2)
    torch.testing.assert_close(fused_leaky_relu(x, scale=2.0), nn.functional.leaky_relu(x, 0.2) * 2)


def test_activations_are_entries_with_attributes(imports):
    """Code reads theirs either way."""
    imports(standins.STYLEGAN)
    compat.install("stylegan3")
    from torch_utils.ops.bias_act import activation_funcs

    lrelu = activation_funcs["lrelu"]
    assert lrelu.def_alpha == lrelu["def_alpha"] == 0.2 and "cuda_idx" in lrelu and lrelu.get("ref") == "y"
    assert not hasattr(lrelu, "no_such_entry") and copy.deepcopy(lrelu) == lrelu
    torch.testing.assert_close(lrelu.func(X, alpha=0.5), nn.functional.leaky_relu(X, 0.5))


def test_unknown_names():
    for function in (compat.install, compat.uninstall):
        message = f"^{function.__name__}: name is 'gan', allowed: stylegan3, stylegan2-ada, rosinality, basicsr, all$"
        with pytest.raises(ValueError, match=message):
            function("gan")
        with pytest.raises(ValueError, match=f"^{function.__name__}: name is \\['stylegan3'\\], allowed: stylegan3,"):
            function(["stylegan3"])


def lines_of_the_docs() -> list[str]:
    """The code in the table "in this codebase, one line"."""
    text = (Path(__file__).parents[2] / "docs/drop-in.md").read_text(encoding="utf-8")
    table = text[text.index("| in this codebase | one line |") :].split("\n\n")[0]
    return [row.split("|")[2].strip().strip("`") for row in table.splitlines()[2:]]


@pytest.mark.parametrize("line", lines_of_the_docs())
def test_the_lines_of_the_docs(imports, line):
    """Each makes the modules of its row, which the row names, run on our ops."""
    text = (Path(__file__).parents[2] / "docs/drop-in.md").read_text(encoding="utf-8")
    imports({**standins.STYLEGAN, **standins.ROSINALITY, **standins.BASICSR})
    exec(line, {"pggan_fast": __import__("pggan_fast.compat")})
    (row,) = (row for row in text.splitlines() if f"`{line}`" in row)
    names = re.findall(r"`((?:torch_utils|op|basicsr)\.[\w.]+)`:?((?: `\w+`,?)*)", row.split("|")[3])
    modules = [f"{package}.{inside}" for package, listed in names for inside in re.findall(r"\w+", listed) or [""]]
    modules = modules or ["torch_utils.ops.fma"]  # "the same", "all of the above"
    for name in modules:
        found = importlib.import_module(name.rstrip("."))
        assert "pggan_fast" in found.__file__, name
