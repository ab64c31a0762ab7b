"""Metrics of the averaged generator while it trains."""

import json

import pytest

from pggan_fast.cli import main
from pggan_fast.evaluation import EvaluateConfig, check_metrics, evaluate, metric_callback_for
from pggan_fast.training import RunFolder, TrainConfig, UserError, train
from tests.evaluation.test_evaluate import write_data
from tests.metrics.golden import images

# 4 px until 32 images, fading until 64, ..., 32 px stable from 192 on.
SETTINGS = {
    "stable_kimg": 0.032,
    "transition_kimg": 0.032,
    "total_kimg": 0.224,
    "batch_size": {4: 16},
    "fmap_base": 64,
    "fmap_max": 8,
    "ema_decay": 0.9,
    "tick_kimg": 0.032,
    "checkpoint_kimg": 0.048,
    "device": "cpu",
    "metrics": "swd,ms-ssim",
    "metric_kimg": 0.080,
    "metric_images": 20,
}
NAMES = ["swd_32", "swd_16", "swd_average", "ms_ssim", "ms_ssim_reals"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("prepared") / "data", images(32, "A")[:30], classes=["a", "b", "c"])


def run_folder(data, out, **changes):
    return RunFolder.create(TrainConfig(data=data, out=out, **{**SETTINGS, **changes}))


def evaluated(run):
    """The values of each line of stats.jsonl that has some, by number of images."""
    lines = [json.loads(line) for line in (run.path / "stats.jsonl").read_text().splitlines()]
    return {line["images"]: {name: line[name] for name in NAMES} for line in lines if NAMES[0] in line}


@pytest.mark.parametrize("labels", [False, True])
def test_values_are_those_of_the_command_evaluate(data, tmp_path, labels):
    run = run_folder(data, tmp_path / "run", labels=labels)
    train(run, metric_callback=metric_callback_for(run))
    found = evaluated(run)
    assert list(found) == [96, 160, 224]  # the ticks after 80 and 160 images, and the end
    report = evaluate(EvaluateConfig(run=run.path, count=20, batch_size=32, device="cpu"))
    assert found[224] == pytest.approx(report["results"], rel=1e-6)
    assert report["images"]["labels_from"] == ("the reals" if labels else None)


def test_evaluating_changes_nothing_else(data, tmp_path):
    plain, watched = run_folder(data, tmp_path / "plain", metrics=""), run_folder(data, tmp_path / "watched")
    assert metric_callback_for(plain) is None
    train(plain)
    train(watched, metric_callback=metric_callback_for(watched))
    weights = [(run.path / "final" / "generator.safetensors").read_bytes() for run in (plain, watched)]
    assert weights[0] == weights[1]


def test_a_resumed_run_measures_the_same(data, tmp_path):
    whole, parted = run_folder(data, tmp_path / "whole"), run_folder(data, tmp_path / "parted")
    train(whole, metric_callback=metric_callback_for(whole))
    calls = []

    def stops(*arguments):
        calls.append(metric_callback_for(parted)(*arguments))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return calls[-1]

    with pytest.raises(KeyboardInterrupt):
        train(parted, metric_callback=stops)
    again = RunFolder.open(parted.path, {})
    train(again, metric_callback=metric_callback_for(again))
    assert evaluated(again) == evaluated(whole)


def test_the_command_line(data, tmp_path):
    options = ["--stable-kimg", "0.032", "--transition-kimg", "0.032", "--total-kimg", "0.032", "--batch-size", "16"]
    options += ["--fmap-max", "8", "--device", "cpu", "--metrics", "ms-ssim", "--metric-images", "8"]
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *options]) == 0
    (line,) = (tmp_path / "run" / "stats.jsonl").read_text().splitlines()
    assert 0 <= json.loads(line)["ms_ssim"] <= 1


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"metrics": "swd,fjd"}, "--metrics swd,fjd: metric fjd: must be one of: swd,"),
        ({"metrics": "swd", "resolution": 8}, "--metrics swd: images 8x8: sides must be 16 px or more"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_a_run_is_made(data, tmp_path, capsys, changes, complaint):
    config = TrainConfig(data=data, out=tmp_path / "run", **{**SETTINGS, **changes})
    with pytest.raises(UserError, match=complaint):
        check_metrics(config)
    options = [f"--{name}={value}" for name, value in changes.items()]
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *options]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_settings_out_of_range_are_refused(data, tmp_path):
    for name, value in (("metric_kimg", 0.0), ("metric_images", 1)):
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} {value}: must be"):
            TrainConfig(data=data, out=tmp_path, **{**SETTINGS, name: value})
