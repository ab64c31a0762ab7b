"""Official pickles, made from a stub of the official class: read whole, and nothing in them run."""

import os
import pickle
import struct
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from pggan_fast.cli import main
from pggan_fast.interop import load_official_pickle, read_official_pickle
from pggan_fast.interop.weights import load_generator
from tests.interop.golden import IMAGE_TOLERANCE, SCORE_TOLERANCE, assert_close, load, tensor, under

SHARED_OPTIONS = {
    "num_channels": 3,
    "resolution": 16,
    "label_size": 5,
    "fmap_base": 64,
    "fmap_max": 16,
    "fused_scale": True,
    "dtype": "float32",
}


@pytest.fixture
def official(monkeypatch):
    """The official class's module, name and state, as its __getstate__ gives it."""

    class Network:
        def __init__(self, name, static_kwargs, variables):
            self.state = {
                "version": 2,
                "name": name,
                "static_kwargs": static_kwargs,
                "build_module_src": "raise SystemExit('run')",
                "build_func_name": "G_paper",
                "variables": list(variables.items()),
            }

        def __getstate__(self):
            return self.state

    Network.__module__, Network.__qualname__ = "tfutil", "Network"
    module = types.ModuleType("tfutil")
    module.Network = Network
    monkeypatch.setitem(sys.modules, "tfutil", module)
    return Network


def networks(official, **options):
    golden = load("nets_r16_l5_fused_taper")
    made = []
    for name, letter in (("G", "G"), ("D", "D"), ("Gs", "G")):
        variables = {"lod": np.float32(0), **under(golden, f"{letter}_var")}
        made.append(official(name, {**SHARED_OPTIONS, **options}, variables))
    return tuple(made)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_networks_compute_what_tensorflow_did(official, tmp_path, protocol):
    path = tmp_path / "network.pkl"
    path.write_bytes(pickle.dumps(networks(official), protocol))
    loaded = load_official_pickle(path)
    assert list(loaded) == ["G", "D", "Gs"]
    golden = load("nets_r16_l5_fused_taper")
    latents, labels, images = (tensor(golden, key) for key in ("latents", "labels", "images"))
    for name in ("G", "Gs"):
        assert_close(loaded[name](latents, labels), golden["G_out/lod0.0"], IMAGE_TOLERANCE)
    scores, logits = loaded["D"](images)
    assert_close(scores, golden["D_scores/lod0.0"], SCORE_TOLERANCE)
    assert_close(logits, golden["D_labels/lod0.0"], SCORE_TOLERANCE)


def test_a_single_network_and_its_options(official, tmp_path):
    path = tmp_path / "network.pkl"
    pickled = official("Gs", {"latent_size": 16}, dict(networks(official)[0].state["variables"]))
    path.write_bytes(pickle.dumps(pickled, 4))
    (read,) = read_official_pickle(path)
    assert (read.name, read.options["latent_size"]) == ("Gs", 16)
    assert not hasattr(read, "build_module_src")


def test_options_of_networks_in_half_precision_and_with_relu(official, tmp_path):
    """They are the generator's alone: discriminators are given the same and ignore them."""
    path = tmp_path / "network.pkl"
    options = {"dtype": "float16", "pixelnorm_epsilon": 1e-4, "use_leakyrelu": False, "mbstd_group_size": 4}
    path.write_bytes(pickle.dumps(networks(official, **options), 4))
    loaded = load_official_pickle(path)
    assert (loaded["G"].options["slope"], loaded["G"].options["pixel_norm_eps"]) == (0.0, 1e-4)
    golden = load("nets_r16_l5_fused_taper")
    assert_close(loaded["D"](tensor(golden, "images"))[0], golden["D_scores/lod0.0"], SCORE_TOLERANCE)


class _Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, getattr, np.load, torch.load])
@pytest.mark.parametrize("inside", [False, True])
def test_nothing_is_called(official, tmp_path, function, inside):
    bad = _Calls(function, f"touch {tmp_path}/ran")
    content = bad
    if inside:
        content = networks(official)
        content[0].state["static_kwargs"] = {"resolution": bad}
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps(content, 4))
    with pytest.raises(ValueError, match=r"names .*\.\w+, which is none of the few classes") as caught:
        read_official_pickle(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"no pickle", pickle.dumps([1, 2]), pickle.dumps({"G": 1}), pickle.dumps(np.zeros(3))],
)
def test_other_files(tmp_path, content):
    path = tmp_path / "other.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="other.pkl") as caught:
        read_official_pickle(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"growth": 3}, "unknown option growth"),
        ({"label_size": 4}, "network D: .*Dense1/weight"),
    ],
)
def test_options_that_ours_do_not_have(official, tmp_path, options, message):
    path = tmp_path / "network.pkl"
    path.write_bytes(pickle.dumps(networks(official, **options)[1], 4))
    with pytest.raises(ValueError, match=message):
        load_official_pickle(path)


