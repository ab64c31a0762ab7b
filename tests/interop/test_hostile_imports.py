"""Weight files of strangers, mutated by type and by bytes: one line, and neither a crash nor memory without bound.

All run in one process of its own, as a reader that follows a pointer of the file's choosing would end this one. A few
hundred mutants here; with PGGAN_FAST_TEST_HOSTILE=1 (`make test-hostile`) 2,000 of each kind of file.
"""

import json
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from pggan_fast import Discriminator, Generator
from pggan_fast.convert import ImportConfig, import_weights
from pggan_fast.interop import to_gan_zoo, to_pro_gan_pth
from pggan_fast.interop.weights import load_generator, save_weights
from pggan_fast.utils.errors import UserError

MUTANTS = 2000 if os.environ.get("PGGAN_FAST_TEST_HOSTILE") else 60
KINDS = ("json", "safetensors", "official", "pro-gan-pth", "gan-zoo")
SMALL = {"fmap_base": 16, "fmap_max": 4}
MOST_MEMORY = 3 << 30  # bytes of address space beyond what torch has taken at the start
FOREIGN = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**70,
    -(2**70),
    0.5,
    float("nan"),
    float("inf"),
    1e308,
    "",
    "x",
    "\0",
    "é" * 400,
]
FOREIGN += [[], [1], [[]], {}, {"a": 1}, {"options": {}}, b"bytes"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_mutant_is_read_or_refused_in_one_line(tmp_path, kind):
    command = [sys.executable, "-m", "tests.interop.test_hostile_imports", kind, str(MUTANTS), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-3000:]
    read, refused = map(int, ended.stdout.split()[-2:])
    assert read + refused == MUTANTS
    assert refused > MUTANTS / 5, "the mutations do no harm"


def mutate_value(random_: random.Random, value):
    """Return `value` with one of its parts replaced, removed, or added to."""
    if isinstance(value, dict) and value and random_.random() < 0.9:
        key = random_.choice(list(value))
        changed = dict(value)
        action = random_.random()
        if action < 0.15:
            del changed[key]
        elif action < 0.25:
            changed[random_.choice(["x", "é", "", "resolution", "options", 3])] = random_.choice(FOREIGN)
        else:
            changed[key] = mutate_value(random_, value[key])
        return changed
    if isinstance(value, list | tuple) and value and random_.random() < 0.7:
        index = random_.randrange(len(value))
        changed = [*value[:index], mutate_value(random_, value[index]), *value[index + 1 :]]
        return type(value)(changed)
    if isinstance(value, torch.Tensor) and random_.random() < 0.8:
        return random_.choice(
            [
                lambda: value * float("nan"),
                lambda: value * float("inf"),
                lambda: value.flatten()[:-1],
                lambda: value[None],
                lambda: value.long(),
                lambda: value.half(),
                lambda: value.to(torch.complex64),
                lambda: value[:0],
                lambda: torch.zeros(()),
                lambda: value.to_sparse(),
                lambda: value.repeat(2, *[1] * (value.ndim - 1)),
                lambda: value.to("meta"),
                lambda: torch.zeros(1).expand(1 << 40) if random_.random() < 0.2 else value.bool(),
            ]
        )()
    if isinstance(value, np.ndarray) and random_.random() < 0.8:
        return random_.choice(
            [
                lambda: value * np.float32("nan"),
                lambda: value.ravel(),
                lambda: value[None],
                lambda: value.astype("i4"),
                lambda: value.astype("U3"),
                lambda: value.astype(object),
                lambda: value.astype("c8"),
                lambda: value.astype("M8[s]"),
                lambda: value.astype(">f8"),
                lambda: np.asfortranarray(value.astype("f2")),
                lambda: value[:0],
                lambda: np.array(1.0),
                lambda: np.zeros(3, [("a", "f4")]),
            ]
        )()
    return random_.choice(FOREIGN)


def mutate_bytes(random_: random.Random, data: bytes, near: int) -> bytes:
    """Return `data` with a few of its first `near` bytes, or of all, changed, cut off or doubled."""
    changed = bytearray(data)
    for _ in range(random_.choice([1, 1, 2, 8])):
        reach = len(changed) if random_.random() < 0.3 else min(near, len(changed))
        if not reach:
            break
        start = random_.randrange(reach)
        action = random_.random()
        if action < 0.5:
            changed[start] = random_.randrange(256)
        elif action < 0.65:
            changed[start : start + 4] = struct.pack("<I", random_.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF]))
        elif action < 0.75:
            changed[start : start + 8] = struct.pack("<Q", random_.choice([1 << 33, 1 << 40, 1 << 63]))
        elif action < 0.85:
            del changed[start : start + random_.randrange(1, 20)]
        elif action < 0.95:
            changed[start:start] = changed[start : start + random_.randrange(1, 40)]
        else:
            del changed[start:]
    return bytes(changed)


