"""TrainStep with every objective and option: it steps, moves what it should, and resumes bit for bit."""

import pytest
import torch

from pggan_fast import Discriminator, Generator
from pggan_fast.networks import AutoencoderDiscriminator
from pggan_fast.training import TrainConfig, TrainStep, UserError
from pggan_fast.training.augment import AdaptiveAugment
from pggan_fast.training.build import build_augment, build_networks, build_objective
from pggan_fast.training.losses import OBJECTIVES, Hinge, Wgan

SMALL = dict(fmap_base=64, fmap_max=8)
ALL = pytest.mark.parametrize("objective", OBJECTIVES)


@pytest.fixture(autouse=True)
def one_thread(threads):
    """Tensors are tiny: a second thread gains nothing, and on a busy machine it is waited for."""
    torch.set_num_threads(1)


def build(*, objective="wgan-gp", options=None, d_options=None, **step) -> TrainStep:
    torch.manual_seed(0)
    options = {**SMALL, **(options or {})}
    kind = AutoencoderDiscriminator if objective == "ebgan" else Discriminator
    return TrainStep(Generator(8, **options), kind(8, **options, **(d_options or {})), objective=objective, **step)


def images(n=4, resolution=8, channels=3, base=(4, 4)):
    size = [side * resolution // 4 for side in base]
    return torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(network, before):
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


@ALL
@pytest.mark.parametrize("alpha", [1.0, torch.tensor(0.3)], ids=["whole", "fading"])
def test_every_objective_steps(objective, alpha):
    step = build(objective=objective)
    step.objective.constrain(step.D)  # is of all layers, live or not
    G, D = weights(step.G), weights(step.D)
    for _ in range(3):
        scalars = step(images(), alpha=alpha)
        assert all(value.ndim == 0 and value.isfinite() for value in scalars.values())
        assert not scalars["skipped"]
    fading = isinstance(alpha, torch.Tensor)
    for network, before in ((step.G, G), (step.D, D)):
        live = {id(p) for p in network.active_parameters(8, fading)}
        names = {name for name, p in network.named_parameters() if id(p) in live}
        assert changed(network, before) <= names
        assert len(changed(network, before)) > 0.9 * len(names)  # relu units may sleep


@ALL
def test_every_discriminator_learns_to_tell_stripes_from_a_generator_that_stands_still(objective):
    step = build(objective=objective, learning_rate=(0.0, 3e-3))
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(8, 3, 8, 8)
    for _ in range(30):
        scalars = step(stripes)
    assert scalars["real_score"] > scalars["fake_score"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_penalties_in_every_precision(precision):
    step = build(objective=Hinge(r1_weight=1.0, penalty_weight=2.0), precision=precision)
    scalars = step(images())
    assert {"gradient_norm", "real_gradient_norm"} < scalars.keys()
    assert scalars["gradient_norm"] > 0 and scalars["real_gradient_norm"] > 0


def test_wgan_clips_after_each_update():
    step = build(objective=Wgan(clip=0.3))
    step(images())
    assert max(p.abs().max() for p in step.D.parameters()) == torch.tensor(0.3)


# Steps and rates of D


def test_several_steps_of_d_each_see_their_own_reals():
    step, seen = build(d_steps=3), []
    original = step.objective.discriminator_terms

    def terms(critic, real, *rest):
        seen.append(real)
        return original(critic, real, *rest)

    step.objective.discriminator_terms = terms
    real = images(12)
    step(real)
    assert [len(s) for s in seen] == [4, 4, 4] and torch.equal(torch.cat(seen), real)
    assert all(state["step"] == 3 for state in step.optimizer_D.state.values())
    assert all(state["step"] == 1 for state in step.optimizer_G.state.values())
    for count in (10, 0):
        with pytest.raises(ValueError, match=f"real has {count} images, must be a multiple of d_steps=3, not 0"):
            step(images(count))


def test_several_steps_of_d_are_those_of_so_many_calls():
    """D's part of a call with two batches is that of two calls in which G stands still."""
    rates = (0.0, 1e-3)
    together, apart = build(d_steps=2, learning_rate=rates), build(learning_rate=rates)
    real = images(8)
    z, mixing = torch.randn(2, 4, 8), torch.rand(2, 4, 1, 1, 1)
    # z and mixing for D, z for G
    orders = ([z[0], mixing[0], z[1], mixing[1], z[0]], [z[0], mixing[0], z[0], z[1], mixing[1], z[0]])
    for step, order in zip((together, apart), orders, strict=True):
        step._draw = lambda *_, numbers=order: numbers.pop(0)
    together(real)
    apart(real[:4])
    apart(real[4:])
    for (name, a), b in zip(together.D.named_parameters(), apart.D.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_two_learning_rates():
    step = build(learning_rate=(1e-3, 4e-3))
    assert step.optimizer_G.param_groups[0]["lr"] == torch.tensor(1e-3)
    assert step.optimizer_D.param_groups[0]["lr"] == torch.tensor(4e-3)
    step.set_learning_rate(0.0, 1e-3)
    G, D = weights(step.G), weights(step.D)
    step(images())
    assert not changed(step.G, G) and changed(step.D, D)
    step.set_learning_rate(1e-4)
    assert step.optimizer_G.param_groups[0]["lr"] == step.optimizer_D.param_groups[0]["lr"] == torch.tensor(1e-4)


# Options of the networks

COMBINATIONS = [
    ("wgan-gp", dict(attention_at=8), {}, {}),
    ("hinge", dict(attention_at=4, spectral_norm=True), {}, dict(learning_rate=(1e-4, 4e-4))),
    ("non-saturating", dict(residual=True, label_dim=3), dict(label_mode="projection"), dict(augment="ada")),
    ("lsgan", dict(base=(4, 6), image_channels=1), dict(minibatch_discrimination=True), dict(augment="diffaugment")),
    ("wgan-gp", dict(label_dim=3, residual=True), dict(label_mode="concat", spectral_norm=True), dict(d_steps=2)),
    ("wgan", dict(image_channels=4, base=(5, 4)), {}, dict(augment="ada", d_steps=2)),
    ("ebgan", dict(base=(4, 5), image_channels=2), {}, dict(augment="diffaugment")),
    (
        "kl",
        dict(label_dim=3),
        dict(minibatch_discrimination=True, residual=True),
        dict(precision="bf16", augment="ada"),
    ),
]


@pytest.mark.parametrize(("objective", "options", "d_options", "settings"), COMBINATIONS)
def test_combinations_step_and_resume_bit_for_bit(objective, options, d_options, settings, tmp_path):
    def fresh():
        return build(objective=objective, options=options, d_options=d_options, **settings)

    step = fresh()
    count = 4 * step.d_steps
    real = images(count, 8, options.get("image_channels", 3), options.get("base", (4, 4)))
    labels = torch.arange(count) % 3 if "label_dim" in options else None
    for alpha in (1.0, torch.tensor(0.5)):
        scalars = step(real, labels, alpha=alpha)
        assert all(value.isfinite() for value in scalars.values())

    torch.save(step.state_dict(), tmp_path / "state.pt")
    random = torch.get_rng_state()
    expected = step(real, labels)
    other = fresh()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.set_rng_state(random)
    got = other(real, labels)
    assert expected.keys() == got.keys() and all(torch.equal(expected[k], got[k]) for k in got)
    for a, b in ((step.G, other.G), (step.D, other.D), (step.G_ema, other.G_ema)):
        assert not changed(b, weights(a))


def test_the_average_takes_the_singular_vectors_along():
    step = build(options=dict(spectral_norm=True), ema_decay=0.5)
    step(images())
    vectors = {name: value for name, value in step.G_ema.named_buffers()}
    assert vectors
    # G has run once more since the average was taken, in its own step.
    for name, value in step.G.named_buffers():
        assert torch.cosine_similarity(vectors[name], value, dim=0) > 0.9


# Augmentation


def test_augmentation_is_of_what_d_sees_and_passes_gradients_to_g():
    step, seen = build(augment="diffaugment"), []
    step.D.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].detach()))
    G = weights(step.G)
    step(torch.full((4, 3, 8, 8), 0.5))
    # The penalty's mixtures; reals and fakes in one batch; G's fakes. Of 5 images or mixtures, 4 have a square of 0.
    assert [len(s) for s in seen] == [4, 8, 4]
    for batch in seen[1:]:
        assert ((batch == 0).sum(dim=(1, 2, 3)) > 0).any()
    assert changed(step.G, G)


