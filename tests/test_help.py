"""Every option's help can be read alone: a sentence, a default, a metavar that shows the form, options in groups."""

import argparse
import re

import pytest

from pggan_fast import cli
from pggan_fast.utils.options import Parser

MOST_IN_ONE_LIST = 6
METAVAR = re.compile(r"[A-Z]+(,\.\.\.|:[NX],\.\.\.|x[A-Z]+)?(\|[A-Z]+)?")  # or another form instead
SENTENCE = re.compile(r"[A-Z].*\.( \((default: .+|required)\))?|[A-Z].* \(default: .+\)\.")


@pytest.fixture(params=cli.COMMANDS)
def parser(request, monkeypatch) -> Parser:
    """The parser that a command makes for itself, as complete as when it reads its arguments."""
    made = []

    def keep(self, arguments):
        made.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(Parser, "parse_strictly", keep)
    with pytest.raises(KeyboardInterrupt):
        cli.COMMANDS[request.param]([])
    return made[0]


def problems(parser: argparse.ArgumentParser) -> list[str]:
    """Return what a reader of the help would have to guess, one line each."""
    options = [action for action in parser._actions if action.dest != "help"]
    found = []
    for action in options:
        name, text = (action.option_strings or [action.dest])[0], (action.help or "").replace("%%", "%")
        if not SENTENCE.fullmatch(text):
            found.append(f"{name}: no sentence, or more than that and a default: {text}")
        if "(default" not in text and "(required)" not in text:
            found.append(f"{name}: no default, and not required: {text}")
        takes_value = not isinstance(action, argparse.BooleanOptionalAction) and not action.choices
        if takes_value and not METAVAR.fullmatch(action.metavar or "") or action.metavar == "TEXT":
            found.append(f"{name}: {action.metavar} does not show the form")
    ungrouped = [a.option_strings[0] for a in parser._optionals._group_actions if a.dest not in ("help", "config")]
    if len(options) > MOST_IN_ONE_LIST and ungrouped:
        found.append(f"{len(options)} options, in no group: {', '.join(ungrouped)}")
    return found


def test_help_can_be_read_alone(parser):
    assert problems(parser) == []


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"help": "of the penalty. (default: none)", "metavar": "N"}, "no sentence"),
        ({"help": "Weight of the penalty (default: )", "metavar": "N"}, "no sentence"),
        ({"help": "Weight of the penalty.", "metavar": "N"}, "no default"),
        ({"help": "Weight of the penalty. (default: 1)", "metavar": "DICT[int]"}, "does not show the form"),
        ({"help": "Weight of the penalty. (default: 1)"}, "does not show the form"),
        ({"help": "Weight of the penalty. (default: 1)", "metavar": "TEXT"}, "does not show the form"),
    ],
)
def test_help_that_cannot_be_read_alone_is_found(settings, complaint):
    parser = argparse.ArgumentParser()
    parser.add_argument("--penalty", **settings)
    assert [complaint in problem for problem in problems(parser)] == [True]
