"""Options made from dataclasses: what they accept, what they refuse, and how they are kept."""

import dataclasses
from pathlib import Path

import pytest

from pggan_fast.training.config import TrainConfig
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.options import Parser, from_json, from_options, to_json

REQUIRED = ["--data", "d", "--out", "o"]


def parse(arguments=""):
    parser = Parser(prog="train")
    parser.add_config(TrainConfig)
    given = parser.parse_strictly([*REQUIRED, *arguments.split()])
    return from_options(TrainConfig, vars(given))


def test_nothing_given_means_the_defaults():
    assert parse() == TrainConfig(data=Path("d"), out=Path("o"))


def test_every_kind_of_value():
    config = parse(
        "--resolution 64 --total-kimg 1.5 --no-mirror --labels --precision bf16"
        " --batch-size 4:32,16:8 --learning-rate 0.002"
    )
    assert (config.resolution, config.total_kimg, config.precision) == (64, 1.5, "bf16")
    assert (config.mirror, config.labels) == (False, True)
    assert (config.batch_size, config.learning_rate) == ({4: 32, 16: 8}, {4: 0.002})


def test_tables_and_units_reach_the_schedule():
    config = parse("--resolution 16 --stable-kimg 0.5 --transition-kimg 0.25")
    schedule = config.schedule()
    assert (schedule.stable_images, schedule.transition_images) == (500, 250)
    assert schedule.total_images == 500 + 2 * 750 + 3 * 500
    assert parse("--resolution 1024").schedule().total_images == 12_000_000


def test_settings_survive_json():
    config = parse("--resolution 8 --batch-size 4:9,8:3 --latent-dim 7")
    kept = from_json(TrainConfig, to_json(config))
    moved = {"data": Path("d").absolute(), "out": Path("o").absolute()}
    assert kept == dataclasses.replace(config, **moved)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--totl-kimg 3", "unknown option --totl-kimg; did you mean --total-kimg?"),
        ("--totl-kimg=3", "did you mean --total-kimg?"),
        ("--wings", "unknown option --wings; see train --help"),
        ("--total 3", "unknown option --total"),
        ("stray", "unknown option stray"),
        ("--seed x", "--seed x: must be a whole number"),
        ("--total-kimg many", "--total-kimg many: must be a number"),
        ("--batch-size 4:x", "--batch-size 4:x: must be NUMBER or RESOLUTION:NUMBER"),
        ("--batch-size 4:8,4:16", "--batch-size 4:8,4:16: must be NUMBER or RESOLUTION:NUMBER,... with each"),
        (
            "--batch-size 4:64,33:3",
            "--batch-size 4:64,33:3: must be a table whose resolutions are a power of two, from 4",
        ),
        ("--learning-rate 4:0.1,33:3", "--learning-rate 4:0.1,33:3.0: must be a table whose resolutions are"),
        (
            "--micro-batch 2:8",
            "--micro-batch 2:8: must be a table whose resolutions are a power of two, from 4 to 1024",
        ),
        ("--seed", "--seed: expected one argument"),
        ("--precision fp8", "--precision fp8: must be one of fp32, bf16, fp16, auto"),
        ("--objective wgangp", "ebgan, relativistic; did you mean wgan-gp?"),
        ("--track wandbb", "--track wandbb: wandbb must be one of: none, wandb, mlflow, trackio, tensorboard; did you"),
        ("--resolution 16 --start-resolution 32", "--start-resolution 32: must not be above --resolution 16"),
        (
            "--resolution 8 --stable-kimg 0 --transition-kimg 0",
            "--stable-kimg 0, --transition-kimg 0: one of them must",
        ),
        ("--resolution 48", "resolution 48: must be a power of two"),
        ("--resolution 8 --total-kimg 0", "--total-kimg 0.0: must be from 0.001"),
        ("--tick-kimg 0", "--tick-kimg 0.0: must be from 0.001 to"),
        ("--fmap-max 0", "--fmap-max 0: must be from 1 to 65536"),
        ("--ema-decay 1", "--ema-decay 1.0: must be from 0 to below 1"),
    ],
)
def test_mistakes_are_named_in_one_line(arguments, words):
    with pytest.raises(UserError) as error:
        parse(arguments)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_missing_option_is_named():
    with pytest.raises(UserError, match="--data is missing: Folder of prepared data"):
        from_options(TrainConfig, {"out": Path("o")})


def test_every_setting_has_help_of_one_line(capsys):
    parser = Parser(prog="train")
    parser.add_config(TrainConfig)
    with pytest.raises(SystemExit) as left:
        parser.parse_strictly(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(TrainConfig):
        assert "--" + field.name.replace("_", "-") in text
        assert "\n" not in field.metadata["help"]
