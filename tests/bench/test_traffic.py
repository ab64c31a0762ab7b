"""bench.traffic.count counts what is known by hand, and a whole step reaches what is asked of it."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
from bench.bench_traffic import traffic_records  # noqa: E402
from bench.traffic.count import Traffic, multi_tensor_launches  # noqa: E402
from bench.traffic.report import plot, rows  # noqa: E402
from bench.traffic.step import step_traffic  # noqa: E402


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def test_views_and_allocations_are_free():
    x = meta(2, 3, 8, 8)
    with Traffic() as traffic:
        torch.empty_like(x)
        x.view(6, 64).transpose(0, 1)[1:].detach()
    assert not traffic.total_launches and not traffic.total_bytes


def test_a_call_reads_its_inputs_and_writes_its_outputs_once():
    x, y = meta(10, 100), meta(10, 100)
    with Traffic() as traffic:
        x + y
        x.add_(y)
        x.copy_(y)
        x.zero_()
        x + meta(1, 100)
        x + meta(1, 1).expand(10, 100)
    size = 4000
    assert traffic.total_launches == 6
    assert traffic.total_bytes == (3 + 3 + 2 + 1) * size + (2 * size + 400) + (2 * size + 4)


def test_a_convolution_is_a_launch_and_its_bias_another_and_so_is_each_gradient():
    x, weight, bias = meta(2, 4, 8, 8).requires_grad_(), meta(6, 4, 3, 3).requires_grad_(), meta(6).requires_grad_()
    in_, w, out = 4 * x.numel(), 4 * weight.numel(), 4 * 2 * 6 * 64
    with Traffic() as traffic:
        y = F.conv2d(x, weight, bias, padding=1)
        y.backward(torch.empty_like(y))
    assert traffic.of_convolutions == 3 * (in_ + w + out)
    assert traffic.launches["convolution"] == 1 and traffic.launches["convolution_backward"] == 2
    assert traffic.bytes["bias"] == 2 * out + 24 and traffic.bytes["bias gradient"] == out + 24


def test_lists_launch_as_multi_tensor_kernels_do():
    # Up to 36 tensors of four lists, and 320 blocks of 65,536 elements, to a launch (MultiTensorApply.cuh of torch).
    assert multi_tensor_launches([100] * 36, 4) == 1
    assert multi_tensor_launches([100] * 37, 4) == 2
    assert multi_tensor_launches([100] * 110, 1) == 1
    assert multi_tensor_launches([320 * 65536], 2) == 1
    assert multi_tensor_launches([320 * 65536 + 1], 2) == 2
    assert multi_tensor_launches([], 4) == 0
    with Traffic() as traffic:
        torch._foreach_lerp_([meta(100)] * 65, [meta(100)] * 65, 0.5)
        torch._foreach_norm([meta(100)] * 5, 2.0)
    assert traffic.launches["_foreach_lerp_"] == 2 and traffic.bytes["_foreach_lerp_"] == 65 * 3 * 400
    assert traffic.launches["_foreach_norm"] == 1 and traffic.bytes["_foreach_norm"] == 5 * 400


def test_what_comes_of_a_channels_last_convolution_is_channels_last():
    x, weight = (meta(4, 4, 3, 3).to(memory_format=torch.channels_last).requires_grad_() for _ in range(2))
    with Traffic() as traffic:
        y = F.conv2d(x, weight, padding=1)
        y.backward(torch.empty_like(y))
    assert y.stride() == x.grad.stride() == weight.grad.stride() == x.stride()
    assert set(traffic.bytes) == {"convolution", "convolution_backward"}


@pytest.mark.parametrize(("resolution", "batch"), [(16, 128), (32, 16), (256, 8), (1024, 4)])
def test_a_step_reaches_its_aims(resolution, batch):
    """At most 0.45 of eager's launches, and little more than what the convolutions alone must move.

    The gradient through an activation is a pass of its own, and from 64 channels on cuDNN's convolutions have their
    epilogue after them: instructions and L2 limit those steps, not these bytes (bench.roofline). Below, from 256 px on,
    halo tiles have both within, and "auto" then moves less than Triton.
    """
    launches, moved = traffic_records(resolution, batch)
    if resolution >= 32:
        assert all(over["eager"]["median"] >= 1 / 0.45 for over in launches["speedups"].values())
    counts = moved["counts"]
    assert counts["triton"] <= (1.6 if resolution >= 256 else 1.85) * counts["convolutions"]
    most = 1.4 if resolution >= 1024 else 1.8 if resolution >= 256 else 2.35
    assert counts["auto"] <= most * counts["convolutions"]
    assert counts["convolutions"] < counts["triton"] < counts["native"] < counts["eager"] / 1.9
    assert counts["convolutions"] < counts["auto"] <= counts["native"]
    assert (counts["auto"] < counts["triton"]) == (resolution >= 1024)


def test_bf16_halves_what_images_move():
    """Weights and their gradients stay in fp32: what is left above a half."""
    fp32, bf16 = (step_traffic("native", 256, 8, bf16) for bf16 in (False, True))
    assert 0.5 <= bf16.of_convolutions / fp32.of_convolutions < 0.55
    assert 0.5 < bf16.total_bytes / fp32.total_bytes < 0.6
    assert sum(call.operations for call in bf16.calls) == sum(call.operations for call in fp32.calls) > 4e12


def test_the_table_and_the_plot_hold_the_counts(tmp_path):
    launches, moved = traffic_records(32, 16)
    counts = moved["counts"]
    header, body = rows([moved])
    assert header[: len(counts) + 2] == ["images", *counts, "native / convolutions"]
    assert counts["triton"] / counts["convolutions"] == pytest.approx(float(body[0][len(counts) + 2]), abs=0.005)
    assert [len(row) for row in body] == [len(header)]
    pytest.importorskip("matplotlib")
    assert plot([launches, moved], tmp_path / "plot.png") and (tmp_path / "plot.png").stat().st_size > 1000
    assert not plot([], tmp_path / "none.png")
