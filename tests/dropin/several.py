"""Compact networks with several images, outputs or inputs: scales, encoders, shared trunks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Several scales: SinGAN, LAPGAN, StackGAN


def singan_scale(width: int = 8) -> nn.Module:
    layers: list[nn.Module] = []
    for i, o in ((3, width), (width, width)):
        layers += [nn.Conv2d(i, o, 3, 1, 0), nn.BatchNorm2d(o), nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(nn.ZeroPad2d(3), *layers, nn.Conv2d(width, 3, 3, 1, 0), nn.Tanh())


class SinGAN(nn.Module):
    """Scales whose sizes are no multiples of each other: bilinear between them."""

    def __init__(self):
        super().__init__()
        self.scales = nn.ModuleList([singan_scale() for _ in range(2)])

    def forward(self, noise: Tensor) -> Tensor:
        image = self.scales[0](F.interpolate(noise, size=(11, 13), mode="bilinear", align_corners=True))
        image = F.interpolate(image, size=noise.shape[2:], mode="bilinear", align_corners=True)
        return self.scales[1](image + noise) + image


class LAPGAN(nn.Module):
    """A coarse image, then a residual for each octave, from the upsampled image and noise."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.coarse = nn.Linear(16, 3 * 64)
        self.levels = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(4, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, 3, 3, 1, 1), nn.Tanh())
                for _ in range(2)
            ]
        )

    def forward(self, z: Tensor) -> list[Tensor]:
        images = [torch.tanh(self.coarse(z)).view(-1, 3, 8, 8)]
        for level in self.levels:
            up = F.interpolate(images[-1], scale_factor=2, mode="nearest")
            noise = up.mean(1, keepdim=True)
            images.append(up + level(torch.cat([up, noise], 1)))
        return images


def stackgan_up(inputs: int, outputs: int) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), conv, nn.BatchNorm2d(outputs), nn.ReLU(True))


class StackGAN(nn.Module):
    """Images of two sizes from one trunk."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(16, width * 16, bias=False), nn.BatchNorm1d(width * 16), nn.ReLU(True))
        self.up1, self.up2 = stackgan_up(width, width), stackgan_up(width, width)
        self.up3 = stackgan_up(width, width)
        self.images = nn.ModuleList([nn.Sequential(nn.Conv2d(width, 3, 3, 1, 1), nn.Tanh()) for _ in range(2)])

    def forward(self, z: Tensor) -> list[Tensor]:
        x = self.up2(self.up1(self.fc(z).view(z.size(0), -1, 4, 4)))
        return [self.images[0](x), self.images[1](self.up3(x))]


# Encoders and shared trunks: InfoGAN, VAE-GAN, BiGAN


class InfoGAN(nn.Module):
    """D and Q on one trunk."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.trunk = nn.Sequential(
            *(nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.1, inplace=True)),
            *(nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.1)),
        )
        self.score, self.code = nn.Linear(2 * width * 64, 1), nn.Linear(2 * width * 64, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x).flatten(1)
        return {"score": torch.sigmoid(self.score(x)), "code": self.code(x)}


class VAEGAN(nn.Module):
    """Encoder, sampling and decoder; the noise is an argument."""

    def __init__(self, width: int = 8):
        super().__init__()
        conv = nn.Conv2d(3, width, 5, 2, 2)
        self.encoder = nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(True))
        self.mean, self.log_variance = nn.Linear(width * 256, 16), nn.Linear(width * 256, 16)
        self.dense = nn.Linear(16, width * 64)
        self.decoder = nn.Sequential(stackgan_up(width, width), stackgan_up(width, width), nn.Conv2d(width, 3, 1))

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x).flatten(1)
        mean, log_variance = self.mean(h), self.log_variance(h)
        z = mean + torch.exp(0.5 * log_variance) * noise
        return torch.tanh(self.decoder(self.dense(z).view(len(z), -1, 8, 8))), mean, log_variance


class BiGAN(nn.Module):
    """The discriminator of pairs (image, code)."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, width, 4, 4))
        self.code = nn.Sequential(nn.Conv2d(16, width, 1), nn.LeakyReLU(0.2))
        self.pair = nn.Sequential(nn.Conv2d(2 * width, width, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 1))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        image, code = self.image(x), self.code(z[:, :, None, None])
        return self.pair(torch.cat([image, code.expand(-1, -1, *image.shape[2:])], 1)).mean((1, 2, 3))
