"""Accelerate the generator of pro-gan-pth: `pip install --no-deps pro-gan-pth`.

Its equalized first layer does not run with today's torch, so the generator is the one without equalized weights.
"""

import torch
from compare import compare
from pro_gan_pytorch.networks import Generator

torch.manual_seed(0)
generator = Generator(depth=6, latent_size=128, use_eql=False)
compare("pro-gan-pth: generator, 64 px", generator, torch.randn(4, 128), 6, 0.5)
