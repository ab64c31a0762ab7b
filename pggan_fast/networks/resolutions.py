"""The resolutions that networks grow through: powers of two from 4 to 1024 px, counted on the shorter side."""

from collections.abc import Sequence

LOWEST = 4
HIGHEST = 1024
SQUARE = (LOWEST, LOWEST)  # height and width of the smallest square images


def check_resolution(name: str, resolution: int, highest: int = HIGHEST) -> None:
    """Raise ValueError naming `name` unless `resolution` is a power of two from 4 to `highest`."""
    if not isinstance(resolution, int) or resolution.bit_count() != 1 or not LOWEST <= resolution <= highest:
        raise ValueError(f"{name} is {resolution}, must be a power of two from {LOWEST} to {highest}")


def resolutions_up_to(highest: int) -> list[int]:
    """Return [4, 8, ..., highest]."""
    return [2**level for level in range(LOWEST.bit_length() - 1, highest.bit_length())]


def check_base(base: Sequence[int]) -> tuple[int, int]:
    """Return `base`, the height and width of the smallest images; raise ValueError unless the shorter is 4."""
    if len(base) != 2 or not all(isinstance(side, int) for side in base) or min(base) != LOWEST:
        raise ValueError(f"base is {base}, must be (height, width) in pixels, the smaller of them {LOWEST}")
    return tuple(base)


def image_size(resolution: int, base: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of images whose shorter side is `resolution`."""
    return base[0] * resolution // LOWEST, base[1] * resolution // LOWEST
