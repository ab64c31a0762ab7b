"""Kills a small run with SIGKILL again and again, at random moments, and resumes it. Every bit must be as without.

    python -m tests.training.kill KILLS [SEED]

A run is forked off a process that has imported everything, so that an attempt takes less than a second. After each
kill every checkpoint must be whole, the same as that of a run which was never killed, and none may be lost; a run
that gets to its end must have left the same files, apart from the times in its statistics.
"""

import functools
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch._dynamo  # the first optimizer would import it

from pggan_fast.training import RunFolder, train, trainer
from pggan_fast.training.checkpoint import KEPT, checkpoints, find_damage, load_checkpoint, save_checkpoint
from pggan_fast.utils import atomic_write
from tests.training.runs import config, stats, without_times, write_data

# 4 px until 64 images, 8 px fades in until 96 and is stable until 160, 16 px fades in until 192: 35 steps.
SETTINGS = {"total_kimg": 0.320, "checkpoint_kimg": 0.024, "sample_kimg": 0.064, "tick_kimg": 0.064}
SETTINGS |= {"augment": "ada", "objective": "relativistic", "r1_weight": "linear:2:1:0.2", "r2_weight": 1.0}
SETTINGS |= {"penalty_every": 3, "adam_beta1": 0.5, "adam_beta2": "cosine:0.9:0.99:0.3", "minibatch_repeats": 3}
SETTINGS |= {"ema_half_life_kimg": "linear:0.01:0.05:0.3", "ema_ramp": 0.5}
LATER = 0.3  # seconds from one checkpoint to about the next
SLOW_FLUSH = 0.01  # seconds: much of the time goes into saving, so many kills hit there


def digest(value):
    """Return a digest of a checkpoint's state, its clock left out."""
    found = hashlib.sha256()

    def add(value, name=""):
        found.update(f"{name}:{type(value).__name__}:".encode())
        if isinstance(value, dict):
            for name, item in value.items():
                if name not in ("now", "seconds"):
                    add(item, str(name))
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(item)
        elif isinstance(value, torch.Tensor):
            found.update(f"{value.dtype}{list(value.shape)}".encode())
            found.update(value.contiguous().numpy().tobytes())
        else:
            found.update(repr(value).encode())

    add(value)
    return found.hexdigest()


def start(folder, out, keep=KEPT):
    """A process that trains `out` to its end and keeps the last `keep` checkpoints; its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        with open(folder / "log.txt", "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        trainer.save_checkpoint = functools.partial(save_checkpoint, keep=keep)
        fsync = os.fsync
        atomic_write.os.fsync = lambda file: (time.sleep(SLOW_FLUSH), fsync(file))
        begun = (out / "config.json").exists()
        run = RunFolder.open(out, {}) if begun else RunFolder.create(config(folder / "data", out, **SETTINGS))
        code = 0 if train(run) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(folder, child):
    """Wait for a child that must end well."""
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, (folder / "log.txt").read_text()[-4000:]


def check(out, digests, before):
    """The checkpoints in `out` are whole, as expected, and those of `before` or later ones. Returns their images."""
    found = checkpoints(out / "checkpoints")
    images = [int(path.stem) for path in found]
    for path in found:
        assert find_damage(path) is None, path
        assert digest(load_checkpoint(path)) == digests[int(path.stem)], f"{path} differs"
    if before:
        assert images[-1] >= before[-1] and len(images) >= min(KEPT, len(before)), (before, images)
    return images


def check_end(out, straight):
    assert without_times(stats(out)) == without_times(stats(straight))
    for name in ("final", "samples"):
        files = {path.name: path.read_bytes() for path in (out / name).iterdir()}
        assert files == {path.name: path.read_bytes() for path in (straight / name).iterdir()}, name
    assert not list(out.rglob(".*"))


def kill_later(child, folder, chance):
    """Kill a run some time after its next file in `folder`, the second next or none. Return False if it ended before.

    Waiting for files makes kills hit a run at work, however slow the machine is.
    """
    seen = names(folder)
    for _ in range(chance.randrange(3)):
        while names(folder) == seen:
            if os.waitpid(child, os.WNOHANG) != (0, 0):
                return False
            time.sleep(0.002)
        seen = names(folder)
    time.sleep(chance.uniform(0, LATER))
    if os.waitpid(child, os.WNOHANG) != (0, 0):
        return False
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def names(folder):
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def kill_runs(folder, kills, seed):
    """Return the number of runs and the moments of the kills: the images of the newest checkpoint at each."""
    write_data(folder / "data")
    chance = random.Random(seed)
    straight = folder / "straight"
    finish(folder, start(folder, straight, keep=1000))
    digests = {int(path.stem): digest(load_checkpoint(path)) for path in checkpoints(straight / "checkpoints")}

    runs, moments = 1, []
    out, before = folder / f"run{runs}", []
    while True:
        child = start(folder, out)
        if len(moments) < kills:
            if kill_later(child, out / "checkpoints", chance):
                before = check(out, digests, before)
                moments.append(before[-1] if before else 0)
                continue
        else:
            finish(folder, child)
        before = check(out, digests, before)
        check_end(out, straight)
        if len(moments) >= kills:
            return runs, moments
        runs, before = runs + 1, []
        out = folder / f"run{runs}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        runs, moments = kill_runs(Path(name), int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(json.dumps({"kills": len(moments), "runs": runs, "newest checkpoint at each kill": moments}))
