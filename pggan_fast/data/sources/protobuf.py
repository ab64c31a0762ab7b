"""As much of protocol buffers as a `tf.train.Example` needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MOST_VARINT_BYTES = 10  # 64 bits, seven a byte


def example(data: bytes) -> dict[str, list[Any]]:
    """Return the features of a serialized `tf.train.Example`: lists of bytes or of whole numbers, floats left out.

    Raises ValueError for what is none.
    """
    found = {}
    for features in _messages(memoryview(data), 1):
        for entry in _messages(features, 1):
            (name,), (feature,) = _messages(entry, 1), _messages(entry, 2)
            for values in _messages(feature, 1):
                found[str(name, "utf-8")] = [bytes(value) for value in _messages(values, 1)]
            for values in _messages(feature, 3):
                found[str(name, "utf-8")] = list(_numbers(values))
    return found


def _messages(message: memoryview, field: int) -> list[memoryview]:
    """Return the values of length-delimited fields with the number `field`."""
    return [value for number, value in _fields(message) if number == field and isinstance(value, memoryview)]


def _numbers(values: memoryview) -> Iterator[int]:
    """Yield the numbers of an Int64List, packed or not."""
    for number, value in _fields(values):
        if number == 1 and isinstance(value, int):
            yield value
        elif number == 1:
            position = 0
            while position < len(value):
                found, position = _varint(value, position)
                yield found


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of a protocol buffers message: varints as numbers, everything else as bytes."""
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
    """Return the number at `position`, seven bits a byte with the lowest first, and where it ends."""
    number = shift = 0
    while position < len(message) and shift < 7 * MOST_VARINT_BYTES:
        byte = message[position]
        number |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return number, position
    raise ValueError("a record ends within a number, or the number has more than 64 bits")
