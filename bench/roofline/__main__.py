"""Floors of a training step, in bf16: `python -m bench.roofline 256 8 --gpu H200`.

Compiles every Triton launch of the step (a second or two each, kept in Triton's cache), reads its machine code, and
prints the step's floor, the sum of its launches' floors, and the launches that contribute most.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable

from bench.roofline.floors import CUDNN_SHARE, LIMITS, Floor, step_floors
from bench.traffic.step import PROVIDERS, SIZES
from pggan_fast.kernels.gpu_limits import GPUS, MODELLED
from pggan_fast.utils.progress_bar import bar_over


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.roofline", description=__doc__.splitlines()[0])
    parser.add_argument("resolution", type=int, choices=sorted(SIZES), metavar="PX", help="Resolution of the images.")
    parser.add_argument("batch", type=int, metavar="N", help="Images of a batch.")
    parser.add_argument("--gpu", choices=sorted(GPUS), default=MODELLED.name, help="GPU whose limits are taken.")
    parser.add_argument("--impl", choices=PROVIDERS[1:], default="auto", help="Implementation of the ops.")
    parser.add_argument("--fp32", action="store_true", help="fp32 with tf32 products, without autocast.")
    parser.add_argument("--rows", type=int, default=15, metavar="N", help="Launches to list.")
    given = parser.parse_args()
    step = given.resolution, given.batch, GPUS[given.gpu]
    found = step_floors(*step, impl=given.impl, bf16=not given.fp32, progress=lambda calls: bar_over(calls, "launches"))
    print(summary(found))
    print()
    print(table(found, given.rows))


def _limits(found: Floor) -> list[float]:
    return [getattr(found, limit) for limit in LIMITS]


def summary(found: list[Floor]) -> str:
    """One line: milliseconds of the step, and of each limit alone."""
    limits = ", ".join(f"{limit} {1e3 * sum(getattr(each, limit) for each in found):.2f}" for limit in LIMITS)
    total = 1e3 * sum(each.seconds for each in found)
    return f"Modelled floor of the step: {total:.2f} ms ({limits}; torch's convolutions at {CUDNN_SHARE:.0%})"


def table(found: Iterable[Floor], rows: int) -> str:
    """Markdown: launches that are alike in one row, those that take longest first.

    Microseconds are those of one launch, of a call of several their mean. What the machine code takes has columns where
    a launch of a row has any.
    """
    alike: dict[tuple, list[Floor]] = defaultdict(list)
    for each in found:
        alike[(each.name, each.of, *(round(1e6 * value) for value in _limits(each)))].append(each)
    longest = sorted(alike.values(), key=lambda group: -sum(each.seconds for each in group))[:rows]
    has_code = any(group[0].registers for group in longest)
    heads = ["launch", "of", "times", "us each", "bound by", "hbm", "L2", "tensor", "issue"]
    heads += ["registers", "shared KB", "waves"] * has_code
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for group in longest:
        one, times = group[0], sum(each.launches for each in group)
        each_us = 1e6 / one.launches
        cells = [one.name, one.of, times, f"{each_us * one.seconds:.0f}", one.bound]
        cells += [f"{each_us * value:.0f}" for value in _limits(one)]
        if has_code:
            cells += [one.registers, one.shared_bytes >> 10, f"{one.waves:.1f}"] if one.registers else [""] * 3
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
