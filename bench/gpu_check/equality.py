"""Whether the GPU computes what the CPU does, graphs and compilation what the plain step does, and a run trains."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bench.bench_step import first_steps
from bench.gpu_check.findings import DEVICE, REHEARSAL, Part, set_precision
from bench.gpu_check.workload import SMALL, images, networks
from pggan_fast import use_impl
from pggan_fast.training import DatasetWriter, RunFolder, TrainConfig, TrainStep
from pggan_fast.training import train as run_training
from pggan_fast.training.runtime.cuda_graph import CUDAGraphStep, CudaRecorder


def relative(found: Tensor, expected: Tensor) -> str:
    """Return the norm of the difference over the norm."""
    return f"{((found - expected).norm() / expected.norm()).item():.1e}"


def steps_equal(part: Part) -> None:
    """Compare losses of two steps and the first gradients with the CPU's, from the same latents."""
    for resolution, alpha in ((16, 0.4), (32, 1.0)):
        expected = _first_steps("cpu", "exact", "auto", resolution, alpha)
        for kind in ("exact", "tf32", "bf16", "fp16"):
            for impl in ("auto",) if REHEARSAL else ("auto", "native", "triton", "reference"):

                def compare(kind=kind, impl=impl, resolution=resolution, alpha=alpha, expected=expected):
                    found = _first_steps(DEVICE, kind, impl, resolution, alpha)
                    return {name: relative(found[name], value) for name, value in expected.items()}

                part.look(f"{resolution} px alpha {alpha} {kind} {impl}", compare)


class _Step:
    """A TrainStep at a fixed alpha, with the latents of one seed of the CPU, as `first_steps` calls it."""

    def __init__(self, step: TrainStep, alpha: float | Tensor) -> None:
        random = torch.Generator().manual_seed(3)
        step._draw = lambda draw, n, *shape: draw(n, *shape, generator=random).to(step.device)
        self.G, self.D, self.optimizer_G, self.optimizer_D = step.G, step.D, step.optimizer_G, step.optimizer_D
        self._call = partial(step, alpha=alpha)

    def __call__(self, real: Tensor) -> dict[str, Tensor]:
        return self._call(real)


def _first_steps(device: str, kind: str, impl: str, resolution: int, alpha: float) -> dict[str, Tensor]:
    step = TrainStep(*networks(resolution, device, fmap_max=64), precision=set_precision(kind))
    blended = alpha if alpha == 1.0 else torch.tensor(alpha, device=device)
    with use_impl(impl):
        found = first_steps(_Step(step, blended), images(8, resolution).to(device))
    return {name: value.double().cpu() for name, value in found.items()}


def captured(part: Part) -> None:
    """Compare CUDA graphs and torch.compile with the plain step: losses and G's weights after 8 steps of one seed."""
    for kind in ("exact", "tf32", "bf16", "fp16"):
        plain = _eight_steps(kind, "plain")
        for how in (
            ("plain", "graphs", "compile") if kind in ("exact", "bf16") and not REHEARSAL else ("plain", "graphs")
        ):

            def compare(kind=kind, how=how, plain=plain):
                losses, weights = _eight_steps(kind, how)
                return {"losses": relative(losses, plain[0]), "weights": relative(weights, plain[1])}

            part.look(f"{how} against plain, {kind}", compare)
    for augment in ("ada", "diffaugment"):
        part.look(f"graphs with {augment}", lambda augment=augment: _last_losses("tf32", "graphs", augment))


def _last_losses(kind: str, how: str, augment: str) -> dict[str, list[float]]:
    return {"losses": _eight_steps(kind, how, augment=augment)[0][-1].tolist()}


def _eight_steps(kind: str, how: str, **options: str) -> tuple[Tensor, Tensor]:
    step = TrainStep(*networks(16, fmap_max=64), precision=set_precision(kind), compile=how == "compile", **options)
    call = CUDAGraphStep(step, CudaRecorder()) if how == "graphs" and DEVICE == "cuda" else step
    torch.manual_seed(5)
    real, losses = images(16, 16).to(DEVICE), []
    for i in range(8):
        step.set_learning_rate(1e-3 / (i + 1))
        scalars = call(real * (1 - i / 100), alpha=torch.full((), 0.1 * i, device=DEVICE))
        losses.append(torch.stack([scalars["d_loss"], scalars["g_loss"]]).double())
    weights = torch.cat([p.detach().flatten().double().cpu() for p in step.G.parameters()])
    return torch.stack(losses).cpu(), weights


def train(part: Part) -> None:
    """Run the trainer: pinned copies, checkpoints, sample grids, the loss scale of fp16, graphs, compilation."""
    resolution, batch, steps = (16, 8, 6) if REHEARSAL else (64, 64, 200)
    data, random = part.out / "data", np.random.default_rng(0)
    with DatasetWriter(data, resolution=resolution, channels=3, classes=[]) as writer:
        for i in range(512):
            image = random.integers(0, 256, (3, 4, 4), dtype=np.uint8)
            writer.add(image.repeat(resolution // 4, 1).repeat(resolution // 4, 2), 0, str(i))
        writer.commit()
    kimg = batch * steps / 1e3
    runs = {
        "bf16": {"precision": "bf16", "progressive": False},
        "fp16 growing in graphs": {"precision": "fp16", "cuda_graphs": DEVICE == "cuda"},
    }
    if not REHEARSAL:
        runs["fp32 compiled"] = {"progressive": False, "compile": True, "total_kimg": batch * 20 / 1e3}
    for name, options in runs.items():
        phases = {"stable_kimg": kimg / 9, "transition_kimg": kimg / 9, "total_kimg": kimg}
        reports = {"tick_kimg": kimg / 4, "sample_kimg": kimg / 2, "checkpoint_kimg": kimg / 2, "tensorboard": False}
        where = {"data": data, "out": part.out / f"run-{name.split()[0]}", "device": DEVICE, "batch_size": {4: batch}}
        part.look(name, lambda config={**where, **phases, **reports, **SMALL, **options}: _run(config))


def _run(config: dict[str, object]) -> dict[str, list[float]]:
    run = RunFolder.create(TrainConfig(**config))
    assert run_training(run), "the run was interrupted"
    lines = [json.loads(line) for line in run.stats_file.read_text(encoding="utf-8").splitlines()]
    names = ("d_loss", "g_loss", "skipped", "images_per_second", "peak_memory_mib")
    assert all(np.isfinite(line[name]) for line in lines for name in names), "a value is not finite"
    return {name: [round(line[name], 3) for line in lines] for name in names}
