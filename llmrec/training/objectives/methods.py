"""The objectives by name, and how a recipe's settings become one."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llmrec.errors import InputError
from llmrec.registry import resolve
from llmrec.training.config import RecipeArguments, parse_mapping
from llmrec.training.labelled import Head, Labelled
from llmrec.training.objectives.apao import apao
from llmrec.training.objectives.base import Objective, ObjectiveContext, ObjectiveFactory
from llmrec.training.objectives.cross_entropy import cross_entropy, negative_log_likelihood
from llmrec.training.objectives.distillation import distillation
from llmrec.training.objectives.legal_children import legal_children
from llmrec.training.objectives.level_smoothing import level_smoothing
from llmrec.vocab import SIDVocab

OBJECTIVES: dict[str, ObjectiveFactory] = {
    "cross_entropy": cross_entropy,
    "apao": apao,
    "legal_children": legal_children,
    "level_smoothing": level_smoothing,
    "distillation": distillation,
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
    """Return the objective of a recipe; where no gradient is kept, in an evaluation, it is cross-entropy.

    So the held-out loss means the same under every objective.

    Args:
        name: as `check_objective` takes it.
        arguments: of the objective, by name.
        context: what it is built from.

    Raises:
        InputError: as `check_objective` says, or a value that the objective refuses.
    """
    chosen = check_objective(name, arguments)(context, **(arguments or {}))

    def objective(labelled: Labelled, head: Head) -> Tensor:
        return chosen(labelled, head) if torch.is_grad_enabled() else negative_log_likelihood(labelled, head)

    return objective


def objective_of(
    arguments: RecipeArguments,
    vocab: SIDVocab,
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: torch.device | str = "cpu",
    protocol: str | None = None,
) -> Objective:
    """Return the objective that a recipe's arguments name.

    Args:
        arguments: ``objective`` and ``objective_args``.
        vocab: the SIDs.
        tokenizer: of the model that trains.
        device: where it trains.
        protocol: by which its rows are split.

    Raises:
        InputError: as `build_objective` says.
    """
    given = parse_mapping(arguments.objective_args, "objective_args")
    return build_objective(arguments.objective, given, context=ObjectiveContext(vocab, tokenizer, device, protocol))
