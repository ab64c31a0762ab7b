"""Where each direction of the convolution runs, its tiles, the table that tuning writes, and the modelled gain."""

import json
import math

import pytest
import torch
from torch import Tensor

import pggan_fast
from tests.tolerances import EXACT

pytest.importorskip("triton")
from triton.runtime.errors import OutOfResources  # noqa: E402

from bench.harness.marked import KERNELS_PAGE, marked_part  # noqa: E402
from bench.traffic import model_conv  # noqa: E402
from pggan_fast.kernels import conv as conv_kernels  # noqa: E402
from pggan_fast.kernels import (  # noqa: E402
    conv_choice,
    conv_table,
    conv_tiles,
    conv_weight_gradient,  # noqa: E402
    conv_weight_tiles,
    tune,
)
from pggan_fast.kernels.conv_choice import is_own_faster, is_own_weight_gradient_faster  # noqa: E402
from pggan_fast.kernels.conv_tiles import Problem, Tile, choose_tile, default_tile, tile_shape  # noqa: E402
from pggan_fast.kernels.conv_weight_tiles import WeightProblem, WeightTile, default_weight_tile  # noqa: E402
from pggan_fast.kernels.gpu_limits import MODELLED  # noqa: E402
from pggan_fast.ops import conv, conv_fused, conv_gradients  # noqa: E402

HALF = torch.float16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pixel_norm", [False, True])
def test_the_last_blocks_at_high_resolution_are_fused(dtype, pixel_norm):
    assert is_own_faster(Problem(dtype, 4, 16, 16, 1024, 1024, pixel_norm=pixel_norm))
    assert is_own_faster(Problem(dtype, 4, 32, 32, 512, 512, pixel_norm=pixel_norm))
    assert is_own_faster(Problem(dtype, 4, 32, 16, 1024, 1024, 4, 2, True, pixel_norm))


@pytest.mark.parametrize("channels", [128, 256, 512])
@pytest.mark.parametrize("size", [4, 16, 64, 256, 1024])
def test_from_128_channels_on_every_direction_is_left_to_cudnn(channels, size):
    for c_in, c_out in ((channels, channels), (channels, 16), (16, channels)):
        problem = Problem(HALF, 16, c_in, c_out, size, size)
        assert not is_own_faster(problem) and not is_own_faster(problem._replace(pixel_norm=True))
        assert not is_own_faster(problem._replace(transposed=True), epilogue_follows=False)
        assert not is_own_weight_gradient_faster(WeightProblem(HALF, 16, c_in, c_out, size, size))


def test_what_the_kernel_is_not_for_is_left_to_cudnn(monkeypatch):
    few = Problem(HALF, 4, 16, 16, 1024, 1024)
    assert is_own_faster(few)
    assert not is_own_faster(few._replace(dtype=torch.float64))
    monkeypatch.setattr(conv_tiles, "dot_precision", lambda dtype: "tf32")
    assert is_own_faster(few._replace(dtype=torch.float32))
    monkeypatch.setattr(conv_tiles, "dot_precision", lambda dtype: "ieee")
    assert not is_own_faster(few._replace(dtype=torch.float32))


def test_an_input_gradient_saves_no_epilogue():
    """Where an epilogue follows, the output is read and written again: that decides too."""
    problem = Problem(HALF, 4, 32, 32, 512, 512, transposed=True)
    own, cudnn = conv_choice.own_seconds(problem, default_tile(problem)), conv_choice.cudnn_seconds(problem)
    assert is_own_faster(problem, epilogue_follows=False) == (own < cudnn)
    assert is_own_faster(problem) == (own < cudnn + conv_choice.epilogue_seconds(problem))
    assert conv_choice.epilogue_seconds(problem) > conv_choice.LAUNCH_SECONDS


def test_a_measurement_goes_before_the_heuristic(monkeypatch):
    problem, weight = Problem(HALF, 4, 16, 16, 1024, 1024), WeightProblem(HALF, 4, 256, 256, 64, 64)
    tile = Tile(1, 8, 8, 16, 16, 4, 1)
    found = {"tile": list(tile), "faster": False}
    for module in (conv_choice, conv_tiles, conv_weight_tiles):
        monkeypatch.setattr(module, "measurement", lambda problem, device=None: found)
    assert choose_tile(problem) == tile != default_tile(problem)
    assert conv_weight_tiles.choose_weight_tile(weight) == WeightTile(*tile)
    assert not is_own_faster(problem) and not is_own_weight_gradient_faster(weight)
    found["faster"] = True
    assert is_own_faster(problem._replace(c_in=512)) and is_own_weight_gradient_faster(weight)


