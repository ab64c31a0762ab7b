"""Runs tracked by the real packages, offline, and read back with those packages; trackers that fail."""

import importlib
import json
import sys
from asyncio import CancelledError

import numpy as np
import pytest
from PIL import Image

from pggan_fast.training import RunFolder, UserError, train
from pggan_fast.training.logging import loggers
from tests.training.runs import config, write_data

NAMES = ("d_loss", "g_loss", "alpha", "images_per_second")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("tracked") / "data")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No credentials, nothing of the caller's environment, and a home folder of the test's own."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def tracked(data, out, names, **changes):
    """Train in two sessions, so that the second continues the tracked run of the first; return the run."""
    for name in names.split(","):
        pytest.importorskip(name, reason=f"needs {name}")
    run = RunFolder.create(config(data, out, track=names, total_kimg=0.1, **changes))
    assert train(run)
    run = RunFolder.open(out, {"total_kimg": 0.16})
    assert train(run)
    return run


def lines_of(run):
    return [json.loads(line) for line in run.stats_file.read_text().splitlines()]


def grids_of(run):
    """Sample grids by images shown, uint8 [H, W, C]."""
    return {int(file.stem): np.asarray(Image.open(file)) for file in sorted(run.samples.glob("*.png"))}


def assert_told(run, scalars, capsys):
    """Check that `scalars` (name -> list of (images, value)) are those of stats.jsonl, and that nothing was warned."""
    assert "warning" not in capsys.readouterr().out
    lines = lines_of(run)
    assert len(lines) >= 5
    for name in NAMES:
        assert [images for images, _ in scalars[name]] == [line["images"] for line in lines]
        assert np.allclose([value for _, value in scalars[name]], [line[name] for line in lines], rtol=1e-6)


def test_mlflow(data, tmp_path, capsys):
    run = tracked(data, tmp_path / "run", "mlflow")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run.path / 'mlflow/mlflow.db'}")
    experiment = client.get_experiment_by_name("pggan-fast")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "run" and found.info.status == "FINISHED"
    assert found.data.params["fmap_base"] == "64" and found.data.params["data_images"] == "40"
    history = {name: client.get_metric_history(found.info.run_id, name) for name in NAMES}
    assert_told(run, {name: [(m.step, m.value) for m in metrics] for name, metrics in history.items()}, capsys)
    for images, grid in grids_of(run).items():
        path = client.download_artifacts(found.info.run_id, f"samples/{images:09d}.png", str(tmp_path))
        assert np.array_equal(np.asarray(Image.open(path)), grid)


