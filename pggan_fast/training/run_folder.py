"""A run folder: config.json, stats.jsonl, samples/, checkpoints/, final/."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from pggan_fast import __version__
from pggan_fast.data.dataset import PreparedData, check_free
from pggan_fast.data.prepared import changed
from pggan_fast.networks.resolutions import resolutions_up_to
from pggan_fast.training.config import TrainConfig
from pggan_fast.training.schedule import from_table
from pggan_fast.utils.atomic_write import ASIDE, atomic_write, write_json
from pggan_fast.utils.device import find_device
from pggan_fast.utils.distributed import process_count
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.options import flag, from_json, to_json


class RunFolder:
    """The files of one run, its settings and its data, checked against each other."""

    def __init__(self, config: TrainConfig, data: PreparedData) -> None:
        self.config = config
        self.data = data
        self.path = config.out
        self.stats_file = self.path / "stats.jsonl"
        self.samples = self.path / "samples"
        self.checkpoints = self.path / "checkpoints"
        self.final = self.path / "final"

    @classmethod
    def create(cls, config: TrainConfig) -> RunFolder:
        """Start a new run in `config.out`. Raises UserError if there is anything in it already."""
        out = config.out
        if config_file(out).exists():
            raise UserError(
                f"--out {out}: holds a run already; go on with it by"
                f" `pggan-fast train --resume {out}` or choose another folder"
            )
        for unfinished in out.glob(f".config.json.*{ASIDE}"):  # of a run that was killed as it began
            unfinished.unlink()
        check_free(out)
        data = PreparedData(config.data)
        if config.resolution is None:
            config = dataclasses.replace(config, resolution=data.resolution)
        run = cls(config, data)
        run._check()
        run._write_config()
        return run

    @classmethod
    def open(cls, out: Path, changes: dict[str, Any], *, writes: bool = True) -> RunFolder:
        """Go on with the run in `out`, with `changes` to those settings that may change.

        Of several processes only one `writes`, before the others open the run.
        Raises UserError if there is no run, a setting is fixed, or the data are not those that
        the run was started with.
        """
        try:
            kept = json.loads(config_file(out).read_text(encoding="utf-8"))
            config = from_json(TrainConfig, {**kept["settings"], "out": str(out)})
        except FileNotFoundError:
            raise UserError(f"--resume {out}: holds no run (no config.json)") from None
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"--resume {out}: config.json is damaged ({error})") from error
        for field in dataclasses.fields(TrainConfig):
            if field.name in changes and not field.metadata["changeable"]:
                hint = f"; a new run can --grow-from {out}" if field.name == "resolution" else ""
                raise UserError(f"{flag(field.name)}: is fixed by {config_file(out)} and cannot change{hint}")
        config = dataclasses.replace(config, **changes)
        data = PreparedData(config.data)
        try:
            difference = changed(kept.get("data"), data.metadata())
        except ValueError as error:
            raise UserError(f"--resume {out}: config.json is damaged ({error})") from error
        if difference:
            raise UserError(f"--data {config.data}: is not what the run was started with ({difference})")
        run = cls(config, data)
        run._check()
        if writes:
            for unfinished in out.rglob(f".*{ASIDE}"):  # of a process that was killed while writing
                unfinished.unlink()
            run._write_config()
        return run

    def forget_stats_after(self, images: int) -> None:
        """Drop the lines that a run stopped after its last checkpoint will write again."""
        if not self.stats_file.exists():
            return
        kept = []
        for line in self.stats_file.read_text(encoding="utf-8").splitlines(keepends=True):
            if not line.endswith("\n") or json.loads(line)["images"] > images:
                break
            kept.append(line)
        with atomic_write(self.stats_file) as aside:
            aside.write_text("".join(kept), encoding="utf-8")

    def _check(self) -> None:
        config, data = self.config, self.data
        device = find_device(config.device)
        if config.cuda_graphs and (device.type != "cuda" or process_count() > 1):
            raise UserError(
                f"--cuda-graphs: is for one process on a CUDA device, this is {process_count()} on {device}"
            )
        if config.resolution > data.resolution:
            raise UserError(f"--resolution {config.resolution}: the data in {data.path} end at {data.resolution} px")
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
            "data": self.data.metadata(),
            "settings": to_json(self.config),
        }
        write_json(config_file(self.path), contents)


def config_file(run: Path) -> Path:
    return run / "config.json"
