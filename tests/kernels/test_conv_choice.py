"""Where the fused convolution is taken, its tiles, the table that tuning writes, and the modelled gain."""

import json
import math

import pytest
import torch
from torch import Tensor

import pggan_fast
from tests.tolerances import EXACT

pytest.importorskip("triton")
from bench.traffic import model_conv  # noqa: E402
from pggan_fast.kernels import conv_tiles, tune  # noqa: E402
from pggan_fast.kernels.conv_tiles import Problem, Tile, default_tile, is_fused_faster, tile_shape  # noqa: E402
from pggan_fast.ops import conv  # noqa: E402

HALF = torch.float16


def after(problem: Problem) -> bool:
    """Whether it is fused, where bias_act would have to pass over the output."""
    return is_fused_faster(problem, beside=0, spared=2 * problem.out_bytes)


@pytest.mark.parametrize("channels", [16, 32, 64])
@pytest.mark.parametrize("pixel_norm", [False, True])
def test_few_channels_at_high_resolution_are_fused(channels, pixel_norm):
    size = 16384 // channels
    for dtype in (torch.float16, torch.bfloat16):
        assert after(Problem(dtype, 4, channels, channels, size, size, pixel_norm=pixel_norm))
        assert after(Problem(dtype, 4, 2 * channels, channels, size, size, 4, 2, True, pixel_norm))


@pytest.mark.parametrize("size", [4, 8, 16])
def test_many_channels_at_low_resolution_are_left_to_cudnn(size):
    assert not after(Problem(HALF, 16, 512, 512, size, size, pixel_norm=True))


def test_what_the_kernel_is_not_for_is_left_to_cudnn(monkeypatch):
    few = Problem(HALF, 4, 16, 16, 1024, 1024)
    assert after(few)
    assert not after(few._replace(dtype=torch.float64))
    assert not after(Problem(HALF, 4, 16, 1024, 1024, 1024, pixel_norm=True))
    assert after(few._replace(dtype=torch.float32))
    monkeypatch.setattr(conv_tiles, "dot_precision", lambda: "ieee")
    assert not after(few._replace(dtype=torch.float32))


def test_a_measurement_goes_before_the_heuristic(monkeypatch):
    problem = Problem(HALF, 4, 16, 16, 1024, 1024)
    tile = Tile(1, 8, 8, 16, 16, 4, 1)
    monkeypatch.setattr(conv_tiles, "measurement", lambda problem: {"tile": list(tile), "fused": False})
    assert conv_tiles.choose_tile(problem) == tile != default_tile(problem)
    assert not after(problem)


@pytest.mark.parametrize("pixels", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 3), (1, 1024), (1024, 1024)])
def test_tiles_have_as_many_pixels_as_asked(pixels, size):
    n, h, w = tile_shape(pixels, *size)
    assert n * h * w == pixels
    # No tile has a side more than twice the image's.
    assert h < 2 * size[0] and w < 2 * size[1]


@pytest.mark.parametrize("channels", [3, 16, 100, 512])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_normed_pixel_is_in_one_program(channels, dtype):
    tile = default_tile(Problem(dtype, 4, channels, channels, 64, 64, pixel_norm=True))
    assert tile.block_out >= channels
    for side in (tile.n * tile.h * tile.w, tile.block_in, tile.block_out):
        assert side >= 16 and math.log2(side).is_integer()


def test_tuning_goes_downhill():
    """To a tile that a made-up time favours, from the heuristic's, which differs from it in three respects."""
    problem = Problem(HALF, 4, 64, 64, 256, 256)
    start = default_tile(problem)
    best = start._replace(warps=8, stages=4, block_in=64)
    asked = []

    def seconds(tile: Tile) -> float:
        asked.append(tile)
        return 1.0 + sum(a != b for a, b in zip(tile, best, strict=True))

    assert tune.descend(problem, seconds) == (best, 1.0)
    assert len(asked) == len(set(asked)) < 40


