"""Prompts whose candidates all get one reward teach nothing: draw again, ask others, or leave them out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from llmrec.errors import InputError
from llmrec.training.replay import NearMisses
from llmrec.training.rollouts import Group, Rollouts, rollout_generator

REPLACEMENTS = ("none", "replay", "next", "replay_next")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class HardPromptSettings:
    """What is done with a group without any spread of reward.

    Args:
        resample: how often its prompt is asked again, with candidates drawn at ``resample_temperature``; 0 never.
        resample_temperature: of those draws, above 0; above 1 they are more varied.
        replace: then another prompt takes its place: ``none``, a near miss (``replay``), the ``next`` prompts of the
            data, or near misses while there are some and then the next (``replay_next``).
        replace_tries: how often other prompts are asked for the places that are still without spread.
        skip: what is still without spread is left out of the loss, which is divided by what is left.
        replay_size: most near misses that are kept.
        look_beyond: places behind the group in which a target is a near miss; they cost time like candidates.
        stop_after: stop the run when no group of so many generation steps in a row had any spread; 0 never stops.

    Raises:
        InputError: a number out of range, or another word for ``replace``.

    Paper: ``replace: next`` with ``skip: true`` is the dynamic sampling of DAPO (Yu et al., 2025,
        https://arxiv.org/abs/2503.14476). There a batch is filled however long it takes, here up to ``replace_tries``.
    """

    resample: int = 0
    resample_temperature: float = 1.5
    replace: str = "none"
    replace_tries: int = 1
    skip: bool = False
    replay_size: int = 1024
    look_beyond: int = 0
    stop_after: int = 200

    def __post_init__(self) -> None:
        for name, least in (
            ("resample", 0), ("replace_tries", 1), ("replay_size", 1), ("look_beyond", 0), ("stop_after", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"hard_prompts: {name} {value!r}: a whole number, at least {least}")
        if isinstance(self.resample_temperature, bool) or not isinstance(self.resample_temperature, int | float):
            raise InputError(f"hard_prompts: resample_temperature {self.resample_temperature!r}: a number above 0")
        if not self.resample_temperature > 0:
            raise InputError(f"hard_prompts: resample_temperature {self.resample_temperature}: above 0")
        if self.replace not in REPLACEMENTS:
            raise InputError(f"hard_prompts: replace {self.replace!r}: choose one of {', '.join(REPLACEMENTS)}")
        if not isinstance(self.skip, bool):
            raise InputError(f"hard_prompts: skip {self.skip!r}: true or false")

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "HardPromptSettings":
        """Return the settings of a YAML mapping.

        Raises:
            InputError: an unknown key, or a value that is refused.
        """
        known = [setting.name for setting in fields(cls)]
        for name in values:
            if name not in known:
                raise InputError(f"hard_prompts: unknown key {name!r}; the keys are {', '.join(known)}")
        return cls(**values)


@dataclass(frozen=True)
class Collected:
    """A generation batch that is ready for the loss.

    Args:
        rows: the training rows, one a prompt; some may have been replaced.
        group: their candidates.
        rewards: ``(prompts, G, parts)`` float32 on the CPU, NaN where a reward gave none.
        spread: ``(prompts,)`` bool, whether rewards differ within a prompt's group.
        keep: ``(prompts,)`` bool, whether a prompt counts in the loss.
        counts: how many prompts were ``asked``, had no spread at first (``no_spread``), got some by another draw
            (``resampled``), gave their place to another prompt (``replaced``), and are left out (``skipped``).
        first_hits: ``(asked,)`` bool, whether the first search of each prompt that was to be asked found its target.
    """

    rows: list[dict[str, Any]]
    group: Group
    rewards: Tensor
    spread: Tensor
    keep: Tensor
    counts: Mapping[str, int]
    first_hits: Tensor = field(repr=False)


class HardPrompts:
    """Ask the policy for candidates and score them, with another chance for prompts without spread.

    Nothing is exchanged between processes: each may need another number of draws.

    Args:
        settings: what is done.
        rollouts: finds candidates.
        has_spread: ``(prompts,)`` whether rewards ``(prompts, G, parts)`` differ within each group.
        encode: token ids of the prompts of rows.
        score: rewards ``(prompts, G, parts)`` of rows and their candidates, NaN for none; without collectives.
        next_rows: ``(count, attempt, step)`` to further rows of the data, for ``replace: next``; equal arguments give
            equal rows.
        seed: of the run.
        process: this process's number.

    Raises:
        InputError: ``replace: next`` without ``next_rows``.
    """

    def __init__(
        self,
        settings: HardPromptSettings,
        rollouts: Rollouts,
        *,
        has_spread: Callable[[Tensor], Tensor],
        encode: Callable[[Sequence[Row]], list[list[int]]],
        score: Callable[[Sequence[Row], Group], Tensor],
        next_rows: Callable[[int, int, int], Sequence[Row]] | None = None,
        seed: int = 0,
        process: int = 0,
    ) -> None:
        if "next" in settings.replace and next_rows is None:
            raise InputError(f"hard_prompts: replace {settings.replace}: there is no source of further prompts")
        self.settings, self.rollouts, self._has_spread = settings, rollouts, has_spread
        self._encode, self._score, self._next_rows = encode, score, next_rows
        self._seed, self._process = seed, process
        self.near_misses = NearMisses(settings.replay_size)

    def collect(self, model: PreTrainedModel | PeftModel, rows: Sequence[Row], *, step: int) -> Collected:
        """Return candidates and rewards for rows, or for those that take their place.

        Args:
            model: the policy, unwrapped.
            rows: one a prompt, with ``prompt``, ``target`` and ``history``.
            step: running number of the generation step, which alone (with seed and process) decides the draws.
        """
        generator = rollout_generator(self._seed, step, process=self._process)
        asked = [dict(row) for row in rows]
        group, rewards = self._ask(self.rollouts, model, asked, generator)
        first_hits = group.hits
        self._remember(asked, group)
        flat = self._without_spread(rewards)
        counts = {"asked": len(asked), "no_spread": len(flat), "resampled": 0, "replaced": 0, "skipped": 0}
        for _ in range(self.settings.resample):
            if not flat:
                break
            drawn = self.rollouts.drawn(self.settings.resample_temperature)
            better, theirs = self._ask(drawn, model, [asked[place] for place in flat], generator)
            group, rewards, flat = self._put(group, rewards, flat, better, theirs)
        counts["resampled"] = counts["no_spread"] - len(flat)
        left = len(flat)
        for attempt in range(self.settings.replace_tries if self.settings.replace != "none" else 0):
            others = self._others(len(flat), asked, attempt, step)
            if not others:
                break
            better, theirs = self._ask(self.rollouts, model, others, generator)
            self._remember(others, better)
            # Another prompt that has no spread either takes no place.
            useless = set(self._without_spread(theirs))
            order = [place for place in range(len(others)) if place not in useless]
            for place, other in zip(flat, order, strict=False):
                asked[place] = others[other]
            served = flat[: len(order)]
            group, rewards = group.put(served, better.take(order)), rewards.clone()
            rewards[served] = theirs[order]
            flat = flat[len(order) :]
        counts["replaced"] = left - len(flat)
        spread = torch.ones(len(asked), dtype=torch.bool)
        spread[flat] = False
        keep = spread if self.settings.skip else torch.ones_like(spread)
        counts["skipped"] = int((~keep).sum())
        return Collected(asked, group, rewards, spread, keep, counts, first_hits)

    def _ask(
        self, rollouts: Rollouts, model: PreTrainedModel | PeftModel, rows: Sequence[Row], generator: torch.Generator
    ) -> tuple[Group, Tensor]:
        histories = [row["history"] for row in rows] if rollouts.exclude_seen else None
        group = rollouts(
            model, self._encode(rows), [row["target"] for row in rows], histories=histories, generator=generator
        )
        return group, self._score(rows, group).float().cpu()

    def _without_spread(self, rewards: Tensor) -> list[int]:
        return (~self._has_spread(rewards)).nonzero().flatten().tolist()

    def _put(
        self, group: Group, rewards: Tensor, flat: list[int], better: Group, theirs: Tensor
    ) -> tuple[Group, Tensor, list[int]]:
        """Put the groups that have spread where there was none; return what is still without."""
        spread = self._has_spread(theirs)
        helped = spread.nonzero().flatten().tolist()
        places = [flat[place] for place in helped]
        rewards = rewards.clone()
        rewards[places] = theirs[helped]
        return (
            group.put(places, better.take(helped)),
            rewards,
            [flat[i] for i in (~spread).nonzero().flatten().tolist()],
        )

    def _others(self, count: int, asked: Sequence[Row], attempt: int, step: int) -> list[dict[str, Any]]:
        if not count:
            return []
        found: list[dict[str, Any]] = []
        if "replay" in self.settings.replace:
            seed = f"{self._seed} {step} {self._process} {attempt}"
            found = self.near_misses.draw(count, seed=seed, without=asked)
        if "next" in self.settings.replace and self._next_rows is not None and len(found) < count:
            found += [dict(row) for row in self._next_rows(count - len(found), attempt, step)]
        return found

    def _remember(self, rows: Sequence[Row], group: Group) -> None:
        """Keep rows whose target came low in the group or just behind it; forget those that were found or lost."""
        if "replay" not in self.settings.replace:
            return
        for row, place in zip(rows, group.target_places.tolist(), strict=True):
            if place >= group.num_generations // 2:
                self.near_misses.add(row, place)
            else:
                self.near_misses.forget(row)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of this process: values for JSON."""
        return {"near_misses": self.near_misses.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            InputError: not what was saved.
        """
        self.near_misses.load_state_dict(state.get("near_misses", []))
