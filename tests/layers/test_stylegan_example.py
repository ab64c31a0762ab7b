"""examples/stylegan2_step.py: a step with R1 and path length has the same losses in plain PyTorch and in fused ops."""

import importlib.util
from pathlib import Path

PATH = Path(__file__).parents[2] / "examples" / "stylegan2_step.py"


def test_losses_agree(capsys):
    spec = importlib.util.spec_from_file_location("stylegan2_step", PATH)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    # fp32 through some 20 layers and two orders of derivatives.
    assert example.main(resolution=16, batch=2, rounds=1) < 1e-4
    assert "times as fast" in capsys.readouterr().out