def test_adaptive_augmentation_follows_the_discriminator():
    step = build(augment=AdaptiveAugment(target=0.6, full_kimg=100), learning_rate=(0.0, 3e-3))
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(8, 3, 8, 8)
    probabilities = [step(stripes)["augment_p"].item() for _ in range(12)]
    # All reals are alike, so all are above the middle as soon as D tells them apart; 8 images of 100,000.
    assert probabilities[-1] - probabilities[-2] == pytest.approx(8e-5)
    assert step(stripes)["overfitting"] == 1


# From settings


class Data:
    channels, base, classes = 3, (4, 4), ["a", "b"]


def config(**settings):
    return TrainConfig(data="data", out="out", resolution=8, **SMALL, **settings)


def test_settings_reach_networks_and_step():
    settings = config(
        labels=True,
        label_mode="projection",
        attention_at=8,
        residual=True,
        spectral_norm="discriminator",
        minibatch_discrimination=True,
        objective="hinge",
        r1_weight=2.0,
        penalty_weight=3.0,
        penalty_target=4.0,
        penalty_at="final",
        drift_weight=5.0,
        augment="ada",
        augment_target=0.5,
        augment_kimg=7.0,
    )
    G, D = build_networks(settings, Data)
    shared = dict(attention_at=8, residual=True, label_dim=2)
    assert G.options.items() >= (shared | dict(spectral_norm=False)).items()
    discriminators = dict(spectral_norm=True, minibatch_discrimination=True, label_mode="projection")
    assert D.options.items() >= (shared | discriminators).items()
    objective = build_objective(settings)
    assert type(objective) is Hinge
    found = vars(objective)
    assert (found["r1_weight"], found["penalty_weight"], found["drift_weight"]) == (2.0, 3.0, 5.0)
    assert (found["penalty_target"], found["full_resolution"]) == (4.0, 8)
    augment = build_augment(settings)
    assert (augment.target, augment.full_kimg) == (0.5, 7.0)