def test_the_precision_of_fp32_products_is_asked_for_at_every_call(monkeypatch):
    """Not remembered from the first call, as TF32 may be switched in between."""
    asked = []
    monkeypatch.setattr(conv_choice, "is_own_faster", lambda *args, **kwargs: asked.append(1) or True)
    x, weight = torch.empty(2, 3, 40, 41, device="meta"), torch.empty(5, 3, 3, 3, device="meta")
    x = x.contiguous(memory_format=torch.channels_last)
    before = torch.backends.cudnn.allow_tf32
    try:
        for allowed in (True, False, True, False):
            torch.backends.cudnn.allow_tf32 = allowed
            assert conv_fused.is_faster("forward", x, weight, (1, 1, 1))
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert len(asked) == 2


@pytest.mark.parametrize("direction", ["forward", "input gradient", "weight gradient"])
@pytest.mark.parametrize("rescaling", [(1, 1), (2, 1), (1, 2)], ids=str)
def test_each_direction_asks_for_the_launch_that_runs(monkeypatch, direction, rescaling):
    """The choice is made for the very problem that the launch then has: what tuning measured of it is found."""
    x = torch.empty(2, 20, 8, 8, device="meta", dtype=HALF).contiguous(memory_format=torch.channels_last)
    weight, geometry = torch.empty(40, 20, 3, 3, device="meta"), (1, *rescaling)
    asked, launched = [], []
    for name in ("is_own_faster", "is_own_weight_gradient_faster"):
        monkeypatch.setattr(conv_choice, name, lambda problem, **_: asked.append(problem) or True)
    for module in (conv_kernels, conv_weight_gradient):
        monkeypatch.setattr(module, "_make_plan", lambda problem, *_: launched.append(problem) or stop())
        monkeypatch.setattr(module, "_cached_plan", module._make_plan)

    class Stop(Exception):
        pass

    def stop():
        raise Stop

    conv_fused._is_faster.cache_clear()
    assert conv_fused.is_faster(direction, x, weight, geometry)
    _, up, down = geometry
    y = torch.empty(2, 40, 8 * up // down, 8 * up // down, device="meta", dtype=HALF)
    y = y.contiguous(memory_format=torch.channels_last)
    options = (1.0, "lrelu", 0.2, 1.0, False, 1e-8)
    with pytest.raises(Stop):
        if direction == "forward":
            conv_fused.forward(x, weight, None, geometry, options, conv_fused.keeps_sign_bits(geometry, options))
        else:
            mask = (direction == "input gradient", direction == "weight gradient")
            conv_fused.gradients(y, x, weight, geometry, mask)
    assert asked == launched


def test_large_images_take_256_pixels_to_a_tile(monkeypatch):
    """Where weights are read once for twice the pixels; not where few programs, registers or bytes would be left."""
    large = Problem(torch.bfloat16, 8, 128, 128, 256, 256)
    assert default_tile(large)[:3] == (1, 16, 16) and default_tile(large).warps == 8
    for other in (
        large._replace(n=1, h=64, w=64),
        large._replace(variant="signs"),
        large._replace(dtype=torch.float32),
    ):
        assert default_tile(other)[:3] == (1, 8, 16)
    monkeypatch.setattr(conv_tiles, "capability", lambda: (8, 6))
    assert default_tile(large)[:3] == (1, 8, 16)


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
    weight = WeightProblem(HALF, 4, 64, 64, 256, 256)
    for problem, start, other in (
        (Problem(HALF, 4, 64, 64, 256, 256), default_tile(Problem(HALF, 4, 64, 64, 256, 256)), dict(block_in=64)),
        (weight, default_weight_tile(weight), dict(block_a=32)),
    ):
        best = start._replace(warps=8, stages=4, **other)
        asked = []

        def seconds(tile: Tile, best=best, asked=asked) -> float:
            asked.append(tile)
            return 1.0 + sum(a != b for a, b in zip(tile, best, strict=True))

        assert tune.descend(problem, seconds) == (best, 1.0)
        assert len(asked) == len(set(asked)) < 50


def test_tuning_knows_the_networks_layers_in_every_direction():
    found = list(tune.problems(HALF, 4))
    assert Problem(HALF, 4, 16, 16, 1024, 1024, pixel_norm=True) in found
    assert Problem(HALF, 4, 32, 16, 1024, 1024, 4, 2, True, True) in found
    assert Problem(HALF, 4, 512, 512, 4, 4, 4, 2, variant="signs") in found
    assert WeightProblem(HALF, 4, 16, 16, 1024, 1024) in found
    assert len({p.key for p in found}) == len(set(found))


def test_tuning_launches_what_the_networks_launch(monkeypatch):
    """Every kind of convolution and of weight gradient, on the CPU; D's forward with the sign bits that it keeps."""
    draw = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *args, device=None, **options: draw(*args, **options))
    kept = []
    for problem in tune.problems(HALF, 1, top=8):
        is_weight = isinstance(problem, WeightProblem)
        problem = problem._replace(**dict(c_a=20, c_b=40) if is_weight else dict(c_in=20, c_out=40))
        ours, cudnn = tune.contenders(problem)
        found, other = ours(tune.default_tile(problem)), cudnn()
        if is_weight:
            k = problem.k + problem.folded
            assert found.isfinite().all() and other.shape == (problem.c_a, problem.c_b, k, k)
            continue
        y, r, sign_bits = found
        assert y.shape == (1, 40, problem.h, problem.w) and y.isfinite().all()
        kept.append((r.numel() > 0, sign_bits is not None))
    assert kept == [(True, False)] * 2 + [(False, True)] * 2 + [(False, False)] * 3


