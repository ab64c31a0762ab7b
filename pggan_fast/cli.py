"""The command line: commands, their options made from dataclasses, and errors of one line."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pggan_fast import __version__, _startup
from pggan_fast.convert import ExportConfig, ImportConfig, export_weights, import_weights
from pggan_fast.data.prepare import PrepareConfig, prepare
from pggan_fast.demo import DemoConfig, demo
from pggan_fast.doctor import report
from pggan_fast.evaluation import EvaluateConfig, check_metrics, evaluate, metric_callback_for
from pggan_fast.generation.images import GenerateConfig, generate_images
from pggan_fast.generation.interpolation import InterpolateConfig, interpolate
from pggan_fast.generation.projection import ProjectConfig, project_image
from pggan_fast.generation.video import VideoConfig, training_video
from pggan_fast.training import RunFolder, TrainConfig, UserError, train
from pggan_fast.training.init_from import find_weights, settings_to_grow
from pggan_fast.training.presets import PRESETS
from pggan_fast.training.runtime.openmp import spin_briefly
from pggan_fast.utils.distributed import join
from pggan_fast.utils.errors import line_of, nearest
from pggan_fast.utils.memory import describe_out_of_memory
from pggan_fast.utils.options import Parser, from_options
from pggan_fast.utils.settings_file import FORMATS, add_config_option, settings_text, with_settings_file
from pggan_fast.utils.streams import lasting_streams

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 2 for a user's mistake, 130 when Ctrl-C or a signal stopped it."""
    whole_process = arguments is None
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files that the terminal's encoding does not have
            stream.reconfigure(errors="backslashreplace")
    if not whole_process:
        return _run(arguments)
    if arguments[:1] and arguments[0] in _startup.LONG_COMMANDS:
        spin_briefly()
    with lasting_streams():
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    command = arguments[0] if arguments else "--help"
    try:
        _startup.imported()
        if command in ("-h", "--help"):
            print(_overview())
        elif command == "--version":
            print(__version__)
        elif command in COMMANDS:
            return COMMANDS[command](arguments[1:]) or 0
        else:
            raise UserError(
                f"unknown command {command}; must be one of: {', '.join(COMMANDS)}{nearest(command, COMMANDS)}"
            )
    except Exception as error:
        line = describe_out_of_memory(error)
        if line is None and not isinstance(error, (UserError, OSError)):  # OSError: no permission, disk full, ...
            raise
        if line is None:
            line = line_of(error, arguments[1:]) if isinstance(error, OSError) else error
        print(f"pggan-fast: error: {line}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt as stop:  # a command may say what it has done by then
        print("pggan-fast: interrupted" + (f", {stop}" if str(stop) else ""), file=sys.stderr)
        return INTERRUPTED
    return 0


def _prepare(arguments: list[str]) -> None:
    """Convert images (folder, zip, npy, TFRecords, Hugging Face, torch) into a dataset that training reads."""
    prepare(from_options(PrepareConfig, _parse("prepare", PrepareConfig, arguments)))


def _train(arguments: list[str]) -> int:
    """Train a GAN on prepared data as it grows, or resume a run (--resume)."""
    parser = _parser("train", TrainConfig)
    start = parser.add_argument_group("how to start")
    start.add_argument(
        "--resume",
        type=Path,
        nargs="?",
        const=Path(),
        default=argparse.SUPPRESS,
        metavar="RUN",
        help="Resume the run in RUN (or in --out) from its newest checkpoint. (default: none)",
    )
    start.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        default=argparse.SUPPRESS,
        help="Settings to start from; other options take precedence over it. (default: none)",
    )
    start.add_argument(
        "--grow-from",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="RUN",
        help="Grow the networks of the finished run RUN to a higher --resolution, with its settings, in a new --out."
        " (default: none)",
    )
    given = with_settings_file(parser, TrainConfig, vars(parser.parse_strictly(arguments)))
    resume, preset, grown = (given.pop(name, None) for name in ("resume", "preset", "grow_from"))
    if resume is not None and grown:
        raise UserError(f"--grow-from {grown}: makes a new run, --resume resumes an old one; only one of them")
    if preset and (grown or resume is not None):
        raise UserError(f"--preset {preset}: cannot be with --resume or --grow-from, which keep a run's settings")
    if preset:
        given = {**PRESETS[preset], **given}
    if grown:
        given = settings_to_grow(grown, given)
    if resume is None:
        config = from_options(TrainConfig, given)
        out = config.out
        if config.init_from:
            find_weights(config.init_from, config)  # an error before there is a run
        check_metrics(config)
    else:
        out = given.pop("out", None)
        out = out if resume == Path() else resume
        if out is None:
            raise UserError("--resume: which run? give its folder")
    if _startup.stop_is_asked():  # nothing is written yet
        raise KeyboardInterrupt
    with join() as processes:
        run = processes.first(lambda: RunFolder.create(config) if resume is None else RunFolder.open(out, given))
        if run is None:  # another process has made it
            run = RunFolder.open(out, {}, writes=False)
        metric_callback = metric_callback_for(run, processes)
        return 0 if train(run, processes, metric_callback=metric_callback) else INTERRUPTED


