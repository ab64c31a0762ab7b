"""Files of settings for --config: what they may hold, what is refused, and that the printed one is the defaults."""

import json
import os
import re

import pytest

from pggan_fast.cli import CONFIGS, main
from pggan_fast.training.config import TrainConfig
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.options import Parser, from_options, to_json
from pggan_fast.utils.settings_file import FORMATS, add_config_option, settings_text, with_settings_file


def parse(path, *arguments, config=TrainConfig):
    parser = Parser(prog="train")
    parser.add_config(config)
    add_config_option(parser)
    parser.add_argument("--preset", choices=("small", "large"))
    given = vars(parser.parse_strictly(["--data", "d", "--out", "o", "--config", str(path), *arguments]))
    return from_options(config, with_settings_file(parser, config, given))


def written(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


TOML = """
# a run
seed = 7
stable-kimg = 12
learning_rate = 2e-3
labels = true
precision = "bf16"
micro_batch = "4:16"
[batch_size]
4 = 32
16 = 8
"""
YAML = """
seed: 7
stable-kimg: 12
learning_rate: 2e-3     # YAML 1.1 has no such number
labels: yes
precision: bf16
micro_batch: 4:16       # YAML 1.1 has 256
batch_size: {4: 32, 16: 8}
total_kimg: null
"""
JSON = {"seed": 7, "stable_kimg": 12, "learning_rate": {"4": 2e-3}, "labels": True, "precision": "bf16"}
JSON |= {"micro_batch": {"4": 16}, "batch_size": {"4": 32, "16": 8}, "total_kimg": None}


@pytest.mark.parametrize(("name", "text"), [("a.toml", TOML), ("a.yaml", YAML), ("a.json", json.dumps(JSON))])
def test_each_format_is_the_command_line(tmp_path, name, text):
    config = parse(written(tmp_path, name, text))
    options = "--seed 7 --stable-kimg 12 --learning-rate 2e-3 --labels --precision bf16 --micro-batch 4:16"
    expected = parse(written(tmp_path, "empty.toml", ""), *options.split(), "--batch-size", "4:32,16:8")
    assert config == expected
    assert [type(value) for value in to_json(config).values()] == [type(value) for value in to_json(expected).values()]


def test_the_command_line_has_the_last_word(tmp_path):
    config = parse(written(tmp_path, "a.toml", "seed = 7\nfmap_max = 16"), "--seed", "8")
    assert (config.seed, config.fmap_max) == (8, 16)


def test_a_runs_settings_and_the_runs_folder(tmp_path):
    settings = to_json(parse(written(tmp_path, "a.toml", "seed = 7\nfmap_max = 16\nlearning_rate = 1")))
    path = written(tmp_path, "config.json", json.dumps({"pggan_fast": "0.1.0", "settings": settings}))
    for where in (path, tmp_path):
        config = parse(where)
        assert (config.seed, config.fmap_max, config.learning_rate) == (7, 16, {4: 1.0})
        assert str(config.out) == "o"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.toml", "totl_kimg = 3", "unknown setting totl_kimg; did you mean total_kimg?"),
        ("a.toml", "totl-kimg = 3", "unknown setting totl-kimg; did you mean total_kimg?"),
        ("a.toml", "[wings]\na = 1", "unknown setting wings; see train --help"),
        ("a.toml", "config = 'b.toml'", "unknown setting config"),
        ("a.toml", "help = true", "unknown setting help"),
        ("a.toml", "seed = -1", "seed -1: must be from 0"),
        ("a.toml", "seed = 1.5", "seed 1.5: must be a whole number"),
        ("a.toml", "seed = true", "seed True: must be a whole number"),
        ("a.toml", "seed = 'x'", "seed x: must be a whole number"),
        ("a.toml", "seed = 2020-01-01", "seed 2020-01-01: must be a whole number"),
        ("a.toml", "seed = 99999999999999999999999", "must be from 0 to"),
        ("a.toml", "total_kimg = nan", "total_kimg nan: must be a finite number"),
        ("a.toml", "ema_decay = 1", "ema_decay 1: must be from 0 to below 1"),
        ("a.toml", "precision = 'fp8'", "precision fp8: must be one of fp32, bf16, fp16"),
        ("a.toml", "preset = 'tiny'", "preset tiny: must be one of small, large"),
        ("a.toml", "labels = 'maybe'", "labels maybe: must be true or false"),
        ("a.toml", "labels = 1", "labels 1: must be true or false"),
        ("a.toml", "data = ''", "data : must be a path, it is empty"),
        ("a.toml", 'data = "a\\u0000b"', "must be a path without NUL"),
        ("a.toml", "batch_size = '4:x'", "batch_size 4:x: must be NUMBER or RESOLUTION:NUMBER"),
        ("a.toml", "batch_size = [4]", "batch_size"),
        ("a.toml", "batch_size = {x = 4}", "must be a table whose resolutions are a power of two"),
        ("a.toml", "batch_size = {4 = 0}", "batch_size 4:0: must be from 1"),
        ("a.toml", "seed = 1\nseed = 2", "is no TOML"),
        ("a.toml", "stable-kimg = 1\nstable_kimg = 2", "stable_kimg is there twice"),
        ("a.toml", b"seed = 1 # \xff", "is no TOML"),
        ("a.toml", b"seed = 1\n" * 300_000, "has more than 1 MiB"),
        ("a.yaml", "seed: 1\nseed: 2", "seed is there twice"),
        ("a.yaml", "seed: &a 1\nfmap_max: *a", "aliases are not read"),
        ("a.yaml", "seed: !!python/object/apply:os.system [true]", "tags such as tag:yaml.org,2002:python"),
        ("a.yaml", "seed: !thing 1", "tags such as !thing are not read"),
        ("a.yaml", "[1, 2]: 3", "a name must be text"),
        ("a.yaml", "- seed", "must be a table of settings, is list"),
        ("a.yaml", "seed", "must be a table of settings, is str"),
        ("a.yaml", "a: [", "is no YAML"),
        ("a.yaml", "a: " + "[" * 5000, "is no YAML"),
        ("a.yaml", "a: 1\n---\na: 2", "more than one document"),
        ("a.yaml", "null: 1", "unknown setting None"),
        ("a.yaml", "mirror: null", "mirror None: must be true or false"),
        ("a.json", "{", "is no JSON"),
        ("a.json", "[" * 100_000, "is no JSON"),
        ("a.json", '{"seed": 1, "seed": 2}', "seed is there twice"),
        ("a.txt", "seed = 1", "must end in .toml, .yaml, .yml, .json"),
    ],
)
def test_what_is_refused(tmp_path, name, text, words):
    path = written(tmp_path, name, text)
    with pytest.raises(UserError) as error:
        parse(path)
    message = str(error.value)
    assert message.startswith(f"--config {path}: ") and words in message, message
    assert "\n" not in message and len(message) < 600


