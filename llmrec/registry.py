"""Find a function or class by its name in a literal table, or by ``package.module:attribute``."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from llmrec.errors import InputError


def resolve(name: str, table: Mapping[str, Any], kind: str) -> Any:
    """Return what ``name`` stands for.

    Args:
        name: a key of ``table``, or ``"package.module:attribute"`` for code of the user's own.
        table: the literal dict that ends the family, such as `SID_TOKENIZERS`.
        kind: what the family holds, for the error message ("SID tokenizer", "task").

    Returns:
        The table's value, or the imported attribute.

    Raises:
        InputError: the name is neither in the table nor an attribute that can be imported.
    """
    if name in table:
        return table[name]
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise InputError(
            f"unknown {kind} {name!r}: choose one of {', '.join(sorted(table))}, or name your own as "
            "'package.module:attribute'"
        )
    try:
        return getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"{kind} {name!r} cannot be imported ({error}): check the spelling and that the module is on PYTHONPATH"
        ) from error
