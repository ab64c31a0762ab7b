"""Try an installation: the doctor, ops against plain PyTorch, a training step, and settings from a file.

`python tests/packages/smoke.py [native]` needs nothing of the checkout; with `native` the CPU kernels must be there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import pggan_fast
from pggan_fast import _native, reference
from pggan_fast.training import TrainStep


def main(native: bool) -> None:
    assert not Path(pggan_fast.__file__).parents[1].joinpath("setup.py").exists(), "the checkout was imported"
    assert _native.cpu_available or not native, _native.cpu_reason
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 8, 6, 6), torch.randn(4, 8, 3, 3), torch.randn(4)
    options = {"up": 2, "act": "lrelu", "pixel_norm": True}
    y = pggan_fast.equalized_conv2d(x, weight, bias, **options)
    torch.testing.assert_close(y, reference.equalized_conv2d(x, weight, bias, **options), atol=1e-5, rtol=1e-5)
    z = pggan_fast.minibatch_stddev(pggan_fast.fade_in(x, torch.randn(2, 8, 12, 12), 0.3))
    assert z.shape == (2, 9, 12, 12)

    G, D = pggan_fast.Generator(8, fmap_max=8), pggan_fast.Discriminator(8, fmap_max=8)
    before = [p.clone() for p in G.parameters()]
    scalars = TrainStep(G, D)(torch.rand(4, 3, 8, 8) * 2 - 1, alpha=0.5)
    assert all(torch.isfinite(value).all() for value in scalars.values())
    assert any(not torch.equal(a, b) for a, b in zip(before, G.parameters(), strict=True))

    command = [sys.executable, "-m", "pggan_fast"]
    doctor = subprocess.run([*command, "doctor"], check=True, capture_output=True, text=True).stdout
    assert "bias_act" in doctor
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "settings.toml")
        printed = subprocess.run([*command, "config"], check=True, capture_output=True, text=True).stdout
        settings.write_text(printed, encoding="utf-8")
        done = subprocess.run([*command, "train", "--config", settings], capture_output=True, text=True)
        assert done.returncode == 2 and "--data is missing" in done.stderr, done.stderr
    kernels = "CPU kernels" if _native.cpu_available else f"no CPU kernels ({_native.cpu_reason})"
    print(f"ok: Python {sys.version.split()[0]}, torch {torch.__version__}, {kernels}")


if __name__ == "__main__":
    main(native="native" in sys.argv[1:])
