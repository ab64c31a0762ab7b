"""Floors of the training steps in docs/kernels.md: `python -m bench.roofline.page` writes them anew."""

from bench.harness.marked import KERNELS_PAGE, write_part
from bench.roofline.__main__ import summary, table
from bench.roofline.floors import step_floors
from pggan_fast.kernels.gpu_limits import H200

COMMAND = "python -m bench.roofline.page"
STEPS = ((64, 16), (256, 8), (1024, 4))
"""(Resolution, batch) of each table."""
ROWS = 20


def part() -> str:
    """Return what `python -m bench.roofline RES BATCH --gpu H200` prints for each of the steps."""
    return "\n\n".join(map(_step, STEPS))


def _step(size: tuple[int, int]) -> str:
    resolution, batch = size
    found = step_floors(resolution, batch, H200)
    return f"{batch} of {resolution} px. {summary(found)}\n\n{table(found, ROWS)}"


if __name__ == "__main__":
    write_part(KERNELS_PAGE, COMMAND, part())
