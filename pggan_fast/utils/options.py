"""Command lines made from dataclasses: one field, one option, one line of help, one place for its bounds."""

from __future__ import annotations

import argparse
import dataclasses
import math
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pggan_fast.utils.curve import FORM, Curve, is_curve, number_or_curve
from pggan_fast.utils.errors import UserError, nearest

Config = TypeVar("Config")
REQUIRED = object()
LARGEST = 1 << 63  # of whole numbers, and of what they are used for

METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
ALLOWED = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", Path: "a path"}


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Bounds of an option's number: from `min` to `max`, greater than `above`, less than `below`."""

    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None
    power_of_two: bool = False

    def allow(self, value: float) -> bool:
        """Return whether `value`, a finite number, is within them."""
        return (
            (self.min is None or value >= self.min)
            and (self.max is None or value <= self.max)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (not self.power_of_two or (value > 0 and value & (value - 1) == 0))
        )

    def __str__(self) -> str:
        parts = ["a power of two,"] if self.power_of_two else []
        if self.above is not None:
            parts.append(f"above {_plain(self.above)}")
        if self.min is not None:
            parts.append(
                f"from {_plain(self.min)}" if (self.max, self.below) != (None, None) else f"{_plain(self.min)} or more"
            )
        if self.max is not None:
            parts.append(f"to {_plain(self.max)}" if self.min is not None else f"and at most {_plain(self.max)}")
        if self.below is not None:
            parts.append(f"{'and' if self.above is not None else 'to'} below {_plain(self.below)}")
        return " ".join(parts)