def test_the_command_line_takes_the_average(official, tmp_path, capsys):
    path = tmp_path / "network.pkl"
    three = networks(official)
    average = dict(three[2].state["variables"])
    average["ToRGB_lod0/bias"] = average["ToRGB_lod0/bias"] + 1
    three[2].state["variables"] = list(average.items())
    path.write_bytes(pickle.dumps(three, 4))
    assert main(["import", "--from", "official", "--weights", str(path), "--out", str(tmp_path / "out")]) == 0
    G, metadata = load_generator(tmp_path / "out" / "generator.safetensors")
    assert metadata["classes"] == ["0", "1", "2", "3", "4"]
    golden = load("nets_r16_l5_fused_taper")
    images = G(tensor(golden, "latents"), tensor(golden, "labels"))
    assert_close(images, golden["G_out/lod0.0"] + 1, IMAGE_TOLERANCE)


def _text(text):
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _array(dtype, shape, data):
    """The operations that build an array of the allowed names alone."""
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tB\x01\x00\x00\x00btR"
    return empty + b"(K\x01(" + shape + b"t" + dtype + b"\x89B" + struct.pack("<I", len(data)) + data + b"tb"


PLAIN = b"cnumpy\ndtype\n(" + _text("f4") + b"\x89\x88tR"
OBJECTS = b"cnumpy\ndtype\n(" + _text("O") + b"\x89\x88tR"
# Eight bytes with an object at 0, whose flags, the last number, say that there is none.
HIDDEN = b"cnumpy\ndtype\n(" + _text("V8") + b"\x89\x88tR"
FIELDS = b"(K\x03" + _text("|") + b"N(" + _text("a") + b"t}" + _text("a") + OBJECTS + b"K\x00\x86sK\x08K\x01K\x00tb"
AS_FIELDS = b"(K\x03" + _text("<") + b"N(" + _text("a") + b"t}" + _text("a") + OBJECTS + b"K\x00\x86sK\x08K\x01K\x00tb"
WITH_FLAGS = b"(K\x03" + _text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb"
ADDRESS = struct.pack("<Q", 0x414141410000)
# Arrays of the same bytes, each of which would be copied as its bytes are in another order.
BIG_ENDIAN = PLAIN + b"(K\x03" + _text(">") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
SHARED = _array(BIG_ENDIAN, b"M\xe8\x03", bytes(4000))[:-2] + b"q\x05tb0"
SHARED_AGAIN = _array(BIG_ENDIAN, b"M\xe8\x03", b"")[:-7] + b"h\x05tb0"

# What is given for a network's name, and the reason that is given.
BAD = [
    (_array(HIDDEN + FIELDS, b"K\x01", ADDRESS), "dtype 'V8'"),
    (_array(PLAIN + AS_FIELDS, b"K\x02", ADDRESS), "dtype 'O'"),
    (_array(OBJECTS, b"K\x01", ADDRESS), "dtype 'O'"),
    (_array(PLAIN, b"J\xff\xff\xff\x7f", ADDRESS), "do not fit"),
    (_array(PLAIN, b"J\xff\xff\xff\xff", ADDRESS), "a shape that is none"),
    (b"cnumpy.core.multiarray\nscalar\n(" + HIDDEN + b"B\x08\x00\x00\x00" + ADDRESS + b"tR", "dtype 'V8'"),
    (b"cnumpy\nndarray\n)\x81(K\x01tb", "no class"),
    (
        _array(PLAIN + b"(K\x03" + _text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb", b"K\x02", ADDRESS),
        "more than",
    ),
    (b"cnumpy\ndtype\n(K\x01tb", "state to an object that has none"),
    (b"K\x01r\xff\xff\xff\xff", None),  # a place in the memo that a table would need 32 GB for
    (b"(" * 200_000 + b"t" * 200_000, None),  # a tuple whose hash overflows the stack
    (b"}" + b"(" * 99_999 + b"t" * 99_999 + b"Ns", "a dict with a key of type tuple"),
    (b"}" + b")" + b"\x85" * 3_000_000 + b"Ns", "operations"),  # a key whose hash overflows the stack
    (b"\x8e" + struct.pack("<Q", 1 << 60), "damaged"),  # bytes that are not there
    (b"cnumpy\ndtype\n()" + b"\x85" * 200_000 + b"\x89\x88tR", "given as a tuple"),  # too deep for its text
    (SHARED + SHARED_AGAIN * 3, "longer than the file"),
    (b"K\x01p2305843009213693951\n", "position in the memo"),  # 2**61 - 1, whose multiples share a hash
    (b"}\x8a\x08" + struct.pack("<q", (1 << 61) - 1) + b"Ns", "too large a number"),
]
READ = """
import sys
from pggan_fast.interop import read_official_pickle
for path in sys.argv[1:]:
    try:
        read_official_pickle(path)
    except ValueError as error:
        print(error, flush=True)
"""


def test_files_of_allowed_names_alone_do_not_crash(tmp_path):
    """In a process of its own, as an ordinary unpickler follows some of them to memory of the file's choosing."""
    paths = []
    for index, (name, _) in enumerate(BAD):
        state = b"}" + _text("name") + name + b"s" + _text("static_kwargs") + b"}s" + _text("variables") + b"}s"
        paths.append(tmp_path / f"{index}.pkl")
        paths[-1].write_bytes(b"\x80\x02ctfutil\nNetwork\n)\x81" + state + b"b.")
    ended = subprocess.run([sys.executable, "-c", READ, *map(str, paths)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    reasons = ended.stdout.splitlines()
    assert len(reasons) == len(BAD)
    for path, reason, (_, expected) in zip(paths, reasons, BAD, strict=True):
        assert reason.startswith(f"{path}: not a pickle of official networks: ") and (expected or "") in reason
