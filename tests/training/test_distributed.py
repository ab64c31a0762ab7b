"""Several processes over gloo, as torchrun starts them: one run, its numbers those of one process."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from pggan_fast.data.batches import Batches
from pggan_fast.training import PreparedData, RunFolder, UserError, train
from pggan_fast.training.checkpoint import checkpoints, load_checkpoint
from pggan_fast.training.trainer import build_step
from pggan_fast.utils.distributed import BUCKET_BYTES, Processes, _buckets
from tests.training.runs import assert_same, config, stats, without_times, write_data

BATCH = {4: 24}  # six groups of 4: whole ones for two processes and for three

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")


def launch(count, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "10000"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, timeout=1200)
    return done


def job(count, folder, *names):
    """{name: what each process found} of functions of distributed_job."""
    done = launch(count, "-m", "tests.training.distributed_job", str(folder), *names)
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(count)] for name in names}


def newest(run):
    return load_checkpoint(checkpoints(run / "checkpoints")[-1])


def without_clock(state):
    return {**state, "stats": {k: v for k, v in state["stats"].items() if k not in ("now", "seconds")}}


def drift(found, expected, folder):
    """How far two states are apart, as a share of how far training has moved the weights of G and D."""
    torch.manual_seed(0)
    settings = config(folder / "data", folder / "none", resolution=16)
    first = build_step(settings, PreparedData(folder / "data"), torch.device("cpu")).state_dict()

    def norm(a, b):
        return sum((a[net][k] - b[net][k]).square().sum() for net in ("G", "D") for k in a[net]).sqrt()

    return (norm(found["step"], expected["step"]) / norm(expected["step"], first)).item()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data, and a run in one process to its end."""
    folder = tmp_path_factory.mktemp("distributed")
    data = write_data(folder / "data", count=50)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert train(RunFolder.create(config(data, folder / "one", batch_size=BATCH, checkpoint_kimg=0.096)))
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def two(folder):
    return job(2, folder, "one_step", "a_skipped_step", "data_order", "straight", "stopped", "saved", "refused")


@pytest.fixture(scope="module")
def three(folder, two):
    shutil.copytree(folder / "stopped2", folder / "another")
    for path in checkpoints(folder / "another" / "checkpoints")[1:]:
        path.unlink()
    shutil.rmtree(folder / "another" / "final")
    return job(3, folder, "one_step", "a_skipped_step", "data_order", "another_number")


@pytest.mark.parametrize("count", ["two", "three"])
@pytest.mark.parametrize(
    "batch", ["whole_groups", "micro_batches", "groups_of_3", "augmented", "relativistic", "lazy_raw"]
)
def test_a_batch_shared_out_gives_what_one_process_makes_of_it(request, count, batch):
    for found in request.getfixturevalue(count)["one_step"]:
        # fp32 sums in another order, some of large terms that cancel; G's gradients pass through D's first update,
        # which Adam enlarges.
        assert found[batch]["D"] < 1e-4
        assert found[batch]["G"] < 1e-3
        for own, expected in found[batch]["losses"].values():
            assert own == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_recorded_step_holds_its_reductions(tmp_path):
    """Over gloo, on a tape: the same bits as plain steps, in every process, and a step left out by all or none."""
    for found in job(2, tmp_path, "captured")["captured"]:
        assert all(kind["equal"] for kind in found.values()), found
        assert all(kind["bad_steps"] == 1 for kind in found.values()), found
        # A mean over the processes for D's step and for G's, for each kind of step that is recorded.
        assert found["fp32"]["reductions"] == [2] and found["fp16"]["reductions"] == [2]
        assert all(count >= 2 for count in found["lazy"]["reductions"]) and len(found["lazy"]["reductions"]) == 2


@pytest.mark.parametrize("count", ["two", "three"])
def test_a_step_is_left_out_by_all_or_none(request, count):
    for found in request.getfixturevalue(count)["a_skipped_step"]:
        assert found["skipped"] >= 1 and found["bad_steps"] == 1 and found["unchanged"]


