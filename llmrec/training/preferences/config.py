"""What a recipe is told about preferences: where rejected items come from, and how many rounds there are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmrec.errors import InputError
from llmrec.training.config import parse_mapping
from llmrec.training.preferences.build import parse_negatives
from llmrec.training.preferences.scored import check_pairs
from llmrec.training.preferences.sessions import LISTS
from llmrec.training.reward_model import parse_reward_model

DEFAULT_NEGATIVES: dict[str, Any] = {"popularity": 1}
PAIR_SETTINGS: dict[str, Any] = {
    "beams": 20, "rejected": 1, "chosen": "best", "margin": 0.0, "exclude_history": True, "score": "full",
}  # fmt: skip
"""Of pairs that a reward model makes, and their defaults."""
LIST_SETTINGS: dict[str, Any] = {"items": 5, "rejected": "own", "count": 1, "swaps": 1, "wordings": None}
"""Of lists as the unit of preference, and their defaults."""
KEEPS = ("last", "best")


@dataclass
class PreferenceArguments:
    """Where preferences come from; a base of a recipe's arguments, which stands before theirs.

    Raises:
        InputError: a value outside its choices or range, or two that do not go together.
    """

    negatives: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Sources of rejected items with their numbers: {popularity: 4, self_hard: {count: 4, beams: 20}}; "
            "popularity, uniform, nearest, self_hard, exposure. {popularity: 1} when not given."
        },
    )
    lists: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Prefer lists of a bundle that learned next_session: {items: 5, rejected: own, count: 1}; "
            "rejected is own (the policy's lists), drawn or perturbed (of negatives; swaps: items replaced)."
        },
    )
    reward_model: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Scores the policy's beams, whose best and worst make pairs: {kind: sasrec} with its settings or "
            "a path, or {kind: lm_head}."
        },
    )
    pairs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "How a reward model makes pairs: {beams: 20, rejected: 1, chosen: best, margin: 0.0}; chosen: "
            "target takes what the user took; margin times the gap of rewards is the pair's margin."
        },
    )
    rounds: int | None = field(
        default=None,
        metadata={
            "help": "Trainings one after another, each on preferences of the policy before it, in OUTPUT_DIR/round-1 "
            "and so on. One, in OUTPUT_DIR itself, when not given."
        },
    )
    round_settings: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Settings of single rounds: {2: {learning_rate: 5e-7}}."}
    )
    keep_round: str = field(
        default="last", metadata={"help": "Which round's bundle is the run's: last, or best on validation."}
    )

    def __post_init__(self) -> None:
        after = getattr(super(), "__post_init__", None)
        if after is not None:
            after()
        named = isinstance(self.negatives, str) and not self.negatives.lstrip().startswith("{")
        if not named:
            self.negatives = parse_mapping(self.negatives, "negatives") or None
        if self.negatives is not None:
            parse_negatives(self.negatives)
        self.lists = _settings(self.lists, "lists", LIST_SETTINGS)
        self.pairs = _settings(self.pairs, "pairs", PAIR_SETTINGS)
        if self.reward_model is not None:
            if not (isinstance(self.reward_model, str) and not self.reward_model.lstrip().startswith("{")):
                self.reward_model = parse_mapping(self.reward_model, "reward_model")
            self.reward_model = parse_reward_model(self.reward_model)
        self.round_settings = parse_mapping(self.round_settings, "round_settings") or None
        self._check()

    def _check(self) -> None:
        if self.keep_round not in KEEPS:
            raise InputError(f"keep_round: {self.keep_round!r}; choose one of {', '.join(KEEPS)}")
        if self.rounds is not None and (
            not isinstance(self.rounds, int) or isinstance(self.rounds, bool) or self.rounds < 1
        ):
            raise InputError(f"rounds: {self.rounds!r}; a whole number, at least 1")
        if self.round_settings and self.rounds is None:
            raise InputError("round_settings: there are no rounds; say how many, such as rounds: 2")
        if self.pairs is not None and self.reward_model is None:
            raise InputError("pairs: they are made by a reward model; name one, such as reward_model: sasrec")
        if self.reward_model is not None and self.negatives is not None:
            raise InputError(
                "negatives: with reward_model the worst of the policy's beams are rejected; leave one of the two out"
            )
        pairs = self.pair_settings
        check_pairs(beams=pairs["beams"], rejected=pairs["rejected"], chosen=pairs["chosen"])
        margin = pairs["margin"]
        if not isinstance(margin, int | float) or isinstance(margin, bool) or not 0 <= margin < 1e6:
            raise InputError(f"pairs: margin {margin!r}; 0 (no margins) or more")
        if self.lists is not None:
            self._check_lists(self.list_settings or {})

    def _check_lists(self, lists: Mapping[str, Any]) -> None:
        if lists["rejected"] not in LISTS:
            raise InputError(f"lists: rejected {lists['rejected']!r}; choose one of {', '.join(LISTS)}")
        for name, least in (("items", 2), ("count", 1), ("swaps", 1)):
            if not isinstance(lists[name], int) or isinstance(lists[name], bool) or lists[name] < least:
                raise InputError(f"lists: {name} {lists[name]!r}; a whole number, at least {least}")
        if lists["rejected"] == "own" and self.negatives is not None:
            raise InputError("lists: rejected: own takes the policy's lists, so negatives are not read; leave one out")
        if lists["rejected"] != "own" and self.reward_model is not None:
            raise InputError("lists: a reward model judges the policy's own lists; set rejected: own")

    @property
    def pair_settings(self) -> dict[str, Any]:
        """Return all settings of pairs, defaults included."""
        assert not isinstance(self.pairs, str)
        return {**PAIR_SETTINGS, **(self.pairs or {})}

    @property
    def list_settings(self) -> dict[str, Any] | None:
        """Return all settings of lists, defaults included; None where items are preferred."""
        assert not isinstance(self.lists, str)
        return None if self.lists is None else {**LIST_SETTINGS, **self.lists}


def _settings(value: Any, name: str, known: Mapping[str, Any]) -> dict[str, Any] | None:
    if value is None:
        return None
    found = parse_mapping(value, name)
    for key in found:
        if key not in known:
            raise InputError(f"{name}: no setting {key!r}; it has {', '.join(known)}")
    return found
