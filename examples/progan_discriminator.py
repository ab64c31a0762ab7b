"""Accelerate the discriminator of pro-gan-pth: `pip install --no-deps pro-gan-pth`."""

import torch
from compare import compare
from pro_gan_pytorch.networks import Discriminator

torch.manual_seed(0)
discriminator = Discriminator(depth=5, latent_size=128)
compare("pro-gan-pth: discriminator, 32 px", discriminator, torch.randn(8, 3, 32, 32), 5, 0.5)
