"""A run folder: config.json, stats.jsonl, samples/, checkpoints/, final/."""

from __future__ import annotations

import dataclasses
import re
import secrets
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pggan_fast import __version__
from pggan_fast.data.dataset import PreparedData, check_free
from pggan_fast.data.prepared import changed
from pggan_fast.networks.resolutions import resolutions_up_to
from pggan_fast.training.checkpoint import checkpoints
from pggan_fast.training.config import TrainConfig
from pggan_fast.training.logging.statistics import read_line
from pggan_fast.training.run_lock import LOCK, lock_run, release_run
from pggan_fast.training.schedule import from_table
from pggan_fast.utils.atomic_write import atomic_write, write_json
from pggan_fast.utils.device import find_device
from pggan_fast.utils.distributed import process_count
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.options import flag, from_json, to_json
from pggan_fast.utils.program import command
from pggan_fast.utils.regular_file import irregular_kind
from pggan_fast.utils.schema import Each, Optional, number, read_json

CONFIG = {
    "pggan_fast": Optional(str),
    "run": Optional(str),
    # Compared with the data's own; a model card tells of these.
    "data": Each(str, Any, named={"count": Optional(number(0, whole=True)), "classes": Optional([str])}),
    "settings": Each(str, Any),  # each checked as an option is
}
FOLDERS = ("checkpoints", "samples", "final")
UNFINISHED = re.compile(
    r"\.(config\.json|stats\.jsonl(\.damaged)?|report\.html|[0-9]{9,18}\.(pt|png)"
    r"|(generator|discriminator)\.(safetensors|json))\.[0-9]+\.tmp"
)
"""Names of files that a process was killed while writing."""


class RunFolder:
    """The files of one run, its settings and its data, checked against each other.

    Made by `create` or `open`, it is locked for this process until `train` ends. `id` names the run in its checkpoints.
    """

    def __init__(self, config: TrainConfig, data: PreparedData, id: str) -> None:
        self.config = config
        self.data = data
        self.id = id
        self.path = config.out
        self.stats_file = self.path / "stats.jsonl"
        self.samples = self.path / "samples"
        self.checkpoints = self.path / "checkpoints"
        self.final = self.path / "final"

    @classmethod
    def create(cls, config: TrainConfig) -> RunFolder:
        """Start a new run in `config.out`. Raises UserError if there is anything in it already."""
        out = config.out
        _check_new(out)
        data = PreparedData(config.data)
        if config.resolution is None:
            config = dataclasses.replace(config, resolution=data.resolution)
        run = cls(config, data, secrets.token_hex(8))
        run._check()
        made = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        lock_run(out)
        try:
            _check_new(out)  # nobody else has begun meanwhile
            _remove_unfinished(out)
            run._write_config()
        except BaseException:
            release_run(out)
            if made and not any(out.iterdir()):
                out.rmdir()
            raise
        return run

    @classmethod
    def open(cls, out: Path, changes: dict[str, Any], *, writes: bool = True) -> RunFolder:
        """Resume the run in `out`, with `changes` to those settings that may change.

        Of several processes only one `writes`, before the others open the run.
        Raises UserError if there is no run, another process trains it, a setting is fixed, or the data are not those
        that the run was started with.
        """
        kept, config = read_config(out, "--resume")
        for field in dataclasses.fields(TrainConfig):
            same = changes.get(field.name) == getattr(config, field.name)
            if field.name in changes and not same and not field.metadata["changeable"]:
                hint = f"; a new run can --grow-from {out}" if field.name == "resolution" else ""
                raise UserError(f"{flag(field.name)}: is fixed by {config_file(out)} and cannot change{hint}")
        config = dataclasses.replace(config, **changes)
        if config.resolution is None:
            raise UserError(f"--resume {out}: config.json is damaged (resolution is null, must be a number)")
        data = PreparedData(config.data)
        try:
            difference = changed(kept.get("data"), data.metadata())
        except ValueError as error:
            raise UserError(f"--resume {out}: config.json is damaged ({error})") from error
        if difference:
            raise UserError(f"--data {config.data}: is not what the run was started with ({difference})")
        run = cls(config, data, kept.get("run") or secrets.token_hex(8))
        run._check()
        if writes:
            lock_run(out)
            try:
                run._refuse_links()
                _remove_unfinished(out)
                run._write_config()
            except BaseException:
                release_run(out)
                raise
        return run

    def drop_stats_after(self, images: int) -> None:
        """Drop the lines that a run stopped after its last checkpoint will write again.

        A file with lines that are none is kept as stats.jsonl.damaged, and read without them.
        """
        if not self.stats_file.exists():
            return
        contents = self.stats_file.read_bytes()
        *texts, cut_short = contents.split(b"\n")
        kept, foreign = [], 0
        for text in texts:
            line = read_line(text.decode("utf-8", "replace"))
            if line is None:
                foreign += 1
            elif line["images"] > images:
                break
            else:
                kept.append(text + b"\n")
        if foreign:
            aside = self.stats_file.with_name(f"{self.stats_file.name}.damaged")
            _write(aside, contents)
            print(f"{self.stats_file}: {foreign} lines are damaged and left out; the file as it was is {aside.name}")
        _write(self.stats_file, b"".join(kept))

    def _refuse_links(self) -> None:
        """Raise UserError for links, whose targets are not this run's to change, and statistics that are no file."""
        for name in ("config.json", "stats.jsonl", "report.html", "samples", "final", "tensorboard", "wandb", "mlflow"):
            if (self.path / name).is_symlink():
                raise UserError(f"--resume {self.path}: {name} is a link; put what it names there instead")
        if kind := irregular_kind(self.stats_file):
            raise UserError(f"--resume {self.path}: {self.stats_file.name} is {kind}, must be a file")

    def _check(self) -> None:
        config, data = self.config, self.data
        find_device(config.device)
        for name in config.trackers():
            if find_spec(name) is None:
                raise UserError(f"--track {name}: needs {name}; pip install 'pggan-fast[{name}]', or --track none")
        if config.resolution > data.resolution:
            raise UserError(f"--resolution {config.resolution}: the data in {data.path} end at {data.resolution} px")
        if data.count == 0:
            raise UserError(f"--data {data.path}: holds no images")
        if config.labels and not data.classes:
            raise UserError(f"--labels: {data.path} has no classes; prepare a folder with one subfolder each")
        if config.labels and not 0 <= data.labels.min() <= data.labels.max() < len(data.classes):
            raise UserError(f"--labels: {data.path} has labels outside of its {len(data.classes)} classes")
        for resolution in resolutions_up_to(config.resolution):
            if resolution < config.start_resolution:
                continue
            data.images(resolution)
            batch_size = from_table(config.batch_size, resolution)
            if batch_size % process_count():
                raise UserError(
                    f"--batch-size {batch_size} at {resolution} px: is what all processes have together,"
                    f" and must be a multiple of their number, {process_count()}"
                )

    def _write_config(self) -> None:
        contents = {
            "pggan_fast": __version__,
            "run": self.id,
            "data": self.data.metadata(),
            "settings": to_json(self.config),
        }
        write_json(config_file(self.path), contents)


