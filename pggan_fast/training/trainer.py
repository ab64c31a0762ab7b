"""The training loop. It reads top to bottom; progress is counted in real images shown."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pggan_fast.data.batches import Batches
from pggan_fast.data.dataset import PreparedData
from pggan_fast.data.prefetch import Prefetcher
from pggan_fast.interop.weights import save_weights
from pggan_fast.networks import Generator
from pggan_fast.ops import fade_reals
from pggan_fast.training.build import build_augment, build_networks, build_objective
from pggan_fast.training.checkpoint import (
    check_run,
    checkpoints,
    load_run_checkpoint,
    newest_whole,
    random_state,
    save_checkpoint,
    set_random_state,
)
from pggan_fast.training.config import TrainConfig, images_of
from pggan_fast.training.hyperparameters import hyperparameters
from pggan_fast.training.init_from import start_from
from pggan_fast.training.logging.loggers import Loggers
from pggan_fast.training.logging.progress import Progress
from pggan_fast.training.logging.sample_grid import SampleGrid
from pggan_fast.training.logging.statistics import Statistics
from pggan_fast.training.precision import on_this_processor
from pggan_fast.training.run_folder import RunFolder
from pggan_fast.training.run_lock import lock_run, release_run
from pggan_fast.training.runtime.cuda_graph import recorded
from pggan_fast.training.runtime.cudnn import cudnn_settings
from pggan_fast.training.runtime.malloc import keep_freed_memory
from pggan_fast.training.runtime.signals import SignalHandler
from pggan_fast.training.runtime.threads import Threads
from pggan_fast.training.schedule import Schedule, Stage, from_table
from pggan_fast.training.step import TrainStep
from pggan_fast.utils.curve import Curve
from pggan_fast.utils.device import AsyncScalar, find_device, sent
from pggan_fast.utils.distributed import Processes
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.memory import advice_when_out_of_memory
from pggan_fast.utils.program import command
from pggan_fast.utils.progress_bar import duration
from pggan_fast.utils.streams import lasting_streams

MetricCallback = Callable[[Generator, Stage, float | torch.Tensor], dict[str, float]]

MOST_BAD_STEPS = 50  # in a row; fp16 needs some 20 at the start to find its loss scale


def train(
    run: RunFolder,
    processes: Processes = Processes(),  # noqa: B008 - frozen
    metric_callback: MetricCallback | None = None,
) -> bool:
    """Train `run` from its newest checkpoint, or from nothing, to the end of its schedule.

    What `metric_callback` returns for the averaged generator, every `metric_kimg` and at the end, goes into
    stats.jsonl.

    Returns False if Ctrl-C, a signal or the time limit stopped it before; its state is saved then. Raises UserError if
    it cannot continue; what was saved stays.
    """
    time_limit = None if run.config.time_limit is None else 60 * run.config.time_limit
    with (
        lasting_streams(),
        SignalHandler(time_limit, forwarded=processes.count > 1) as signals,
        advice_when_out_of_memory(),
        cudnn_settings(benchmark=run.config.cudnn_benchmark),
    ):
        processes.first(lambda: lock_run(run.path))
        try:
            return _train(run, processes, metric_callback, signals)
        finally:
            if processes.writes:
                release_run(run.path)


def _train(
    run: RunFolder, processes: Processes, metric_callback: MetricCallback | None, signals: SignalHandler
) -> bool:
    config, schedule = run.config, run.config.schedule()
    device = find_device(config.device)
    kept = keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    threads = Threads() if config.threads == 0 else None
    torch.manual_seed(config.seed)
    step = build_step(config, run.data, device, processes)
    advance = recorded(step, device, processes.count) if config.cuda_graphs else step
    group_size = step.D.mbstd_group_size
    batches = Prefetcher(
        Batches(run.data, seed=config.seed, mirror=config.mirror, processes=processes, group_size=group_size)
    )
    stats = Statistics(run.stats_file, writes=processes.writes)
    grid = SampleGrid(step.G, config.seed)
    bad_steps = AsyncScalar(step.bad_steps)

    images, active_layers, looked_at, repeats = 0, None, 0, 0  # of the schedule: the last look at it, and steps since
    if path := processes.shared(processes.first(lambda: newest_whole(run.checkpoints))):
        state = load_run_checkpoint(path)
        restore(step, path, state)
        check_run(path, run.id)
        batches.load_state_dict(state["batches"])
        stats.load_state_dict(state["stats"], device)
        images, active_layers = state["images"], tuple(state["live"])
        looked_at, repeats = state.get("schedule") or (images, 0)
        set_random_state(state["random"], device)
    elif config.init_from:
        start_from(step, config.init_from, config)
    if processes.writes:
        run.drop_stats_after(images)
    _print_opening(run, step, device, images, kept, processes)

    def save() -> None:
        if not processes.writes:
            return
        state = {
            "step": step.state_dict(),
            "batches": batches.state_dict(),
            "stats": stats.state_dict(),
            "live": list(active_layers),
            "schedule": [looked_at, repeats],
            "random": random_state(device),
            "generator": generator_metadata(run, step, schedule, images),
        }
        save_checkpoint(run.checkpoints, images, state, run=run.id)

    leaving = images >= schedule.total_images
    signals.begin()
    with (
        Progress(schedule, images) as progress,
        Loggers(run, images, writes=processes.writes) as loggers,
        closing(batches),
    ):
        while not leaving:
            if threads is not None:
                threads.follow()
            if repeats % config.minibatch_repeats == 0:
                looked_at, repeats = images, 0
            stage = schedule.at(looked_at)
            if stage.active_layers != active_layers:  # new layers begin to fade in, or the old path has died
                if config.reset_optimizers:
                    step.reset_optimizers()
                active_layers = stage.active_layers
                progress.note_stage(images, stage)
            step.set_learning_rate(stage.learning_rate, stage.learning_rate * config.d_learning_rate_factor)
            values = hyperparameters(config, stage, looked_at)
            step.set_hyperparameters(**values)
            if config.micro_batch:
                step.micro_batch = from_table(config.micro_batch, stage.resolution)
            # While fading a tensor, so that one graph serves all values; 1.0 leaves the old path out.
            alpha = torch.full((), stage.alpha, device=device) if stage.fading else 1.0

            batch_state = batches.state_dict()
            try:
                read = [batches.next(stage.batch_size, stage.resolution) for _ in range(config.d_steps)]
            except (UserError, OSError):  # the data are gone: what was learnt from them is kept
                batches.load_state_dict(batch_state)  # none of this step's batches was used
                save()
                raise
            pixels, labels = (torch.cat(parts) for parts in zip(*read, strict=True))
            reals = fade_reals(sent(pixels, device), alpha)
            reals = reals.contiguous(memory_format=torch.channels_last)
            scalars = advance(reals, sent(labels, device) if config.labels else None, alpha=alpha)
            before, images, repeats = images, images + stage.batch_size * config.d_steps, repeats + 1
            stats.add(scalars)
            progress.update(images, stage, scalars)

            # Together, so that every process does the same; nobody waits for the device.
            leave, asked, bad = processes.largest(signals.leave(), signals.save(), bad_steps.read())
            if bad >= MOST_BAD_STEPS:
                raise UserError(f"no finite gradient in {MOST_BAD_STEPS} steps, {_what_helps(run, images)}")
            finished = images >= schedule.total_images
            leaving = finished or bool(leave)
            if metric_callback is not None and (finished or crossed(config.metric_kimg, before, images)):
                stats.note(partial(metric_callback, step.G_ema, stage, alpha))
            if finished or crossed(config.tick_kimg, before, images):
                line = stats.write(images, stage, values)
                progress.note_tick(line)
                loggers.tick(line)
            if processes.writes and (finished or crossed(config.sample_kimg, before, images)):
                loggers.grid(images, grid.generate(step.G_ema, stage, alpha))
            if leaving or asked or crossed(config.checkpoint_kimg, before, images):
                save()

    if images < schedule.total_images:
        print(f"stopped and saved; resume with: {command('train', '--resume', run.path)}")
        return False
    if stats.line_steps and int(step.bad_steps) >= stats.line_steps:
        raise UserError(f"no finite step in the last tick, so no final/, {_what_helps(run, images)}")
    if processes.writes:
        metadata = generator_metadata(run, step, schedule, images)
        save_weights(run.final / "generator.safetensors", step.G_ema, metadata)
        save_weights(run.final / "discriminator.safetensors", step.D, {"options": step.D.options})
    print(f"finished after {images:,} images in {duration(stats.seconds())}, weights in {run.final}")
    return True


def build_step(
    config: TrainConfig,
    data: PreparedData,
    device: torch.device,
    processes: Processes = Processes(),  # noqa: B008 - frozen
) -> TrainStep:
    """Return fresh networks in channels_last on `device`, with their optimizers."""
    networks = build_networks(config, data)
    G, D = (network.to(device, memory_format=torch.channels_last) for network in networks)
    return TrainStep(
        G,
        D,
        objective=build_objective(config),
        betas=(config.adam_beta1, Curve.parse(config.adam_beta2).at(0)),
        eps=config.adam_eps,
        eps_place=config.adam_eps_place,
        d_steps=config.d_steps,
        penalty_every=config.penalty_every,
        penalty_on=config.penalty_on,
        augment=build_augment(config),
        ema_decay=config.ema_decay,
        precision=config.precision,
        activation_checkpointing=config.activation_checkpointing,
        compile=config.compile,
        processes=processes,
    )


def restore(step: TrainStep, path: Path, state: dict[str, Any]) -> None:
    """Give `step` the state of the checkpoint in `path`. Raises UserError if that is of another network."""
    expected, found = step.G.options, state["generator"]["options"]
    for name in expected:
        if found.get(name) != expected[name]:
            raise UserError(
                f"checkpoint {path}: is of another network ({name} {found.get(name)}, this run has {expected[name]})"
            )
    try:
        step.load_state_dict(state["step"])
        # Tried here, where an error can name the file; training sets it again.
        set_random_state(state["random"], step.device)
    except (RuntimeError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"checkpoint {path}: does not fit this run ({reason})") from error


def crossed(every_kimg: float, before: int, after: int) -> bool:
    """Return whether a multiple of `every_kimg` thousand images lies in (before, after]."""
    every = images_of(every_kimg)
    return before // every != after // every


def generator_metadata(run: RunFolder, step: TrainStep, schedule: Schedule, images: int) -> dict[str, Any]:
    """Return what `generate` needs beside the weights: how to build G and at which stage it stands."""
    stage = schedule.at(min(images, schedule.total_images))
    return {
        "options": step.G.options,
        "classes": run.data.classes if run.config.labels else [],
        "images": images,
        "resolution": stage.resolution,
        "alpha": stage.alpha,
    }


def _what_helps(run: RunFolder, images: int) -> str:
    saved = checkpoints(run.checkpoints)
    last = f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
    return (
        f"after {images:,} images; {last}; try a lower --learning-rate"
        " in a new run, or --resume this one with --precision bf16 or fp32"
    )


def _print_opening(
    run: RunFolder, step: TrainStep, device: torch.device, images: int, kept: bool, processes: Processes
) -> None:
    G, D = (sum(p.numel() for p in network.parameters()) for network in (step.G, step.D))
    data, config = run.data, run.config
    start = config.start_resolution if config.grows else config.resolution
    print(f"{run.path}: {start} to {config.resolution} px in {step.precision}")
    if device.type == "cpu" and (note := on_this_processor(step.precision)):
        print(f"precision: {note}")
    print(f"data: {data.path}, {data.count:,} images, {data.channels} channels")
    print(f"networks: G {G:,} and D {D:,} parameters on {device}, channels_last")
    if processes.count > 1:
        print(f"processes: {processes.count}, each with its part of every batch")
    if kept:
        print("memory: malloc keeps what is freed (mmap and trim thresholds at 1 GiB)")
    if images:
        print(f"resuming after {images:,} images")
    sys.stdout.flush()
