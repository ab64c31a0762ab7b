"""Metrics by name, from one stream."""

import numpy as np
import pytest
import torch

from pggan_fast.metrics import METRICS, MetricSet, metric_names, ms_ssim, sliced_wasserstein
from tests.metrics.golden import images


def test_names_are_read_from_a_list():
    assert metric_names("ms-ssim, swd,,") == ["swd", "ms-ssim"]
    assert metric_names(",".join(METRICS)) == list(METRICS)
    assert metric_names("") == []
    with pytest.raises(ValueError, match="metric fjd: must be one of: swd, ms-ssim, kid-lite0, fid, kid,"):
        metric_names("swd,fjd")
    for near, name in (("FID", "fid"), ("fidd", "fid"), ("ms_ssim", "ms-ssim"), ("kid_lite0", "kid-lite0")):
        with pytest.raises(ValueError, match=f"metric {near}: must be one of: .*; did you mean {name}\\?"):
            metric_names(near)


@pytest.mark.parametrize("sizes", [(70,), (33, 0, 1, 36)])
def test_one_stream_gives_what_each_metric_gives_alone(sizes):
    reals, fakes = images(32, "A")[:70], images(32, "B")[:70]
    with MetricSet(["swd", "ms-ssim", "mmd"], seed=2) as metrics:
        metrics.add_fakes(reals)
        for attempt in range(2):  # the reals stay, the fakes go
            metrics.clear_fakes()
            for start, size in zip(np.cumsum((0, *sizes)), sizes, strict=False):
                if attempt == 0:
                    metrics.add_reals(reals[start : start + size])
                metrics.add_fakes(torch.tensor(fakes[start : start + size]))
            found = metrics.values()
        settings = metrics.settings()
    distances = sliced_wasserstein(reals, fakes, seed=2)
    assert {name: found[f"swd_{name}"] for name in distances} == pytest.approx(distances, rel=1e-4)
    for name, batch in (("ms_ssim", fakes), ("ms_ssim_reals", reals)):
        pairs = torch.tensor(batch)
        assert found[name] == pytest.approx(ms_ssim(pairs[0::2], pairs[1::2]).mean().item(), rel=1e-12)
    assert list(found) == ["swd_32", "swd_16", "swd_average", "ms_ssim", "ms_ssim_reals", "mmd2"]
    assert settings["ms-ssim"] == {"pairs": 35} and settings["swd"]["directions"] == 512


def test_a_set_without_a_pair_is_refused_in_a_line():
    with MetricSet(["ms-ssim"]) as metrics:
        metrics.add_reals(images(32, "A")[:2])
        metrics.add_fakes(images(32, "B")[:1])
        with pytest.raises(ValueError, match="fakes: MS-SSIM needs 2 images or more"):
            metrics.values()
