"""Refusals of the networks: one line that names the argument, its value and what is allowed."""

import json

import numpy as np
import pytest
import torch

from pggan_fast import Discriminator, Generator
from pggan_fast.networks import R3ganDiscriminator
from pggan_fast.training import TrainStep

SMALL = {"resolution": 16, "fmap_base": 64, "fmap_max": 16}
IMAGES_OF_FILES = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)


@pytest.mark.parametrize("network", [Generator, Discriminator])
@pytest.mark.parametrize("resolution", [0, 2, 48, 2048, 16.0])
def test_resolution_must_be_a_power_of_two(network, resolution):
    with pytest.raises(ValueError, match=f"resolution is {resolution}, .*power of two") as caught:
        network(resolution)
    assert "\n" not in str(caught.value)


CALLS = [
    (Generator, {}, (torch.zeros(2, 15),), {}, r"z has shape \[2, 15\], must be \[N, 16\]"),
    (Generator, {}, (torch.zeros(16),), {}, r"z has shape \[16\]"),
    (Generator, {}, (torch.zeros(2, 16),), {"resolution": 32}, "resolution is 32, .* 4 to 16"),
    (Generator, {}, (torch.zeros(2, 16),), {"resolution": 12}, "resolution is 12"),
    (Generator, {}, (torch.zeros(2, 16), torch.zeros(2, dtype=torch.long)), {}, "label_dim=0"),
    (Generator, {"label_dim": 5}, (torch.zeros(2, 16),), {}, "labels are missing.*label_dim=5"),
    (Generator, {"label_dim": 5}, (torch.zeros(2, 16), torch.zeros(2, 4)), {}, r"labels have shape \[2, 4\]"),
    (Generator, {"label_dim": 5}, (torch.zeros(2, 16), torch.zeros(3, 5)), {}, r"labels have shape \[3, 5\]"),
    (Discriminator, {}, (torch.zeros(2, 3, 32, 32),), {}, "resolution is 32, .* 4 to 16"),
    (Discriminator, {}, (torch.zeros(2, 3, 2, 2),), {}, "resolution is 2,"),
    (Discriminator, {}, (torch.zeros(2, 3, 8, 16),), {}, r"\[2, 3, 8, 16\], must be \[N, 3, r, r\]"),
    (Discriminator, {}, (torch.zeros(2, 1, 16, 16),), {}, r"\[2, 1, 16, 16\], must be \[N, 3, r, r\]"),
    (Discriminator, {}, (torch.zeros(3, 16, 16),), {}, r"\[3, 16, 16\], must be \[N, 3, r, r\]"),
    (Discriminator, {}, (IMAGES_OF_FILES,), {}, r"images are torch.uint8, must be floating-point in -1..1: see fade_"),
    (R3ganDiscriminator, {}, (IMAGES_OF_FILES,), {}, "images are torch.uint8, must be floating-point"),
]


@pytest.mark.parametrize(("network", "options", "args", "kwargs", "message"), CALLS)
def test_wrong_arguments_get_one_line(network, options, args, kwargs, message):
    net = network(**SMALL | options)
    with pytest.raises(ValueError, match=message) as caught:
        net(*args, **kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_dim": -1}, "label_dim is int -1, must be "),
        ({"image_channels": 0}, "image_channels is int 0, must be "),
        ({"fmap_max": 0}, "fmap_max is int 0, must be "),
        ({"fmap_base": 1}, "fmap_base is 1, leaves no channel at 16 px"),
        ({"spectral_norm": "yes"}, "spectral_norm is str 'yes', must be true or false"),
    ],
)
@pytest.mark.parametrize("network", [Generator, Discriminator])
def test_options_are_checked_where_the_network_is_made(network, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        network(**SMALL | options)


def test_a_step_refuses_images_of_integers():
    step = TrainStep(Generator(**SMALL), Discriminator(**SMALL))
    with pytest.raises(ValueError, match="images are torch.uint8, must be floating-point in -1..1: see fade_reals"):
        step(IMAGES_OF_FILES)


def test_numbers_of_numpy_are_whole_numbers_too():
    """Options of a network are plain numbers all the same: files keep them."""
    G = Generator(np.int64(8), fmap_max=np.int32(4), latent_dim=np.int64(4))
    assert json.loads(json.dumps(G.options)) == G.options and G.options["fmap_max"] == 4
    assert type(G.options["resolution"]) is int
