"""Files of settings: read for `--config`, and written with every default for `pggan-fast config`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import typing
from pathlib import Path
from typing import Any

from pggan_fast.utils.errors import UserError, nearest
from pggan_fast.utils.optional import require
from pggan_fast.utils.options import (
    LARGEST,
    Parser,
    default_of,
    find_problem,
    is_required,
    may_be_none,
    metavar_of,
    plain_type,
    shown_value,
    without_none,
)
from pggan_fast.utils.regular_file import irregular_kind

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_BYTES = 1 << 20
FORMATS = ("toml", "yaml")
SUFFIXES = {".toml": "TOML", ".yaml": "YAML", ".yml": "YAML", ".json": "JSON"}
WHOLE, NUMBER = re.compile(r"[-+]?[0-9]+"), re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
PLAIN_TAG = re.compile(r"tag:yaml\.org,2002:[a-z]+")
WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def add_config_option(parser: Parser) -> None:
    """Give a command's parser the option `--config`."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="Settings from a .toml or .yaml file or a run's config.json; other options take precedence over it."
        " `pggan-fast config` prints one with every default. (default: none)",
    )


def with_settings_file(parser: Parser, config: type, given: dict[str, Any]) -> dict[str, Any]:
    """Return `given`, the options of a command line, over the settings of the file that its `--config` names."""
    given = dict(given)
    path = given.pop("config", None)
    return given if path is None else {**read_settings(path, parser, config), **given}


def read_settings(path: Path, parser: Parser, config: type) -> dict[str, Any]:
    """Return the settings in `path`, by the names of `config`'s fields and of the parser's other options.

    A name is that of the option, with - or _. Text is read as on the command line. Raises UserError, which names the
    file, for a name that is no option, with the nearest that is one, and for what the command line would refuse.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    hints = typing.get_type_hints(config)
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    names = {name.rstrip("_"): name for name in actions}
    settings: dict[str, Any] = {}
    for key, value in _read(path).items():
        name = names.get(str(key).replace("-", "_"))
        if name is None:
            guess = nearest(str(key).replace("-", "_"), names) or f"; see {parser.prog} --help"
            raise UserError(f"--config {path}: unknown setting {str(key)[:80]}{guess}")
        if name in settings:
            raise UserError(f"--config {path}: {key} is there twice, with - and with _")
        try:
            settings[name] = _converted(value, hints.get(name, str), actions[name])
        except argparse.ArgumentTypeError as error:
            raise UserError(f"--config {path}: {key} {error}") from None
        if name in fields:
            if settings[name] is None and may_be_none(hints[name]):
                continue
            problem = find_problem(settings[name], hints[name], fields[name])
        else:
            problem = _problem_of_other(settings[name], actions[name])
        if problem:
            raise UserError(f"--config {path}: {key} {shown_value(value)}: must be {problem}")
    return settings


def settings_text(command: str, config: type, style: str) -> str:
    """Return a commented file in `style`, one of FORMATS, with every setting of `pggan-fast COMMAND` at its default.

    Those that must be given, and those whose default is none, stand in comments.
    """
    hints = typing.get_type_hints(config)
    lines = [
        f"# Settings of pggan-fast {command}, all at their defaults: pggan-fast {command} --config FILE.",
        "# Options of the command line take precedence. Paths are relative to where the command is run.",
    ]
    for field in dataclasses.fields(config):
        if field.metadata["group"]:
            lines += ["", f"# ---- {field.metadata['group']}"]
        kind = plain_type(hints[field.name])
        default = None if is_required(field) else default_of(field)
        shown = metavar_of(field, kind)
        choices = field.metadata["choices"]
        allowed = f"one of: {', '.join(map(str, choices))}" if choices else str(field.metadata["bounds"])
        allowed = f" ({'required, ' if is_required(field) else ''}{allowed})".replace(", )", ")").replace(" ()", "")
        lines += ["", f"# {field.metadata['help']}{allowed}"]
        name = field.name.rstrip("_")
        if default is None:
            shown = "true" if kind is bool else choices[0] if choices else shown
            lines.append(f"# {name}{' = ' if style == 'toml' else ': '}{shown}")
        else:
            lines.append(f"{name}{' = ' if style == 'toml' else ': '}{_literal(default, style)}")
    return "\n".join(lines)


def _converted(value: Any, hint: Any, action: argparse.Action) -> Any:
    """Return a value of a file as the command line has it. Raises argparse.ArgumentTypeError for text that is none."""
    kind = plain_type(hint)
    if isinstance(value, str):
        return WORDS.get(value.lower(), value) if kind is bool else action.type(value) if action.type else value
    if kind is dict:
        if isinstance(value, dict):  # by resolution, whose keys are text in TOML and JSON
            texts = {str(key): _number(item, typing.get_args(without_none(hint))[1]) for key, item in value.items()}
            return {int(key) if len(key) < 10 and key.isdecimal() else key: item for key, item in texts.items()}
        return value if value is None else {4: _number(value, typing.get_args(without_none(hint))[1])}
    if kind in (str, Path) and isinstance(value, int) and not isinstance(value, bool):
        return action.type(str(value))  # a class or a folder whose name is a number
    return _number(value, kind)


def _number(value: Any, kind: Any) -> Any:
    """Return a whole number as a float where that is what is asked for, anything else as it is."""
    is_whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST
    return float(value) if kind is float and is_whole else value


def _problem_of_other(value: Any, action: argparse.Action) -> str | None:
    """Return what is wrong with the value of an option that is no field of the command's dataclass."""
    if action.choices is not None:
        return None if value in action.choices else f"one of {', '.join(map(str, action.choices))}"
    return None if isinstance(value, (str, Path)) else "a path"


