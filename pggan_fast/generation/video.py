"""Videos: frames to an .mp4 (with imageio-ffmpeg) or a .gif (without), and the video of a run's sample grids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from pggan_fast.training.run_folder import config_file
from pggan_fast.utils.atomic_write import atomic_write
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.images import rgb
from pggan_fast.utils.memory import advice_when_out_of_memory
from pggan_fast.utils.optional import require
from pggan_fast.utils.options import check_options, option
from pggan_fast.utils.output_file import check_output_file
from pggan_fast.utils.progress_bar import bar_over

FORMATS = (".mp4", ".gif")
OUT_HELP = "File to write, .mp4 or .gif; without an ending .mp4 if imageio-ffmpeg is installed, else .gif."
GIF_STEP = 0.01  # seconds: what a .gif counts time in
FASTEST = 240  # frames per second of an .mp4
QUALITY = 18  # x264's constant rate factor: the eye sees no loss
LAST_FRAME_SECONDS = 2.0


@dataclass(frozen=True)
class VideoConfig:
    """Settings of `pggan-fast video`."""

    run: Path = option(help="Folder of a run; its sample grids become the frames.", metavar="RUN")
    out: Path = option(help=OUT_HELP, metavar="FILE")
    fps: float = option(8.0, above=0, max=FASTEST, help="Frames per second.")
    width: int = option(1024, min=16, max=16384, help="Largest width of the video in pixels.")

    def __post_init__(self) -> None:
        check_options(self)


def training_video(config: VideoConfig) -> Path:
    """Write the video of a run's progress and return its path. Raises UserError, with advice, if memory runs out."""
    with advice_when_out_of_memory("--width N below " + str(config.width)):
        return _training_video(config)


def _training_video(config: VideoConfig) -> Path:
    if not config_file(config.run).is_file():
        raise UserError(f"--run {config.run}: holds no run (no config.json)")
    files = [file for file in sorted((config.run / "samples").glob("*.png")) if _is_image(file)]
    if not files:
        raise UserError(f"--run {config.run}: has no sample grids yet")
    out = video_path(config.out, config.fps)
    with Image.open(files[-1]) as last:
        scale = min(1.0, config.width / last.width)
        size = max(1, round(last.width * scale)), max(1, round(last.height * scale))

    def frames() -> Iterator[np.ndarray]:
        held = [files[-1]] * round(LAST_FRAME_SECONDS * config.fps)
        for file in bar_over([*files, *held], "frames"):
            with Image.open(file) as image:
                yield np.asarray(rgb(image).resize(size, Image.Resampling.LANCZOS))

    save_video(out, frames(), config.fps)
    return out


def _is_image(file: Path) -> bool:
    """Return whether a sample grid can be read; another file among them is left out, as in report.html."""
    try:
        with Image.open(file, formats=["PNG"]) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    return True


def video_path(out: Path, fps: float) -> Path:
    """Return `out` with the ending of a format that can be written. Raises UserError if it exists or cannot be."""
    if out.suffix.lower() not in FORMATS:
        if out.suffix:
            raise UserError(f"--out {out}: must end in {' or '.join(FORMATS)}")
        out = out.with_suffix(".mp4" if find_spec("imageio_ffmpeg") else ".gif")
    check_output_file(out)
    fastest = 1 / (2 * GIF_STEP) if out.suffix.lower() == ".gif" else FASTEST
    if not 0 < fps <= fastest:
        raise UserError(f"--fps {fps:g}: must be above 0 and at most {fastest:g} for {out.suffix}")
    if out.suffix.lower() == ".mp4":
        require("imageio_ffmpeg", extra="video", what=f"--out {out} (a .gif needs nothing)")
    return out


def save_video(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write frames, uint8 [H, W, 3], whole or not at all; at least one. An .mp4 gets even sides by a black edge."""
    with atomic_write(path) as aside:
        if path.suffix.lower() == ".mp4":
            _save_mp4(aside, frames, fps)
        else:
            images = (Image.fromarray(frame) for frame in frames)
            milliseconds = round(1 / fps / GIF_STEP) * GIF_STEP * 1000
            next(images).save(aside, format="GIF", save_all=True, append_images=images, duration=milliseconds, loop=0)


def _save_mp4(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    import imageio_ffmpeg  # an extra; video_path has seen that it is there

    frames = iter(frames)
    first = next(frames)
    height, width = first.shape[:2]
    even = ((0, height % 2), (0, width % 2), (0, 0))
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (width + width % 2, height + height % 2),
        fps=fps,
        codec="libx264",
        quality=None,
        macro_block_size=1,
        output_params=["-crf", str(QUALITY), "-f", "mp4", "-movflags", "+faststart"],
        ffmpeg_log_level="error",
    )
    writer.send(None)
    try:
        for frame in chain([first], frames):
            writer.send(np.ascontiguousarray(np.pad(frame, even)))
    finally:
        writer.close()
