"""Work of the processes of test_distributed.py. Started by torchrun: FOLDER, then names of functions below.

Each writes what it found to FOLDER/name.rank.json.
"""

import json
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from pggan_fast import Discriminator, Generator
from pggan_fast.data.batches import Batches
from pggan_fast.training import PreparedData, RunFolder, TrainStep, train
from pggan_fast.training import step as step_module
from pggan_fast.training import trainer as trainer_module
from pggan_fast.training.losses import Relativistic
from pggan_fast.training.runtime.cuda_graph import CUDAGraphStep
from pggan_fast.utils.batch_split import take
from pggan_fast.utils.distributed import Processes, join
from tests.training.runs import config
from tests.training.tape import TapeRecorder

SMALL = dict(fmap_base=64, fmap_max=8)
LAZY = {"penalty_every": 2, "penalty_on": "raw", "augment": "diffaugment"}
BATCH = {4: 24}  # six groups of 4: whole ones for two processes and for three


def build(processes, **options):
    torch.manual_seed(0)
    return TrainStep(Generator(8, **SMALL), Discriminator(8, **SMALL), processes=processes, **options)


def gradients_of(step, real, alpha):
    seen = []
    for optimizer in (step.optimizer_D, step.optimizer_G):

        def record(*_, optimizer=optimizer):
            seen.append([p.grad.clone() for g in optimizer.param_groups for p in g["params"] if p.grad is not None])

        optimizer.register_step_pre_hook(record)
    torch.manual_seed(5)
    scalars = step(real, alpha=alpha)
    return scalars, seen


def worst_error(found, expected):
    """Relative to each gradient's largest value; one of a thousandth of all of them is a difference of larger ones."""
    floor = max(b.abs().max() for b in expected) / 1000
    pairs = zip(found, expected, strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp_min(floor)).item() for a, b in pairs)


def one_step(processes, folder):
    """Gradients and scalars of this process's part, reduced, against those of the whole batch in one process."""
    found = {}
    for name, n, options in [
        ("whole_groups", 24, {}),
        ("micro_batches", 24, {"micro_batch": 4}),
        ("groups_of_3", 18, {}),  # 4 does not divide 18: groups of 3
        ("relativistic", 24, {"objective": Relativistic(r1_weight=1.0, r2_weight=2.0), "micro_batch": 4}),
        ("lazy_raw", 24, {"objective": Relativistic(r1_weight=1.0, r2_weight=2.0)} | LAZY),
        ("augmented", 24, {"augment": "diffaugment", "objective": "hinge"}),
    ]:
        real = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
        alpha = torch.tensor(0.3)
        scalars, expected = gradients_of(build(Processes(), **options), real, alpha)
        part = take(real, processes.rank, processes.count, 4 if n == 24 else 3)
        own, gradients = gradients_of(build(processes, **options), part, alpha)
        errors = [worst_error(mine, theirs) for mine, theirs in zip(gradients, expected, strict=True)]
        errors = [max(errors[:-1]), errors[-1]]  # of D, whose penalties may have an update of their own, and of G
        losses = {name: (own[name].item(), scalars[name].item()) for name in ("d_loss", "g_loss")}
        found[name] = {"D": errors[0], "G": errors[1], "losses": losses}
    return found


def captured(processes, folder):
    """Recorded steps against plain ones: whether every bit is the same, and how many reductions a recording holds."""
    step_module.cache_folded_weights = lambda: nullcontext(lambda parameters: None)  # a tape does not see what is kept
    found = {}
    for name, options in [
        ("fp32", {}),
        ("fp16", {"precision": "fp16", "micro_batch": 4}),
        ("lazy", {"objective": Relativistic(r1_weight=1.0, r2_weight=2.0)} | LAZY),
    ]:
        plain, step = build(processes, **options), build(processes, **options)
        recorder = TapeRecorder(lambda step=step: state_of(step))
        graph, equal = CUDAGraphStep(step, recorder), True
        for index in range(8):
            n = 24 // processes.count
            real = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(10 * index + processes.rank)) * 2 - 1
            if index == 7 and processes.rank == 1:
                real[0, 0, 0, 0] = float("nan")  # played back, one process alone has it: nobody may update D
            torch.manual_seed(index)
            expected = plain(real, alpha=torch.tensor(0.1 * index))
            torch.manual_seed(index)
            scalars = graph(real, alpha=torch.tensor(0.1 * index))
            # What is no number is so in both.
            equal &= all(torch.equal(scalars[k].nan_to_num(), expected[k].nan_to_num()) for k in expected)
        equal &= all(torch.equal(a, b) for a, b in zip(state_of(step), state_of(plain), strict=True))
        reductions = [sum("c10d" in str(call[0]) for call in tape.calls) for tape in recorder.tapes]
        found[name] = {"equal": equal, "reductions": reductions, "bad_steps": step.bad_steps.item()}
    return found


