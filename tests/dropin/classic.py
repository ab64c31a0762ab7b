"""Compact networks of the classic kinds, as their papers' code writes them, in plain PyTorch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

# DCGAN, LSGAN, WGAN-GP


def dcgan_generator(width: int = 8) -> nn.Module:
    def up(i: int, o: int, stride: int = 2, padding: int = 1) -> list[nn.Module]:
        return [nn.ConvTranspose2d(i, o, 4, stride, padding, bias=False), nn.BatchNorm2d(o), nn.ReLU(True)]

    layers = [*up(16, 4 * width, 1, 0), *up(4 * width, 2 * width), *up(2 * width, width)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh())


def dcgan_discriminator(width: int = 8) -> nn.Module:
    def down(i: int, o: int) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 4, 2, 1, bias=False), nn.BatchNorm2d(o), nn.LeakyReLU(0.2, inplace=True)]

    first = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(*first, *down(width, 2 * width), *down(2 * width, 4 * width), nn.Conv2d(4 * width, 1, 4))


def lsgan_critic(width: int = 8) -> nn.Module:
    layers: list[nn.Module] = []
    for i, o in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(i, o, 5, 2, 2), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * 16, 1))


class ResidualDown(nn.Module):
    """WGAN-GP's critic block: convolutions followed by mean pooling, on both paths."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(inputs, inputs, 3, 1, 1), nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(F.relu(x))))
        return F.avg_pool2d(h, 2) + F.avg_pool2d(self.skip(x), 2)


def wgan_gp_critic(width: int = 8) -> nn.Module:
    blocks = [ResidualDown(width, 2 * width), ResidualDown(2 * width, 2 * width)]
    return nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), *blocks, nn.ReLU(), nn.Flatten(), nn.Linear(2 * width * 64, 1))


# SAGAN, BigGAN


class Attention(nn.Module):
    def __init__(self, width: int, norm: Callable[[nn.Module], nn.Module]):
        super().__init__()
        self.f, self.g = norm(nn.Conv2d(width, width // 4, 1)), norm(nn.Conv2d(width, width // 4, 1))
        self.h = norm(nn.Conv2d(width, width, 1))
        self.gamma = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        f, g, h = self.f(x).flatten(2), self.g(x).flatten(2), self.h(x).flatten(2)
        attention = torch.softmax(f.transpose(1, 2) @ g, dim=1)
        return self.gamma * (h @ attention).view_as(x) + x


class SAGANDiscriminator(nn.Module):
    def __init__(self, norm: Callable[[nn.Module], nn.Module], width: int = 8):
        super().__init__()
        self.l1 = nn.Sequential(norm(nn.Conv2d(3, width, 4, 2, 1)), nn.LeakyReLU(0.1))
        self.l2 = nn.Sequential(norm(nn.Conv2d(width, 2 * width, 4, 2, 1)), nn.LeakyReLU(0.1))
        self.attention = Attention(2 * width, norm)
        self.plain = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 3, 1, 1), nn.LeakyReLU(0.1))
        self.last = nn.Conv2d(2 * width, 1, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.plain(self.attention(self.l2(self.l1(x))))).squeeze()