def config_file(run: Path) -> Path:
    """Return the path of a run's settings."""
    return run / "config.json"


def read_config(run: Path, argument: str) -> tuple[dict[str, Any], TrainConfig]:
    """Return what a run's config.json holds, and its settings. Raises UserError, which names `argument`."""
    try:
        kept = read_json(config_file(run), CONFIG)
        return kept, from_json(TrainConfig, {**kept["settings"], "out": str(run)})
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{argument} {run}: holds no run (no config.json)") from None
    except UserError as error:
        reason = str(error).removeprefix(f"{config_file(run)}: is damaged (").removesuffix(")")
        raise UserError(f"{argument} {run}: config.json is damaged ({reason})") from error


def _check_new(out: Path) -> None:
    """Raise UserError unless `out` is absent, empty, or holds a run that ended before it had saved anything."""
    if not config_file(out).exists():
        left = [path for path in out.iterdir() if path.name != LOCK] if out.is_dir() else []
        if not out.is_dir() or not all(UNFINISHED.fullmatch(path.name) for path in left):
            check_free(out)
        return
    begun = [out / "stats.jsonl", out / "final", *checkpoints(out / "checkpoints"), *(out / "samples").glob("*")]
    if any(path.exists() for path in begun):
        raise UserError(
            f"--out {out}: holds a run already; resume it by `{command('train', '--resume', out)}`"
            " or choose another folder"
        )
    try:
        read_json(config_file(out), CONFIG)
    except UserError as error:
        raise UserError(f"--out {out}: is not empty ({error}); choose another folder") from error


def _remove_unfinished(out: Path) -> None:
    """Remove files that a process was killed while writing; nothing behind links."""
    for folder in (out, *(out / name for name in FOLDERS)):
        if folder == out or not folder.is_symlink():
            for path in folder.glob(".*.tmp"):
                if UNFINISHED.fullmatch(path.name):
                    path.unlink()


def _write(path: Path, contents: bytes) -> None:
    with atomic_write(path) as aside:
        aside.write_bytes(contents)
