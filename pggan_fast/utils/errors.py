"""The one exception for mistakes that the person at the keyboard can put right."""


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