@pytest.mark.parametrize("count", ["two", "three"])
def test_the_processes_read_each_image_of_a_batch_once(request, count, folder):
    found = request.getfixturevalue(count)["data_order"]
    alone = Batches(PreparedData(folder / "data"), seed=3)
    for step in range(5):
        expected = alone.next(12, 16)[0].flatten(1).sum(dim=1).tolist()
        assert sorted(value for process in found for value in process["read"][step]) == sorted(expected)
    assert {process["position"] for process in found} == {60}


def test_one_process_and_two_train_alike(two, folder):
    """The same schedule, latents and images; weights drift apart by rounding alone over these 10 steps."""
    assert all(found["finished"] for found in two["straight"])
    one, both = stats(folder / "one"), stats(folder / "straight2")
    assert [line["images"] for line in one] == [line["images"] for line in both]
    for a, b in zip(one, both, strict=True):
        for name in ("d_loss", "g_loss", "gradient_norm", "real_score", "fake_score"):
            assert a[name] == pytest.approx(b[name], rel=1e-2, abs=1e-2)
    assert drift(newest(folder / "one"), newest(folder / "straight2"), folder) < 1e-3
    assert sorted(p.name for p in (folder / "straight2").iterdir()) == sorted(
        p.name for p in (folder / "one").iterdir()
    )


def test_a_signal_to_one_process_stops_all_and_they_resume_bit_for_bit(two, folder):
    for found in two["stopped"]:
        assert found == {"first": False, "checkpoints": ["000000072.pt"], "second": True}
    assert_same(without_clock(newest(folder / "stopped2")), without_clock(newest(folder / "straight2")))
    assert without_times(stats(folder / "stopped2")) == without_times(stats(folder / "straight2"))


def test_a_signal_to_one_process_makes_the_first_one_save(two):
    for found in two["saved"]:
        assert found["checkpoints"] == ["000000048.pt", "000000072.pt"]


def test_resumes_with_another_number_of_processes(three, folder):
    assert all(found["finished"] for found in three["another_number"])
    a, b = newest(folder / "another"), newest(folder / "straight2")
    assert (a["images"], a["batches"]) == (b["images"], b["batches"])
    assert torch.equal(a["random"]["cpu"], b["random"]["cpu"])
    assert drift(a, b, folder) < 1e-3


def test_a_mistake_is_known_to_all(two):
    for found in two["refused"]:
        assert "is there already and not empty" in found["message"]


def test_a_batch_that_cannot_be_shared_out_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--batch-size 9 at 8 px: is what all processes have together"):
        RunFolder.create(config(folder / "data", tmp_path / "run", batch_size={4: 8, 8: 9}))
    assert not (tmp_path / "run").exists()


def test_the_command_line_under_torchrun(folder):
    arguments = ["--data", str(folder / "data"), "--out", str(folder / "cli"), "--device", "cpu", "--batch-size", "8"]
    sizes = ["--fmap-base", "32", "--fmap-max", "8", "--stable-kimg", "0.02", "--transition-kimg", "0.01"]
    quick = ["--total-kimg", "0.024", "--no-tensorboard"]
    done = launch(2, "-m", "pggan_fast", "train", *arguments, *sizes, *quick)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("finished after 24 images") == 1
    assert "processes: 2" in done.stdout
    assert (folder / "cli" / "final" / "generator.safetensors").exists()


def test_buckets_hold_neighbours_up_to_their_size():
    quarter = torch.empty(BUCKET_BYTES // 16)  # fp32: a quarter of a bucket
    large = torch.empty(BUCKET_BYTES // 2)
    assert [len(bucket) for bucket in _buckets([quarter] * 9 + [large] + [quarter] * 2)] == [4, 4, 1, 1, 2]
    assert list(_buckets([])) == []


def test_alone_everything_is_as_given():
    alone = Processes()
    gradient = torch.ones(3)
    alone.average_([gradient])
    assert torch.equal(gradient, torch.ones(3))
    assert alone.largest(0, 5) == [0, 5] and alone.shared("x") == "x" and alone.first(lambda: 7) == 7


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads have no names in /proc here")
def test_a_group_ends_with_its_threads(tmp_path):
    """Those that are left when Python ends abort the process, and with it a run that was through."""
    job(2, tmp_path, "a_skipped_step")
    left = [json.loads((tmp_path / f"threads.{rank}.json").read_text()) for rank in range(2)]
    assert not [name for names in left for name in names if "gloo" in name]
