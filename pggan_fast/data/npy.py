"""Arrays in .npy files, whose headers are checked against the files before any memory is asked for."""

from __future__ import annotations

import io
import math
import os
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pggan_fast.utils.regular_file import irregular_kind


def read_npy(file: Path | BinaryIO) -> np.ndarray:
    """Return the array in `file`. Raises ValueError if it is damaged, cut off or holds pickled objects."""
    if isinstance(file, Path):
        _check_regular(file)
        with open(file, "rb") as opened:
            return read_npy(opened)
    shape, dtype, order = _header(file)
    data = file.read(math.prod(shape) * dtype.itemsize)
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def map_npy(path: Path) -> np.ndarray:
    """Return the array in the file at `path`, mapped read-only. Raises ValueError as `read_npy`."""
    _check_regular(path)
    with open(path, "rb") as file:
        shape, dtype, order = _header(file)
        start = file.tell()
    if not math.prod(shape):  # nothing can be mapped
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", start, shape, order)


def _check_regular(path: Path) -> None:
    if kind := irregular_kind(path):
        raise ValueError(f"is {kind}, must be a file")


def _header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype, str]:
    """Shape, dtype and order; `file` stands at the first value afterwards, and holds all of them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that Python 2 wrote
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, fortran, dtype = read[version](file)
    except OSError:
        raise
    except Exception as error:  # its parser raises many kinds
        raise ValueError(f"no .npy file or a damaged one ({' '.join(str(error).split())[:100]})") from error
    if dtype.hasobject:
        raise ValueError("an array of Python objects: must be of numbers")
    if not all(type(side) is int and 0 <= side < 1 << 48 for side in shape) or dtype.itemsize == 0:
        raise ValueError(f"an array of shape {shape} and type {dtype} cannot be read")
    size, there = math.prod(shape) * dtype.itemsize, _bytes_left(file)
    if size > there:
        raise ValueError(f"cut off: its header says {size:,} bytes, {there:,} follow")
    return shape, dtype, "F" if fortran else "C"


def _bytes_left(file: BinaryIO) -> int:
    here = file.tell()
    end = file.seek(0, os.SEEK_END) if isinstance(file, io.BytesIO) else os.fstat(file.fileno()).st_size
    file.seek(here)
    return end - here
