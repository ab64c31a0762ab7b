"""The multi-resolution TFRecords of the official implementation, read without TensorFlow.

A dataset is a folder of NAME-r02.tfrecords to NAME-r10.tfrecords, a file per level, and, with labels,
NAME-rxx.labels. A record is a `tf.train.Example` with the features "shape" (int64: C, H, W) and "data"
(bytes). The levels below the largest are its 2x2 means, as `prepare` makes them: only the smallest
level that is large enough is read.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pggan_fast.data.names import one_line, printable
from pggan_fast.data.npy import read_npy
from pggan_fast.data.preprocessing import AnyImage, from_array
from pggan_fast.data.sources.listing import file_fingerprint
from pggan_fast.data.sources.protobuf import example
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
        labels_file = self._labels_file()
        self.metadata: dict[str, Any] = {
            "records": printable(str(self.path.absolute())),
            "file": file_fingerprint(self.path),
            "labels": file_fingerprint(labels_file) if labels_file else None,
        }

    def items(self, start: int = 0) -> Iterator[Item]:
        index = -1
        for index, (data, checksum) in enumerate(self._records()):
            if index < start:
                continue
            if self._labels is not None and index >= len(self._labels):
                raise UserError(f"--images {self.path}: has more records than labels ({len(self._labels)})")
            label = None if self._labels is None else int(self._labels[index])
            yield Item(f"{printable(self.path.name)}[{index}]", label, partial(self._read, data, checksum))
        if self._labels is not None and index + 1 < len(self._labels):
            raise UserError(f"--images {self.path}: has {index + 1} records and {len(self._labels)} labels")

    def _records(self) -> Iterator[tuple[bytes, int]]:
        """Yield the data of every record and their checksum, not compared yet."""
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            while header := file.read(HEADER.size):
                length, checksum = HEADER.unpack(header.ljust(HEADER.size, b"\0"))
                if checksum != self._masked(header[:8]):
                    raise UserError(f"--images {self.path}: is damaged or cut off at byte {file.tell() - len(header)}")
                whole = length + FOOTER.size <= size - file.tell()  # before memory for it is asked for
                data, footer = (file.read(length), file.read(FOOTER.size)) if whole else (b"", b"")
                if len(data) < length or len(footer) < FOOTER.size:
                    raise UserError(f"--images {self.path}: is cut off in its last record")
                yield data, FOOTER.unpack(footer)[0]

    def _read(self, data: bytes, checksum: int) -> AnyImage:
        if checksum != self._masked(data):
            raise ValueError("checksum does not match")
        features = example(data)
        if not {"shape", "data"} <= set(features):
            raise ValueError(f"a record of {', '.join(features) or 'nothing'} is no image (shape, data)")
        shape, data = features["shape"], features["data"]
        if len(shape) != 3 or len(data) != 1 or not isinstance(data[0], bytes):
            raise ValueError(f"a record of {len(data)} images of shape {str(shape):.40}: must be one, [C, H, W]")
        pixels = np.frombuffer(data[0], dtype=np.uint8)
        if not all(isinstance(side, int) for side in shape) or math.prod(shape) != pixels.size:
            raise ValueError(f"{pixels.size:,} bytes of pixels are no image of shape {str(shape):.40}")
        return from_array(pixels.reshape(shape))

    def _masked(self, data: bytes) -> int:
        """Return the format's checksum: CRC-32C, rotated and shifted so that checksums of checksums differ."""
        crc = self._crc32c(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    def _labels_file(self) -> Path | None:
        named = LEVEL.fullmatch(self.path.name)
        file = self.path.with_name(f"{named[1]}-rxx.labels") if named else None
        return file if file is not None and file.is_file() else None

    def _one_hot(self) -> np.ndarray | None:
        """Return labels [count, classes], None if there are none. Raises UserError for a file that holds no array."""
        file = self._labels_file()
        if file is None:
            return None
        try:
            rows = read_npy(file)
        except (OSError, ValueError) as error:
            raise UserError(f"--images {printable(str(file))}: cannot be read ({one_line(error)})") from error
        numbers = rows.dtype.kind in "biuf" and rows.ndim == 2 and rows.size > 0
        if not numbers or not (((rows == 0) | (rows == 1)).all() and (rows.sum(axis=1) == 1).all()):
            print(f"{printable(file.name)}: is left out, its rows are not one class each")
            return None
        return rows


def _level(folder: Path, resolution: int | None) -> Path:
    """Return the file of the smallest level that is not below `resolution` (None: the largest level)."""
    files = {LEVEL.fullmatch(file.name)[2]: file for file in folder.iterdir() if LEVEL.fullmatch(file.name)}
    if len({LEVEL.fullmatch(file.name)[1] for file in folder.iterdir() if LEVEL.fullmatch(file.name)}) > 1:
        raise UserError(f"--images {folder}: holds several datasets; give one of its .tfrecords files")
    sides = {2 ** int(level): file for level, file in files.items()}
    enough = [side for side in sides if resolution is not None and side >= resolution]
    return sides[min(enough) if enough else max(sides)]
