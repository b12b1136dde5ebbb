"""The one error a user meets, and the one place where a command turns it into a line."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Bad input: the message names the file, row or field, the value found, and the remedy."""


def run_command(main: Callable[[], None]) -> None:
    """Run a command's ``main``; an `InputError` becomes one line on stderr and exit status 2, not a traceback.

    Args:
        main: the command, without arguments.

    Raises:
        SystemExit: with status 2 after an `InputError`.
    """
    try:
        main()
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
