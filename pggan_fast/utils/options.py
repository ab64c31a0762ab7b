"""Command lines made from dataclasses: one field, one option, one line of help."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pggan_fast.utils.errors import UserError

Config = TypeVar("Config")
REQUIRED = object()


def option(
    default: Any = REQUIRED,
    *,
    help: str,
    choices: Sequence[Any] | None = None,
    parse: Callable[[str], Any] | None = None,
    changeable: bool = False,
) -> Any:
    """A dataclass field that is also an option of the command line.

    `parse` reads its text (default: by the field's type); `changeable` settings may differ when a
    run goes on.
    """
    metadata = {"help": help, "choices": choices, "parse": parse, "changeable": changeable}
    if default is REQUIRED:
        return dataclasses.field(metadata=metadata)
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def flag(name: str) -> str:
    """The option of the field `name`; a last underscore, of a name that Python has taken, is not part of it."""
    return "--" + name.rstrip("_").replace("_", "-")


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, full option names only, and a guess at what was meant."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def parse_strictly(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse all of `arguments`. Raises UserError for an option that does not exist."""
        parsed, unknown = self.parse_known_args(arguments)
        if unknown:
            named = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], named, n=1)
            guess = f"; did you mean {near[0]}?" if near else f"; see {self.prog} --help"
            raise UserError(f"unknown option {unknown[0]}{guess}")
        return parsed

    def add_config(self, config: type) -> None:
        """One option per field of the dataclass `config`; left out ones are absent afterwards."""
        hints = typing.get_type_hints(config)
        for field in dataclasses.fields(config):
            settings: dict[str, Any] = {
                "dest": field.name,
                "default": argparse.SUPPRESS,
                "help": field.metadata["help"] + _default_text(field),
            }
            kind = _plain_type(hints[field.name])
            if kind is bool:
                settings["action"] = argparse.BooleanOptionalAction
            else:
                settings["type"] = _reporting(field.metadata["parse"] or (_path if kind is Path else kind))
                settings["choices"] = field.metadata["choices"]
                if not field.metadata["choices"]:
                    settings["metavar"] = kind.__name__.upper()
            self.add_argument(flag(field.name), **settings)


def from_options(config: type[Config], given: dict[str, Any]) -> Config:
    """`config` from the options given. Raises UserError naming a required one that is missing."""
    for field in dataclasses.fields(config):
        if _required(field) and field.name not in given:
            raise UserError(f"{flag(field.name)} is missing: {field.metadata['help']}")
    names = {field.name for field in dataclasses.fields(config)}
    return config(**{name: value for name, value in given.items() if name in names})


def to_json(config: Any) -> dict[str, Any]:
    """The fields as plain JSON values."""
    plain = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Path):
            value = str(value.absolute())
        plain[field.name] = value
    return plain


def from_json(config: type[Config], plain: dict[str, Any]) -> Config:
    """What `to_json` was given. Raises UserError for names that `config` does not have."""
    hints = typing.get_type_hints(config)
    unknown = set(plain) - set(hints)
    if unknown:
        raise UserError(f"unknown setting {sorted(unknown)[0]}")
    values = {}
    for name, value in plain.items():
        kind = _plain_type(hints[name])
        if kind is Path and value is not None:
            value = Path(value)
        elif isinstance(value, dict):
            value = {int(key): item for key, item in value.items()}
        values[name] = value
    return config(**values)


def table(kind: type) -> Callable[[str], dict[int, Any]]:
    """Reads "16" (everywhere) or "4:128,32:64" (from a resolution on) into {resolution: value}."""

    def parse(text: str) -> dict[int, Any]:
        if ":" not in text:
            return {4: kind(text)}
        pairs = (entry.split(":") for entry in text.split(","))
        return {int(resolution): kind(value) for resolution, value in pairs}

    parse.__name__ = "NUMBER or RESOLUTION:NUMBER,..."
    return parse


def table_text(values: dict[int, Any]) -> str:
    return ",".join(f"{resolution}:{value}" for resolution, value in values.items())


def _reporting(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """`parse` with an error that says what is allowed; argparse puts the option before it."""

    def parse_or_explain(text: str) -> Any:
        try:
            return parse(text)
        except ValueError:
            allowed = {"int": "a whole number", "float": "a number"}.get(parse.__name__)
            raise argparse.ArgumentTypeError(f"{text}: must be {allowed or parse.__name__}") from None

    return parse_or_explain


def _path(text: str) -> Path:
    """Return a path; an empty text, of a variable that is not set, would be the current folder."""
    if not text:
        raise ValueError
    return Path(text)


_path.__name__ = "a path, it is empty"


def _plain_type(hint: Any) -> type:
    """`int` of `int | None`, `dict` of `dict[int, float]`."""
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return typing.get_origin(hint) or hint


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _default_text(field: dataclasses.Field) -> str:
    if _required(field):
        return " (required)"
    if field.default_factory is not dataclasses.MISSING:
        return f" (default {table_text(field.default_factory())})"
    if field.default is None or field.default is False:
        return ""
    return f" (default {field.default})"
