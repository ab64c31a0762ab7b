"""The one exception for mistakes that the person at the keyboard can put right."""

import difflib
from collections.abc import Iterable


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