def wandb_records(file):
    """Yield the records of an offline run's file: LevelDB's log format after a header of 7 bytes."""
    contents, at, begun = file.read_bytes(), 7, b""
    assert contents[:4] == b":W&B"
    while at + 7 <= len(contents):
        if (left := 32768 - at % 32768) < 7:  # a block's end has no place for another header
            at += left
            continue
        size, kind = int.from_bytes(contents[at + 4 : at + 6], "little"), contents[at + 6]
        begun += contents[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield begun
            begun = b""


def test_wandb(data, tmp_path, capsys):
    run = tracked(data, tmp_path / "run", "wandb")
    records = importlib.import_module("wandb.proto.wandb_internal_pb2")
    scalars, grids, settings, ids = {name: [] for name in NAMES}, {}, {}, set()
    for file in sorted((run.path / "wandb").glob("offline-run-*/*.wandb")):
        for contents in wandb_records(file):
            record = records.Record()
            record.ParseFromString(contents)
            if record.HasField("run"):
                ids.add(record.run.run_id)
                settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.HasField("history"):
                row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                for name in NAMES:
                    if name in row:
                        scalars[name].append((row["images"], row[name]))
                if path := row.get("samples/path") or row.get("samples", {}).get("path"):
                    grids[row["images"]] = np.asarray(Image.open(file.parent / "files" / path))
    assert ids == {run.id}
    assert settings["fmap_base"] == 64 and settings["data_images"] == 40
    assert_told(run, scalars, capsys)
    expected = grids_of(run)
    assert list(grids) == list(expected)
    assert all(np.array_equal(grids[images], expected[images]) for images in expected)


def test_trackio(data, tmp_path, capsys):
    run = tracked(data, tmp_path / "run", "trackio")
    storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    (name,) = storage.get_runs("pggan-fast")
    assert name == f"run-{run.id}"
    rows = storage.get_logs("pggan-fast", name)
    scalars = {key: [(row["step"], row[key]) for row in rows if key in row] for key in NAMES}
    assert_told(run, scalars, capsys)
    grids = {row["step"]: row["samples"]["file_path"] for row in rows if "samples" in row}
    expected = grids_of(run)
    assert list(grids) == list(expected)
    for images, path in grids.items():
        (file,) = (tmp_path / "trackio").rglob(path)
        assert np.array_equal(np.asarray(Image.open(file).convert("RGB")), expected[images])


class Broken:
    """A tracker of which everything fails; counts how often it was asked."""

    asked = 0

    def __init__(self, error):
        self.error = error

    def fail(self, *_, **__):
        Broken.asked += 1
        raise self.error

    tick = grid = close = fail


class Wordless(Exception):
    """An error whose text fails."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "error", [ConnectionError("no\nroute"), SystemExit(1), ValueError(), CancelledError(), Wordless()]
)
def test_a_tracker_that_fails_is_one_warning(data, tmp_path, monkeypatch, capsys, error):
    Broken.asked = 0
    monkeypatch.setitem(loggers.TRACKERS, "mlflow", lambda run: Broken(error))
    monkeypatch.setitem(sys.modules, "mlflow", importlib.import_module("json"))  # installed, whatever it is
    run = RunFolder.create(config(data, tmp_path / "run", track="mlflow"))
    assert train(run)
    reason = "no route" if isinstance(error, ConnectionError) else "1" if isinstance(error, SystemExit) else None
    reason = reason or type(error).__name__
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert warnings == [f"warning: --track mlflow: cannot be written ({reason}); training continues"]
    assert Broken.asked == len(lines_of(run)) + len(grids_of(run)) + 1


def test_a_tracker_that_cannot_be_opened_is_one_warning(data, tmp_path, monkeypatch, capsys):
    def refuse(run):
        raise RuntimeError("no such server")

    monkeypatch.setitem(loggers.TRACKERS, "trackio", refuse)
    monkeypatch.setitem(sys.modules, "trackio", importlib.import_module("json"))
    assert train(RunFolder.create(config(data, tmp_path / "run", track="trackio", total_kimg=0.032)))
    told = capsys.readouterr().out
    assert told.count("warning: --track trackio: cannot be written (no such server)") == 1


def test_unknown_and_missing_trackers(data, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"--track wandb,comet: comet must be one of: none, wandb, mlflow, trackio"):
        config(data, tmp_path / "run", track="wandb,comet")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match=r"--track mlflow: needs mlflow; pip install 'pggan-fast\[mlflow\]'"):
        RunFolder.create(config(data, tmp_path / "run", track="mlflow"))
    assert not (tmp_path / "run").exists()


def test_a_run_resumes_without_a_tracker_that_is_missing(data, tmp_path, monkeypatch):
    with monkeypatch.context() as installed:
        installed.setitem(sys.modules, "mlflow", importlib.import_module("json"))
        installed.setitem(loggers.TRACKERS, "mlflow", lambda run: Broken(ValueError()))
        assert train(RunFolder.create(config(data, tmp_path / "run", track="mlflow", total_kimg=0.032)))
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match="--track mlflow: needs mlflow.* or --track none"):
        RunFolder.open(tmp_path / "run", {})
    assert train(RunFolder.open(tmp_path / "run", {"track": "none"}))


def test_tracking_through_tensorboard(data, tmp_path):
    pytest.importorskip("tensorboard")
    assert train(RunFolder.create(config(data, tmp_path / "run", track=" tensorboard, none", total_kimg=0.032)))
    assert list((tmp_path / "run/tensorboard").glob("events.*"))