def _plain(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


RESOLUTIONS = Bounds(min=4, max=1024, power_of_two=True)
"""Bounds of the resolutions in a table: those that networks grow through."""


def option(
    default: Any = REQUIRED,
    *,
    help: str,
    choices: Sequence[Any] | None = None,
    parse: Callable[[str], Any] | None = None,
    changeable: bool = False,
    group: str | None = None,
    metavar: str | None = None,
    min: float | None = None,
    max: float | None = None,
    above: float | None = None,
    below: float | None = None,
    power_of_two: bool = False,
    curve: bool = False,
) -> Any:
    """A dataclass field that is also an option of the command line.

    `parse` reads its text (default: by the field's type); `changeable` settings may differ when a run is resumed;
    `group` is the heading in the help that it and the fields after it stand under. Numbers must be finite and within
    the bounds `min` to `max`, greater than `above` and less than `below`; of a table every value must be. With `curve`
    the text of a `Curve` is allowed too, with both its ends within the bounds.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "parse": parse,
        "changeable": changeable,
        "group": group,
        "metavar": metavar,
        "bounds": Bounds(min, max, above, below, power_of_two),
        "curve": curve,
    }
    if default is REQUIRED:
        return dataclasses.field(metadata=metadata)
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def flag(name: str) -> str:
    """Return the option of the field `name`; a last underscore, of a name that Python has taken, is no part of it."""
    return "--" + name.rstrip("_").replace("_", "-")


def check_options(config: Any) -> None:
    """Raise UserError, naming the option, for a value of the wrong type, out of its bounds or not among its choices.

    Whatever made `config`, a command line, a file or code, this is where its values are checked one by one.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is None and may_be_none(hints[field.name]):
            continue
        if problem := find_problem(value, hints[field.name], field):
            raise UserError(f"{flag(field.name)} {shown_value(value)}: must be {problem}")


def shown_value(value: Any) -> str:
    """Return `value` for a message: a table as the command line takes it, and the beginning of what is long."""
    text = str(table_text(value) if isinstance(value, dict) else value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def find_problem(value: Any, hint: Any, field: dataclasses.Field) -> str | None:
    """Return what the value of `field`, whose type is `hint`, must be, or None if it is that."""
    kind = plain_type(hint)
    if field.metadata["curve"] and is_curve(value):
        return _problem_of_curve(value, field)
    if kind is dict:
        keys, values = typing.get_args(without_none(hint))
        if not isinstance(value, dict) or not value:
            return "a table of numbers by resolution"
        if not all(_is_a(key, keys) and RESOLUTIONS.allow(key) for key in value):
            return f"a table whose resolutions are {RESOLUTIONS}"
        return next((found for item in value.values() if (found := _problem_of_number(item, values, field))), None)
    if kind in (int, float):
        return _problem_of_number(value, kind, field)
    if not _is_a(value, kind):
        return ALLOWED[kind]
    if kind in (str, Path) and "\0" in str(value):
        return f"{ALLOWED[kind]} without NUL"
    return _problem_of_choice(value, field)


def _problem_of_number(value: Any, kind: type, field: dataclasses.Field) -> str | None:
    bounds = field.metadata["bounds"]
    if _is_a_whole_number(value) and abs(value) > LARGEST:
        return str(bounds) or "from -2**63 to 2**63"
    if not _is_a(value, kind) or not math.isfinite(value):
        return f"{ALLOWED[kind]}{f', {bounds}' if str(bounds) else ''}"
    return _problem_of_choice(value, field) if bounds.allow(value) else str(bounds)


def _problem_of_curve(value: str, field: dataclasses.Field) -> str | None:
    try:
        curve = Curve.parse(value)
    except ValueError:
        return FORM
    ends = (_problem_of_number(end, float, field) for end in (curve.start, curve.end))
    return next((f"{found} at both ends" for found in ends if found), None)


def _problem_of_choice(value: Any, field: dataclasses.Field) -> str | None:
    choices = field.metadata["choices"]
    return f"one of {', '.join(map(str, choices))}" if choices and value not in choices else None


def _is_a_whole_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_a(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if kind in (int, float) and isinstance(value, int):
        return abs(value) <= LARGEST
    return isinstance(value, (kind, str) if kind is Path else kind)


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, full option names only, and a guess at what was meant."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.usage = f"{self.prog} [options]"

    def error(self, message: str) -> NoReturn:
        named = message.removeprefix("argument ")
        if named != message:  # argparse's "--seed: x: must be ..." in the form of every other error
            name, _, problem = named.partition(": ")
            named = f"{name} {problem}" if ": must be " in problem else f"{name}: {problem}"
        raise UserError(named)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            guess = nearest(str(value), map(str, action.choices))
            allowed = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(action, f"{shown_value(value)}: must be one of {allowed}{guess}")

    def parse_strictly(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse all of `arguments`. Raises UserError for an option that does not exist."""
        parsed, unknown = self.parse_known_args(arguments)
        if unknown:
            named = [name for action in self._actions for name in action.option_strings]
            guess = nearest(unknown[0].split("=")[0], named) or f"; see {self.prog} --help"
            raise UserError(f"unknown option {unknown[0]}{guess}")
        return parsed

    def add_config(self, config: type) -> None:
        """Add one option per field of the dataclass `config`; those left out are absent afterwards."""
        hints = typing.get_type_hints(config)
        group: Any = self
        required = []
        for field in dataclasses.fields(config):
            if field.metadata["group"]:
                group = self.add_argument_group(field.metadata["group"])
            settings: dict[str, Any] = {
                "dest": field.name,
                "default": argparse.SUPPRESS,
                "help": field.metadata["help"] + _default_text(field),
            }
            kind = plain_type(hints[field.name])
            if kind is bool:
                settings["action"] = argparse.BooleanOptionalAction
            else:
                parse = field.metadata["parse"] or (_path if kind is Path else kind)
                settings["type"] = _reporting(number_or_curve(parse) if field.metadata["curve"] else parse)
                settings["choices"] = field.metadata["choices"]
                if not field.metadata["choices"]:
                    settings["metavar"] = metavar_of(field, kind)
            group.add_argument(flag(field.name), **settings)
            if is_required(field):
                shown = settings.get("metavar") or "{" + ",".join(map(str, field.metadata["choices"])) + "}"
                required.append(f"{flag(field.name)} {shown}")
        self.usage = " ".join([self.prog, *required, "[options]"])


def from_options(config: type[Config], given: dict[str, Any]) -> Config:
    """Return `config` made from the options given. Raises UserError naming one that is missing or out of bounds."""
    for field in dataclasses.fields(config):
        if is_required(field) and field.name not in given:
            raise UserError(f"{flag(field.name)} is missing: {field.metadata['help']}")
    names = {field.name for field in dataclasses.fields(config)}
    made = config(**{name: value for name, value in given.items() if name in names})
    check_options(made)
    return made


def to_json(config: Any) -> dict[str, Any]:
    """Return the fields as plain JSON values."""
    plain = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Path):
            value = str(value.absolute())
        plain[field.name] = value
    return plain


def from_json(config: type[Config], plain: dict[str, Any]) -> Config:
    """Return what `to_json` was given. Raises UserError for names that `config` does not have, and for wrong values."""
    hints = typing.get_type_hints(config)
    unknown = set(plain) - set(hints)
    if unknown:
        raise UserError(f"unknown setting {sorted(unknown)[0]}")
    values = {}
    for field in dataclasses.fields(config):
        if field.name not in plain:
            if is_required(field):
                raise UserError(f"setting {field.name} is missing")
            continue
        value, kind = plain[field.name], plain_type(hints[field.name])
        if kind is Path and isinstance(value, str):
            value = Path(value)
        elif kind is dict and isinstance(value, dict):
            value = {str(key): item for key, item in value.items()}  # as JSON has them
            value = {int(key) if len(key) < 10 and key.isdecimal() else key: item for key, item in value.items()}
        values[field.name] = value
    made = config(**values)
    check_options(made)
    return made


def table(kind: type) -> Callable[[str], dict[int, Any]]:
    """Return a reader of "16" (everywhere) or "4:128,32:64" (from a resolution on) as {resolution: value}."""

    def parse(text: str) -> dict[int, Any]:
        if ":" not in text:
            return {4: kind(text)}
        pairs = [entry.split(":") for entry in text.split(",")]
        read = {int(resolution): kind(value) for resolution, value in pairs}
        if len(read) < len(pairs):
            raise ValueError  # a resolution twice
        return read

    parse.__name__ = "NUMBER or RESOLUTION:NUMBER,... with each resolution once"
    return parse


def table_text(values: dict[int, Any]) -> str:
    """Return a table in the form that the command line takes."""
    return ",".join(f"{resolution}:{value}" for resolution, value in values.items())


def _reporting(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return `parse` with an error that says what is allowed; argparse puts the option before it."""

    def parse_or_explain(text: str) -> Any:
        try:
            return parse(text)
        except ValueError:
            allowed = {int: "a whole number", float: "a number"}.get(parse)
            raise argparse.ArgumentTypeError(f"{shown_value(text)}: must be {allowed or parse.__name__}") from None

    return parse_or_explain


def _path(text: str) -> Path:
    """Return a path; an empty text, of a variable that is not set, would be the current folder."""
    if not text:
        raise ValueError
    return Path(text)


_path.__name__ = "a path, it is empty"


def without_none(hint: Any) -> Any:
    """Return `int` for `int | None`."""
    if isinstance(hint, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


def may_be_none(hint: Any) -> bool:
    """Return whether None is among the values of a type."""
    return isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint)


def plain_type(hint: Any) -> type:
    """Return `int` for `int | None`, `dict` for `dict[int, float]`."""
    hint = without_none(hint)
    return typing.get_origin(hint) or hint


def is_required(field: dataclasses.Field) -> bool:
    """Return whether `field` has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def default_of(field: dataclasses.Field) -> Any:
    """Return the default of a field that has one."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def metavar_of(field: dataclasses.Field, kind: type) -> str:
    """Return the form of an option's value, whose type is `kind`, for help."""
    metavar = field.metadata["metavar"] or METAVARS.get(kind) or "RES:N,..."
    return f"{metavar}|CURVE" if field.metadata["curve"] else metavar


def _default_text(field: dataclasses.Field) -> str:
    """Return the default in brackets, unless the help names it itself."""
    if "(default" in field.metadata["help"]:
        return ""
    if is_required(field):
        return " (required)"
    if field.default_factory is not dataclasses.MISSING:
        return f" (default: {table_text(field.default_factory())})"
    if isinstance(field.default, bool):
        return f" (default: {'on' if field.default else 'off'})"
    return f" (default: {'none' if field.default in (None, '') else field.default})"