def official(state) -> bytes:
    """Return the pickle of the official class with `state`."""

    class Network:
        def __getstate__(self):
            return state

    Network.__module__, Network.__qualname__ = "tfutil", "Network"
    module = types.ModuleType("tfutil")
    module.Network = Network
    sys.modules["tfutil"] = module
    try:
        return pickle.dumps((Network(),), 2)
    finally:
        del sys.modules["tfutil"]


def originals(folder: Path) -> dict:
    """Return what is mutated, by kind: metadata, tensors, the state of an official network, checkpoints."""
    torch.manual_seed(0)
    G = Generator(8, label_dim=2, latent_dim=3, **SMALL)
    metadata = {"options": G.options, "classes": ["a", "b"], "images": 5, "resolution": 8, "alpha": 0.5}
    save_weights(folder / "generator.safetensors", G, metadata)
    pro = Generator(8, latent_dim=5, input_norm=False, **SMALL), Discriminator(8, fused_scale=False, **SMALL)
    parts = [{"conf": {"use_eql": True}, "state_dict": to_pro_gan_pth(net)} for net in pro]
    zoo = Generator(8, latent_dim=5, input_bias="pixel", **SMALL)
    names = {"4x4/Dense": (5, 64), "4x4/Conv": (3, 3, 4, 4), "8x8/Conv0_up": (3, 3, 4, 4), "8x8/Conv1": (3, 3, 4, 4)}
    names |= {"ToRGB_lod1": (1, 1, 4, 3), "ToRGB_lod0": (1, 1, 4, 3)}
    variables = {"lod": np.float32(0)}
    for name, shape in names.items():
        variables[f"{name}/weight"] = np.ones(shape, "f4")
        bias = {"4x4/Dense": 4, "ToRGB_lod1": 3, "ToRGB_lod0": 3}.get(name, 4)
        variables[f"{name}/bias"] = np.ones(bias, "f4")
    options = {"label_size": 2, "fmap_base": 16, "fmap_max": 4, "use_wscale": True, "resolution": 8}
    return {
        "json": metadata,
        "official": {"version": 2, "name": "Gs", "static_kwargs": options, "variables": list(variables.items())},
        "pro-gan-pth": {"generator": parts[0], "shadow_generator": parts[0], "discriminator": parts[1]},
        "gan-zoo": {"config": None, "netG": to_gan_zoo(zoo)},
    }


def write_mutant(random_: random.Random, kind: str, folder: Path, original) -> Path:
    by_type = random_.random() < 0.5
    path = folder / "mutant.safetensors"
    if kind == "json":
        text = json.dumps(mutate_value(random_, original) if by_type else original, default=str).encode()
        path.with_suffix(".json").write_bytes(text if by_type else mutate_bytes(random_, text, len(text)))
        path.write_bytes((folder / "generator.safetensors").read_bytes())
    elif kind == "safetensors":
        data = (folder / "generator.safetensors").read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        if by_type:
            header = json.dumps(mutate_value(random_, json.loads(data[8 : 8 + length])), default=str).encode()
            data = struct.pack("<Q", len(header)) + header + data[8 + length :]
        else:
            data = mutate_bytes(random_, data, 8 + length)
        path.write_bytes(data)
        path.with_suffix(".json").write_bytes((folder / "generator.json").read_bytes())
    else:
        path = path.with_suffix(".pt")  # torch.load reads files that end in .safetensors as such
        value = mutate_value(random_, original) if by_type else original
        if kind == "official":
            data = official(value)
        else:
            torch.save(value, path)
            data = path.read_bytes()
        path.write_bytes(data if by_type else mutate_bytes(random_, data, 1500))
    return path


def read_mutant(kind: str, path: Path, folder: Path) -> None:
    if kind in ("json", "safetensors"):
        load_generator(path)
        return
    out = folder / "out"
    for written in import_weights(ImportConfig(from_=kind, weights=path, out=out)):
        written.unlink()
        written.with_suffix(".json").unlink()


def main(kind: str, count: int, folder: Path) -> None:
    original = originals(folder).get(kind)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MOST_MEMORY, resource.RLIM_INFINITY))
    read = refused = 0
    for seed in range(count):
        path = write_mutant(random.Random(seed), kind, folder, original)
        try:
            read_mutant(kind, path, folder)
            read += 1
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000, (seed, str(error))
            refused += 1
        except Exception:
            print(f"seed {seed} of {kind}", flush=True)
            raise
    print(read, refused)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
