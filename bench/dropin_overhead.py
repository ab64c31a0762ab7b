"""Host time that acceleration adds to a call: networks of tiny blocks, as they are and accelerated."""

import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import pggan_fast

CALLS = 300


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))


def microseconds(call: Callable[[], object]) -> float:
    """Return the tenth percentile of the call's time."""
    times = []
    for _ in range(CALLS):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return sorted(times)[CALLS // 10] * 1e6


def main() -> None:
    torch.set_num_threads(1)
    x = torch.randn(1, 2, 2, 2)
    print("modules  original  accelerated  added")
    for modules in (2, 20, 100):
        model = nn.Sequential(*(Block() for _ in range(modules // 2)))
        fast = pggan_fast.accelerate(copy.deepcopy(model))
        with torch.no_grad():
            fast(x)
            before, after = (microseconds(lambda net=net: net(x)) for net in (model, fast))
        print(f"{modules:7d}  {before:8.0f}  {after:11.0f}  {after - before:5.0f}")


if __name__ == "__main__":
    main()