class SAGANGenerator(nn.Module):
    """Residual blocks that upsample, as in its official code: batch norm, relu, nearest, convolution."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.dense = nn.Linear(16, width * 16)
        self.blocks = nn.ModuleList([BigGANBlock(width, width, conditional=False) for _ in range(2)])
        self.attention = Attention(width, lambda module: module)
        self.out = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 3, 3, 1, 1), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        x = self.dense(z).view(z.size(0), -1, 4, 4)
        return self.out(self.attention(self.blocks[1](self.blocks[0](x))))


class ConditionalNorm(nn.Module):
    def __init__(self, width: int, features: int = 16):
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=False)
        self.gain, self.shift = nn.Linear(features, width), nn.Linear(features, width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.norm(x) * (1 + self.gain(y))[:, :, None, None] + self.shift(y)[:, :, None, None]


class BigGANBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, conditional: bool = True):
        super().__init__()
        self.conditional = conditional
        norm = ConditionalNorm if conditional else nn.BatchNorm2d
        self.norm1, self.norm2 = norm(inputs), norm(outputs)
        self.conv1, self.conv2 = nn.Conv2d(inputs, outputs, 3, 1, 1), nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.skip, self.up = nn.Conv2d(inputs, outputs, 1), nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        h = F.relu(self.norm1(x, y) if self.conditional else self.norm1(x))
        h, x = self.up(h), self.up(x)
        h = self.conv1(h)
        h = F.relu(self.norm2(h, y) if self.conditional else self.norm2(h))
        return self.conv2(h) + self.skip(x)


class BigGANGenerator(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.dense = nn.Linear(16, width * 16)
        self.blocks = nn.ModuleList([BigGANBlock(width, width) for _ in range(2)])
        self.out = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 3, 3, 1, 1), nn.Tanh())

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        x = self.dense(z).view(z.size(0), -1, 4, 4)
        for block in self.blocks:
            x = block(x, y)
        return self.out(x)


# Images to images: CycleGAN, U-Net, SPADE, NICE-GAN


class ResnetBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        layers: list[nn.Module] = []
        for act in (nn.ReLU(True), nn.Identity()):
            layers += [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width), act]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def cyclegan_generator(width: int = 8) -> nn.Module:
    return nn.Sequential(
        *(nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), nn.InstanceNorm2d(width), nn.ReLU(True)),
        *(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.InstanceNorm2d(2 * width), nn.ReLU(True)),
        *(ResnetBlock(2 * width) for _ in range(2)),
        nn.ConvTranspose2d(2 * width, width, 3, 2, 1, output_padding=1),
        *(nn.InstanceNorm2d(width), nn.ReLU(True), nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh()),
    )


class UNet(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2, True))
        self.down2 = nn.Sequential(nn.Conv2d(width, 2 * width, 4, 2, 1), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2))
        self.up1 = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(2 * width, width, 3, 1, 1))
        self.norm, self.drop = nn.BatchNorm2d(width), nn.Dropout(0.5)
        self.up2 = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(2 * width, 3, 3, 1, 1), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        d1 = self.down1(x)
        u1 = F.relu(self.drop(self.norm(self.up1(self.down2(d1)))))
        return self.up2(torch.cat([u1, d1], 1))


class SPADE(nn.Module):
    def __init__(self, width: int, labels: int = 3):
        super().__init__()
        self.norm = nn.InstanceNorm2d(width, affine=False)
        self.shared = nn.Sequential(nn.Conv2d(labels, 8, 3, padding=1), nn.ReLU())
        self.gamma, self.beta = nn.Conv2d(8, width, 3, padding=1), nn.Conv2d(8, width, 3, padding=1)

    def forward(self, x: Tensor, segmentation: Tensor) -> Tensor:
        h = self.shared(F.interpolate(segmentation, size=x.shape[2:], mode="nearest"))
        return self.norm(x) * (1 + self.gamma(h)) + self.beta(h)


class SPADEGenerator(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.fc = nn.Conv2d(3, width, 3, padding=1)
        self.norms = nn.ModuleList([SPADE(width) for _ in range(3)])
        self.convs = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(3)])
        self.up, self.out = nn.Upsample(scale_factor=2), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, segmentation: Tensor) -> Tensor:
        x = self.fc(F.interpolate(segmentation, size=(4, 4)))
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = self.up(x + conv(F.leaky_relu(norm(x, segmentation), 0.2)))
        return torch.tanh(self.out(F.leaky_relu(x, 0.2)))


class NICEDiscriminator(nn.Module):
    """NICE-GAN: the discriminator's trunk is the encoder of the generator too, so it returns both."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.trunk = nn.Sequential(
            *(nn.ReflectionPad2d(1), spectral_norm(nn.Conv2d(3, width, 4, 2)), nn.LeakyReLU(0.2, True)),
            *(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.LeakyReLU(0.2, True)),
        )
        self.classes = nn.Linear(2 * width, 1, bias=False)
        self.mix, self.head = nn.Conv2d(4 * width, 2 * width, 1), nn.Conv2d(2 * width, 1, 4, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.trunk(x)
        pooled, peak = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
        weight = next(iter(self.classes.parameters()))[:, :, None, None]
        z = F.leaky_relu(self.mix(torch.cat([x * weight, x * weight], 1)), 0.2)
        return self.head(z), self.classes((pooled + peak).flatten(1)), z
