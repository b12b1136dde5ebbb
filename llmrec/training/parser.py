"""YAML and flags into dataclasses, with one clear error for whatever does not fit."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from trl import TrlParser

from llmrec.errors import InputError


def parse_recipe(argv: Sequence[str] | None, *kinds: type) -> tuple[Any, ...]:
    """Parse ``--config FILE`` and flags; a flag wins over the file, and the file over the default.

    Args:
        argv: the command line without the script's name; None takes the process's own.
        kinds: dataclasses whose fields are the keys.

    Returns:
        One instance of each kind.

    Raises:
        InputError: a missing or unreadable file, an unknown key, or a value that its field refuses.
    """
    args = [
        part
        for word in (sys.argv[1:] if argv is None else argv)
        for part in (word.split("=", 1) if word.startswith("--config=") else [word])
    ]
    parser = TrlParser(list(kinds))  # type: ignore[arg-type]
    if "--config" in args:
        place = args.index("--config") + 1
        if place == len(args):
            raise InputError("--config: no file behind it")
        _check_keys(Path(args[place]), known={action.dest for action in parser._actions})
    try:
        *parsed, unknown = parser.parse_args_and_config(args, return_remaining_strings=True)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from error
    if unknown:
        raise InputError(f"unknown flag {unknown[0]!r}; check its spelling (--help lists all)")
    return tuple(parsed)


def _check_keys(path: Path, *, known: set[str]) -> None:
    if not path.is_file():
        raise InputError(f"--config {path}: no such file")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"--config {path}: not readable as YAML ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"--config {path}: expected a mapping of keys to values")
    for key in config:
        if key not in known | {"env"}:
            raise InputError(f"--config {path}: unknown key {key!r}; check its spelling (--help lists all)")