@pytest.mark.parametrize("path", ["nothing.toml", "", "."])
def test_no_file(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--config .*no such file"):
        parse(path or os.curdir)


def test_yaml_without_its_package(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(UserError, match=r"a\.yaml: needs yaml .*pip install 'pggan-fast\[yaml\]'"):
        parse(written(tmp_path, "a.yaml", "seed: 1"))


@pytest.mark.parametrize("style", FORMATS)
@pytest.mark.parametrize("command", CONFIGS)
def test_the_printed_file_has_every_default(tmp_path, capsys, command, style):
    assert main(["config", command, "--format", style]) == 0
    text = capsys.readouterr().out
    config = CONFIGS[command]
    parser = Parser(prog=command)
    parser.add_config(config)
    given = with_settings_file(parser, config, {"config": written(tmp_path, f"a.{style}", text)})
    names = {field.name for field in config.__dataclass_fields__.values()}
    assert given == {name: default for name, default in defaults(config).items() if default is not None}
    sign = "=" if style == "toml" else ":"
    for name in names:  # those without a default stand in comments
        assert re.search(rf"^(# )?{name.rstrip('_')} ?{sign} ", text, re.MULTILINE), name


def defaults(config):
    from dataclasses import MISSING, fields

    found = {field.name: field.default for field in fields(config) if field.default is not MISSING}
    return found | {f.name: f.default_factory() for f in fields(config) if f.default_factory is not MISSING}


@pytest.mark.parametrize("style", FORMATS)
def test_what_stands_in_comments_is_a_setting_too(tmp_path, style):
    """A user takes away the # and puts a value in the place of the form that is shown."""
    text = settings_text("train", TrainConfig, style)
    for line, given in [("# resolution", 16), ("# total_kimg", 3), ("# tensorboard", "false")]:
        assert line in text
        text = re.sub(rf"^{line}( =|:) .*$", rf"{line[2:]}\1 {given}", text, flags=re.MULTILINE)
    config = parse(written(tmp_path, f"a.{style}", text))
    assert (config.resolution, config.total_kimg, config.tensorboard) == (16, 3.0, False)


def test_config_wants_a_command(capsys):
    assert main(["config", "fly"]) == 2
    assert "fly" in capsys.readouterr().err
