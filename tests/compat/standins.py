"""Packages that import as other codebases' do, of sources of our own that fail where theirs would compile."""

from pathlib import Path

COMPILES = 'raise RuntimeError("an extension would be compiled here")\n'
ORIGINAL = "def {name}(*args, **kwargs):\n    return 'the original {name}'\n\n\n"


def _module(*names: str, before: str = "", after: str = "") -> str:
    return before + "".join(ORIGINAL.format(name=name) for name in names) + after


STYLEGAN = {
    "torch_utils/__init__.py": "",
    "torch_utils/ops/__init__.py": "",
    "torch_utils/ops/upfirdn2d.py": _module("setup_filter", "upfirdn2d", "filter2d", "upsample2d", "downsample2d"),
    "torch_utils/ops/bias_act.py": _module("bias_act", after="activation_funcs = {}\n"),
    "torch_utils/ops/conv2d_gradfix.py": "import contextlib\nenabled = False\nweight_gradients_disabled = False\n\n\n"
    + _module("conv2d", "conv_transpose2d")
    + "@contextlib.contextmanager\ndef no_weight_gradients(disable=True):\n    yield\n",
    "torch_utils/ops/conv2d_resample.py": "from . import conv2d_gradfix, upfirdn2d\n\n\n" + _module("conv2d_resample"),
    "torch_utils/ops/filtered_lrelu.py": "from . import bias_act, upfirdn2d\n\n\n" + _module("filtered_lrelu"),
    "torch_utils/ops/fma.py": _module("fma"),
    "torch_utils/ops/grid_sample_gradfix.py": "enabled = False\n\n\n" + _module("grid_sample"),
    "training/__init__.py": "",
    "training/networks.py": """
import torch
from torch_utils.ops import bias_act, conv2d_resample, fma, upfirdn2d
from torch_utils.ops.filtered_lrelu import filtered_lrelu


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4, 3, 3, 3))
        self.bias = torch.nn.Parameter(torch.zeros(4))
        self.register_buffer("resample_filter", torch.ones(4, 4) / 16)

    def forward(self, x):
        x = conv2d_resample.conv2d_resample(x=x, w=self.weight, f=self.resample_filter, up=2, padding=1)
        x = upfirdn2d.downsample2d(x, self.resample_filter)
        return bias_act.bias_act(x, self.bias, act="lrelu", clamp=256)
""",
}

ROSINALITY = {
    "op/__init__.py": "from .fused_act import FusedLeakyReLU, fused_leaky_relu\nfrom .upfirdn2d import upfirdn2d\n",
    "op/fused_act.py": "{compiles}\n" + _module("fused_leaky_relu") + "class FusedLeakyReLU:\n    pass\n",
    "op/upfirdn2d.py": "{compiles}\n" + _module("upfirdn2d"),
    "op/conv2d_gradfix.py": "enabled = True\nweight_gradients_disabled = False\n\n\n"
    + _module("conv2d", "conv_transpose2d"),
    "model.py": """
import torch
from op import FusedLeakyReLU, conv2d_gradfix, fused_leaky_relu, upfirdn2d


class Discriminator(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4, 3, 3, 3) / 27)
        self.activate = FusedLeakyReLU(4)
        self.register_buffer("kernel", torch.ones(4, 4) / 16)

    def forward(self, x):
        x = conv2d_gradfix.conv2d(upfirdn2d(x, self.kernel, pad=(2, 2)), self.weight, stride=2)
        return self.activate(x)
""",
}

BASICSR = {
    "basicsr/__init__.py": "",
    "basicsr/ops/__init__.py": "",
    "basicsr/ops/fused_act/__init__.py": "from .fused_act import FusedLeakyReLU, fused_leaky_relu\n",
    "basicsr/ops/fused_act/fused_act.py": "{compiles}\n"
    + _module("fused_leaky_relu")
    + "class FusedLeakyReLU:\n    pass\n",
    "basicsr/ops/upfirdn2d/__init__.py": "from .upfirdn2d import upfirdn2d\n",
    "basicsr/ops/upfirdn2d/upfirdn2d.py": "{compiles}\n" + _module("upfirdn2d"),
    "basicsr/archs/__init__.py": "",
    "basicsr/archs/arch.py": """
from basicsr.ops.fused_act import FusedLeakyReLU, fused_leaky_relu
from basicsr.ops.upfirdn2d import upfirdn2d
""",
}


def write(folder: Path, files: dict[str, str], compiles: bool = True) -> None:
    """compiles: whether importing a module that holds an extension fails, as it does without a compiler."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{compiles}", COMPILES if compiles else ""), encoding="utf-8")
