"""Checks of the options that several tasks take."""

from typing import Any

from llmrec.errors import InputError
from llmrec.sids.argument_checks import check_whole


def check_least(task: str, *, least: int = 1, **numbers: Any) -> None:
    """Raise when an option of a task is no whole number of at least ``least``.

    Args:
        task: its name.
        least: the smallest value allowed.
        numbers: values by option name.

    Raises:
        InputError: it names task, option and value.
    """
    check_whole(f"task {task!r}", **numbers)
    for name, value in numbers.items():
        if value < least:
            raise InputError(f"task {task!r}: {name} {value}; at least {least}")
