"""Bytes that Triton's kernels move by bench.traffic.kernels, against the addresses that the interpreter sees."""

from collections import defaultdict
from contextlib import ExitStack
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from triton.runtime.interpreter import InterpreterBuilder  # noqa: E402

from bench.traffic.kernels import COMPOSITES, HOSTS, MODULES, triton_bytes  # noqa: E402
from pggan_fast.kernels import activation, bias_act, conv, fade, filtered_lrelu, fold, resample, stddev, upfirdn2d  # noqa: E402
from pggan_fast.kernels.conv_weight_gradient import weight_gradient  # noqa: E402

# Biases, rows of sums and appended maps beside the tensors, which are small here.
ALLOWED = 0.05
TAPPED = ("convolution_kernel", "weight_gradient_kernel", "upfirdn2d_kernel", "filtered_lrelu_kernel")
TAPPED += tuple(f"{op}_rows_kernel" for op in ("upsample", "downsample", "fade_in", "fade_in_backward", "fade_reals"))


class Launches:
    """Bytes of every launch: as the model has them, as loads and stores ask for them, and without what comes again."""

    def __init__(self):
        self.expected: dict[str, float] = defaultdict(float)
        self.issued: dict[str, int] = defaultdict(int)
        self.distinct: dict[str, int] = defaultdict(int)
        self._addresses: dict[str, list[np.ndarray]] | None = None

    def see(self, way: str, pointers, mask) -> None:
        taken = np.asarray(pointers.data)[np.asarray(mask.data, dtype=bool)]
        self._addresses[way].append((taken.ravel(), pointers.get_element_ty().primitive_bitwidth // 8))

    def run(self, launch, kernel, grid, *args, **options) -> None:
        tensors = {n: a for n, a in zip(kernel.arg_names, args, strict=False) if isinstance(a, Tensor)}
        name = kernel.__name__
        self.expected[name] += triton_bytes(kernel, tensors)
        self._addresses = defaultdict(list)
        launch(kernel, grid, *args, **options)
        for accesses in self._addresses.values():
            self.issued[name] += sum(taken.size * size for taken, size in accesses)
            for size in {size for _, size in accesses}:
                same = [taken for taken, other in accesses if other == size]
                self.distinct[name] += size * np.unique(np.concatenate(same)).size


@pytest.fixture
def seen():
    launches = Launches()
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def traced_load(self, pointers, mask, *rest):
        launches.see("loads", pointers, mask)
        return load(self, pointers, mask, *rest)

    def traced_store(self, pointers, value, mask, *rest):
        launches.see("stores", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(InterpreterBuilder, "create_masked_load", traced_load))
        stack.enter_context(mock.patch.object(InterpreterBuilder, "create_masked_store", traced_store))
        for module in MODULES:
            run = module.launch
            traced = lambda *args, run=run, **options: launches.run(run, *args, **options)  # noqa: E731
            stack.enter_context(mock.patch.object(module, "launch", traced))
        yield launches


def random(*shape: int) -> Tensor:
    return torch.randn(shape).to(memory_format=torch.channels_last) if len(shape) == 4 else torch.randn(shape)


def check(seen: Launches) -> None:
    expected = sum(seen.expected.values())
    counted = sum((seen.distinct if name in TAPPED else seen.issued)[name] for name in seen.expected)
    assert expected > 0
    assert counted == pytest.approx(expected, rel=ALLOWED), (dict(seen.expected), dict(seen.issued))


@pytest.mark.parametrize("act", ["lrelu", "linear"])
@pytest.mark.parametrize("pixel_norm", [False, True])
@pytest.mark.parametrize("call", ["forward", "in place", "backward", "double backward"])
def test_bias_act(seen, call, pixel_norm, act):
    x, bias = random(4, 64, 16, 16), random(64)
    options = (0.7, act, 0.2, 1.3, pixel_norm)
    if call == "in place":
        bias_act.forward_in_place(x, bias, *options, 1e-8)
        return check(seen)
    y, r = bias_act.forward(x, bias, *options, 1e-8)
    if call != "forward":
        seen.__init__()
        r = r if pixel_norm else None
    if call == "backward":
        bias_act.backward(x, None, y, r, *options, False)
    if call == "double backward":
        bias_act.double_backward(x, bias, x, None, y, r, *options)
    check(seen)


def test_gradient_by_sign_bits(seen):
    dy = random(4, 64, 16, 16)
    sign_bits = torch.zeros(activation.sign_bits_shape(dy), dtype=torch.int32)
    bias_act.backward_by_signs(dy, sign_bits, 0.7, "lrelu", 0.2, 1.3, False)
    # Neighbouring channels load their word again, from cache.
    assert sum(seen.distinct.values()) == sum(seen.expected.values()) == 4 * (2 * dy.numel() + sign_bits.numel())


@pytest.mark.parametrize("pass_", ["forward", "backward", "double backward"])
def test_minibatch_stddev(seen, pass_):
    x, options = random(8, 64, 4, 4), (4, 1, 1e-8, True, 0)
    y = random(8, 65, 4, 4)
    if pass_ == "forward":
        stddev.forward(x, *options)
    elif pass_ == "backward":
        stddev.backward(y, x, *options)
    else:
        stddev.double_backward(x, y, x, *options)
    check(seen)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("run", [fold.fold, fold.unfold])
def test_folding(seen, run, transposed):
    size = 3 if run is fold.fold else 4
    run(torch.randn(32, 16, size, size), 1.0, transposed, torch.float32, False)
    check(seen)


@pytest.mark.parametrize("channels", [16, 3])
def test_resampling(seen, channels):
    """Flat rows of few channels read values one by one that vectors have read before, from cache."""
    low, high, alpha = random(2, channels, 16, 16), random(2, channels, 32, 32), torch.tensor(0.3)
    resample.upsample(low, 1.0, 0, 0)
    resample.downsample(high, 0.25)
    fade.fade_in(low, high, alpha, 0.3)
    fade.fade_in_backward(high, alpha, 0.3)
    fade.fade_reals(high, alpha, 0.3, torch.float32)
    check(seen)
    assert {name.endswith("_rows_kernel") for name in seen.expected} == {channels == 3}


def test_blend_backward(seen):
    fade.blend_backward(random(2, 3, 32, 33), torch.tensor(0.3), 0.0)
    check(seen)


@pytest.mark.parametrize(("up", "down", "taps"), [(1, 1, 4), (2, 1, 4), (1, 2, 4), (2, 1, 12)])
def test_filtering_counts_each_tensor_once(seen, up, down, taps):
    """Taps read an input again from cache."""
    pad = taps - up + 1 - down
    sides = (pad - pad // 2, pad // 2) * 2
    upfirdn2d.upfirdn2d(random(2, 16, 32, 32), random(taps), up, up, down, down, *sides, False, 1.0)
    check(seen)


@pytest.mark.parametrize("backward", [False, True])
def test_filtered_lrelu_is_one_launch_that_moves_each_tensor_once(seen, backward):
    """Tiles overlap by their taps, so that an input is loaded 1.5 times on average, again from cache."""
    x, fu, fd = random(1, 1, 106, 106).contiguous(), random(12), random(12)
    mask = torch.zeros(1, 1, 56, 2, 111, dtype=torch.uint8)
    if backward:
        y = filtered_lrelu.masked(x, mask, fu, fd, 2, 2, 11, 11, 0, 0, 222, 222, 106, 106, True, 4.0, 0.2)
    else:
        options = (False, 1.0, 0.2, None, True)
        y, mask = filtered_lrelu.forward(x, random(1), fu, fd, 2, 2, 11, 11, 11, 11, *options)
    check(seen)
    moved = sum(t.numel() * t.element_size() for t in (x, y, mask))
    assert list(seen.expected) == ["filtered_lrelu_kernel"]
    assert moved <= sum(seen.distinct.values()) <= 1.02 * moved
    assert sum(seen.issued.values()) <= 1.6 * moved


@pytest.mark.parametrize(("stride", "transposed"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("kind", ["plain", "norm", "signs", "masked"])
def test_convolution_counts_each_tensor_once(seen, stride, transposed, kind):
    """Also the signs that one writes and another reads, a bit for each value."""
    x, k = random(2, 32, 16, 16), 4 if stride == 2 else 3
    size = (32, 32) if transposed else (16 // stride, 16 // stride)
    geometry = dict(size=size, stride=stride, padding=1, transposed=transposed)
    mask = torch.zeros(2, *size, 1, dtype=torch.int32) if kind == "masked" else None
    options = dict(pixel_norm=kind == "norm", keep_sign_bits=kind == "signs", activation_mask=mask)
    weight = random(32, 32, k, k)
    y, _, _ = conv.convolve(x, weight, **geometry, **options)
    check(seen)
    if kind in ("signs", "masked"):
        moved = sum(t.numel() for t in (x, weight, y)) + y.numel() / 32
        assert sum(seen.distinct.values()) == 4 * moved
    assert seen.issued["convolution_kernel"] > seen.distinct["convolution_kernel"]


@pytest.mark.parametrize("size", [4, 32])
@pytest.mark.parametrize("transposed", [None, False, True])
def test_weight_gradient_counts_each_tensor_once(seen, transposed, size):
    """Written by one program for each value, or in parts; folded with a rescaling, to one side or the other, or not."""
    small, large = random(1, 32, size, size), random(1, 32, 2 * size, 2 * size)
    weight = random(32, 32, 3, 3)
    if transposed is None:
        weight_gradient(small, small, weight, padding=1)
    elif transposed:
        weight_gradient(large, small, weight, stride=2, padding=1, transposed=True, fold=1.0)
    else:
        weight_gradient(small, large, weight, stride=2, padding=1, fold=1.0)
    # A folded weight's gradient is folded back before it is written.
    assert ("add_parts_kernel" in seen.expected) == (size > 4)
    check(seen)


def test_every_op_has_its_function():
    schemas = (str(schema).partition("(")[0].partition("::") for schema in torch._C._jit_get_all_schemas())
    ops = {name.partition(".")[0] for namespace, _, name in schemas if namespace == "pggan_fast_triton"}
    assert ops == {*HOSTS, *COMPOSITES}
