"""Host time that acceleration adds to a call: networks of tiny blocks, as they are and accelerated."""

import copy
import itertools
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pggan_fast

CALLS = 300
TURNS = 10


class Block(nn.Module):
    """A 1x1 convolution and a ReLU: nothing to replace."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))


class NormalizedBlock(nn.Module):
    """A convolution, LeakyReLU and pixel norm: one call in their place."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.conv(x), 0.2)
        return y * torch.rsqrt(y.square().mean(1, keepdim=True) + 1e-8)


def microseconds(calls: dict[str, Callable[[], object]]) -> list[float]:
    """Return the tenth percentile of each call's time, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, call in calls.items():
            call()  # the caches are this one's again
            for _ in range(CALLS // TURNS):
                begin = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - begin)
    return [sorted(values)[CALLS // 10] * 1e6 for values in times.values()]


def main() -> None:
    torch.set_num_threads(1)
    x = torch.randn(1, 2, 2, 2)
    print("blocks             modules  gradients  original  accelerated  added")
    for block, modules in itertools.product((Block, NormalizedBlock), (2, 20, 100)):
        model = nn.Sequential(*(block() for _ in range(modules // 2)))
        fast = pggan_fast.accelerate(copy.deepcopy(model))
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients):
                fast(x)
                before, after = microseconds({"original": lambda net=model: net(x), "ours": lambda net=fast: net(x)})
            row = f"{block.__name__:17}  {modules:7d}  {gradients!s:>9}  {before:8.0f}  {after:11.0f}"
            print(f"{row}  {after - before:5.0f}")


if __name__ == "__main__":
    main()
