"""TrainStep: what it updates, what it leaves, and in which order."""

import copy
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pggan_fast import Discriminator, Generator
from pggan_fast.ops import small
from pggan_fast.training import TrainStep

SMALL = dict(fmap_base=64, fmap_max=16)


def build(resolution=16, **options) -> TrainStep:
    torch.manual_seed(0)
    return TrainStep(Generator(resolution, **SMALL), Discriminator(resolution, **SMALL), **options)


def images(n=8, resolution=16):
    return torch.rand(n, 3, resolution, resolution, generator=torch.Generator().manual_seed(1)) * 2 - 1


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(network, before):
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("alpha", [1.0, 0.3, torch.tensor(0.3)], ids=["whole", "float", "tensor"])
def test_updates_live_layers_and_no_others(precision, alpha):
    step = build(precision=precision)
    G, D = weights(step.G), weights(step.D)
    scalars = step(images(resolution=8), alpha=alpha)
    assert scalars.keys() == {"d_loss", "g_loss", "real_score", "fake_score", "gradient_norm", "skipped"}
    assert all(value.ndim == 0 and not value.requires_grad and value.isfinite() for value in scalars.values())
    fading = not isinstance(alpha, float) or alpha != 1
    for network, before in ((step.G, G), (step.D, D)):
        live = {id(p) for p in network.active_parameters(8, fading)}
        assert changed(network, before) == {name for name, p in network.named_parameters() if id(p) in live}
        assert all(p.requires_grad and p.grad is None for p in network.parameters())


def test_average_follows_the_generator_of_the_step_before():
    step = build(ema_decay=0.75)
    for _ in range(3):
        G, average = weights(step.G), weights(step.G_ema)
        step(images())
        for name, value in step.G_ema.state_dict().items():
            # 2 ulp of the larger term: the fused lerp may round differently from this sum
            torch.testing.assert_close(value, 0.75 * average[name] + 0.25 * G[name], rtol=2e-6, atol=1e-7)


def test_adam_has_the_official_settings():
    step = build(learning_rate=2e-3)
    for optimizer in (step.optimizer_G, step.optimizer_D):
        group = optimizer.param_groups[0]
        assert (group["lr"], group["betas"], group["eps"]) == (2e-3, (0.0, 0.99), 1e-8)
    step.set_learning_rate(1e-4)
    assert step.optimizer_G.param_groups[0]["lr"] == step.optimizer_D.param_groups[0]["lr"] == 1e-4


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gradient_that_is_not_finite_skips_the_update(precision):
    step = build(precision=precision)
    D = weights(step.D)
    real = images()
    real[0, 0, 0, 0] = float("nan")
    assert step(real)["skipped"] >= 1
    assert not changed(step.D, D)
    assert all(value.isfinite().all() for value in step.G.state_dict().values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e30])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_one_value_of_one_gradient_skips_the_update_if_it_is_not_finite(precision, value):
    """1e30 squared is not finite either, but is itself."""
    step = build(precision=precision)
    G = weights(step.G)

    def spoil(gradient):
        gradient = gradient.clone()
        gradient.view(-1)[-1] = value
        return gradient

    step.G.input_bias.register_hook(spoil)
    finite = math.isfinite(value)
    assert step(images())["skipped"] == (not finite) and bool(changed(step.G, G)) == finite


def test_fp16_finds_a_loss_scale_that_works():
    step = build(precision="fp16")
    step.loss_scale.fill_(2.0**30)  # any gradient above 6e-5 overflows
    skipped = [step(images())["skipped"].item() for _ in range(12)]
    assert skipped[0] == 2 and skipped[-1] == 0 and step.loss_scale < 2.0**30


def test_reset_optimizers_starts_adam_again():
    step, real = build(), images()
    step(real)
    assert step.optimizer_D.state and step.optimizer_G.state
    step.reset_optimizers()
    assert not step.optimizer_D.state and not step.optimizer_G.state
    step(real)
    assert all(state["step"] == 1 for state in step.optimizer_D.state.values())


def test_state_goes_through_a_file_and_continues_bit_for_bit(tmp_path):
    step, real = build(), images()
    step(real)
    torch.save(step.state_dict(), tmp_path / "state.pt")
    random = torch.get_rng_state()
    expected = step(real, alpha=torch.tensor(0.5))

    other = build()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.set_rng_state(random)
    got = other(real, alpha=torch.tensor(0.5))
    assert expected.keys() == got.keys() and all(torch.equal(expected[k], got[k]) for k in got)
    for a, b in ((step.G, other.G), (step.D, other.D), (step.G_ema, other.G_ema)):
        assert not changed(b, weights(a))


class WeightGradients(TorchDispatchMode):
    """Count convolutions' weight gradients."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.count += args[-1][1]
        return func(*args, **(kwargs or {}))


def test_no_weight_gradient_is_computed_in_vain(monkeypatch):
    monkeypatch.setattr(small, "is_eager", lambda x, impl: False)  # torch's own second derivative counts otherwise
    step = build(resolution=4)
    step(images(resolution=4))
    with WeightGradients() as counted:
        step(images(resolution=4))
    # D's two convolutions, from_rgb and head: reals and fakes in one batch 2; the penalty 3, since the curvature of
    # the stddev layer reaches from_rgb a second time. G's two: 2. None of D's in G's step.
    assert counted.count == 2 + 3 + 2


def test_what_is_added_to_an_optimizer_trains():
    """A parameter of a user's own objective, say; and images have no gradients at all."""
    step = build(resolution=4)
    weight = torch.nn.Parameter(torch.ones(()))
    step.optimizer_D.add_param_group({"params": [weight]})
    loss = step.objective.d_loss
    step.objective.d_loss = lambda real, fake: loss(real, fake) * weight
    step(images(resolution=4))
    assert weight != 1


def test_a_batch_that_the_group_size_does_not_divide_still_trains():
    scalars = build(resolution=4)(images(n=6, resolution=4))
    assert all(value.isfinite() for value in scalars.values())


def test_labels_reach_both_networks():
    torch.manual_seed(0)
    step = TrainStep(Generator(8, label_dim=3, **SMALL), Discriminator(8, label_dim=3, **SMALL))
    before = copy.deepcopy(step.D.head["output"].weight)
    step(images(resolution=8), torch.arange(8) % 3)
    # The rows behind the score's are the classes' logits.
    assert (step.D.head["output"].weight[1:] != before[1:]).all(dim=1).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"precision": "fp8"}, "precision is 'fp8', allowed: fp32"),
        ({"objective": "gan"}, "objective is 'gan', allowed: wgan-gp"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