def _literal(value: Any, style: str) -> str:
    if isinstance(value, dict):
        sign = " = " if style == "toml" else ": "
        return "{" + ", ".join(f"{key}{sign}{_literal(item, style)}" for key, item in value.items()) + "}"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)


def _read(path: Path) -> dict[Any, Any]:
    """Return the settings in a file, those of a run in its config.json."""
    if path.is_dir():
        path = path / "config.json"
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"--config {path}: must end in {', '.join(SUFFIXES)}")
    if irregular := irregular_kind(path):
        raise UserError(f"--config {path}: is {irregular}, must be a file")
    try:
        with path.open("rb") as file:
            contents = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"--config {path}: no such file") from None
    if len(contents) > MOST_BYTES:
        raise UserError(f"--config {path}: has more than {MOST_BYTES >> 20} MiB, which no file of settings has")
    if kind == "YAML":
        require("yaml", extra="yaml", what=f"--config {path}")
    try:
        read = {"TOML": tomllib.loads, "YAML": _read_yaml, "JSON": _read_json}[kind](contents.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"--config {path}: is no {kind} ({reason})") from error
    if read is None:
        return {}
    if kind == "JSON" and isinstance(read, dict) and isinstance(read.get("settings"), dict):
        read = read["settings"]
    if not isinstance(read, dict):
        raise UserError(f"--config {path}: must be a table of settings, is {type(read).__name__}")
    return read


def _read_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_without_repeats)


def _without_repeats(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    table: dict[Any, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"{str(key)[:80]} is there twice")
        table[key] = value
    return table


def _read_yaml(text: str) -> Any:
    """Read YAML 1.2's plain values: 4:32 and 2026-01-01 are text, 1e-3 is a number, and there are no aliases.

    YAML 1.1, which PyYAML reads, has 4:32 as 272; an alias could make a short file endless.
    """
    import yaml

    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"line {event.start_mark.line + 1}: *{event.anchor[:80]}, aliases are not read")
        nodes = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
        if len(nodes) > 1:
            raise ValueError("more than one document")
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    return _plain(nodes[0]) if nodes else None


def _plain(node: Any) -> Any:
    import yaml

    if not PLAIN_TAG.fullmatch(node.tag):
        raise ValueError(f"line {node.start_mark.line + 1}: tags such as {node.tag[:80]} are not read")
    if isinstance(node, yaml.MappingNode):
        return _without_repeats([(_key(key), _plain(value)) for key, value in node.value])
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    if node.style in ("'", '"', "|", ">"):
        return node.value
    return _scalar(node.value)


def _key(node: Any) -> Any:
    key = _plain(node)
    if isinstance(key, (dict, list)):
        raise ValueError(f"line {node.start_mark.line + 1}: a name must be text")
    return key


def _scalar(text: str) -> Any:
    """Return the value of plain text in YAML 1.2's core schema."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if WHOLE.fullmatch(text):
        return int(text)
    return float(text) if NUMBER.fullmatch(text) else text
