"""The objectives by name, and how a recipe's settings become one."""

import inspect
from collections.abc import Mapping
from typing import Any

from llmrec.errors import InputError
from llmrec.registry import resolve
from llmrec.training.objectives.apao import apao
from llmrec.training.objectives.base import Objective, ObjectiveContext, ObjectiveFactory
from llmrec.training.objectives.cross_entropy import cross_entropy
from llmrec.training.objectives.legal_children import legal_children
from llmrec.training.objectives.level_smoothing import level_smoothing

OBJECTIVES: dict[str, ObjectiveFactory] = {
    "cross_entropy": cross_entropy,
    "apao": apao,
    "legal_children": legal_children,
    "level_smoothing": level_smoothing,
}


def check_objective(name: str, arguments: Mapping[str, Any] | None) -> ObjectiveFactory:
    """Return the factory of an objective whose arguments have names that it knows.

    Args:
        name: a key of `OBJECTIVES`, or ``package.module:attribute``, a factory of the same form.
        arguments: of the factory, by name.

    Raises:
        InputError: an unknown name or argument, or one that is missing.
    """
    factory = resolve(name, OBJECTIVES, "objective")
    known = {
        key: parameter
        for key, parameter in inspect.signature(factory).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for key in arguments or {}:
        if key not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise InputError(f"objective_args: objective {name} has no argument {key!r}; {takes}")
    for key, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and key not in (arguments or {}):
            raise InputError(f"objective_args: objective {name} needs {key!r}; add it")
    return factory


def build_objective(name: str, arguments: Mapping[str, Any] | None, *, context: ObjectiveContext) -> Objective:
    """Return the objective of a recipe.

    Args:
        name: as `check_objective` takes it.
        arguments: of the objective, by name.
        context: what it is built from.

    Raises:
        InputError: as `check_objective` says, or a value that the objective refuses.
    """
    return check_objective(name, arguments)(context, **(arguments or {}))
