"""Values over the images shown, and how options take them."""

import math

import pytest

from pggan_fast.training import TrainConfig, UserError
from pggan_fast.utils.curve import Curve
from pggan_fast.utils.options import Parser, from_json, from_options, to_json


def config(**settings):
    return TrainConfig(data="d", out="o", resolution=8, **settings)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (0.5, [0.5, 0.5, 0.5, 0.5]),
        ("0.5", [0.5, 0.5, 0.5, 0.5]),
        ("linear:1:3:2", [1.0, 1.5, 2.0, 3.0]),
        # Half a cosine: (1 - cos(pi / 4)) / 2 of the way after a quarter of the images.
        ("cosine:1:3:2", [1.0, 1 + (1 - math.cos(math.pi / 4)), 2.0, 3.0]),
    ],
)
def test_values(text, values):
    curve = Curve.parse(text)
    assert [curve.at(images) for images in (0, 500, 1000, 2000)] == pytest.approx(values, rel=1e-15)
    assert curve.at(10**9) == values[-1]


@pytest.mark.parametrize(
    "text",
    ["", "x", "linear", "linear:1:2", "linear:1:2:3:4", "cosine:a:2:3", "cosine:1:inf:3", "cosine:1:2:0", "cos:1:2:3"],
)
def test_what_is_none(text):
    with pytest.raises(ValueError):
        Curve.parse(text)


def test_the_command_line_and_json_keep_them():
    parser = Parser(prog="train")
    parser.add_config(TrainConfig)
    arguments = "--data d --out o --learning-rate cosine:2e-4:5e-5:20 --r1-weight linear:2:0.2:20 --adam-beta2 0.9"
    made = from_options(TrainConfig, vars(parser.parse_strictly(arguments.split())))
    assert (made.learning_rate, made.r1_weight, made.adam_beta2) == ("cosine:2e-4:5e-5:20", "linear:2:0.2:20", 0.9)
    again = from_json(TrainConfig, to_json(made))
    assert (again.learning_rate, again.r1_weight, again.adam_beta2) == (made.learning_rate, made.r1_weight, 0.9)
    with pytest.raises(UserError, match="--r1-weight linear:2: must be a number, or linear:START:END:KIMG"):
        parser.parse_strictly(["--r1-weight", "linear:2"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adam_beta2": "cosine:0.9:1:5"}, "--adam-beta2 cosine:0.9:1:5: must be from 0 to below 1 at both ends"),
        ({"learning_rate": "linear:0:1:5"}, "--learning-rate linear:0:1:5: must be from 1e-12 to 1000 at both ends"),
        ({"r2_weight": "two"}, "--r2-weight two: must be a number, or linear:START:END:KIMG or cosine"),
        ({"penalty_weight": "linear:0:1:5"}, "--penalty-weight linear:0:1:5: must be a finite number"),
        ({"ema_half_life_kimg": "linear:-1:1:5"}, "--ema-half-life-kimg linear:-1:1:5: must be from 0 to"),
        ({"ema_ramp": 0.05}, "--ema-ramp 0.05: needs --ema-half-life-kimg"),
        ({"augment_p": 0.5}, "--augment-p 0.5: needs --augment ada"),
        ({"augment": "ada", "augment_p": 2.0}, "--augment-p 2.0: must be from 0 to 1"),
        ({"penalty_on": "raw"}, "--penalty-on raw: needs --augment"),
        ({"penalty_every": 0}, "--penalty-every 0: must be from 1 to"),
        ({"penalty_every": 8, "objective": "hinge"}, "--penalty-every 8: --objective hinge has no penalty"),
        ({"penalty_every": 8, "penalty_weight": 0.0}, "--penalty-every 8: --objective wgan-gp has no penalty"),
        ({"adam_eps": 0.0}, "--adam-eps 0.0: must be above 0"),
        ({"minibatch_repeats": 0}, "--minibatch-repeats 0: must be from 1 to"),
        ({"g_label_weight": -1.0}, "--g-label-weight -1.0: must be from 0 to"),
        ({"network": "r3gan", "slope": 0.1}, "--slope: does not go with --network r3gan"),
    ],
)
def test_what_options_refuse(settings, message):
    with pytest.raises(UserError, match=message):
        config(**settings)
