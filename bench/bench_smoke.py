"""Every suite at tiny sizes: `pytest bench/ -k smoke`. Gates run, figures mean nothing, none is kept."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bench.bench_loader import loader_record
from bench.bench_memory import memory_record
from bench.bench_metrics import distance_case
from bench.bench_step import step_case
from bench.harness import compare, plots, report
from bench.harness.cases import LAYOUTS, op_case
from bench.harness.table import MAIN, OTHERS, Op
from pggan_fast.training import DatasetWriter

SMALLEST = (4, 8, 8, 8)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", (*MAIN, *OTHERS), ids=lambda op: op.name)
def test_smoke_op(op: Op, layout: str, timed) -> None:
    passes = op.passes[-1]
    result = timed(op_case(op, SMALLEST, op.dtypes[-1], layout, passes, compiled=False, copied=True), seconds=0.05)
    assert result["speedups"]["ours"]["eager"]["median"] > 0


def test_smoke_compile(timed) -> None:
    case = op_case(MAIN[0], SMALLEST, "fp32", "nchw", "forward", compiled=True, copied=False)
    assert set(timed(case, seconds=0.05)["seconds"]) == {"eager", "ours", "compile"}


def test_smoke_step(timed) -> None:
    result = timed(step_case(resolution=8, batch=4, channels=8), seconds=0.05)
    assert set(result["speedups"]) == {"ours_fp32", "ours_bf16"}


@pytest.mark.parametrize("network", ["G", "D"])
def test_smoke_memory(network: str) -> None:
    assert memory_record(network, resolution=8, batch=4, fmap_max=8)["kept_bytes"]["ours"] > 0


def test_smoke_loader(tmp_path) -> None:
    with DatasetWriter(tmp_path / "data", resolution=8, channels=3, classes=[]) as writer:
        for index in range(5):
            writer.add(np.full((3, 8, 8), index, np.uint8), 0, str(index))
        writer.commit()
    result = loader_record(tmp_path / "data", resolution=8, batch=4, seconds=0.05, fmap_max=8)
    assert result["seconds"]["step"]["median"] > result["seconds"]["ours"]["median"] > 0


def test_smoke_distance(timed) -> None:
    assert timed(distance_case((64, 3, 32, 32)), seconds=0.05)["speedups"]["ours"]["numpy"]["median"] > 0


@pytest.mark.parametrize("factor", [1.1, float("nan")])
def test_smoke_gate_refuses_a_wrong_result(factor: float) -> None:
    wrong = replace(MAIN[0], ours=lambda x, bias: MAIN[0].eager(x, bias) * factor)
    case = op_case(wrong, SMALLEST, "bf16", "nchw", "forward", compiled=False, copied=False)
    with pytest.raises(AssertionError, match="bias_act_pixel_norm, ours, output"):
        case.check()


def test_smoke_report_counts_the_worst_case() -> None:
    cases = [("16x512x16x16", 4.0), ("8x512x32x32", 3.4)]
    records = [
        {
            "suite": "bias_act_pixel_norm",
            "shape": shape,
            "dtype": "fp32",
            "layout": "channels_last",
            "pass": "forward",
            "seconds": {},
            "speedups": {"ours": {"eager": {"median": speedup}, "copy": {"median": 1.0}, "compile": {"median": 1.0}}},
        }
        for shape, speedup in cases
    ]
    rows = [line for line in report.targets_table(records).splitlines() if "3.5 times eager" in line]
    assert rows == [
        "| bias_act with pixel norm, fp32 forward, channels_last: 3.5 times eager | 3.50 | 3.40 | 1 of 2 | no |",
        "| training step, bf16: 3.5 times eager NCHW fp32 | 3.50 | not measured |  |  |",
    ]
    found = report.findings_table(records)
    assert "| bias_act_pixel_norm | ours | eager | 3.40 | 3.70 | 4.00 | 2 |" in found
    assert "- bias_act with pixel norm, fp32 forward, channels_last: 3.5 times eager: 3.40 in the worst of 2" in found


def made_up(shape: str, speedup: float, spread: float = 0.1) -> dict:
    reached = {"median": speedup, "p20": speedup - spread, "p80": speedup + spread}
    return {
        **{"suite": "fade_in", "shape": shape, "dtype": "fp32", "layout": "nchw", "pass": "forward"},
        "seconds": {},
        "speedups": {"ours": {"eager": reached, "copy": reached}},
    }


def test_smoke_plots(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    records = [made_up(f"1x8x{size}x{size}", 2.0) for size in (16, 32, 64)]
    paths = plots.write({"records": records}, tmp_path, "a")
    assert [path.name for path in paths] == ["a-speedup.png", "a-share.png"]
    assert all(Image.open(path).width > 500 for path in paths)


def test_smoke_compare_tells_noise_from_a_change() -> None:
    before = {"machine": {"torch": "1"}, "records": [made_up("1x8x16x16", 2.0), made_up("1x8x32x32", 2.0)]}
    after = {"machine": {"torch": "2"}, "records": [made_up("1x8x16x16", 2.1), made_up("1x8x32x32", 1.5)]}
    said = compare.describe(before, after)
    assert "torch: 1 before, 2 after" in said
    assert "1x8x32x32" in said and "-25%" in said and "1x8x16x16" not in said