def state_of(step):
    tensors = [*step.G.parameters(), *step.D.parameters(), *step.G_ema.parameters(), *step._counters().values()]
    for optimizer in (step.optimizer_G, step.optimizer_D):
        tensors += [tensor for state in optimizer.state.values() for tensor in state.values()]
    return tensors + list(step.augment.buffers() if step.augment is not None else ())


def a_skipped_step(processes, folder):
    """One process alone has a NaN: nobody updates D."""
    step = build(processes)
    before = [p.clone() for p in step.D.parameters()]
    real = torch.rand(12 // processes.count, 3, 8, 8) * 2 - 1
    if processes.rank == 1:
        real[0, 0, 0, 0] = float("nan")
    skipped = step(real)["skipped"].item()
    same = all(torch.equal(a, b) for a, b in zip(before, step.D.parameters(), strict=True))
    return {"skipped": skipped, "bad_steps": step.bad_steps.item(), "unchanged": same}


def data_order(processes, folder):
    """Which images this process reads."""
    batches = Batches(PreparedData(folder / "data"), seed=3, processes=processes, group_size=4)
    read = [batches.next(12, 16)[0].flatten(1).sum(dim=1).tolist() for _ in range(5)]
    return {"read": read, "position": batches.position}


def straight(processes, folder):
    return {"finished": run_in(folder / f"straight{processes.count}", processes, folder)}


def stopped(processes, folder):
    """A signal reaches the last process alone; all save and leave. Then all resume."""

    def stop(images):
        if images == 72 and processes.rank == processes.count - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    out = folder / f"stopped{processes.count}"
    first = run_in(out, processes, folder, stop)
    checkpoints = processes.shared(processes.first(lambda: saved_in(out)))
    return {"first": first, "checkpoints": checkpoints, "second": run_in(out, processes, folder)}


def saved(processes, folder):
    """SIGUSR1 reaches the last process alone; the first one saves. Then SIGTERM."""

    def save(images):
        if images in (48, 72) and processes.rank == processes.count - 1:
            os.kill(os.getpid(), signal.SIGUSR1 if images == 48 else signal.SIGTERM)

    out = folder / f"saved{processes.count}"
    run_in(out, processes, folder, save)
    return {"checkpoints": processes.shared(processes.first(lambda: saved_in(out)))}


def saved_in(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def another_number(processes, folder):
    """Resume what another number of processes has begun."""
    return {"finished": run_in(folder / "another", processes, folder)}


def refused(processes, folder):
    """The message that every process has for a folder in use."""
    try:
        processes.first(lambda: RunFolder.create(config(folder / "data", folder / "data", batch_size=BATCH)))
    except ValueError as error:
        return {"message": str(error)}


def run_in(out, processes, folder, after_step=lambda images: None):
    class Watched(TrainStep):
        images = 0

        def __call__(self, real, labels=None, *, alpha=1.0):
            scalars = super().__call__(real, labels, alpha=alpha)
            Watched.images += len(real) * processes.count
            after_step(Watched.images)
            return scalars

    trainer_module.TrainStep = Watched
    settings = config(folder / "data", out, batch_size=BATCH, checkpoint_kimg=0.096)
    begin = not (out / "config.json").exists()
    run = processes.first(lambda: RunFolder.create(settings) if begin else RunFolder.open(out, {}))
    return train(run or RunFolder.open(out, {}, writes=False), processes)


def threads():
    """Names of this process's threads, those of torch's process groups among them."""
    return [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with join() as processes:
        for name in sys.argv[2:]:
            found = globals()[name](processes, folder)
            (folder / f"{name}.{processes.rank}.json").write_text(json.dumps(found))
    (folder / f"threads.{processes.rank}.json").write_text(json.dumps(threads()))
