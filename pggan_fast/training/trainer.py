"""The training loop. It reads top to bottom; progress is counted in real images shown."""

from __future__ import annotations

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
from pggan_fast.training.errors import UserError
from pggan_fast.training.images import save_png
from pggan_fast.training.memory import keep_freed_memory
from pggan_fast.training.progress import Progress, on_terminal
from pggan_fast.training.run import RunFolder
from pggan_fast.training.samples import SampleGrid
from pggan_fast.training.schedule import Stage
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
    print(opening_lines(run, step, device, images), flush=True)

    with StopSignal() as stop, Progress(schedule, images) as progress:
        while images < schedule.total_images and not stop:
            stage = schedule.at(images)
            if stage.live != live:  # new layers begin to fade in, or the old path has died
                step.reset_optimizers()
                live = stage.live
                progress.note(stage_line(images, stage))
            step.set_learning_rate(stage.learning_rate)
            alpha = alpha_of(stage, device)

            reals, labels = batches.next(stage.batch_size, stage.resolution)
            reals = fade_reals(reals.to(device), alpha).contiguous(
                memory_format=torch.channels_last
            )
            scalars = step(reals, labels.to(device) if config.labels else None, alpha=alpha)
            stats.add(scalars)
            before, images = images, images + stage.batch_size
            progress.update(images, stage, scalars)

            last = images >= schedule.total_images
            if last or crossed(before, images, config.tick_kimg):
                line = stats.write(images, stage)
                if not on_terminal():
                    progress.note(tick_line(line, progress))
            if last or crossed(before, images, config.sample_kimg):
                picture = grid.draw(step.G_ema, stage.resolution, alpha)
                save_png(run.samples / f"{images:09d}.png", picture)
            if last or stop or crossed(before, images, config.checkpoint_kimg):
                state = {
                    "step": step.state_dict(),
                    "batches": batches.state_dict(),
                    "stats": stats.state_dict(),
                    "random": random_state(),
                    "live": list(live),
                    "alpha": stage.alpha,
                    "generator": step.G.options,
                    "classes": classes_of(run),
                }
                save_checkpoint(run.checkpoints, images, state)

    if images < schedule.total_images:
        print(f"stopped and saved; go on with: pggan-fast train --resume {run.path}")
        return False
    save_final(run, step, images)
    return True
