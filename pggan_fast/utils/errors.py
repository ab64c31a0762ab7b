"""The one exception for mistakes that the person at the keyboard can put right."""


class UserError(ValueError):
    """A message of one line that names the argument, its value and what is allowed.

    The command line prints it without a traceback and leaves with exit code 2.
    """
