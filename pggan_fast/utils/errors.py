"""The one exception for mistakes that the person at the keyboard can put right."""

import difflib
import os
from collections.abc import Iterable, Sequence
from itertools import pairwise


class UserError(ValueError):
    """A message of one line that names the argument, its value and what is allowed.

    The command line prints it without a traceback and leaves with exit code 2.
    """


def reason_of(error: BaseException) -> str:
    """Return why in one line: the system's reason, for which some libraries raise an error of their own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split())[:160] or type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean KNOWN?" for the name most like `name`, the empty text if none is like it."""
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


def line_of(error: OSError, arguments: Sequence[str]) -> str:
    """Return the line for a fault of the system: the argument whose path it is about, its value and the reason.

    `arguments` are those of the command line. Of a full disk the system may not name the file: then it is --out's.
    """
    if error.errno is None or not error.strerror:
        return str(error)  # of a reader of ours, which names the argument itself
    pairs = [*pairwise(arguments), *(argument.split("=", 1) for argument in arguments if "=" in argument)]
    given = sorted(
        ([flag, value] for flag, value in pairs if flag.startswith("--")), key=lambda each: each[0] != "--out"
    )
    if not isinstance(error.filename, (str, os.PathLike)):
        value = next((value for flag, value in given if flag == "--out"), None)
        return error.strerror if value is None else f"--out {value}: cannot be written ({error.strerror})"
    place = os.path.abspath(error.filename)
    for is_its in (
        lambda path: path == place,
        lambda path: place.startswith(path + os.sep),  # a file in the folder that was given
        lambda path: path.startswith(place + os.sep),  # a folder that its path leads through
    ):
        for flag, value in given:
            if is_its(os.path.abspath(value)):
                where = "" if os.path.abspath(value) == place else f", {error.filename}"
                return f"{flag} {value}: cannot be used ({error.strerror}{where})"
    return f"{error.filename}: cannot be used ({error.strerror})"
