"""Shapes of values that come from files, declared once and checked before anything is done with them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pggan_fast.utils.errors import UserError
from pggan_fast.utils.regular_file import irregular_kind

LARGEST = 1 << 63  # of whole numbers: beyond it they do not fit what they are used for
SHOWN = 60  # characters of a value in a message

# A class; a list [schema] for lists of it; a dict of schemas by name; a function that returns a problem or None.
Schema = Any


class Optional:
    """A member of a dict that may be missing."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema


class OneOf:
    """Any of several schemas; None stands for the value None."""

    def __init__(self, *schemas: Schema) -> None:
        self.schemas = schemas


class Each:
    """A dict with keys of one class and values of one schema, besides the `named` ones."""

    def __init__(self, keys: type, values: Schema, named: dict[str, Schema] | None = None) -> None:
        self.keys, self.values, self.named = keys, values, named or {}


def find_problem(value: Any, schema: Schema, where: str = "") -> str | None:
    """Return what is wrong with `value` in one line, None if it has the shape that `schema` declares."""
    if isinstance(schema, dict):
        return _problem_of_members(value, schema, where)
    if isinstance(schema, list):
        if not isinstance(value, (list, tuple)):
            return _wrong(where, value, "a list")
        return _first(find_problem(item, schema[0], f"{where}[{index}]") for index, item in enumerate(value))
    if isinstance(schema, OneOf):
        problems = [find_problem(value, each, where) for each in schema.schemas]
        return None if None in problems else problems[0]
    if isinstance(schema, Each):
        return _problem_of_members(value, schema.named, where) or _first(
            _wrong(where, key, f"keys of type {schema.keys.__name__}")
            if not isinstance(key, schema.keys) or isinstance(key, bool)
            else find_problem(item, schema.values, _join(where, key))
            for key, item in value.items()
            if key not in schema.named
        )
    if schema is None:
        return None if value is None else _wrong(where, value, "null")
    if schema is Any:
        return None
    if isinstance(schema, type):
        return _problem_of_type(value, schema, where)
    problem = schema(value)
    return problem and _wrong(where, value, problem)


def number(least: float = -math.inf, most: float = math.inf, *, whole: bool = False) -> Callable[[Any], str | None]:
    """Return a schema for numbers from `least` to `most`; NaN is none of them."""
    kinds = int if whole else (int, float)
    allowed = "a whole number" if whole else "a number"
    if math.isfinite(least):
        allowed += f" from {least:g}" if math.isfinite(most) else f", {least:g} or more"
    if math.isfinite(most):
        allowed += f" to {most:g}"

    def problem(value: Any) -> str | None:
        fits = isinstance(value, kinds) and not isinstance(value, bool) and abs(value) <= LARGEST
        return None if fits and least <= value <= most else allowed

    return problem


def any_number(value: Any) -> str | None:
    """A schema for every number, NaN and infinity among them."""
    fits = isinstance(value, float) or (isinstance(value, int) and abs(value) <= LARGEST)
    return None if fits and not isinstance(value, bool) else "a number"


def read_json(path: Path, schema: Schema) -> Any:
    """Return what the JSON file `path` holds. Raises UserError if that is not JSON of the shape `schema`.

    Errors of the system, a missing file among them, pass.
    """
    if kind := irregular_kind(path):
        raise UserError(f"{path}: is damaged ({kind}, must be a file)")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is damaged (no JSON: {_one_line(error)})") from error
    if problem := find_problem(value, schema):
        raise UserError(f"{path}: is damaged ({problem})")
    return value


def _problem_of_members(value: Any, schema: dict[str, Schema], where: str) -> str | None:
    if not isinstance(value, dict):
        return _wrong(where, value, "an object with names")
    for name, member in schema.items():
        if name not in value:
            if isinstance(member, Optional):
                continue
            return f"{_join(where, name)} is missing"
        member = member.schema if isinstance(member, Optional) else member
        if problem := find_problem(value[name], member, _join(where, name)):
            return problem
    return None


def _problem_of_type(value: Any, kind: type, where: str) -> str | None:
    names = {str: "text", bool: "true or false", int: "a whole number", float: "a finite number", dict: "an object"}
    allowed = names.get(kind, f"a {kind.__name__}")
    if kind is float:
        fits = isinstance(value, (int, float)) and abs(value) <= LARGEST
    elif kind is int:
        fits = isinstance(value, int) and abs(value) <= LARGEST
    else:
        fits = isinstance(value, kind)
    if isinstance(value, bool) and kind is not bool:
        fits = False
    if kind is str and fits and not is_printable_text(value):
        fits, allowed = False, "text without NUL and lone surrogates"
    return None if fits else _wrong(where, value, allowed)


def is_printable_text(text: str) -> bool:
    """Return whether `text` can be a name and be written as UTF-8; JSON can hold halves of characters, which cannot."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _join(where: str, name: Any) -> str:
    return f"{where}.{name}" if where else str(name)


def _wrong(where: str, value: Any, allowed: str) -> str:
    shown = f"{type(value).__name__} {value!r}" if not isinstance(value, (dict, list)) else type(value).__name__
    shown = " ".join(shown.split())
    shown = shown if len(shown) <= SHOWN else shown[:SHOWN] + "..."
    return f"{where or 'it'} is {shown}, must be {allowed}"


def _first(problems: Any) -> str | None:
    return next((problem for problem in problems if problem), None)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
