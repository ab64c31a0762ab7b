"""The table of docs/drop-in.md: layers of other codebases and what replaces them compute the same."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pggan_fast
from tests.dropin.helpers import X
from tests.dropin.progressive import FusedLeakyReLU, ScaledOutputConv, consecutive_deviation

IMAGES = torch.cat([X, X.flip(0) * 0.5]).double()  # 8 of them


@pytest.fixture
def pro_gan_pth():
    return pytest.importorskip("pro_gan_pytorch.custom_layers", reason="pro-gan-pth is not installed")


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("up", [1, 2])
def test_layers_of_pro_gan_pth(pro_gan_pth, up):
    torch.manual_seed(0)
    conv = pro_gan_pth.EqualizedConv2d(8, 16, (3, 3), padding=1).double()
    nn.init.normal_(conv.bias)
    theirs = nn.Sequential(conv, nn.LeakyReLU(0.2), pro_gan_pth.PixelwiseNorm())
    ours = pggan_fast.EqualizedConv2d(8, 16, 3, up=up, act="lrelu", pixel_norm=True).double()
    ours.load_state_dict(conv.state_dict())
    assert_equal(ours(IMAGES), theirs(F.interpolate(IMAGES, scale_factor=up)))


def test_norms_of_pro_gan_pth(pro_gan_pth):
    assert_equal(pggan_fast.PixelNorm()(IMAGES), pro_gan_pth.PixelwiseNorm()(IMAGES))
    assert_equal(pggan_fast.MinibatchStdDev(4)(IMAGES), pro_gan_pth.MinibatchStdDev(4)(IMAGES))


def test_layers_of_the_gan_zoo():
    torch.manual_seed(0)
    theirs = ScaledOutputConv(8, 16).double()
    ours = pggan_fast.EqualizedConv2d(8, 16, 3, padding=1).double()
    ours.load_state_dict(theirs.module.state_dict())
    with torch.no_grad():
        ours.bias.mul_(ours.weight_scale)
    assert_equal(ours(IMAGES), theirs(IMAGES))
    deviation = pggan_fast.minibatch_stddev(IMAGES, 4, grouping="consecutive", correction=1)
    assert_equal(deviation, consecutive_deviation(IMAGES, 4))


def test_layers_of_stylegan2():
    theirs = FusedLeakyReLU(8).double()
    nn.init.normal_(theirs.bias)
    assert_equal(pggan_fast.bias_act(IMAGES, theirs.bias, gain=2**0.5), theirs(IMAGES))
    activated = F.leaky_relu(IMAGES + theirs.bias.view(-1, 1, 1), 0.2) * math.sqrt(2)  # stylegan3's, of slope 0.2
    assert_equal(pggan_fast.bias_act(IMAGES, theirs.bias, gain=2**0.5), activated)


@pytest.mark.parametrize("maps", [1, 2])
def test_deviation_of_stylegan3(maps):
    y = IMAGES.reshape(4, -1, maps, 8 // maps, 16, 16)
    y = (y - y.mean(0)).square().mean(0).add(1e-8).sqrt().mean([2, 3, 4]).reshape(-1, maps, 1, 1)
    theirs = torch.cat([IMAGES, y.repeat(4, 1, 16, 16)], 1)
    assert_equal(pggan_fast.MinibatchStdDev(4, maps)(IMAGES), theirs)
    if maps == 1:  # what rosinality's discriminator computes
        assert_equal(pggan_fast.minibatch_stddev(IMAGES, 4), theirs)


def test_mean_pooling_of_anybody():
    ours = pggan_fast.EqualizedConv2d(8, 16, 3, down=2, act="lrelu").double()
    nn.init.normal_(ours.bias)
    theirs = F.conv2d(IMAGES, ours.weight * ours.weight_scale, ours.bias, padding=1)
    assert_equal(ours(IMAGES), F.leaky_relu(F.avg_pool2d(theirs, 2), 0.2))
