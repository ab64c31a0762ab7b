"""The multi-resolution TFRecords of the official implementation, read without TensorFlow.

A data set is a folder of NAME-r02.tfrecords to NAME-r10.tfrecords, a file per level, and, with labels,
NAME-rxx.labels. A record is a `tf.train.Example` with the features "shape" (int64: C, H, W) and "data"
(bytes). The levels below the largest are its 2x2 means, as `prepare` makes them: only the smallest
level that is large enough is read.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pggan_fast.data.preprocessing import Picture
from pggan_fast.data.sources.source import Item
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.optional import require

LEVEL = re.compile(r"(.*)-r(\d\d)\.tfrecords")
HEADER = struct.Struct("<QI")  # length of the data, checksum of the length
FOOTER = struct.Struct("<I")  # checksum of the data


class TfRecords:
    """A folder of levels, or one .tfrecords file of images."""

    def __init__(self, path: Path, resolution: int | None) -> None:
        # The checksum of every record's 3 million bytes (at 1024 px) is nothing for Python code.
        self._crc32c = require("google_crc32c", extra="tfrecords", what=f"--images {path}").value
        self.path = path if path.is_file() else _level(path, resolution)
        self.count = None
        one_hot = self._one_hot()
        self.classes = None if one_hot is None else [str(index) for index in range(one_hot.shape[1])]
        self._labels = None if one_hot is None else one_hot.argmax(axis=1)
        self.facts: dict[str, Any] = {"records": str(self.path.absolute()), "bytes": self.path.stat().st_size}

    def items(self, start: int = 0) -> Iterator[Item]:
        for index, (data, checksum) in enumerate(self._records()):
            if index < start:
                continue
            if self._labels is not None and index >= len(self._labels):
                raise UserError(f"--images {self.path}: has more records than labels ({len(self._labels)})")
            label = None if self._labels is None else int(self._labels[index])
            yield Item(f"{self.path.name}[{index}]", label, partial(self._read, data, checksum))

    def _records(self) -> Iterator[tuple[bytes, int]]:
        """The data of every record and their checksum, not compared yet."""
        with open(self.path, "rb") as file:
            while header := file.read(HEADER.size):
                length, checksum = HEADER.unpack(header.ljust(HEADER.size, b"\0"))
                if checksum != self._masked(header[:8]):
                    raise UserError(f"--images {self.path}: is damaged or cut off at byte {file.tell() - len(header)}")
                data, footer = file.read(length), file.read(FOOTER.size)
                if len(data) < length or len(footer) < FOOTER.size:
                    raise UserError(f"--images {self.path}: is cut off in its last record")
                yield data, FOOTER.unpack(footer)[0]

    def _read(self, data: bytes, checksum: int) -> Picture:
        if checksum != self._masked(data):
            raise ValueError("checksum does not match")
        features = example(data)
        if not {"shape", "data"} <= set(features):
            raise ValueError(f"a record of {', '.join(features) or 'nothing'} is no image (shape, data)")
        pixels = np.frombuffer(features["data"][0], dtype=np.uint8)
        return pixels.reshape(features["shape"])

    def _masked(self, data: bytes) -> int:
        """The format's checksum: CRC-32C, rotated and shifted so that checksums of checksums differ."""
        crc = self._crc32c(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    def _one_hot(self) -> np.ndarray | None:
        """Labels [count, classes], if there are any."""
        named = LEVEL.fullmatch(self.path.name)
        file = self.path.with_name(f"{named[1]}-rxx.labels") if named else None
        if file is None or not file.is_file():
            return None
        rows = np.load(file, allow_pickle=False)
        if rows.ndim != 2 or not (((rows == 0) | (rows == 1)).all() and (rows.sum(axis=1) == 1).all()):
            print(f"{file.name}: is left out, its rows are not one class each")
            return None
        return rows


def _level(folder: Path, resolution: int | None) -> Path:
    """The file of the smallest level that is not below `resolution` (None: the largest level)."""
    files = {LEVEL.fullmatch(file.name)[2]: file for file in folder.iterdir() if LEVEL.fullmatch(file.name)}
    if len({LEVEL.fullmatch(file.name)[1] for file in folder.iterdir() if LEVEL.fullmatch(file.name)}) > 1:
        raise UserError(f"--images {folder}: holds several data sets; give one of its .tfrecords files")
    sides = {2 ** int(level): file for level, file in files.items()}
    enough = [side for side in sides if resolution is not None and side >= resolution]
    return sides[min(enough) if enough else max(sides)]


def example(data: bytes) -> dict[str, list[Any]]:
    """The features of a serialized `tf.train.Example`: lists of bytes or of whole numbers (floats are left out)."""
    found = {}
    for features in _messages(memoryview(data), 1):
        for entry in _messages(features, 1):
            (name,), (feature,) = _messages(entry, 1), _messages(entry, 2)
            for values in _messages(feature, 1):
                found[str(name, "utf-8")] = [bytes(value) for value in _messages(values, 1)]
            for values in _messages(feature, 3):
                found[str(name, "utf-8")] = list(_numbers(values))
    return found


def _messages(message: memoryview, wanted: int) -> list[memoryview]:
    """The values of length-delimited fields with the number `wanted`."""
    return [value for number, value in _fields(message) if number == wanted and isinstance(value, memoryview)]


def _numbers(values: memoryview) -> Iterator[int]:
    """An Int64List, packed or not."""
    for number, value in _fields(values):
        if number == 1 and isinstance(value, int):
            yield value
        elif number == 1:
            position = 0
            while position < len(value):
                found, position = _varint(value, position)
                yield found


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of a protocol buffers message: varints as numbers, everything else as bytes."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _varint(message, position)
        elif wire_type in (1, 2, 5):
            length = {1: 8, 5: 4}.get(wire_type)
            if length is None:
                length, position = _varint(message, position)
            value, position = message[position : position + length], position + length
            if len(value) < length:
                raise ValueError("a record ends within a field")
        else:
            raise ValueError(f"a record has a field of the unknown wire type {wire_type}")
        yield number, value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """The number at `position`, seven bits a byte with the lowest first, and where it ends."""
    number = shift = 0
    while position < len(message):
        byte = message[position]
        number |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return number, position
    raise ValueError("a record ends within a number")
