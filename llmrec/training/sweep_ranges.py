"""Ranges of a sweep: what a setting is drawn from."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmrec.errors import InputError


@dataclass(frozen=True)
class Range:
    """Where a setting is drawn from: a list of values, or evenly between two numbers.

    Args:
        values: to choose from; None where there are bounds.
        low: the least, itself included.
        high: the most, itself included.
        log: whether the logarithm is drawn evenly, so that .001 to .01 is as likely as .01 to .1.
        integer: whether only whole numbers are drawn.

    Raises:
        InputError: neither values nor two bounds, low not below high, or a bound that does not fit ``log`` or
            ``integer``.
    """

    values: tuple[Any, ...] | None = None
    low: float | None = None
    high: float | None = None
    log: bool = False
    integer: bool = False

    def __post_init__(self) -> None:
        for name in ("log", "integer"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name}: {getattr(self, name)!r}; true or false")
        if self.values is not None:
            if self.low is not None or self.high is not None or self.log or self.integer:
                raise InputError("values stand beside low, high, log or integer; give the one or the other")
            if not self.values or any(value is None for value in self.values):
                raise InputError(f"values: {list(self.values)!r}; a list of at least one value, none of them null")
            said = [json_text(value) for value in self.values]
            for value, text in zip(self.values, said, strict=True):
                if said.count(text) > 1:
                    raise InputError(f"values: {value!r} stands there twice; write each once")
            return
        if self.low is None or self.high is None:
            raise InputError("give values: [...], or low and high")
        for name in ("low", "high"):
            # YAML reads 1e-3 as text, and 1.0e-3 as a number.
            object.__setattr__(self, name, _number(name, getattr(self, name), integer=self.integer))
        if not self.low < self.high:
            raise InputError(f"low: {self.low:g} is not below high: {self.high:g}")
        if self.log and self.low <= 0:
            raise InputError(f"low: {self.low:g} with log: true; the logarithm needs low above 0")

    @property
    def count(self) -> float:
        """Return how many values there are; infinite between bounds that are not whole numbers."""
        if self.values is not None:
            return len(self.values)
        assert self.low is not None
        assert self.high is not None
        return self.high - self.low + 1 if self.integer else math.inf

    def draw(self, rng: np.random.Generator) -> Any:
        """Return one value; real numbers are rounded to four digits, so that a YAML can hold them."""
        if self.values is not None:
            return self.values[int(rng.integers(len(self.values)))]
        assert self.low is not None
        assert self.high is not None
        low, high = self.low, self.high + self.integer
        drawn = math.exp(rng.uniform(math.log(low), math.log(high))) if self.log else float(rng.uniform(low, high))
        drawn = math.floor(drawn) if self.integer else float(f"{drawn:.4g}")
        return min(max(drawn, self.low), self.high)

    def to_dict(self) -> dict[str, Any]:
        """Return the range as its YAML says it."""
        if self.values is not None:
            return {"values": list(self.values)}
        return {"low": self.low, "high": self.high, "log": self.log, "integer": self.integer}


def read_ranges(given: Any) -> dict[str, Range]:
    """Return the ranges that a YAML's ``ranges`` says, by key.

    Raises:
        InputError: no mapping, an unknown key, or what `Range` refuses; the message names the setting.
    """
    if not isinstance(given, dict):
        raise InputError(f"ranges: {given!r}; a mapping of keys to values: [...] or to low and high")
    ranges = {}
    known = [entry.name for entry in dataclasses.fields(Range)]
    for key, said in given.items():
        if not isinstance(said, dict):
            raise InputError(f"ranges: {key}: {said!r}; write {{values: [...]}} or {{low: ..., high: ...}}")
        for name in said:
            if name not in known:
                raise InputError(f"ranges: {key}: unknown key {name!r}; known are {', '.join(known)}")
        values = said.get("values")
        if values is not None and not isinstance(values, list):
            raise InputError(f"ranges: {key}: values: {values!r}; a list")
        try:
            ranges[str(key)] = Range(**{**said, "values": None if values is None else tuple(values)})
        except InputError as error:
            raise InputError(f"ranges: {key}: {error}") from error
    return ranges


def _number(name: str, value: Any, *, integer: bool) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or (integer and number != int(number)):
        raise InputError(f"{name}: {value!r}; a {'whole number' if integer else 'number'}")
    return int(number) if integer else number


def json_text(value: Any) -> str:
    """Return a value as JSON with sorted keys: equal for equal values."""
    return json.dumps(value, sort_keys=True, default=str)


def settings_text(settings: Mapping[str, Any]) -> str:
    """Return settings as one line: ``learning_rate 0.002, residual_dropout 0.1``."""
    return ", ".join(f"{key} {value_text(settings[key])}" for key in sorted(settings))


def value_text(value: Any) -> str:
    """Return a setting's value as short text: numbers plain, mappings and lists as JSON."""
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
