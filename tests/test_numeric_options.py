"""Numbers that no option should take, for every numeric option of every command, given as an option and in a file."""

import argparse
import contextlib
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pggan_fast import cli
from pggan_fast.interop import to_gan_zoo
from pggan_fast.interop.weights import save_weights
from pggan_fast.networks import Generator
from pggan_fast.utils.options import Parser

# Small inputs, so that what is accepted ends soon.
ARGUMENTS = {
    "prepare": "--images {images} --out {new}",
    "train": "--data {data} --out {new} --resolution 8 --fmap-base 32 --fmap-max 8",
    "generate": "--weights {weights} --out {new}",
    "interpolate": "--weights {weights} --out {new}.gif --keys 2 --frames 2 --count 1",
    "video": "--run {run} --out {new}.gif",
    "project": "--weights {weights} --image {images}/0.png --out {new}"
    " --features none --candidates 2 --starts 1 --steps 1",
    "evaluate": "--weights {weights} --reals {images} --metrics swd --count 4 --out {new}.json",
    "import": "--from gan-zoo --weights {zoo} --out {new}",
    "export": "--weights {weights} --format safetensors --out {new}.safetensors",
}
VALUES = ["nan", "inf", "-inf", "1e400", "-1e400", "1" + "0" * 400, "9" * 5000, str(1 << 63), str(-(1 << 64))]
VALUES += ["", " ", "-1", "-0.5", "0", "1e308", "-1e308", "1e-400", "0x10", "1,5", "nan:nan", "4:nan", "linear:0:nan:1"]


class Found(Exception):
    """The parser of a command, which a test has looked for."""


def parser_of(command: str) -> Parser:
    def find(parser, _):
        raise Found(parser)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Found) as found:
        patch.setattr(Parser, "parse_strictly", find)
        cli.COMMANDS[command]([])
    return found.value.args[0]


def is_numeric(action: argparse.Action) -> bool:
    """Return whether an option reads "1" as a number or as a table of numbers."""
    if action.type is None:
        return False
    with contextlib.suppress(argparse.ArgumentTypeError):
        return isinstance(action.type("1"), (int, float, dict))
    return False


OPTIONS = [
    (command, action.option_strings[0])
    for command in cli.COMMANDS
    for action in parser_of(command)._actions
    if is_numeric(action)
]


def test_the_parsers_are_walked():
    assert {command for command, _ in OPTIONS} == set(ARGUMENTS) - {"export"}
    assert len(OPTIONS) > 70
    assert {("train", "--batch-size"), ("generate", "--truncation"), ("project", "--steps")} <= set(OPTIONS)


NEVER = ("nan", "inf", "-inf", "1e400", "-1e400", "", " ", "nan:nan", "4:nan", "linear:0:nan:1")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    paths = {name: folder / name for name in ("images", "data", "run", "weights.safetensors")}
    paths["images"].mkdir()
    random = np.random.default_rng(0)
    for index in range(4):
        pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(paths["images"] / f"{index}.png")
    prepare = ["prepare", "--images", str(paths["images"]), "--out", str(paths["data"]), "--resolution", "8"]
    assert cli.main(prepare) == 0
    G = Generator(16, fmap_max=8, fmap_base=64)
    torch.save(to_gan_zoo(G), folder / "zoo.pt")
    metadata = {"options": G.options, "resolution": 16, "alpha": 1.0, "classes": [], "images": 0}
    save_weights(paths["weights.safetensors"], G, metadata)
    (paths["run"] / "samples").mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(paths["run"] / "samples" / "000000000.png")
    (paths["run"] / "config.json").write_text("{}")
    return {"weights": paths.pop("weights.safetensors"), "zoo": folder / "zoo.pt", **paths}


@pytest.fixture
def run(inputs, tmp_path, capsys, monkeypatch):
    """Return the exit code of a command and what it printed as an error."""
    monkeypatch.setattr(cli, "train", lambda *_, **__: True)  # after every check and the run's folder
    monkeypatch.chdir(tmp_path)

    def run(command, *given, arguments=None):
        arguments = ARGUMENTS[command] if arguments is None else arguments
        code = cli.main([command, *arguments.format(**inputs, new="new").split(), *given])
        return code, capsys.readouterr().err

    return run


def problems(code: int, printed: str, named: str, value: str, folder) -> list[str]:
    """Return what is wrong with how a command answered a value: accepted, or refused in one line, nothing written."""
    found = []
    if code == 0 and value in NEVER:
        found.append("accepted")
    if code == 2:
        if not printed.startswith("pggan-fast: error: ") or printed.count("\n") != 1 or len(printed) > 500:
            found.append("not one short line")
        if named not in printed or not any(
            words in printed for words in ("must be", "must divide", "needs", "leaves", "leave it out")
        ):
            found.append("does not say what is allowed")
        shown = [value[:40]]
        with contextlib.suppress(ValueError):
            shown += [f"{float(value):g}", str(float(value))]
        if not any(text in printed for text in shown):
            found.append("does not name the value")
        if any(path.suffix != ".toml" for path in folder.iterdir()):
            found.append("wrote something")
    return [f"{value[:40]!r}: {problem}: {printed[:300]!r}" for problem in found]


def clear(folder) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(("command", "name"), OPTIONS)
def test_as_an_option(run, tmp_path, command, name):
    wrong = []
    for value in VALUES:
        code, printed = run(command, f"{name}={value}")
        wrong += problems(code, printed, name, value, tmp_path)
        clear(tmp_path)
    assert not wrong, "\n".join(wrong)


IN_A_FILE = ["nan", "inf", "-inf", "1e400", "1" + "0" * 400, str(-(1 << 64)), '""', "-1", "[1]", "{x = 1}", "{4 = nan}"]


@pytest.mark.parametrize(("command", "name"), [option for option in OPTIONS if option[0] in cli.CONFIGS])
def test_in_a_file(run, tmp_path, command, name):
    key, wrong = name.lstrip("-"), []
    arguments = ARGUMENTS[command].partition(name)[0]  # options of the command line take precedence
    for value in IN_A_FILE:
        (tmp_path / "settings.toml").write_text(f"{key} = {value}")
        code, printed = run(command, "--config", "settings.toml", arguments=arguments)
        shown = value.strip('"').replace("{4 = nan}", "4:nan").replace("{x = 1}", "x")
        wrong += problems(code, printed, key, shown, tmp_path)
        if code == 0 and not value.lstrip("-").isdecimal():
            wrong.append(f"{value}: accepted")
        clear(tmp_path)
    assert not wrong, "\n".join(wrong)