def test_settings_of_single_objectives():
    assert build_objective(config(objective="wgan", clip=0.2)).clip == 0.2
    assert build_objective(config(objective="ebgan", margin=0.2)).margin == 0.2
    assert isinstance(build_networks(config(objective="ebgan"), Data)[1], AutoencoderDiscriminator)
    assert build_augment(config()) is None


def test_the_defaults_are_the_papers():
    found, paper = vars(build_objective(config())), vars(OBJECTIVES["wgan-gp"]())
    assert found == paper
    assert (found["penalty_weight"], found["penalty_target"], found["drift_weight"]) == (10.0, 1.0, 0.001)
    G, D = build_networks(config(), Data)
    assert G.options == Generator(8, **SMALL).options and D.options == Discriminator(8, **SMALL).options


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r1_weight": -1.0}, "--r1-weight -1.0: must be from 0 to "),
        ({"penalty_target": 0.0}, "--penalty-target 0.0: must be above 0"),
        ({"clip": 0.0}, "--clip 0.0: must be above 0"),
        ({"d_steps": 0}, "--d-steps 0: must be from 1 to "),
        ({"d_learning_rate_factor": 0.0}, "--d-learning-rate-factor 0.0: must be from 1e-06 to "),
        ({"augment_target": 1.0}, "--augment-target 1.0: must be above -1 and below 1"),
        ({"attention_at": 16}, "--attention-at 16: must not be above --resolution 8"),
        ({"attention_at": 6}, "--attention-at 6: must be a power of two"),
        ({"label_mode": "concat"}, "--label-mode concat: needs --labels"),
        ({"objective": "ebgan", "labels": True}, "--labels: does not go with --objective ebgan"),
        ({"objective": "ebgan", "spectral_norm": "both"}, "--spectral-norm: does not go with --objective ebgan"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        config(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment": "blur"}, "augment is 'blur', allowed: diffaugment, ada"),
        ({"d_steps": 0}, "d_steps is 0, must be 1 or more"),
    ],
)
def test_arguments_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_ebgan_needs_an_autoencoder():
    with pytest.raises(ValueError, match="must be an AutoencoderDiscriminator, is a Discriminator"):
        TrainStep(Generator(8, **SMALL), Discriminator(8, **SMALL), objective="ebgan")


def test_spectral_norm_is_not_computed_twice():
    with pytest.raises(ValueError, match="activation_checkpointing is True: not with spectral_norm"):
        build(d_options=dict(spectral_norm=True), activation_checkpointing=True)


def test_parts_of_a_batch_cannot_be_compared_with_the_rest():
    step = build(d_options=dict(minibatch_discrimination=True), micro_batch=4)
    with pytest.warns(UserWarning, match="a batch of 8 in parts of 4 splits the batch that minibatch discrimination"):
        step(images(8))


@pytest.mark.parametrize("augment", ["diffaugment", "ada"])
def test_augmentation_of_a_batch_in_parts_is_that_of_the_whole(augment):
    whole, parts = (build(augment=augment, micro_batch=m, learning_rate=1e-3) for m in (None, 4))
    if augment == "ada":
        for step in (whole, parts):
            step.augment.p.fill_(0.7)
    losses = []
    for step in (whole, parts):
        torch.manual_seed(5)
        losses.append(step(images(8)))
    for name in ("d_loss", "gradient_norm", "real_score", "fake_score"):
        torch.testing.assert_close(losses[0][name], losses[1][name], rtol=1e-4, atol=1e-5)
