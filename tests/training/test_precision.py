"""Precision and memory: parts of a batch, activation checkpointing, compilation and fp16's penalty change no result."""

import warnings

import pytest
import torch

from bench.baseline.matched_networks import networks
from bench.bench_memory import peak_bytes, peak_record
from pggan_fast import Discriminator, Generator
from pggan_fast.training import TrainStep
from pggan_fast.training.bound_discriminator import BoundDiscriminator

SMALL = dict(fmap_base=64, fmap_max=8)


def build(resolution=8, **options):
    torch.manual_seed(0)
    return TrainStep(Generator(resolution, **SMALL), Discriminator(resolution, **SMALL), **options)


def images(n, resolution=8):
    return torch.rand(n, 3, resolution, resolution, generator=torch.Generator().manual_seed(1)) * 2 - 1


def gradients_of(step, real, alpha=1.0):
    """Return what reaches the optimizers in one step, by network, and the scalars."""
    seen = {}
    for name in ("optimizer_D", "optimizer_G"):
        optimizer = getattr(step, name)

        def record(*_, name=name, optimizer=optimizer):
            seen[name] = [p.grad.clone() for g in optimizer.param_groups for p in g["params"] if p.grad is not None]

        optimizer.register_step_pre_hook(record)
    torch.manual_seed(5)
    return step(real, alpha=alpha), seen


def worst_error(found, expected):
    """Return the largest error of all gradients, relative to the largest value of each."""
    pairs = [pair for name in expected for pair in zip(found[name], expected[name], strict=True)]
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).item() for a, b in pairs)


@pytest.mark.parametrize("n, micro_batch", [(8, 4), (16, 4), (12, 8), (8, 7)])
def test_parts_of_whole_groups_give_what_the_batch_gives(n, micro_batch):
    expected_scalars, expected = gradients_of(build(), images(n))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scalars, found = gradients_of(build(micro_batch=micro_batch), images(n))
    # fp32 sums in another order; G's gradients pass through D's first update, which Adam enlarges
    assert worst_error({"D": found["optimizer_D"]}, {"D": expected["optimizer_D"]}) < 1e-5
    assert worst_error(found, expected) < 1e-3
    for name, value in expected_scalars.items():
        torch.testing.assert_close(scalars[name], value, rtol=1e-4, atol=1e-5)


def test_smaller_parts_say_that_results_differ():
    _, expected = gradients_of(build(), images(8))
    with pytest.warns(UserWarning, match="a batch of 8 in parts of 2 splits the groups of 4"):
        _, found = gradients_of(build(micro_batch=2), images(8))
    assert worst_error({"D": found["optimizer_D"]}, {"D": expected["optimizer_D"]}) > 1e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activation_checkpointing_gives_the_same_step(precision):
    alpha = torch.tensor(0.4)
    _, expected = gradients_of(build(precision=precision), images(4), alpha)
    _, found = gradients_of(build(precision=precision, activation_checkpointing=True), images(4), alpha)
    # Sums in another order; in bf16 each term has 8 bits.
    assert worst_error(found, expected) < (1e-3 if precision == "fp32" else 5e-2)


@pytest.mark.parametrize("scale", [1.0, 2.0**14])
def test_fp16_takes_the_penalty_with_the_loss_scale(scale):
    """Weights so small that a score's gradient rounds to zero in fp16: only the scale brings it through."""
    step = build()
    for parameter in (step.D.head["output"].weight, step.D.head["dense"].weight):
        parameter.data.mul_(1e-3)
    real = images(4)

    def gradient(precision, scale):
        enabled = precision is not None

        def autocast():
            return torch.autocast("cpu", dtype=precision, enabled=enabled)

        return BoundDiscriminator(step.D, step.D, 1.0, autocast, scale).gradient(real, None)[1]

    expected = gradient(None, None)
    found = gradient(torch.float16, torch.tensor(scale))
    error = ((found - expected).norm() / expected.norm()).item()
    # fp16 has 11 bits, and a dozen roundings add up; unscaled, most of the gradient is lost.
    assert error < 2e-2 if scale > 1 else error > 0.1


def test_a_change_of_precision_finds_its_own_scale():
    step = build(precision="fp32")
    step(images(4))
    other = build(precision="fp16")
    other.load_state_dict(step.state_dict())
    assert other.loss_scale == 65536
    again = build(precision="fp16")
    other.loss_scale.fill_(128.0)
    again.load_state_dict(other.state_dict())
    assert again.loss_scale == 128


def test_a_compiled_step_gives_the_same_numbers(monkeypatch):
    """While fading, through Dynamo and AOT autograd; Inductor's code around the ops is tested with the ops."""
    compile, alpha = torch.compile, torch.tensor(0.4)
    monkeypatch.setattr(torch, "compile", lambda network, **options: compile(network, backend="aot_eager", **options))
    expected_scalars, expected = gradients_of(build(), images(4), alpha)
    step = build(compile=True)
    scalars, found = gradients_of(step, images(4), alpha)
    assert worst_error(found, expected) < 1e-3
    for name, value in expected_scalars.items():
        torch.testing.assert_close(scalars[name], value, rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["frames"]["ok"] >= 2
    torch._dynamo.reset()


def test_a_step_holds_little_at_once():
    peaks = peak_record(64, channels=16, batch=4)["peak_bytes"]
    assert peaks["ours"] <= 0.6 * peaks["eager"]


def test_what_saves_memory_does():
    """One step holds fewer bytes above weights and optimizer, the maps' bytes doubling as their sides halve.

    Counted between convolutions: the workspace inside one depends on the processor, and is eager's too.
    """
    real = images(2, 128).contiguous(memory_format=torch.channels_last)

    def peak(**options):
        step = TrainStep(*networks(128, fmap_base=1024, fmap_max=32), **options)
        return peak_bytes(lambda: step(real), inside_convolutions=False)

    plain = peak()
    assert peak(activation_checkpointing=True) < 0.8 * plain
    assert peak(precision="bf16") < 0.7 * plain
    with pytest.warns(UserWarning, match="results differ"):
        assert peak(micro_batch=1) < 0.6 * plain


@pytest.mark.parametrize(
    "options, message",
    [({"compile": True, "activation_checkpointing": True}, "compile and activation_checkpointing")],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