def _generate(arguments: list[str]) -> None:
    """Generate images from a run or from a weights file."""
    config = from_options(GenerateConfig, _parse("generate", GenerateConfig, arguments))
    paths = generate_images(config)
    print(f"{len(paths)} written: {paths[0]}" + (f" to {paths[-1]}" if len(paths) > 1 else ""))


def _interpolate(arguments: list[str]) -> None:
    """Make a video that goes from latent to latent."""
    config = from_options(InterpolateConfig, _parse("interpolate", InterpolateConfig, arguments))
    print(f"written: {interpolate(config)}")


def _video(arguments: list[str]) -> None:
    """Make a video of a run's sample grids."""
    config = from_options(VideoConfig, _parse("video", VideoConfig, arguments))
    print(f"written: {training_video(config)}")


def _project(arguments: list[str]) -> None:
    """Find the latent whose image is nearest to a given one."""
    config = from_options(ProjectConfig, _parse("project", ProjectConfig, arguments))
    report = project_image(config)
    apart = report["feature_distance"]
    print(f"mean squared error {report['mean_squared_error']:.4f}" + (f", features {apart:.4f}" if apart else ""))
    print(f"written: {config.out / 'comparison.png'} and, beside it, latent.npy")


def _evaluate(arguments: list[str]) -> None:
    """Compute sliced Wasserstein distance, MS-SSIM, KID, FID, ... of a run or a folder."""
    config = from_options(EvaluateConfig, _parse("evaluate", EvaluateConfig, arguments))
    with join() as processes:
        evaluate(config, processes)


def _import(arguments: list[str]) -> None:
    """Convert weights of other implementations (official, pro-gan-pth, gan-zoo) into our format."""
    for path in import_weights(from_options(ImportConfig, _parse("import", ImportConfig, arguments))):
        print(f"written: {path}")


def _export(arguments: list[str]) -> None:
    """Convert a generator to safetensors, torch.export, ONNX or another implementation's format."""
    print(f"written: {export_weights(from_options(ExportConfig, _parse('export', ExportConfig, arguments)))}")


def _demo(arguments: list[str]) -> int:
    """Train on handwritten digits for a few minutes: data, training, sample grid."""
    return 0 if demo(from_options(DemoConfig, _parse("demo", DemoConfig, arguments))) else INTERRUPTED


def _config(arguments: list[str]) -> None:
    """Print a commented file with every setting of a command (train if none is named), for its --config."""
    parser = Parser(prog="pggan-fast config", description=_config.__doc__)
    parser.usage = "pggan-fast config [COMMAND] [options]"
    parser.add_argument(
        "command", nargs="?", choices=tuple(CONFIGS), default="train", help="One of: %(choices)s. (default: train)"
    )
    parser.add_argument("--format", choices=FORMATS, default="toml", help="Format of the file. (default: toml)")
    given = parser.parse_strictly(arguments)
    print(settings_text(given.command, CONFIGS[given.command], given.format))


def _doctor(arguments: list[str]) -> None:
    """Report what this installation can do, and why the rest is missing."""
    Parser(prog="pggan-fast doctor", description=_doctor.__doc__).parse_strictly(arguments)
    print(report())


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "prepare": _prepare,
    "train": _train,
    "generate": _generate,
    "interpolate": _interpolate,
    "video": _video,
    "project": _project,
    "evaluate": _evaluate,
    "import": _import,
    "export": _export,
    "demo": _demo,
    "config": _config,
    "doctor": _doctor,
}

CONFIGS: dict[str, type] = {
    "prepare": PrepareConfig,
    "train": TrainConfig,
    "generate": GenerateConfig,
    "interpolate": InterpolateConfig,
    "video": VideoConfig,
    "project": ProjectConfig,
    "evaluate": EvaluateConfig,
    "import": ImportConfig,
    "export": ExportConfig,
    "demo": DemoConfig,
}
"""Settings of the commands that take `--config`."""


def _overview() -> str:
    lines = ["usage: pggan-fast COMMAND [options]", "", "commands (each has --help):"]
    lines += [f"  {name:<12}{run.__doc__}" for name, run in COMMANDS.items()]
    return "\n".join([*lines, "", "  --version prints the version"])


def _parser(command: str, config: type) -> Parser:
    parser = Parser(prog=f"pggan-fast {command}", description=COMMANDS[command].__doc__)
    parser.add_config(config)
    add_config_option(parser)
    return parser


def _parse(command: str, config: type, arguments: list[str]) -> dict[str, Any]:
    parser = _parser(command, config)
    return with_settings_file(parser, config, vars(parser.parse_strictly(arguments)))
