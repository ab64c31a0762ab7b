"""Official TensorFlow networks, loaded from their variables, against what TensorFlow computed."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import pggan_fast
from pggan_fast import _native, ops
from pggan_fast.interop import from_official
from pggan_fast.training import TrainStep
from pggan_fast.training.losses import WganGp
from tests.interop.golden import (
    FLIPPED_TOLERANCE,
    GRADIENT_TOLERANCE,
    IMAGE_TOLERANCE,
    PIXEL_TOLERANCE,
    SCORE_TOLERANCE,
    OfficialView,
    assert_close,
    growth,
    load,
    tensor,
    under,
)

CONFIGS = ["r16_l0_unfused", "r16_l5_fused_taper"]
LODS = [0.0, 0.3, 1.0, 1.6, 2.0]
PROTECTED_LODS = [0.0, 0.3]  # no pre-activation so near 0 that rounding flips its slope


@pytest.fixture(autouse=True)
def one_thread(threads):
    """Tensors are tiny: a second thread gains nothing, and on a busy machine it is waited for."""
    torch.set_num_threads(1)


@pytest.fixture(params=CONFIGS)
def golden(request) -> dict[str, np.ndarray]:
    return load(f"nets_{request.param}")


@pytest.fixture(params=["reference", "native"])
def impl(request):
    if request.param == "native" and not _native.cpu_available:
        pytest.skip(f"native CPU kernels: {_native.cpu_reason}")
    with pggan_fast.use_impl(request.param):
        yield request.param


@pytest.fixture(params=[torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def layout(request) -> torch.memory_format:
    return request.param


def _gradients(loss: torch.Tensor, net: torch.nn.Module) -> list[torch.Tensor | None]:
    return list(torch.autograd.grad(loss, list(net.parameters()), allow_unused=True))


def _assert_gradients(actual: list[torch.Tensor | None], golden: dict, prefix: str) -> None:
    """`actual` in the order of parameters.

    Official gradients go the way of the variables: importing permutes them, and changes no number.
    """
    expected = from_official(under(golden, prefix), label_dim=golden["labels"].shape[1])
    atol, rtol = GRADIENT_TOLERANCE
    for (name, want), got in zip(expected.named_parameters(), actual, strict=True):
        got = torch.zeros_like(want) if got is None else got
        bound = atol + rtol * want.abs().max().item()
        torch.testing.assert_close(
            got, want.detach(), atol=bound, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("lod", LODS)
def test_generator_output(golden, lod, impl, layout):
    images = OfficialView(golden, lod, layout).generate()
    assert_close(images, golden[f"G_out/lod{lod}"], IMAGE_TOLERANCE)


@pytest.mark.parametrize("lod", LODS)
def test_discriminator_output(golden, lod, impl, layout):
    view = OfficialView(golden, lod, layout)
    scores, logits = view.score(view.reals)
    assert scores.shape == (8,)
    assert_close(scores, golden[f"D_scores/lod{lod}"], SCORE_TOLERANCE)
    if view.labels is None:
        assert logits is None
    else:
        assert logits.shape == (8, 5)
        assert_close(logits, golden[f"D_labels/lod{lod}"], SCORE_TOLERANCE)


@pytest.mark.parametrize("lod", LODS)
def test_losses(golden, lod, impl, layout):
    view = OfficialView(golden, lod, layout)
    loss, terms = view.d_loss()
    flipped = SCORE_TOLERANCE if lod in PROTECTED_LODS else FLIPPED_TOLERANCE
    for name, term in terms.items():
        tolerance = flipped if name == "mixed_norms" else SCORE_TOLERANCE
        assert_close(term, golden[f"D_loss/lod{lod}/{name}"], tolerance)
    assert_close(loss, golden[f"D_loss/lod{lod}/mean"], flipped)
    assert_close(view.g_loss(), golden[f"G_loss/lod{lod}/mean"], SCORE_TOLERANCE)


@pytest.mark.parametrize("lod", PROTECTED_LODS)
def test_gradients(golden, lod, impl, layout):
    view = OfficialView(golden, lod, layout)
    _assert_gradients(_gradients(view.d_loss()[0], view.D), golden, f"D_grad/lod{lod}")
    _assert_gradients(_gradients(view.g_loss(), view.G), golden, f"G_grad/lod{lod}")


@pytest.mark.parametrize("lod", LODS)
def test_training_step(golden, lod, impl, monkeypatch):
    """The package's own step, with the official random numbers and weights that stay where they are."""
    view = OfficialView(golden, lod, torch.channels_last)
    # Averaging 2x2 pixels halves the norm of a gradient: 1 at full resolution is `factor` at the live one.
    objective = WganGp(penalty_target=view.factor)
    step = TrainStep(view.G, view.D, objective=objective, learning_rate=0.0)
    gradients = {}

    def keep(letter, net):
        gradients[letter] = [p.grad if p.grad is None else p.grad.clone() for p in net.parameters()]

    step.optimizer_G.register_step_pre_hook(lambda *_: keep("G", view.G))
    step.optimizer_D.register_step_pre_hook(lambda *_: keep("D", view.D))
    alpha = 1.0 if view.alpha == 1.0 else torch.tensor(view.alpha)  # as the trainer passes it
    with monkeypatch.context() as random:
        random.setattr(torch, "randn", lambda *_, **__: view.latents)
        random.setattr(torch, "rand", lambda *_, **__: view.mixing)
        stats = step(F.avg_pool2d(view.reals, view.factor), view.labels, alpha=alpha)

    flipped = SCORE_TOLERANCE if lod in PROTECTED_LODS else FLIPPED_TOLERANCE
    official = under(golden, f"D_loss/lod{lod}")
    assert_close(stats["d_loss"], official["mean"], flipped)
    assert_close(stats["g_loss"], golden[f"G_loss/lod{lod}/mean"], SCORE_TOLERANCE)
    assert_close(stats["real_score"], official["real_scores"].mean(), SCORE_TOLERANCE)
    assert_close(stats["fake_score"], official["fake_scores"].mean(), SCORE_TOLERANCE)
    assert_close(stats["gradient_norm"] / view.factor, official["mixed_norms"].mean(), flipped)
    if lod in PROTECTED_LODS:
        _assert_gradients(gradients["D"], golden, f"D_grad/lod{lod}")
        _assert_gradients(gradients["G"], golden, f"G_grad/lod{lod}")


@pytest.mark.parametrize("lod", [0.0, 0.3, 1.0, 1.6, 2.0, 2.9])
def test_real_images(lod, impl, layout):
    golden = load("data_pipeline")
    factor, alpha = growth(lod)
    images = tensor(golden, f"in/res{32 // factor}", layout)
    faded = ops.fade_reals(images, alpha)
    assert faded.dtype == torch.float32
    full = F.interpolate(faded, scale_factor=factor, mode="nearest")
    assert_close(full, golden[f"out/lod{lod}"], PIXEL_TOLERANCE)


def test_mirrored_real_images(impl, layout):
    golden = load("data_pipeline")
    images, uniform = tensor(golden, "in/res32", layout), tensor(golden, "mirror_uniform")
    mirrored = torch.where(uniform >= 0.5, images.flip(3), images)
    faded = ops.fade_reals(mirrored, growth(0.3)[1])
    assert_close(faded, golden["out_mirror/lod0.3"], PIXEL_TOLERANCE)
