"""--init-from with files that were edited, damaged or made by a stranger: weights are taken, or one line says why not.

PGGAN_FAST_MUTATIONS sets how many mutations of each kind of file are tried (60 by default).
"""

import json
import os
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pggan_fast.interop.weights import save_weights
from pggan_fast.networks import Discriminator, Generator
from pggan_fast.training import TrainStep, UserError
from pggan_fast.training.init_from import start_from
from tests.training.test_hostile_run import mutated

MUTATIONS = int(os.environ.get("PGGAN_FAST_MUTATIONS", 60))
OPTIONS = {"fmap_base": 32, "fmap_max": 8}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    for name, kind in (("generator", Generator), ("discriminator", Discriminator)):
        network = kind(8, **OPTIONS)
        save_weights(folder / f"{name}.safetensors", network, {"options": network.options, "resolution": 8})
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "files")


def started(folder):
    """Return the networks that start from the files; UserError as `train` would say."""
    step = TrainStep(Generator(8, **OPTIONS), Discriminator(8, **OPTIONS))
    start_from(step, folder / "generator.safetensors")
    return step


def refused(folder):
    with pytest.raises(UserError) as error:
        started(folder)
    assert "\n" not in str(error.value) and str(error.value).startswith("--init-from")
    return str(error.value)


def taken_or_one_line(folder):
    """Return whether networks start from the files, with finite weights, or one line says why not."""
    try:
        step = started(folder)
    except UserError as error:
        assert "\n" not in str(error)
        return False
    assert all(p.isfinite().all() for net in (step.G, step.D, step.G_ema) for p in net.parameters())
    return True


def test_everybody_who_can_read_the_description_can_read_the_weights(whole):
    assert len({path.stat().st_mode for path in whole.iterdir()}) == 1


def test_what_is_whole_is_taken(folder):
    step = started(folder)
    for name, network in (("generator", step.G), ("generator", step.G_ema), ("discriminator", step.D)):
        weights = load_file(folder / f"{name}.safetensors")
        assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["generator", "discriminator"])
def test_hostile_descriptions(folder, name, capsys):
    path, chance = folder / f"{name}.json", random.Random(1)
    described, taken = json.loads(path.read_text()), []
    for _ in range(MUTATIONS):
        path.write_text(json.dumps(mutated(described, chance)))
        taken.append(taken_or_one_line(folder))
    assert not all(taken), "none of the changed descriptions is refused"


@pytest.mark.parametrize("name", ["generator", "discriminator"])
def test_hostile_weights(folder, name, capsys):
    path, chance = folder / f"{name}.safetensors", random.Random(2)
    data = path.read_bytes()
    header, taken = int.from_bytes(data[:8], "little"), []
    for _ in range(MUTATIONS):
        changed = bytearray(data)
        at = chance.randrange(8 + header)  # sizes and the header, in which everything is decided
        if chance.random() < 0.3:
            described = json.dumps(mutated(json.loads(data[8 : 8 + header]), chance)).encode("utf-8", "replace")
            changed = bytearray(len(described).to_bytes(8, "little") + described + data[8 + header :])
        elif chance.random() < 0.5:
            changed[at] = chance.randrange(256)
        else:
            del changed[at : at + chance.choice((1, 8, 1000))]
        path.write_bytes(changed)
        taken.append(taken_or_one_line(folder))
    assert not all(taken), "none of the changed files is refused"


@pytest.mark.parametrize("name", ["generator", "discriminator"])
@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: torch.full_like(t, float("nan")),
        lambda t: t.to(torch.int64),
        lambda t: t.to(torch.complex64),
        lambda t: t.reshape(-1)[:0],
        lambda t: t.to(torch.bool),
    ],
    ids=["nan", "int64", "complex", "empty", "bool"],
)
def test_tensors_that_are_no_weights_are_refused(folder, name, described, spoil):
    path = folder / f"{name}.safetensors"
    weights = load_file(path)
    key = sorted(weights)[0]
    save_file({**weights, key: spoil(weights[key]).contiguous()}, path)
    if not described:
        path.with_suffix(".json").unlink()
    assert key in refused(folder)


def test_a_discriminator_described_as_another_network_is_refused(folder):
    path = folder / "discriminator.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps({**described, "options": {**described["options"], "fmap_max": 4}}))
    assert "discriminator.json" in refused(folder)
    path.write_text(json.dumps({**described, "options": {**described["options"], "wings": 2}}))
    assert "wings" in refused(folder)
