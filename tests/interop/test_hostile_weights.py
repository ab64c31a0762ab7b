"""Weight files that somebody damaged or made to do harm: read as what they say, or refused in one line."""

from __future__ import annotations

import os
import pickle
import random
import struct
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pggan_fast.interop import read_official_pickle
from pggan_fast.metrics import features
from pggan_fast.utils.torch_files import load_weights_only

COUNT = 2000 if os.environ.get("PGGAN_FAST_TEST_HOSTILE") else 150


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def data(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def items(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def name(module: str, attribute: str) -> bytes:
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


FALSE, TRUE, NONE = b"\x89", b"\x88", b"N"


def dtype(code: str, *state: bytes) -> bytes:
    made = name("numpy", "dtype") + items(text(code), FALSE, TRUE) + b"R"
    return made + (items(*state) + b"b" if state else b"")


def array(kind: bytes, *state: bytes) -> bytes:
    made = name("numpy.core.multiarray", "_reconstruct") + items(kind, items(number(0)), data(b"b")) + b"R"
    return made + items(*state) + b"b"


def network(variables: bytes, named: bytes | None = None, options: bytes = b"}") -> bytes:
    state = b"}(" + text("name") + (named or text("G")) + text("static_kwargs") + options
    return b"\x80\x02" + name("tfutil", "Network") + b")\x81" + state + text("variables") + variables + b"ub."


NDARRAY = name("numpy", "ndarray")
FLOATS = dtype("f4", number(3), text("<"), NONE, NONE, NONE, number(-1), number(-1), number(0))


def variable(value: bytes) -> bytes:
    return b"}(" + text("v") + value + b"u"


OBJECTS = dtype("O")
FIELD = b"}(" + text("a") + items(OBJECTS, number(0)) + b"u"
POINTER = struct.pack("<Q", 0x414141410000)
# Eight bytes with an object field in them whose flags claim that there is no reference: NumPy would follow the pointer.
WITH_FIELDS = dtype("V8", number(3), text("|"), NONE, items(text("a")), FIELD, number(8), number(1), number(0))
HOSTILE = {
    "pointer": network(variable(array(NDARRAY, number(1), items(number(1)), WITH_FIELDS, FALSE, data(POINTER)))),
    "pointer as the name": network(
        b"}", array(NDARRAY, number(1), items(number(1)), WITH_FIELDS, FALSE, data(POINTER))
    ),
    "objects": network(variable(array(NDARRAY, number(1), items(number(1)), OBJECTS, FALSE, data(POINTER)))),
    "object scalar": network(variable(name("numpy.core.multiarray", "scalar") + items(OBJECTS, data(POINTER)) + b"R")),
    "too few bytes": network(variable(array(NDARRAY, number(1), items(number(1 << 30)), FLOATS, FALSE, data(b"1234")))),
    "negative shape": network(variable(array(NDARRAY, number(1), items(number(-1)), FLOATS, FALSE, data(b"")))),
    "overflowing shape": network(
        variable(array(NDARRAY, number(1), items(*[number(1 << 30)] * 9), FLOATS, FALSE, data(b"")))
    ),
    "strings": network(variable(array(NDARRAY, number(1), items(number(1)), dtype("U1"), FALSE, data(b"1234")))),
    "code as a dtype": network(variable(array(NDARRAY, number(1), items(number(1)), dtype("f4, O"), FALSE, data(b"")))),
    "class of its own": network(
        variable(array(name("collections", "OrderedDict"), number(1), items(number(0)), FLOATS, FALSE, data(b"")))
    ),
    "memo of gigabytes": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "terabytes of text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b".",
    "frame of terabytes": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b".",
    "nested tuples": network(b"}", b")" + b"2\x86" * 100),
    "option of nested tuples": network(b"}", None, b"}(" + text("fmap_base") + b")" + b"2\x86" * 100 + b"u"),
    "empty": b"",
}


READ_ALL = """
import sys
from pathlib import Path
from pggan_fast.interop import read_official_pickle
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        print(path.name, "was read:", read_official_pickle(path))
    except ValueError as error:
        print(path.name, "was refused:", error)
"""


def test_hostile_pickles_are_refused_in_one_line(tmp_path: Path) -> None:
    for index, contents in enumerate(HOSTILE.values()):
        (tmp_path / f"{index:02d}").write_bytes(contents)
    # In a process of its own, which a pointer of the file's choice would end.
    done = subprocess.run([sys.executable, "-c", READ_ALL, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = dict(zip(HOSTILE, done.stdout.splitlines(), strict=True))
    assert {case: line for case, line in lines.items() if " was refused: " not in line or len(line) > 400} == {}


def test_arrays_come_out_as_they_went_in(tmp_path: Path) -> None:
    """Both byte orders, both orders of memory, and scalars, as NumPy pickles them."""
    values = {
        "a": np.arange(6, dtype=">f4").reshape(2, 3),
        "b": np.asfortranarray(np.arange(6, dtype="<i8").reshape(2, 3)),
        "c": np.float32(0.5),
        "d": np.array(True),
        "e": np.zeros((0, 3), np.float16),
    }
    for protocol in (2, 3, 4):
        pickled = pickle.dumps(OrderedDict(values), protocol)
        whole = network(pickled[2:-1])  # without its own header and end
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(b"\x80\x04" + whole[2:].replace(b"numpy._core.", b"numpy.core."))
        if protocol == 4:  # framed: its bytes cannot stand inside another pickle
            continue
        (read,) = read_official_pickle(path)
        assert list(read.variables) == list(values)
        for key, value in values.items():
            np.testing.assert_array_equal(read.variables[key], value)
            assert read.variables[key].dtype.isnative


def mutated(contents: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, removed, repeated, or the end cut off."""
    changed = bytearray(contents)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(changed))
        kind = rng.randrange(4)
        if kind == 0:
            changed[at] = rng.randrange(256)
        elif kind == 1:
            del changed[at : at + rng.choice((1, 4, 100))]
        elif kind == 2:
            changed[at:at] = changed[at : at + rng.choice((1, 4, 100))]
        else:
            changed[at : at + 8] = rng.choice((b"\xff" * 8, b"\0" * 8, b"\x7f\xff\xff\xff"))
        if not changed:
            return b""
    return bytes(changed)


def official(path: Path) -> None:
    read_official_pickle(path)


def from_torch(path: Path) -> None:
    load_weights_only(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[Callable[[Path], None], bytes]:
    """A sound file of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    variables = pickle.dumps({"4x4/Dense/weight": np.ones((4, 4), np.float32), "lod": np.float32(0)}, 2)
    torch.save({"weight": torch.ones(4, 4), "bias": torch.zeros(4, dtype=torch.float16)}, folder / "torch.pt")
    return {
        official: network(variables[2:-1].replace(b"numpy._core.", b"numpy.core.")),
        from_torch: (folder / "torch.pt").read_bytes(),
    }


@pytest.mark.parametrize("read", [official, from_torch], ids=lambda f: f.__name__)
def test_whatever_is_changed_in_a_file_it_is_read_or_refused(tmp_path, whole, read) -> None:
    path, rng = tmp_path / "file", random.Random(0)
    path.write_bytes(whole[read])
    read(path)
    refused = 0
    for _ in range(COUNT):
        path.write_bytes(mutated(whole[read], rng))
        try:
            read(path)
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > COUNT // 10  # or nothing was damaged


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize("contents", ["harmful", "a list", "numbers"])
def test_inception_weights_are_read_without_running_them(tmp_path, monkeypatch, contents) -> None:
    pytest.importorskip("torch_fidelity")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    if contents == "harmful":
        path.write_bytes(pickle.dumps(Harmful()))
    else:
        torch.save([1, 2] if contents == "a list" else {"fc.weight": torch.ones(3)}, path)
    with pytest.raises(ValueError, match=r"^Inception weights .*weights\.pth: ") as raised:
        features.Inception(torch.device("cpu"), path)
    assert "\n" not in str(raised.value) and not (tmp_path / "harmed").exists()
