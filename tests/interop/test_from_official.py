"""Reading the official TensorFlow variables: options, exactness, errors."""

import numpy as np
import pytest
import torch

from pggan_fast import Discriminator, Generator
from pggan_fast.interop import from_official
from tests.interop.golden import IMAGE_TOLERANCE, SCORE_TOLERANCE, OfficialView, assert_close, load, network, under


@pytest.fixture(params=["r16_l0_unfused", "r16_l5_fused_taper"])
def golden(request) -> dict[str, np.ndarray]:
    return load(f"nets_{request.param}")


def test_options_are_read_off_the_variables():
    unfused, tapered = load("nets_r16_l0_unfused"), load("nets_r16_l5_fused_taper")
    for letter, kind in (("G", Generator), ("D", Discriminator)):
        net = network(unfused, letter)
        assert type(net) is kind
        assert (net.resolution, net.image_channels, net.label_dim) == (16, 3, 0)
        assert net.options["fused_scale"] is False
        net = network(tapered, letter)
        assert (net.resolution, net.image_channels, net.label_dim) == (16, 3, 5)
        assert net.options["fused_scale"] is True
        assert (net.options["fmap_base"], net.options["fmap_max"]) == (64, 16)
    assert network(tapered, "G").latent_dim == 16


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
    variables = under(load("nets_r16_l0_unfused"), "D_var")
    variables["4x4/Conv/weight"] = variables["4x4/Conv/weight"][:, :, :-1]
    net = from_official(variables)
    images = torch.from_numpy(load("nets_r16_l0_unfused")["images"])
    assert net.options["mbstd_group_size"] == 1
    torch.testing.assert_close(net(images[:3])[0], net(images)[0][:3])


def test_weights_are_bit_copies(golden):
    for letter in "GD":
        variables = under(golden, f"{letter}_var")
        net = network(golden, letter)
        ours = np.sort(torch.cat([p.detach().flatten() for p in net.parameters()]).numpy())
        theirs = np.sort(np.concatenate([v.ravel() for v in variables.values()]))
        np.testing.assert_array_equal(ours, theirs)


def test_lod_is_ignored(golden):
    variables = under(golden, "G_var") | {"lod": np.float32(0.3)}
    net = from_official(variables, label_dim=golden["labels"].shape[1])
    for ours, same in zip(net.parameters(), network(golden, "G").parameters(), strict=True):
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
        variables = _effective(under(golden, f"{letter}_var"))
        setattr(view, letter, from_official(variables, label_dim=label_dim, use_wscale=False))
    # One more rounding per weight than with scaling at run time.
    assert_close(view.generate(), golden["G_out/lod0.3"], IMAGE_TOLERANCE)
    assert_close(view.score(view.reals)[0], golden["D_scores/lod0.3"], 2 * SCORE_TOLERANCE)


def test_given_options_win():
    golden = load("nets_r16_l0_unfused")
    assert network(golden, "G").options["fmap_base"] == 128  # the smallest that gives 16, 16, 16
    net = network(golden, "G", fmap_base=256)
    assert (net.options["fmap_base"], net.options["fmap_max"]) == (256, 16)
    net = network(golden, "D", fmap_base=1e9, fmap_decay=0.5)
    assert (net.options["fmap_decay"], net.options["fmap_max"]) == (0.5, 16)
    assert network(golden, "G", pixel_norm=False).options["pixel_norm"] is False
    assert network(golden, "D", mbstd_group_size=8).options["mbstd_group_size"] == 8


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
    variables = under(load("nets_r16_l5_fused_taper"), f"{letter}_var")
    damage(variables)
    with pytest.raises(ValueError, match=message) as caught:
        from_official(variables, **{"label_dim": 5} | kwargs)
    assert "\n" not in str(caught.value)
