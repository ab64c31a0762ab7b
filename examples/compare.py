"""What the examples share: accelerate a model, time it before and after, and compare what it returns."""

import time

import torch
from torch import nn

import pggan_fast


def compare(name: str, model: nn.Module, *arguments: object, rounds: int = 9) -> None:
    """Prints what was replaced, the median times of interleaved calls, and the largest difference of the outputs."""
    model.eval()
    fast = pggan_fast.accelerate(model, example_inputs=arguments)
    times: dict[str, list[float]] = {"before": [], "after": []}
    outputs = {}
    with torch.no_grad():
        for _ in range(rounds + 1):  # the first warms up
            for which, network in (("before", model), ("after", fast)):
                begin = time.perf_counter()
                outputs[which] = network(*arguments)
                times[which].append(time.perf_counter() - begin)
    before, after = (sorted(samples[1:])[rounds // 2] for samples in times.values())
    difference = (outputs["before"] - outputs["after"]).abs().max().item()
    print(f"{name}\n{pggan_fast.explain(fast)}")
    print(f"before {before * 1e3:.1f} ms, after {after * 1e3:.1f} ms: {before / after:.2f} times as fast")
    print(f"largest difference {difference:.1e} of values up to {outputs['before'].abs().max():.1f}\n")
