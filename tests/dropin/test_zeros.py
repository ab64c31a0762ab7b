"""Second derivatives that are zeros in the original are zeros in what the fused launch of a GPU computes."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import torch
import torch.nn.functional as F
from pggan_fast import use_impl
from pggan_fast.dropin import fused
torch.manual_seed(0)
x, w, b = (torch.randn(shape, requires_grad=True) for shape in ((2, 4, 6, 6), (4, 4, 3, 3), (4,)))
def second(y):
    (g,) = torch.autograd.grad(y.sum(), [x], create_graph=True)
    return torch.autograd.grad(g.square().sum(), [x, w, b], allow_unused=True)
plain = F.avg_pool2d(F.conv2d(x, w, b, padding=1), 2)
with use_impl("triton"):
    ours = fused.convolution(x, w, b, padding=1, down=True, zeros=True, act="lrelu", slope=0.2)
for a, e in zip(second(ours), second(F.leaky_relu(plain, 0.2)), strict=True):
    torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)
print("alike")
"""


def test_a_fused_launch_gives_zeros():
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "alike"
