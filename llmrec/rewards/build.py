"""From the ``rewards`` of a YAML to checked functions and their weights."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from llmrec.errors import InputError
from llmrec.registry import resolve
from llmrec.rewards import REWARDS
from llmrec.rewards.checks import checked
from llmrec.rewards.inputs import Reward, RewardInputs
from llmrec.rewards.options import check_number
from llmrec.vocab import SIDVocab

RESERVED = ("inputs",)


@dataclass(frozen=True)
class Rewards:
    """The rewards of a run: TRL's ``reward_funcs`` and ``reward_weights``.

    Args:
        functions: with a ``__name__`` each, by which TRL logs them.
        weights: as many.
    """

    functions: list[Reward]
    weights: list[float]

    @property
    def names(self) -> list[str]:
        """Names as the YAML has them."""
        return [function.__name__ for function in self.functions]


def check_rewards(spec: Mapping[str, Any]) -> None:
    """Check names, weights and the names of options before anything is loaded.

    Args:
        spec: as `build_rewards` takes it.

    Raises:
        InputError: as `build_rewards` says, but for the values of options.
    """
    _parse(spec)


def build_rewards(spec: Mapping[str, Any], vocab: SIDVocab, inputs: RewardInputs) -> Rewards:
    """Return the rewards that a YAML names.

    Args:
        spec: by name (of `REWARDS`, or ``package.module:attribute``) a weight, or a mapping of ``weight`` (default 1)
            and options: ``{exact_match: 1.0, rank_penalty: {weight: 0.5, needs_hit: true}}``. A weight of 0 logs the
            reward and adds nothing. Code of the user's own is a factory, whose first parameter is called ``vocab``,
            or at once a function as TRL calls it.
        vocab: the SIDs.
        inputs: what rewards are built from.

    Raises:
        InputError: no reward, an unknown name or option, a weight that is no number, all weights 0, a value that a
            reward refuses, or inputs of another catalogue.
    """
    _check_inputs(vocab, inputs)
    functions, weights = [], []
    for name, weight, factory, options in _parse(spec):
        reward: Any = factory(vocab, **options, inputs=inputs) if is_factory(factory) else factory
        if not callable(reward):
            raise InputError(f"reward {name}: its factory returned {type(reward).__name__}; return a function")
        if inspect.iscoroutinefunction(reward):
            raise InputError(f"reward {name}: it is async, and rewards are asked one after the other; write def alone")
        functions.append(checked(name, cast(Reward, reward)))
        weights.append(weight)
    return Rewards(functions, weights)


def is_factory(attribute: Callable[..., Any]) -> bool:
    """Return whether a callable is a factory of rewards: its first parameter is called ``vocab``."""
    return next(iter(inspect.signature(attribute).parameters), None) == "vocab"


def reward_options(factory: Callable[..., Any]) -> dict[str, Any]:
    """Return the options of a factory with their defaults: its keyword-only parameters but ``inputs``."""
    return {
        parameter.name: parameter.default
        for parameter in inspect.signature(factory).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in RESERVED
    }


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the nearest of some names as a question, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=2)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _check_inputs(vocab: SIDVocab, inputs: RewardInputs) -> None:
    if inputs.catalog is not None:
        vocab.table.check_catalog(inputs.catalog.hash, path="rewards")
    if inputs.popularity is not None and np.shape(inputs.popularity) != (len(vocab),):
        raise InputError(
            f"rewards: popularity of shape {np.shape(inputs.popularity)} for {len(vocab)} items; count the training "
            "part of this dataset"
        )


def _parse(spec: Mapping[str, Any]) -> list[tuple[str, float, Callable[..., Any], dict[str, Any]]]:
    if not isinstance(spec, Mapping) or not spec:
        raise InputError(f"rewards {spec!r}; name at least one with its weight, such as exact_match: 1.0")
    parsed = [(name, *_entry(name, value)) for name, value in spec.items()]
    if not any(weight for _, weight, _, _ in parsed):
        raise InputError(f"rewards: every weight is 0 ({', '.join(spec)}); give one of them another")
    return parsed


def _entry(name: str, value: Any) -> tuple[float, Callable[..., Any], dict[str, Any]]:
    if not isinstance(name, str):
        raise InputError(f"rewards: {name!r} is no name; choose of {', '.join(REWARDS)}")
    if ":" not in name and name not in REWARDS:
        raise InputError(
            f"rewards: unknown reward {name!r}{did_you_mean(name, REWARDS)}; there are {', '.join(REWARDS)}, or name "
            "your own as 'package.module:function'"
        )
    factory = resolve(name, REWARDS, "reward")
    if not callable(factory):
        raise InputError(f"rewards: {name} is {type(factory).__name__}; name a function")
    options = dict(value) if isinstance(value, Mapping) else {"weight": value}
    weight = check_number(name, "weight", options.pop("weight", 1.0))
    known = reward_options(factory) if is_factory(factory) else {}
    for option in options:
        if option not in known:
            own = f"its options are {', '.join(known)}" if known else "it has none"
            raise InputError(
                f"reward {name}: no option {option!r}{did_you_mean(str(option), known)}; {own}, beside weight"
            )
    for option, default in known.items():
        if default is inspect.Parameter.empty and option not in options:
            raise InputError(f"reward {name}: it needs its option {option!r}; write {name}: {{{option}: ...}}")
    return weight, factory, options
