"""The command line: verbs, their options made from dataclasses, and errors of one line."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pggan_fast import __version__
from pggan_fast.convert import ExportConfig, ImportConfig, export_weights, import_weights
from pggan_fast.data.prepare import PrepareConfig, prepare
from pggan_fast.demo import DemoConfig, demo
from pggan_fast.doctor import report
from pggan_fast.evaluation import EvaluateConfig, check_metrics, evaluate, judge_for
from pggan_fast.generation.images import GenerateConfig, generate_images
from pggan_fast.generation.interpolation import InterpolateConfig, interpolate
from pggan_fast.generation.video import VideoConfig, training_video
from pggan_fast.training import RunFolder, TrainConfig, UserError, train
from pggan_fast.training.init_from import find_weights, settings_to_grow
from pggan_fast.training.presets import PRESETS
from pggan_fast.training.runtime.openmp import spin_briefly
from pggan_fast.utils.distributed import join
from pggan_fast.utils.options import Parser, from_options

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code: 0, 2 for a user's mistake, 130 when Ctrl-C stopped it."""
    whole_process = arguments is None
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    verb = arguments[0] if arguments else "--help"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files that the terminal's encoding does not have
            stream.reconfigure(errors="backslashreplace")
    if whole_process and verb in ("train", "demo"):
        spin_briefly()
    try:
        if verb in ("-h", "--help"):
            print(_overview())
        elif verb == "--version":
            print(__version__)
        elif verb in VERBS:
            return VERBS[verb](arguments[1:]) or 0
        else:
            raise UserError(f"unknown verb {verb}; must be one of: {', '.join(VERBS)}")
    except (UserError, OSError) as error:  # OSError: no permission, disk full, ...
        print(f"pggan-fast: error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("pggan-fast: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def _prepare(arguments: list[str]) -> None:
    """images (folder, zip, npy, TFRecords, Hugging Face, torch) -> arrays that training reads"""
    prepare(from_options(PrepareConfig, _parse("prepare", PrepareConfig, arguments)))


def _train(arguments: list[str]) -> int:
    """grow a GAN on prepared data, or go on with a run (--resume)"""
    parser = _parser("train", TrainConfig)
    parser.add_argument(
        "--resume",
        type=Path,
        nargs="?",
        const=Path(),
        metavar="RUN",
        help="go on with the run in RUN (or in --out) from its newest checkpoint",
    )
    parser.add_argument("--preset", choices=tuple(PRESETS), help="settings to start from; other options go before it")
    parser.add_argument(
        "--grow-from",
        type=Path,
        metavar="RUN",
        help="grow the networks of the finished run RUN to a higher --resolution, with its settings, in a new --out",
    )
    given = vars(parser.parse_strictly(arguments))
    resume, preset, grown = (given.pop(name) for name in ("resume", "preset", "grow_from"))
    if resume is not None and grown:
        raise UserError(f"--grow-from {grown}: makes a new run, --resume goes on with an old one; only one of them")
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
            find_weights(config.init_from)  # an error before there is a run
        check_metrics(config)
    else:
        out = given.pop("out", None) if resume == Path() else resume
        if out is None:
            raise UserError("--resume: which run? give its folder")
    with join() as processes:
        run = processes.first(lambda: RunFolder.create(config) if resume is None else RunFolder.open(out, given))
        if run is None:  # another process has made it
            run = RunFolder.open(out, {}, writes=False)
        judge = judge_for(run) if processes.writes else None
        return 0 if train(run, processes, judge=judge) else INTERRUPTED


def _generate(arguments: list[str]) -> None:
    """images from a run or from a weights file"""
    config = from_options(GenerateConfig, _parse("generate", GenerateConfig, arguments))
    paths = generate_images(config)
    print(f"{len(paths)} written: {paths[0]}" + (f" to {paths[-1]}" if len(paths) > 1 else ""))


def _interpolate(arguments: list[str]) -> None:
    """a film that goes from latent to latent"""
    config = from_options(InterpolateConfig, _parse("interpolate", InterpolateConfig, arguments))
    print(f"written: {interpolate(config)}")


def _video(arguments: list[str]) -> None:
    """a film of a run's sample grids"""
    config = from_options(VideoConfig, _parse("video", VideoConfig, arguments))
    print(f"written: {training_video(config)}")


def _evaluate(arguments: list[str]) -> None:
    """sliced Wasserstein distance, MS-SSIM, KID, FID, ... of a run or a folder"""
    evaluate(from_options(EvaluateConfig, _parse("evaluate", EvaluateConfig, arguments)))


def _import(arguments: list[str]) -> None:
    """weights of other implementations (official, pro-gan-pth, gan-zoo) -> weights of ours"""
    for path in import_weights(from_options(ImportConfig, _parse("import", ImportConfig, arguments))):
        print(f"written: {path}")


def _export(arguments: list[str]) -> None:
    """a generator -> safetensors, torch.export, ONNX or another implementation's weights"""
    print(f"written: {export_weights(from_options(ExportConfig, _parse('export', ExportConfig, arguments)))}")


def _demo(arguments: list[str]) -> int:
    """handwritten digits in a few minutes: data, training, sample grid"""
    return 0 if demo(from_options(DemoConfig, _parse("demo", DemoConfig, arguments))) else INTERRUPTED


def _doctor(arguments: list[str]) -> None:
    """what this installation can do, and why the rest is missing"""
    Parser(prog="pggan-fast doctor", description=_doctor.__doc__).parse_strictly(arguments)
    print(report())


VERBS: dict[str, Callable[[list[str]], int | None]] = {
    "prepare": _prepare,
    "train": _train,
    "generate": _generate,
    "interpolate": _interpolate,
    "video": _video,
    "evaluate": _evaluate,
    "import": _import,
    "export": _export,
    "demo": _demo,
    "doctor": _doctor,
}


def _overview() -> str:
    lines = ["usage: pggan-fast VERB [options]", "", "verbs (each has --help):"]
    lines += [f"  {name:<12}{run.__doc__}" for name, run in VERBS.items()]
    return "\n".join([*lines, "", "  --version prints the version"])


def _parser(verb: str, config: type) -> Parser:
    parser = Parser(prog=f"pggan-fast {verb}", description=VERBS[verb].__doc__)
    parser.add_config(config)
    return parser


def _parse(verb: str, config: type, arguments: list[str]) -> dict[str, Any]:
    return vars(_parser(verb, config).parse_strictly(arguments))
