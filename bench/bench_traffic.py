"""Launches and bytes of a training step at every resolution, counted on meta tensors: no time is measured."""

import pytest

pytest.importorskip("triton")
from bench.traffic.step import PROVIDERS, SIZES, step_traffic  # noqa: E402


@pytest.mark.parametrize("resolution", SIZES)
def test_traffic(resolution: int, record) -> None:
    for found in traffic_records(resolution, SIZES[resolution]):
        record(found)


def traffic_records(resolution: int, batch: int, **options: int) -> list[dict]:
    """Launches against eager's, bytes against those of the convolutions alone; a "speed-up" is how many times fewer."""
    traffic = {provider: step_traffic(provider, resolution, batch, **options) for provider in PROVIDERS}
    launches = {provider: counted.total_launches for provider, counted in traffic.items()}
    moved = {provider: counted.total_bytes for provider, counted in traffic.items()}
    # Ours fold the rescaling into their kernels, so they move less than eager's.
    alone = moved | {"convolutions": traffic["native"].of_convolutions}
    alone["eager's convolutions"] = traffic["eager"].of_convolutions
    labels = {
        "shape": f"{batch}x3x{resolution}x{resolution}",
        "dtype": "fp32",
        "layout": "channels_last",
        "pass": "training step",
    }

    def record(suite: str, counts: dict[str, int], *others: str) -> dict:
        over = {ours: {other: _exactly(counts[other] / counts[ours]) for other in others} for ours in PROVIDERS[1:]}
        return {"suite": suite, **labels, "counts": counts, "speedups": over}

    others = "convolutions", "eager's convolutions"
    return [record("traffic launches", launches, "eager"), record("traffic bytes", alone, *others)]


def _exactly(ratio: float) -> dict[str, float]:
    return dict.fromkeys(("median", "p20", "p80"), float(f"{ratio:.4g}"))
