"""Accelerate a generator of torchgan: `pip install --no-deps torchgan`; it needs torchvision too."""

import torch
from compare import compare
from torch import nn
from torchgan.models import AutoEncodingGenerator

torch.manual_seed(0)
generator = AutoEncodingGenerator(nonlinearity=nn.ReLU())
compare("torchgan: generator of an energy-based GAN, 32 px", generator, torch.randn(16, 100))
