"""The policy losses by name, TRL's and ours."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from llmrec.errors import InputError
from llmrec.training.policy_losses.base import PolicyLoss
from llmrec.training.policy_losses.ecpo import ECPO
from llmrec.training.policy_losses.rank_grpo import RankGRPO
from llmrec.training.policy_losses.srpo import SRPO

POLICY_LOSSES: dict[str, type[PolicyLoss]] = {"rank_grpo": RankGRPO, "ecpo": ECPO, "srpo": SRPO}
"""Those of ours."""

TRL_POLICY_LOSSES: dict[str, dict[str, str]] = {
    "grpo": {"loss_type": "grpo", "importance_sampling_level": "token"},
    "dr_grpo": {"loss_type": "dr_grpo", "importance_sampling_level": "token"},
    "bnpo": {"loss_type": "bnpo", "importance_sampling_level": "token"},
    "dapo": {"loss_type": "dapo", "importance_sampling_level": "token"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "cispo": {"loss_type": "cispo", "importance_sampling_level": "token"},
    "sapo": {"loss_type": "sapo", "importance_sampling_level": "token"},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "vespo": {"loss_type": "vespo", "importance_sampling_level": "token"},
}
"""Those of TRL, as fields of its ``GRPOConfig``."""


def resolve_policy_loss(name: str, arguments: Mapping[str, Any] | None = None) -> PolicyLoss | dict[str, str]:
    """Return a policy loss of ours, or the fields of ``GRPOConfig`` that stand for one of TRL's.

    Args:
        name: a key of `POLICY_LOSSES` or `TRL_POLICY_LOSSES`.
        arguments: keyword arguments of one of ours; TRL's take theirs from the config.

    Raises:
        InputError: an unknown name or argument, or a value that the loss refuses.
    """
    if name in TRL_POLICY_LOSSES:
        if arguments:
            raise InputError(
                f"policy_loss_args: {name} is TRL's and takes its settings from the config itself (epsilon, "
                f"scale_rewards, ...); move {', '.join(arguments)} there, or name one of {', '.join(POLICY_LOSSES)}"
            )
        return dict(TRL_POLICY_LOSSES[name])
    if name not in POLICY_LOSSES:
        known = [*POLICY_LOSSES, *TRL_POLICY_LOSSES]
        raise InputError(f"policy_loss: unknown loss {name!r}{_nearest(name, known)}; there are {', '.join(known)}")
    known = list(inspect.signature(POLICY_LOSSES[name]).parameters)
    for argument in arguments or {}:
        if argument not in known:
            raise InputError(
                f"policy_loss_args: {name} has no argument {argument!r}{_nearest(argument, known)}; it takes "
                f"{', '.join(known)}"
            )
    return POLICY_LOSSES[name](**(arguments or {}))


def _nearest(name: Any, known: list[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=2)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
