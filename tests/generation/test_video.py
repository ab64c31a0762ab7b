"""Videos, read back by Pillow and ffmpeg, and the walk between latents."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pggan_fast import Generator
from pggan_fast.generation.interpolation import InterpolateConfig, interpolate, walk
from pggan_fast.generation.video import VideoConfig, save_video, training_video, video_path
from pggan_fast.interop.weights import save_weights
from pggan_fast.utils.errors import UserError


def frames(count=10, height=33, width=47):
    """A bright bar that moves to the right."""
    made = np.zeros((count, height, width, 3), np.uint8)
    for index, frame in enumerate(made):
        frame[:, index * 4 : index * 4 + 8] = (250, 120, 30)
    return made


def test_gif(tmp_path):
    save_video(tmp_path / "a.gif", iter(frames()), 25)
    with Image.open(tmp_path / "a.gif") as video:
        assert (video.n_frames, video.size, video.info["duration"], video.info["loop"]) == (10, (47, 33), 40, 0)
        for index, frame in enumerate(frames()):
            video.seek(index)
            assert np.abs(np.asarray(video.convert("RGB")).astype(int) - frame).max() < 8  # 256 colours


def test_mp4(tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    save_video(tmp_path / "a.mp4", iter(frames()), 25)
    reader = ffmpeg.read_frames(str(tmp_path / "a.mp4"))
    metadata = next(reader)
    assert (metadata["size"], metadata["fps"], metadata["codec"]) == ((48, 34), 25, "h264")
    read = [np.frombuffer(frame, np.uint8).reshape(34, 48, 3) for frame in reader]
    assert len(read) == 10
    for frame, expected in zip(read, frames(), strict=True):
        assert np.abs(frame[:33, :47].astype(int) - expected).mean() < 6  # chroma at half resolution, edges smeared
    assert list(tmp_path.iterdir()) == [tmp_path / "a.mp4"]


def test_nothing_is_left_of_a_video_that_fails(tmp_path):
    def broken():
        yield frames()[0]
        raise KeyboardInterrupt

    for name in ("a.gif", "a.mp4"):
        if name.endswith("mp4"):
            pytest.importorskip("imageio_ffmpeg")
        with pytest.raises(KeyboardInterrupt):
            save_video(tmp_path / name, broken(), 10)
        assert list(tmp_path.iterdir()) == []


def fails(action):
    with pytest.raises(UserError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_format_follows_the_name_and_what_is_installed(tmp_path, monkeypatch):
    (tmp_path / "there.gif").touch()
    assert "exists already" in fails(lambda: video_path(tmp_path / "there.gif", 10))
    assert "must end in .mp4 or .gif" in fails(lambda: video_path(tmp_path / "a.webm", 10))
    assert "at most 50 for .gif" in fails(lambda: video_path(tmp_path / "a.gif", 60))
    assert "--fps 0" in fails(lambda: video_path(tmp_path / "a.gif", 0))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert "pip install 'pggan-fast[video]'" in fails(lambda: video_path(tmp_path / "a.mp4", 30))
    monkeypatch.setattr("pggan_fast.generation.video.find_spec", lambda name: None)
    assert video_path(tmp_path / "a", 30) == tmp_path / "a.gif"


@pytest.fixture
def run(tmp_path):
    """Make what the commands need of a run: settings, grids, final weights."""
    folder = tmp_path / "run"
    (folder / "samples").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for index in range(5):
        Image.new("L", (300, 200), 50 * index).save(folder / "samples" / f"{index:09d}.png")
    torch.manual_seed(0)
    G = Generator(8, fmap_max=8, image_channels=1, label_dim=3)
    metadata = {"options": G.options, "classes": ["a", "b", "c"], "images": 5, "resolution": 8, "alpha": 0.5}
    save_weights(folder / "final" / "generator.safetensors", G, metadata)
    return folder


def test_a_video_of_training(run, tmp_path):
    for stray in ("000000000-copy.png", "zzz.png"):  # neither the first nor the last grid need be one
        (run / "samples" / stray).write_text("no image")
    out = training_video(VideoConfig(run=run, out=tmp_path / "video.gif", fps=5, width=150))
    with Image.open(out) as video:
        # Pillow joins frames that are alike: the last one stays for two seconds.
        durations = []
        for index in range(video.n_frames):
            video.seek(index)
            durations.append(video.info["duration"])
            assert video.convert("L").getpixel((10, 10)) == pytest.approx(50 * index, abs=2)
        assert video.size == (150, 100)
    assert durations == [200, 200, 200, 200, 200 + 2000]
    (run / "config.json").unlink()
    assert "holds no run" in fails(lambda: training_video(VideoConfig(run=run, out=tmp_path / "b.gif")))
    assert "--width 3" in fails(lambda: VideoConfig(run=run, out=run, width=3))


def test_a_video_between_latents(run, tmp_path):
    settings = dict(run=run, keys=3, frames=4, count=4, fps=10, device="cpu")
    out = interpolate(InterpolateConfig(out=tmp_path / "a.gif", **settings))
    with Image.open(out) as video:
        assert (video.n_frames, video.size) == (12, (128, 128))
    with Image.open(interpolate(InterpolateConfig(out=tmp_path / "b.gif", label="b", **settings))) as video:
        other = np.asarray(video.convert("RGB"))
    assert not np.array_equal(other, np.asarray(Image.open(tmp_path / "a.gif").convert("RGB")))
    assert "must be 0 to 2" in fails(lambda: interpolate(InterpolateConfig(out=tmp_path / "c", label="d", **settings)))
    assert "--keys 1" in fails(lambda: InterpolateConfig(out=run, run=run, keys=1))
    assert "exactly one of them" in fails(lambda: InterpolateConfig(out=run))


def test_a_walk_goes_through_its_keys_on_great_circles():
    keys = torch.randn(4, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    path = walk(keys, 10)
    assert path.shape == (40, 64)
    assert torch.allclose(path[::10], keys)
    lengths, expected = path.norm(dim=1), keys.norm(dim=1)
    assert lengths.min() >= expected.min() - 1e-9 and lengths.max() <= expected.max() + 1e-9
    directions = path / lengths[:, None]
    angles = torch.acos((directions * directions.roll(-1, dims=0)).sum(1)).view(4, 10)
    assert torch.allclose(angles, angles[:, :1].expand(-1, 10), atol=1e-6)  # evenly from key to key
    assert torch.isfinite(walk(torch.ones(2, 8), 3)).all()
