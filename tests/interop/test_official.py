"""Official TensorFlow networks, loaded from their variables, against what TensorFlow computed."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import pggan_fast
from pggan_fast import Discriminator, Generator, _native, ops
from pggan_fast.interop import from_official

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIGS = ["r16_l0_unfused", "r16_l5_fused_taper"]
LODS = [0.0, 0.3, 1.0, 1.6, 2.0]
PROTECTED_LODS = [0.0, 0.3]  # no pre-activation so near 0 that rounding flips its slope
RESOLUTION = 16

# float32, against another float32 implementation that sums in another order.
IMAGE_TOLERANCE = 1e-4  # activations of order 1 to 10 through six layers of 144 products
SCORE_TOLERANCE = 1e-5  # scores, logits and losses
FLIPPED_TOLERANCE = 1e-4  # gradient norms where a leaky ReLU's slope may flip
GRADIENT_TOLERANCE = (1e-5, 1e-4)  # absolute, and relative to the tensor's largest entry
PIXEL_TOLERANCE = 1e-6  # four roundings of values in -1..1


@pytest.fixture(params=CONFIGS)
def golden(request) -> dict[str, np.ndarray]:
    return _load(f"nets_{request.param}")


@pytest.fixture(params=["reference", "native"])
def impl(request):
    if request.param == "native" and not _native.cpu_available:
        pytest.skip(f"native CPU kernels: {_native.cpu_reason}")
    with pggan_fast.use_impl(request.param):
        yield request.param


@pytest.fixture(params=[torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def layout(request) -> torch.memory_format:
    return request.param


def _load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def _variables(golden: dict, prefix: str) -> dict[str, np.ndarray]:
    start = f"{prefix}/"
    return {k.removeprefix(start): v for k, v in golden.items() if k.startswith(start)}


def _network(golden: dict, letter: str, layout=torch.contiguous_format, **kwargs):
    label_dim = golden["labels"].shape[1]
    net = from_official(_variables(golden, f"{letter}_var"), label_dim=label_dim, **kwargs)
    return net.to(memory_format=layout)


def _tensor(golden: dict, key: str, layout=torch.contiguous_format) -> torch.Tensor:
    tensor = torch.from_numpy(golden[key])
    return tensor.contiguous(memory_format=layout) if tensor.ndim == 4 else tensor


def _labels(golden: dict) -> torch.Tensor | None:
    return torch.from_numpy(golden["labels"]) if golden["labels"].shape[1] else None


def _growth(lod: float) -> tuple[int, float]:
    """Official lod -> (how much smaller than full the live resolution is, alpha)."""
    lod = float(np.float32(lod))
    return 2 ** int(lod), 1 - (lod - int(lod))


class OfficialView:
    """Our networks under the official ones' manners: images of full resolution in and out."""

    def __init__(self, golden: dict, lod: float, layout: torch.memory_format):
        self.G, self.D = _network(golden, "G", layout), _network(golden, "D", layout)
        self.factor, self.alpha = _growth(lod)
        self.latents, self.labels = _tensor(golden, "latents"), _labels(golden)
        self.reals = _tensor(golden, "images", layout)
        self.mixing = _tensor(golden, "mixing")

    def generate(self) -> torch.Tensor:
        live = RESOLUTION // self.factor
        small = self.G(self.latents, self.labels, resolution=live, alpha=self.alpha)
        assert small.shape[2:] == (live, live)
        return F.interpolate(small, scale_factor=self.factor, mode="nearest")

    def judge(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.D(F.avg_pool2d(images, self.factor), alpha=self.alpha)

    def label_penalty(self, logits: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, self.labels, reduction="none")

    def d_loss(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """WGAN-GP with drift and AC-GAN terms, and the terms by their names in the file."""
        with torch.no_grad():
            fakes = self.generate()
        real_scores, real_logits = self.judge(self.reals)
        fake_scores, fake_logits = self.judge(fakes)
        mixed = (self.reals + (fakes - self.reals) * self.mixing).requires_grad_()
        mixed_scores, _ = self.judge(mixed)
        (gradient,) = torch.autograd.grad(mixed_scores.sum(), mixed, create_graph=True)
        norms = gradient.square().sum(dim=(1, 2, 3)).sqrt()
        terms = {
            "real_scores": real_scores,
            "fake_scores": fake_scores,
            "mixed_scores": mixed_scores,
            "mixed_norms": norms,
            "epsilon_penalty": real_scores.square(),
        }
        loss = fake_scores.mean() - real_scores.mean() + 10 * (norms - 1).square().mean()
        loss = loss + 0.001 * real_scores.square().mean()
        if self.labels is not None:
            terms["label_penalty_reals"] = self.label_penalty(real_logits)
            terms["label_penalty_fakes"] = self.label_penalty(fake_logits)
            loss = loss + terms["label_penalty_reals"].mean() + terms["label_penalty_fakes"].mean()
        return loss, terms

    def g_loss(self) -> torch.Tensor:
        scores, logits = self.judge(self.generate())
        loss = -scores.mean()
        return loss if self.labels is None else loss + self.label_penalty(logits).mean()


def _assert_close(actual: torch.Tensor, expected: np.ndarray, tolerance: float) -> None:
    expected = torch.from_numpy(np.asarray(expected)).reshape(actual.shape)
    torch.testing.assert_close(actual.detach(), expected, atol=tolerance, rtol=0)


def _assert_gradients(loss: torch.Tensor, net: torch.nn.Module, golden: dict, prefix: str) -> None:
    """Official gradients go the way of the variables: importing permutes, and changes no number."""
    gradients = _variables(golden, prefix)
    assert len(gradients) == len(list(net.parameters()))
    expected = from_official(gradients, label_dim=golden["labels"].shape[1])
    actual = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)
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
    _assert_close(images, golden[f"G_out/lod{lod}"], IMAGE_TOLERANCE)


@pytest.mark.parametrize("lod", LODS)
def test_discriminator_output(golden, lod, impl, layout):
    view = OfficialView(golden, lod, layout)
    scores, logits = view.judge(view.reals)
    assert scores.shape == (8,)
    _assert_close(scores, golden[f"D_scores/lod{lod}"], SCORE_TOLERANCE)
    if view.labels is None:
        assert logits is None
    else:
        assert logits.shape == (8, 5)
        _assert_close(logits, golden[f"D_labels/lod{lod}"], SCORE_TOLERANCE)


@pytest.mark.parametrize("lod", LODS)
def test_losses(golden, lod, impl, layout):
    view = OfficialView(golden, lod, layout)
    loss, terms = view.d_loss()
    flipped = SCORE_TOLERANCE if lod in PROTECTED_LODS else FLIPPED_TOLERANCE
    for name, term in terms.items():
        tolerance = flipped if name == "mixed_norms" else SCORE_TOLERANCE
        _assert_close(term, golden[f"D_loss/lod{lod}/{name}"], tolerance)
    _assert_close(loss, golden[f"D_loss/lod{lod}/mean"], flipped)
    _assert_close(view.g_loss(), golden[f"G_loss/lod{lod}/mean"], SCORE_TOLERANCE)


@pytest.mark.parametrize("lod", PROTECTED_LODS)
def test_discriminator_gradients(golden, lod, impl, layout):
    view = OfficialView(golden, lod, layout)
    _assert_gradients(view.d_loss()[0], view.D, golden, f"D_grad/lod{lod}")


@pytest.mark.parametrize("lod", PROTECTED_LODS)
def test_generator_gradients(golden, lod, impl, layout):
    view = OfficialView(golden, lod, layout)
    _assert_gradients(view.g_loss(), view.G, golden, f"G_grad/lod{lod}")


@pytest.mark.parametrize("lod", [0.0, 0.3, 1.0, 1.6, 2.0, 2.9])
def test_real_images(lod, impl, layout):
    golden = _load("data_pipeline")
    factor, alpha = _growth(lod)
    images = _tensor(golden, f"in/res{32 // factor}", layout)
    faded = ops.fade_reals(images, alpha)
    assert faded.dtype == torch.float32
    full = F.interpolate(faded, scale_factor=factor, mode="nearest")
    _assert_close(full, golden[f"out/lod{lod}"], PIXEL_TOLERANCE)


def test_mirrored_real_images(impl, layout):
    golden = _load("data_pipeline")
    images, uniform = _tensor(golden, "in/res32", layout), _tensor(golden, "mirror_uniform")
    mirrored = torch.where(uniform >= 0.5, images.flip(3), images)
    faded = ops.fade_reals(mirrored, _growth(0.3)[1])
    _assert_close(faded, golden["out_mirror/lod0.3"], PIXEL_TOLERANCE)


def test_options_are_read_off_the_variables():
    unfused, tapered = _load("nets_r16_l0_unfused"), _load("nets_r16_l5_fused_taper")
    for letter, kind in (("G", Generator), ("D", Discriminator)):
        net = _network(unfused, letter)
        assert type(net) is kind
        assert (net.resolution, net.image_channels, net.label_dim) == (16, 3, 0)
        assert net.options["fused_scale"] is False
        net = _network(tapered, letter)
        assert (net.resolution, net.image_channels, net.label_dim) == (16, 3, 5)
        assert net.options["fused_scale"] is True
        assert (net.options["fmap_base"], net.options["fmap_max"]) == (64, 16)
    assert _network(tapered, "G").latent_dim == 16


def _discriminator_of(*channels: int) -> dict[str, np.ndarray]:
    """Variables of a grayscale discriminator whose stage s has channels[s] feature maps."""
    shapes = {
        "4x4/Conv": (3, 3, channels[1] + 1, channels[1]),
        "4x4/Dense0": (16 * channels[1], channels[0]),
        "4x4/Dense1": (channels[0], 1),
    }
    stages = range(1, len(channels))
    for stage in stages:
        shapes[f"FromRGB_lod{len(stages) - stage}"] = (1, 1, 1, channels[stage])
    for stage in stages[1:]:
        block = f"{2 ** (stage + 1)}x{2 ** (stage + 1)}"
        shapes[f"{block}/Conv0"] = (3, 3, channels[stage], channels[stage])
        shapes[f"{block}/Conv1_down"] = (3, 3, channels[stage], channels[stage - 1])
    weights = {f"{name}/weight": np.zeros(shape, "f4") for name, shape in shapes.items()}
    return weights | {f"{name}/bias": np.zeros(shape[-1], "f4") for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("channels", "given", "fmap_base", "fmap_max"),
    [
        ((512, 512, 512), {}, 8192, 512),  # the defaults, though 2048 would do as well
        ((32, 16, 8), {}, 32, 32),
        ((512, 256, 128, 64), {}, 512, 512),
        ((20, 20, 20, 13), {}, 104, 20),  # 104 / 2**3 = 13, and less than 112 / 2**3
        ((20, 20, 20, 13), {"fmap_base": 111}, 111, 20),
        ((32, 22, 16), {"fmap_decay": 0.5}, 32, 32),
        ((20, 20), {"fmap_max": 20}, 8192, 20),
    ],
)
def test_channels_are_read_off_the_variables(channels, given, fmap_base, fmap_max):
    net = from_official(_discriminator_of(*channels), **given)
    assert (net.options["fmap_base"], net.options["fmap_max"]) == (fmap_base, fmap_max)
    assert (net.resolution, net.image_channels) == (2 ** len(channels), 1)


@pytest.mark.parametrize("channels", [(16, 8, 16), (32, 22, 16), (16, 16, 8, 8)])
def test_channels_that_no_formula_gives(channels):
    with pytest.raises(ValueError, match="pass fmap_base, fmap_decay and fmap_max"):
        from_official(_discriminator_of(*channels))


def test_a_discriminator_without_minibatch_statistics():
    variables = _variables(_load("nets_r16_l0_unfused"), "D_var")
    variables["4x4/Conv/weight"] = variables["4x4/Conv/weight"][:, :, :-1]
    net = from_official(variables)
    images = torch.from_numpy(_load("nets_r16_l0_unfused")["images"])
    assert net.options["mbstd_group_size"] == 1
    torch.testing.assert_close(net(images[:3])[0], net(images)[0][:3])


def test_weights_are_bit_copies(golden):
    for letter in "GD":
        variables = _variables(golden, f"{letter}_var")
        net = _network(golden, letter)
        ours = np.sort(torch.cat([p.detach().flatten() for p in net.parameters()]).numpy())
        theirs = np.sort(np.concatenate([v.ravel() for v in variables.values()]))
        np.testing.assert_array_equal(ours, theirs)


def test_lod_is_ignored(golden):
    variables = _variables(golden, "G_var") | {"lod": np.float32(0.3)}
    net = from_official(variables, label_dim=golden["labels"].shape[1])
    for ours, same in zip(net.parameters(), _network(golden, "G").parameters(), strict=True):
        assert torch.equal(ours, same)


def _effective(variables: dict) -> dict:
    """The same network without run-time scaling: weights times gain / sqrt(fan_in)."""
    gains = {"4x4/Dense": 2**0.5 / 4, "4x4/Dense1": 1.0}
    result = dict(variables)
    for name in variables:
        layer, kind = name.rsplit("/", 1)
        if kind == "weight":
            shape = variables[name].shape
            gain = 1.0 if layer.startswith("ToRGB") else gains.get(layer, 2**0.5)
            fan_in = 9 * shape[3] if layer.endswith("Conv0_up") else np.prod(shape[:-1])
            result[name] = variables[name] * np.float32(gain / fan_in**0.5)
    return result


def test_variables_without_wscale(golden):
    view = OfficialView(golden, 0.3, torch.contiguous_format)
    label_dim = golden["labels"].shape[1]
    for letter in "GD":
        variables = _effective(_variables(golden, f"{letter}_var"))
        setattr(view, letter, from_official(variables, label_dim=label_dim, use_wscale=False))
    # One more rounding per weight than with scaling at run time.
    _assert_close(view.generate(), golden["G_out/lod0.3"], IMAGE_TOLERANCE)
    _assert_close(view.judge(view.reals)[0], golden["D_scores/lod0.3"], 2 * SCORE_TOLERANCE)


def test_given_options_win():
    golden = _load("nets_r16_l0_unfused")
    assert _network(golden, "G").options["fmap_base"] == 128  # the smallest that gives 16, 16, 16
    net = _network(golden, "G", fmap_base=256)
    assert (net.options["fmap_base"], net.options["fmap_max"]) == (256, 16)
    net = _network(golden, "D", fmap_base=1e9, fmap_decay=0.5)
    assert (net.options["fmap_decay"], net.options["fmap_max"]) == (0.5, 16)
    assert _network(golden, "G", pixel_norm=False).options["pixel_norm"] is False
    assert _network(golden, "D", mbstd_group_size=8).options["mbstd_group_size"] == 8


def _without(*names):
    return lambda v: [v.pop(name) for name in names]


def _with(**arrays):
    return lambda v: v.update({k.replace("__", "/"): a for k, a in arrays.items()})


def _transposed(name):
    return lambda v: v.update({name: v[name].T})


BROKEN = [
    ("G", _without("8x8/Conv1/bias"), {}, "missing 8x8/Conv1/bias"),
    ("G", _without("ToRGB_lod2/weight", "ToRGB_lod2/bias"), {}, "missing ToRGB_lod2/bias, ToRGB"),
    ("D", _with(extra__weight=np.zeros(3, "f4")), {}, "unknown extra/weight"),
    ("G", _with(FromRGB_lod0__bias=np.zeros(3, "f4")), {}, "of one network"),
    ("G", lambda v: v.clear(), {}, "neither"),
    ("G", _transposed("ToRGB_lod0/weight"), {}, r"ToRGB_lod0/weight is \[3, 8, 1, 1\], must be \["),
    ("D", _transposed("4x4/Dense1/weight"), {}, r"Dense1/weight is \[6, 16\], must be \[16, 6\]"),
    ("D", _with(FromRGB_lod1__bias=np.zeros((), "f4")), {}, "FromRGB_lod1/bias .* 1 dimension"),
    ("D", _with(FromRGB_lod1__bias=np.zeros(16, "i4")), {}, "FromRGB_lod1/bias is int32"),
    ("D", _with(**{"8x8__Conv0__bias": np.zeros(7, "f4")}), {}, "8 px: 7.*pass fmap_base"),
    ("D", lambda v: None, {"label_dim": 0}, r"label_dim=0, .*Dense1/weight is \[16, 6\]"),
    ("G", lambda v: None, {"label_dim": 21}, "label_dim=21"),
    ("G", lambda v: None, {"latent_dim": 512}, r"4x4/Dense/weight is \[21, 256\], must be"),
    ("D", lambda v: None, {"latent_dim": 16}, "latent_dim cannot be given"),
    ("G", lambda v: None, {"residual": True}, "residual cannot be given"),
]


@pytest.mark.parametrize(("letter", "damage", "kwargs", "message"), BROKEN)
def test_errors_are_one_line(letter, damage, kwargs, message):
    variables = _variables(_load("nets_r16_l5_fused_taper"), f"{letter}_var")
    damage(variables)
    with pytest.raises(ValueError, match=message) as caught:
        from_official(variables, **{"label_dim": 5} | kwargs)
    assert "\n" not in str(caught.value)
