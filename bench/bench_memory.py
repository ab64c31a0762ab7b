"""Bytes that a forward pass leaves alive for its backward, and the most that a training step holds at once."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from bench.baseline import eager
from bench.baseline.matched_networks import baseline, networks
from bench.harness.timing import assert_close
from pggan_fast.training import TrainStep

RESOLUTION, BATCH = 128, 4


@pytest.mark.parametrize("network", ["G", "D"])
def test_memory(network: str, record) -> None:
    record(memory_record(network, RESOLUTION, BATCH))


def memory_record(network: str, resolution: int, batch: int, **options: int) -> dict:
    """Kept bytes of ours and of the baseline, fp32, both channels_last, outputs checked against each other."""
    ours = networks(resolution, **options)
    theirs = baseline(*ours, torch.channels_last, **options)
    which = "GD".index(network)
    shape = (batch, ours[0].latent_dim) if network == "G" else (batch, 3, resolution, resolution)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last) if network == "D" else x

    def our_forward() -> Tensor:
        return ours[0](x) if network == "G" else ours[1](x)[0]

    def their_forward() -> Tensor:
        return theirs[which](x)

    assert_close(network, our_forward(), their_forward(), torch.float32)
    kept = {"eager": kept_bytes(their_forward), "ours": kept_bytes(our_forward)}
    saved = {
        "eager": saved_bytes(their_forward, theirs[which]),
        "ours": saved_bytes(our_forward, ours[which]),
    }
    less = float(f"{kept['eager'] / kept['ours']:.4g}")
    return {
        "suite": f"memory {network}",
        "shape": "x".join(map(str, shape)),
        "dtype": "fp32",
        "layout": "channels_last",
        "pass": "forward",
        "kept_bytes": kept,
        "saved_bytes": saved,
        "speedups": {"ours": {"eager": {"median": less, "p20": less, "p80": less}}},
    }


def kept_bytes(forward: Callable[[], Tensor]) -> int:
    """Bytes of torch's allocator that are alive after `forward` and were not before it, its output included.

    The allocator counts storages however they are held: by autograd's C++ nodes, by Python objects, in
    caches that belong to the call.
    """
    forward()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as counted:
        output = forward()
    kept = sum(event.self_cpu_memory_usage for event in counted.events())
    del output
    return kept


def saved_bytes(forward: Callable[[], Tensor], module: nn.Module) -> int:
    """Distinct storages that autograd is asked to save, the module's parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    storages = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = forward()
    del output
    return sum(size for pointer, size in storages.items() if pointer not in own)


@pytest.mark.parametrize("resolution", [256, 1024])
def test_step_peak(resolution: int, record) -> None:
    record(peak_record(resolution))


def peak_record(resolution: int, channels: int = 64, batch: int = 1) -> dict:
    """The most that one training step holds at once above weights and optimizer, fp32, both channels_last.

    Gradients are counted on both sides. The paper has up to 512 channels; `channels` leaves its maps from 256 px up.
    """
    G, D = networks(resolution, fmap_max=channels)
    theirs = eager.TrainStep(*baseline(G, D, torch.channels_last, fmap_max=channels))
    steps = {"eager": theirs, "ours": TrainStep(G, D)}
    images = torch.rand(batch, 3, resolution, resolution, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images = images.contiguous(memory_format=torch.channels_last)
    peaks = {name: peak_bytes(lambda step=step: step(images)) for name, step in steps.items()}
    less = float(f"{peaks['eager'] / peaks['ours']:.4g}")
    return {
        "suite": "peak memory",
        "shape": f"{batch}x3x{resolution}x{resolution}",
        "dtype": "fp32",
        "layout": "channels_last",
        "pass": "training step",
        "peak_bytes": peaks,
        "speedups": {"ours": {"eager": {"median": less, "p20": less, "p80": less}}},
    }


CONVOLUTIONS = ("aten::_convolution", "aten::convolution_backward")


def peak_bytes(work: Callable[[], object], *, inside_convolutions: bool = True) -> int:
    """Return the largest sum of torch's allocations minus its releases at any moment of the second call of `work`.

    `inside_convolutions=False` leaves out the moments at which a convolution runs, and so the workspace that it takes
    and gives back: where oneDNN has no kernel for a dtype (bf16 needs AVX-512) torch unfolds the input to nine times
    its size there. What a convolution returns counts from its end.
    """
    work()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as counted:
        work()
    events = counted.profiler.kineto_results.events()
    # One line of moments in time: where a convolution begins (+1) or ends (-1), and where memory is taken or given.
    moments = [(event.start_ns(), 0, event.nbytes()) for event in events if event.name() == "[memory]"]
    if not inside_convolutions:
        for event in events:
            if event.name() in CONVOLUTIONS:
                moments += [(event.start_ns(), 1, 0), (event.start_ns() + event.duration_ns(), -1, 0)]
    held = peak = running = 0
    for _, change, taken in sorted(moments, key=lambda moment: moment[0]):
        running += change
        held += taken
        if running == 0:
            peak = max(peak, held)
    return peak
