"""The training loop. It reads top to bottom; progress is counted in real images shown."""

from __future__ import annotations

import sys
from typing import Any

import torch

from pggan_fast.networks import Discriminator, Generator
from pggan_fast.ops import fade_reals
from pggan_fast.training.checkpoint import (
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from pggan_fast.training.config import TrainConfig, images_of
from pggan_fast.training.data import Batches
from pggan_fast.training.dataset import PreparedData
from pggan_fast.training.device import find_device
from pggan_fast.training.images import save_png
from pggan_fast.training.memory import keep_freed_memory
from pggan_fast.training.progress import Progress, duration
from pggan_fast.training.run import RunFolder
from pggan_fast.training.samples import SampleGrid
from pggan_fast.training.schedule import Schedule
from pggan_fast.training.stats import Statistics
from pggan_fast.training.step import TrainStep
from pggan_fast.training.stop import StopSignal
from pggan_fast.training.weights import save_weights


def train(run: RunFolder) -> bool:
    """Train `run` from its newest checkpoint, or from nothing, to the end of its schedule.

    Returns False if Ctrl-C stopped it before; its state is saved then.
    """
    config, schedule = run.config, run.config.schedule()
    device = find_device(config.device)
    kept = keep_freed_memory()
    torch.manual_seed(config.seed)
    step = build_step(config, run.data, device)
    batches = Batches(run.data, seed=config.seed, mirror=config.mirror)
    stats = Statistics(run.stats_file)
    grid = SampleGrid(step.G, config.seed)

    images, live = 0, None
    if checkpoint := run.newest_checkpoint():
        state = load_checkpoint(checkpoint)
        step.load_state_dict(state["step"])
        batches.load_state_dict(state["batches"])
        stats.load_state_dict(state["stats"], device)
        images, live = state["images"], tuple(state["live"])
        set_random_state(state["random"])
    run.forget_stats_after(images)
    _print_opening(run, step, device, images, kept)

    leaving = images >= schedule.total_images
    with StopSignal() as stop, Progress(schedule, images) as progress:
        while not leaving:
            stage = schedule.at(images)
            if stage.live != live:  # new layers begin to fade in, or the old path has died
                step.reset_optimizers()
                live = stage.live
                progress.note_stage(images, stage)
            step.set_learning_rate(stage.learning_rate)
            # While fading a tensor, so that one graph serves all values; 1.0 leaves the old path out.
            alpha = torch.full((), stage.alpha, device=device) if stage.fading else 1.0

            pixels, labels = batches.next(stage.batch_size, stage.resolution)
            reals = fade_reals(pixels.to(device), alpha)
            reals = reals.contiguous(memory_format=torch.channels_last)
            scalars = step(reals, labels.to(device) if config.labels else None, alpha=alpha)
            before, images = images, images + stage.batch_size
            stats.add(scalars)
            progress.update(images, stage, scalars)

            finished = images >= schedule.total_images
            leaving = finished or bool(stop)
            if finished or crossed(config.tick_kimg, before, images):
                progress.note_tick(stats.write(images, stage))
            if finished or crossed(config.sample_kimg, before, images):
                save_png(run.samples / f"{images:09d}.png", grid.draw(step.G_ema, stage, alpha))
            if leaving or crossed(config.checkpoint_kimg, before, images):
                state = {
                    "step": step.state_dict(),
                    "batches": batches.state_dict(),
                    "stats": stats.state_dict(),
                    "live": list(live),
                    "random": random_state(),
                    "generator": generator_facts(run, step, schedule, images),
                }
                save_checkpoint(run.checkpoints, images, state)

    if images < schedule.total_images:
        print(f"stopped and saved; go on with: pggan-fast train --resume {run.path}")
        return False
    facts = generator_facts(run, step, schedule, images)
    save_weights(run.final / "generator.safetensors", step.G_ema, facts)
    save_weights(run.final / "discriminator.safetensors", step.D, {"options": step.D.options})
    print(f"finished after {images:,} images in {duration(stats.seconds())}, weights in {run.final}")
    return True


def build_step(config: TrainConfig, data: PreparedData, device: torch.device) -> TrainStep:
    """Fresh networks in channels_last on `device`, with their optimizers."""
    common = {
        "image_channels": data.channels,
        "label_dim": len(data.classes) if config.labels else 0,
        "fmap_base": config.fmap_base,
        "fmap_max": config.fmap_max,
    }
    G = Generator(config.resolution, latent_dim=config.latent_dim, **common)
    D = Discriminator(config.resolution, **common)
    G, D = (network.to(device, memory_format=torch.channels_last) for network in (G, D))
    return TrainStep(G, D, ema_decay=config.ema_decay, precision=config.precision)


def crossed(every_kimg: float, before: int, after: int) -> bool:
    """Whether a multiple of `every_kimg` thousand images lies in (before, after]."""
    every = images_of(every_kimg)
    return before // every != after // every


def generator_facts(run: RunFolder, step: TrainStep, schedule: Schedule, images: int) -> dict[str, Any]:
    """What `generate` needs beside the weights: how to build G and at which stage it stands."""
    stage = schedule.at(min(images, schedule.total_images))
    return {
        "options": step.G.options,
        "classes": run.data.classes if run.config.labels else [],
        "images": images,
        "resolution": stage.resolution,
        "alpha": stage.alpha,
    }


def _print_opening(run: RunFolder, step: TrainStep, device: torch.device, images: int, kept: bool) -> None:
    G, D = (sum(p.numel() for p in network.parameters()) for network in (step.G, step.D))
    data, config = run.data, run.config
    print(f"{run.path}: {config.start_resolution} to {config.resolution} px in {config.precision}")
    print(f"data: {data.path}, {data.count:,} images, {data.channels} channels")
    print(f"networks: G {G:,} and D {D:,} parameters on {device}, channels_last")
    if kept:
        print("memory: malloc keeps what is freed (mmap and trim thresholds at 1 GiB)")
    if images:
        print(f"going on after {images:,} images")
    sys.stdout.flush()
