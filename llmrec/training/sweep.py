"""A sweep: ranges of a recipe's settings, drawn up front; what is tried, for how many steps, and who goes on."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmrec.artifacts import read_yaml
from llmrec.errors import InputError
from llmrec.training.config import RecipeArguments, SFTRecipeConfig
from llmrec.training.dpo_config import DPOArguments, DPORecipeConfig
from llmrec.training.grpo_config import GRPOArguments, GRPORecipeConfig
from llmrec.training.sweep_ranges import Range, json_text, read_ranges


@dataclass(frozen=True)
class SweptRecipe:
    """A recipe that a sweep can run: ``script`` in ``recipes/`` and ``kinds``, the dataclasses of its keys."""

    script: str
    kinds: tuple[type, ...]

    @property
    def keys(self) -> set[str]:
        """Return the keys that its YAML may hold."""
        return {entry.name for kind in self.kinds for entry in dataclasses.fields(kind) if entry.init}


SWEPT_RECIPES = {
    "sft": SweptRecipe("sft.py", (RecipeArguments, SFTRecipeConfig)),
    "grpo": SweptRecipe("grpo.py", (GRPOArguments, GRPORecipeConfig)),
    "dpo": SweptRecipe("dpo.py", (DPOArguments, DPORecipeConfig)),
}
METHODS = ("random", "halving")
DEFAULT_ETA = 3
MOST_DRAWS = 1000
OWN_KEYS = {
    "output_dir": "each trial has a folder of its own",
    "overwrite_output_dir": "each trial has a folder of its own",
    "resume_from_checkpoint": "a trial goes on from its own checkpoint",
    "max_steps": "it is the budget; write it beside 'trials'",
    "push_to_hub": "only the winner may be pushed, once it is known",
}
"""Keys of a recipe that the sweep itself sets, and why."""
MEASURED_BY = ("dataset", "protocol", "seed", "eval_strategy", "eval_users", "eval_beams", "eval_ks")
"""Keys that decide what validation measures: the same for all trials, or their scores could not be compared."""


@dataclass(frozen=True)
class Trial:
    """One draw: its ``number``, from 0, and the ``settings`` it tries."""

    number: int
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Rung:
    """One round of a sweep.

    Args:
        number: from 0.
        max_steps: optimiser steps of each trial in it; None where the recipe's config says how long it trains.
        trials: how many are trained.
    """

    number: int
    max_steps: int | None
    trials: int


@dataclass(frozen=True)
class SweepConfig:
    """A sweep, as its YAML file says it.

    Args:
        config: YAML file of the recipe; it holds whatever the sweep does not set.
        ranges: where settings are drawn from, by key of the recipe.
        output_dir: folder of the sweep.
        recipe: a key of `SWEPT_RECIPES`.
        settings: keys of the recipe that are set otherwise than in ``config``, the same for all trials.
        method: ``random`` trains each trial to the end; ``halving`` trains all a little, and of each round the best
            ``1 / eta`` again and longer.
        trials: settings to draw, at least 1.
        seed: of the draws.
        max_steps: optimiser steps of a trial, of the last round under ``halving``; None takes the config's.
        eta: what trials are divided by from round to round, and steps multiplied by; at least 2.
        rungs: rounds; None takes as many as leave one trial.
        metric: what validation chooses by; higher is better.
        jobs: trials at a time.

    Raises:
        InputError: a value outside its choices or range.

    Paper: Jamieson and Talwalkar, AISTATS 2016 (successive halving). We start a trial anew in each round: its
    learning-rate schedule spans its steps, so that going on from a shorter run would train another model than one
    that was meant to be so long.
    """

    config: str
    ranges: Mapping[str, Range]
    output_dir: str
    recipe: str = "sft"
    settings: Mapping[str, Any] = field(default_factory=dict)
    method: str = "random"
    trials: int = 16
    seed: int = 0
    max_steps: int | None = None
    eta: int | None = None
    rungs: int | None = None
    metric: str = "ndcg@10"
    jobs: int = 1

    def __post_init__(self) -> None:
        for name in ("config", "output_dir", "metric"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise InputError(f"{name}: {getattr(self, name)!r}; give a name")
        for name, known in (("recipe", tuple(SWEPT_RECIPES)), ("method", METHODS)):
            if getattr(self, name) not in known:
                raise InputError(f"{name}: {getattr(self, name)!r}; choose one of {', '.join(known)}")
        for name, least in (("trials", 1), ("seed", 0), ("jobs", 1), ("max_steps", 1), ("eta", 2), ("rungs", 1)):
            value = getattr(self, name)
            may_lack = name in ("max_steps", "eta", "rungs")
            if (value is None and may_lack) or (type(value) is int and value >= least):
                continue
            raise InputError(f"{name}: {value!r}; a whole number, at least {least}")
        if not isinstance(self.settings, Mapping):
            raise InputError(f"settings: {self.settings!r}; a mapping of keys to values")
        known = SWEPT_RECIPES[self.recipe].keys
        for where, keys in (("ranges", self.ranges), ("settings", self.settings)):
            for key in keys:
                if key in OWN_KEYS:
                    raise InputError(f"{where}: {key!r} is set by the sweep: {OWN_KEYS[key]}")
                if key not in known:
                    script = SWEPT_RECIPES[self.recipe].script
                    raise InputError(f"{where}: {key!r} is no key of recipes/{script}; check its spelling")
        if not self.ranges:
            raise InputError("ranges: none; name at least one setting to try")
        for key in self.ranges:
            if key in self.settings:
                raise InputError(f"ranges: {key!r} stands under settings too; leave it out of one of them")
            if key in MEASURED_BY:
                raise InputError(
                    f"ranges: {key!r} decides what validation measures, so that trials could not be compared; set it "
                    "under settings, the same for all"
                )
        if self.max_steps is not None and "num_train_epochs" in self.ranges:
            raise InputError("ranges: 'num_train_epochs' does nothing beside max_steps; leave out one of them")
        if self.method == "random":
            for name in ("eta", "rungs"):
                if getattr(self, name) is not None:
                    raise InputError(f"{name}: {getattr(self, name)}; it is for method: halving, leave it out")
        combinations = math.prod(spread.count for spread in self.ranges.values())
        if combinations < self.trials:
            raise InputError(
                f"trials: {self.trials}; the ranges hold {combinations:g} different settings, ask for fewer"
            )
        self.rounds()

    @classmethod
    def load(cls, path: str | Path, **changes: Any) -> "SweepConfig":
        """Read and check a sweep's YAML file.

        Args:
            path: the file.
            changes: fields that a command sets otherwise; those that are None are left as the file says.

        Raises:
            InputError: a missing or unreadable file, an unknown or missing key, or a value that does not fit.
        """
        values = {
            **read_yaml(path, "YAML of a sweep"),
            **{key: value for key, value in changes.items() if value is not None},
        }
        known = [entry.name for entry in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise InputError(f"{path}: unknown key {key!r}; known are {', '.join(known)}")
        for key in ("config", "ranges", "output_dir"):
            if key not in values:
                raise InputError(f"{path}: no {key!r}; add it")
        try:
            if values.get("max_steps") is None and isinstance(values["config"], str):
                settings = values.get("settings")
                base = {
                    **read_yaml(values["config"], "YAML of a recipe"),
                    **(settings if isinstance(settings, dict) else {}),
                }
                steps = base.get("max_steps", -1)
                values["max_steps"] = None if steps == -1 else steps
            return cls(**{**values, "ranges": read_ranges(values["ranges"])})
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def rounds(self) -> list[Rung]:
        """Return the rounds, first to last.

        Raises:
            InputError: rounds that leave no trial, or no step, or halving without ``max_steps``.
        """
        if self.method == "random":
            return [Rung(0, self.max_steps, self.trials)]
        if self.max_steps is None:
            raise InputError("max_steps: none; halving divides them, so give the steps of the last round")
        eta, most = self.eta or DEFAULT_ETA, 1
        while self.trials // eta**most:
            most += 1
        count = self.rungs or most
        if count > most:
            raise InputError(f"rungs: {count}; {self.trials} trials divided by eta {eta} leave one after {most}")
        if self.max_steps < eta ** (count - 1):
            raise InputError(
                f"max_steps: {self.max_steps}; the first of {count} rounds would have less than one step, give at "
                f"least {eta ** (count - 1)}, or fewer trials or rungs"
            )
        return [
            Rung(number, self.max_steps // eta ** (count - 1 - number), self.trials // eta**number)
            for number in range(count)
        ]

    def draw(self) -> list[Trial]:
        """Return the trials; they follow from ``ranges`` and ``seed`` alone, and no two have the same settings.

        The first of them stay the same when ``trials`` grows.

        Raises:
            InputError: the ranges are so narrow that settings, rounded to four digits, come out equal.
        """
        rng = np.random.default_rng(self.seed)
        trials: list[Trial] = []
        seen: set[str] = set()
        for _ in range(MOST_DRAWS * self.trials):
            if len(trials) == self.trials:
                return trials
            settings = {key: self.ranges[key].draw(rng) for key in sorted(self.ranges)}
            if json_text(settings) not in seen:
                seen.add(json_text(settings))
                trials.append(Trial(len(trials), settings))
        raise InputError(
            f"trials: {self.trials}; only {len(trials)} different settings came out of the ranges; widen them or ask "
            "for fewer"
        )