def test_the_table_keeps_what_it_had(tmp_path):
    path = tmp_path / "new" / "table.json"
    a, b = {"tile": [1] * 7, "faster": True}, {"tile": [2] * 7, "faster": False}
    conv_table.save({"a": a}, path)
    conv_table.save({"b": b}, path)
    assert json.loads(path.read_text()) == {"a": a, "b": b}
    assert [p.name for p in path.parent.iterdir()] == ["table.json"]


@pytest.mark.parametrize(
    "text", ["{", "[]", "3", '{"a": 1}', '{"a": {"tile": [1], "faster": true}}', '{"a": {"tile": [1,1,1,1,1,1,1]}}']
)
def test_a_damaged_table_says_what_to_do(tmp_path, monkeypatch, text):
    path = tmp_path / "table.json"
    path.write_text(text)
    monkeypatch.setattr(conv_table, "table_path", lambda device: path)
    with pytest.raises(RuntimeError, match="table.json is not what tuning wrote: remove it"):
        conv_table._table.__wrapped__(0)


def test_each_version_of_triton_has_its_table(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    first = conv_table.table_path(0)
    monkeypatch.setattr(conv_table.triton, "__version__", "99.1.0")
    other = conv_table.table_path(0)
    assert first != other and "H200" in other.name and "99.1.0" in other.name and first.parent == other.parent


@pytest.mark.parametrize("is_weight", [False, True])
def test_a_measured_tile_that_does_not_fit_gives_way_to_the_heuristics(monkeypatch, is_weight):
    """Its kernel takes more shared memory under another version of Triton: the first launch says so."""
    too_large, tiles, table = Tile(1, 8, 8, 64, 64, 4, 4), [], {}
    x, weight = torch.randn(1, 16, 8, 8), torch.randn(16, 16, 3, 3)
    module = conv_weight_gradient if is_weight else conv_kernels

    def launch(kernel, grid, *args, **options):
        tiles.append((kernel.__name__, options.get("num_stages")))
        if options.get("num_stages") == 4:
            raise OutOfResources(300_000, 200_000, "shared memory")

    def run():
        if is_weight:
            return module.weight_gradient(x, x, weight, padding=1)
        return module.convolve(x, weight, size=(8, 8), padding=1)

    monkeypatch.setattr(module, "launch", launch)
    size = (torch.float32, 1, 16, 16, 8, 8)
    problem = WeightProblem(*size) if is_weight else Problem(*size)
    table[problem.key] = {"tile": list(too_large), "faster": True}
    module._cached_plan.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(conv_table, "_table", lambda device: table)
    monkeypatch.setattr(conv_tiles, "capability", lambda: (9, 0))
    for limited in (conv_tiles, conv_weight_tiles):
        monkeypatch.setattr(limited, "limits", lambda: MODELLED)
    try:
        run()
        run()
    finally:
        module._cached_plan.cache_clear()
    assert [stages for _, stages in tiles if stages == 4] == [4] and table == {}


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
    for module in (conv, conv_gradients):
        monkeypatch.setattr(module, "takes_own_kernel", lambda *args: True)
    for actual, e in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(actual, e, **EXACT)


@pytest.mark.parametrize("dtype", model_conv.DTYPES)
def test_the_modelled_time_is_a_third_of_plain_pytorchs(dtype):
    """But for the 1x1 convolutions to RGB, which nothing follows, and where arithmetic binds the launch."""
    rows = model_conv.rows(dtype)
    slower = {row.layer for row in rows if row.ratio < 2.95}
    bound = {"D conv 256 px, 64 to 64 channels"}
    assert slower == bound | {row.layer for row in rows if "to RGB" in row.layer}
    assert rows[-1].ratio > 4.5


@pytest.mark.parametrize("dtype", model_conv.DTYPES)
def test_a_modelled_launch_has_the_arithmetic_of_its_dtype(dtype):
    """128 channels, by far bound by products: those of fp32 run as tf32, at half the rate."""
    launch = model_conv.Layer("", lambda x: x, (), Problem(dtype, 4, 128, 128, 64, 64)).fused_launch()
    assert launch.seconds == launch.operations / MODELLED.flops(dtype)


def test_the_page_has_the_modelled_times_that_are_printed():
    part = marked_part(KERNELS_PAGE.read_text(), model_conv.COMMAND)
    assert part == model_conv.part(), f"{model_conv.COMMAND} writes it anew"