def test_tuning_knows_the_networks_layers():
    found = list(tune.problems(HALF, 4))
    assert Problem(HALF, 4, 16, 16, 1024, 1024, pixel_norm=True) in found
    assert Problem(HALF, 4, 32, 16, 1024, 1024, 4, 2, True, True) in found
    assert Problem(HALF, 4, 512, 512, 4, 4, 4, 2) in found
    assert len({conv_tiles.key(p) for p in found}) == len(set(found))


def test_tuning_launches_what_the_networks_launch(monkeypatch):
    """Every kind of convolution, on the CPU: D's forward with the signs it keeps, its gradients gated by them."""
    for name in ("randn", "randint"):
        draw = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *args, device=None, draw=draw, **options: draw(*args, **options))
    kept = []
    for problem in tune.problems(HALF, 1, top=8):
        problem = problem._replace(c_in=20, c_out=40)
        fused, split = tune.contenders(problem)
        y, beside = fused(default_tile(problem))
        split()
        assert y.shape == (1, 40, problem.h, problem.w) and y.isfinite().all()
        kept.append(beside.dtype if beside.numel() else None)
    assert kept == [torch.float32, torch.float32, torch.int32, torch.int32, None, None]


def test_the_table_keeps_what_it_had(tmp_path):
    path = tmp_path / "new" / "table.json"
    tune.save({"a": {"tile": [1], "fused": True}}, path)
    tune.save({"b": {"tile": [2], "fused": False}}, path)
    assert json.loads(path.read_text()) == {"a": {"tile": [1], "fused": True}, "b": {"tile": [2], "fused": False}}
    assert [p.name for p in path.parent.iterdir()] == ["table.json"]


def test_a_damaged_table_says_what_to_do(tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    path.write_text("{")
    monkeypatch.setattr(conv_tiles, "table_path", lambda device: path)
    with pytest.raises(RuntimeError, match="table.json is not what tuning wrote: remove it"):
        conv_tiles._table.__wrapped__(0)


@pytest.mark.parametrize("rescaling", [{}, {"up": 2}, {"down": 2}], ids=str)
@pytest.mark.parametrize("pixel_norm", [False, True])
def test_gradients_where_auto_takes_the_launch(monkeypatch, rescaling, pixel_norm):
    """Return a GPU's own choice: the fused launches where they pay, else torch's convolutions and native kernels."""
    random = torch.Generator().manual_seed(1)
    # Without a bias where nothing is rescaled.
    shapes = [(2, 3, 6, 6), (4, 3, 3, 3), (4,)][: 3 if rescaling else 2]
    inputs = [torch.randn(s, generator=random, dtype=torch.float64).requires_grad_() for s in shapes]

    def gradients() -> list[Tensor]:
        y = pggan_fast.equalized_conv2d(*inputs, act="lrelu", pixel_norm=pixel_norm, **rescaling)
        (dx,) = torch.autograd.grad(y.square().sum() if not pixel_norm else (y**3).sum(), inputs[0], create_graph=True)
        whole = torch.autograd.grad(y.tanh().sum(), inputs, retain_graph=True)
        return [y, dx, *whole, *torch.autograd.grad(dx.square().sum() + y.sin().sum(), inputs)]

    expected = gradients()
    monkeypatch.setattr(conv, "_is_fused", lambda *args: True)
    for actual, wanted in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(actual, wanted, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_modelled_time_is_a_third_of_plain_pytorchs(dtype):
    """But for the 1x1 convolutions to RGB, which nothing follows, and where half precision is bound by arithmetic."""
    rows = model_conv.rows(dtype)
    slower = {row.layer for row in rows if row.ratio < 2.95}
    bound = {"D conv 256 px, 64 to 64 channels"} if dtype == torch.float16 else set()
    assert slower == bound | {row.layer for row in rows if "to RGB" in row.layer}
    assert rows[-1].ratio > 4.5
