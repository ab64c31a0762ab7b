"""Values that change over the images shown: constant, linear or cosine between two values, a pure function."""

from __future__ import annotations

import math
from dataclasses import dataclass

SHAPES = ("constant", "linear", "cosine")
FORM = "a number, or linear:START:END:KIMG or cosine:START:END:KIMG"


@dataclass(frozen=True)
class Curve:
    """From `start` at no images to `end` at `images` of them, and `end` from there on."""

    shape: str
    start: float
    end: float
    images: int

    def at(self, images: int) -> float:
        """Return the value after `images` images.

        linear: start + (end - start) * t, t the share of the images; cosine: with (1 - cos(pi * t)) / 2 in t's place
        (Loshchilov and Hutter 2017, without restarts).
        """
        share = min(1.0, images / self.images)
        if self.shape == "constant" or share == 1:
            return self.end
        if self.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.start + (self.end - self.start) * share

    @classmethod
    def parse(cls, value: float | str) -> Curve:
        """Read a number, or text in the FORM of the command line. Raises ValueError for any other."""
        if not isinstance(value, str):
            return cls("constant", value, value, 1)
        shape, *numbers = value.split(":")
        if shape not in SHAPES[1:]:
            return cls.parse(float(value))
        start, end, kimg = (float(number) for number in numbers)
        if not all(map(math.isfinite, (start, end, kimg))) or not 0.001 <= kimg <= 1e9:
            raise ValueError(f"{value}: needs finite numbers, KIMG from 0.001 to 1e9")
        return cls(shape, start, end, round(kimg * 1000))


def is_curve(value: object) -> bool:
    """Return whether a setting is the text of a curve, not a number."""
    return isinstance(value, str)


def number_or_curve(parse):
    """Return a reader of what `parse` reads, and of curves, which stay text."""

    def read(text: str):
        if text.partition(":")[0] not in SHAPES[1:]:
            return parse(text)
        Curve.parse(text)
        return text

    read.__name__ = FORM if parse is float else f"{parse.__name__} or SHAPE:START:END:KIMG"
    return read
