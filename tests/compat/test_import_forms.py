"""The many ways in which code imports op modules, each before and after `compat.install`."""

import importlib
import importlib.util
import inspect
import io
import pickle
import sys
import types

import pytest
import torch

from pggan_fast import compat
from tests.compat import standins
from tests.compat.test_install import X, imports  # noqa: F401  (a fixture)

FILTER = torch.ones(2, 2) / 4
# (the stand-ins that are there, a module `user` that imports them, an expression of it that must be a tensor)
FORMS = {
    "module": (standins.STYLEGAN, "from torch_utils.ops import bias_act", "user.bias_act.bias_act(X)"),
    "module_as": (standins.STYLEGAN, "import torch_utils.ops.upfirdn2d as u", "user.u.upfirdn2d(X, FILTER)"),
    "dotted": (standins.STYLEGAN, "import torch_utils.ops.fma", "user.torch_utils.ops.fma.fma(X, X, X)"),
    "star": (standins.STYLEGAN, "from torch_utils.ops.upfirdn2d import *", "user.filter2d(X, FILTER)"),
    "star_of_package": (standins.ROSINALITY, "from op import *", "user.upfirdn2d(X, FILTER)"),
    "package": (standins.ROSINALITY, "import op", "user.op.fused_leaky_relu(X)"),
    "renamed": (standins.ROSINALITY, "from op import fused_leaky_relu as act", "user.act(X)"),
    "of_module_inside": (standins.ROSINALITY, "from op.upfirdn2d import upfirdn2d", "user.upfirdn2d(X, FILTER)"),
    "importlib": (
        standins.STYLEGAN,
        "import importlib\nu = importlib.import_module('torch_utils.ops.upfirdn2d')",
        "user.u.upfirdn2d(X, FILTER)",
    ),
    "importlib_relative": (
        standins.STYLEGAN,
        "import importlib\nu = importlib.import_module('.bias_act', package='torch_utils.ops')",
        "user.u.bias_act(X)",
    ),
    "dunder_import": (
        standins.STYLEGAN,
        "u = __import__('torch_utils.ops.bias_act', fromlist=['bias_act'])",
        "user.u.bias_act(X)",
    ),
    "inside_a_function": (
        standins.STYLEGAN,
        "def run(x):\n    from torch_utils.ops import bias_act\n    return bias_act.bias_act(x)",
        "user.run(X)",
    ),
    "or_none": (
        standins.BASICSR,
        "try:\n    from basicsr.ops.fused_act import fused_leaky_relu as act\nexcept ImportError:\n    act = None",
        "user.act(X, None)",
    ),
    "in_a_table": (
        standins.BASICSR,
        "from basicsr.ops.upfirdn2d import upfirdn2d\nOPS = {'up': upfirdn2d, 'all': [upfirdn2d]}",
        "user.OPS['up'](X, FILTER) + user.OPS['all'][0](X, FILTER)",
    ),
    "class_attribute": (
        standins.ROSINALITY,
        "from op import upfirdn2d\n\n\nclass Layer:\n    up = staticmethod(upfirdn2d)\n",
        "user.Layer.up(X, FILTER)",
    ),
    "default_argument": (
        standins.ROSINALITY,
        "from op import upfirdn2d\n\n\ndef run(x, f, up=upfirdn2d, *, act=upfirdn2d):\n    return up(x, f) + act(x, f)",
        "user.run(X, FILTER)",
    ),
    "method_default": (
        standins.ROSINALITY,
        "from op import fused_leaky_relu\n\n\nclass Layer:\n    def run(self, x, act=fused_leaky_relu):\n"
        "        return act(x)\n",
        "user.Layer().run(X)",
    ),
    "partial": (
        standins.STYLEGAN,
        "from functools import partial\nfrom torch_utils.ops.bias_act import bias_act as b\n"
        "act = partial(b, act='relu')",
        "user.act(X)",
    ),
    "reference_path": (
        standins.STYLEGAN,
        "from torch_utils.ops import bias_act, filtered_lrelu, upfirdn2d",
        "user.upfirdn2d._upfirdn2d_ref(X, FILTER) + user.bias_act._bias_act_ref(X)[..., 1:, 1:]"
        " + user.filtered_lrelu._filtered_lrelu_ref(X)[..., 1:, 1:]",
    ),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("form", FORMS)
def test_form(imports, form, when):  # noqa: F811
    files, text, expression = FORMS[form]
    imports({**files, "vendored/__init__.py": "", "vendored/user.py": text}, compiles=when == "after")
    if when == "after":
        compat.install()
    user = importlib.import_module("vendored.user")
    if when == "before":
        compat.install()
    names = {"user": user, "X": X, "FILTER": FILTER}
    assert isinstance(eval(expression, names), torch.Tensor)
    compat.uninstall()
    if when == "before" and form != "reference_path":
        assert "the original" in str(eval(expression, names))


@pytest.mark.parametrize("when", ["before", "after"])
def test_relative_imports_of_a_copy_deep_inside(imports, when):  # noqa: F811
    files = {f"vendored/models/{name}": text for name, text in standins.ROSINALITY.items()}
    files |= {"vendored/__init__.py": "", "vendored/models/__init__.py": ""}
    files["vendored/models/net.py"] = "from .op import FusedLeakyReLU, upfirdn2d\nfrom ..models.op import fused_act\n"
    imports(files, compiles=when == "after")
    if when == "before":
        importlib.import_module("vendored.models.net")
    compat.install("rosinality")
    net = importlib.import_module("vendored.models.net")
    assert net.FusedLeakyReLU is net.fused_act.FusedLeakyReLU
    assert isinstance(net.upfirdn2d(X, FILTER), torch.Tensor)
    assert isinstance(net.FusedLeakyReLU(3)(X), torch.Tensor)


def test_a_package_without_an_init(imports):  # noqa: F811
    imports({name: text for name, text in standins.ROSINALITY.items() if not name.endswith("__init__.py")})
    compat.install("rosinality")
    from op.fused_act import FusedLeakyReLU
    from op.upfirdn2d import upfirdn2d

    assert isinstance(FusedLeakyReLU(3)(upfirdn2d(X, FILTER)), torch.Tensor)


def test_modules_beside_ours_are_theirs(imports):  # noqa: F811
    beside = {"torch_utils/misc.py": "NAME = 'misc'\n", "torch_utils/custom_ops.py": standins.COMPILES}
    imports({**standins.STYLEGAN, **beside, "torch_utils/ops/other.py": "from . import bias_act\n"})
    compat.install("stylegan3")
    from torch_utils import misc
    from torch_utils.ops import other

    assert misc.NAME == "misc" and isinstance(other.bias_act.bias_act(X), torch.Tensor)
    with pytest.raises(RuntimeError, match="would be compiled"):
        importlib.import_module("torch_utils.custom_ops")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("torch_utils.ops.bias_act.no_such_module")


def test_source_that_a_pickle_carries(imports):  # noqa: F811
    """Persistent classes are pickled with the text of their module, which runs in one of no known name."""
    imports(standins.STYLEGAN)
    compat.install("stylegan3")
    module = types.ModuleType("_imported_module_1234")
    sys.modules[module.__name__] = module
    try:
        exec(standins.STYLEGAN["training/networks.py"], vars(module))
        layer = module.Layer()
        assert isinstance(layer(X), torch.Tensor)
    finally:
        del sys.modules[module.__name__]


def test_pickled_modules_are_read(imports):  # noqa: F811
    """A model that was pickled whole names op.fused_act.FusedLeakyReLU."""
    imports(standins.ROSINALITY)
    compat.install("rosinality")
    from op import FusedLeakyReLU

    text = pickle.dumps(FusedLeakyReLU(3), protocol=0)
    text = text.replace(b"cpggan_fast.compat.rosinality\nFusedLeakyReLU", b"cop.fused_act\nFusedLeakyReLU")
    assert b"op.fused_act" in text
    assert isinstance(pickle.load(io.BytesIO(text))(X), torch.Tensor)


def test_reloading(imports):  # noqa: F811
    imports(standins.STYLEGAN)
    from torch_utils.ops import bias_act

    compat.install("stylegan3")
    assert importlib.reload(bias_act) is bias_act
    assert isinstance(bias_act.bias_act(X), torch.Tensor)


def test_modules_have_a_file(imports):  # noqa: F811
    """Scripts look for headers beside an op's module, and tools for its source."""
    imports(standins.STYLEGAN)
    compat.install("stylegan3")
    from torch_utils.ops import upfirdn2d

    assert upfirdn2d.__file__.endswith(".py") and "def upfirdn2d" in inspect.getsource(upfirdn2d)
    assert importlib.util.find_spec("torch_utils.ops.bias_act") is not None
