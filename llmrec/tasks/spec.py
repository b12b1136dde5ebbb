"""What a configuration says of each task: how often, when and with which options."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from llmrec.errors import InputError

KEYS = ("weight", "start", "stop")


@dataclass(frozen=True)
class TaskSpec:
    """One task of a mixture.

    Args:
        name: in `TASKS`, or ``package.module:function``.
        weight: how often: 1.0 takes each of its examples once an epoch, 0.5 a random half, 2.0 each twice.
        start: share of the run's steps after which the task is drawn, in [0, 1).
        stop: share of the run's steps after which it is not drawn any more, above ``start``, at most 1.
        options: keyword arguments of the task's function.

    Raises:
        InputError: a weight that is not above 0, or shares out of order.
    """

    name: str
    weight: float = 1.0
    start: float = 0.0
    stop: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _number(self.weight) or not self.weight > 0 or math.isinf(self.weight):
            raise InputError(
                f"tasks: {self.name} has weight {self.weight}; a weight is above 0, leave the task out instead"
            )
        for key in ("start", "stop"):
            value = getattr(self, key)
            if not _number(value) or not 0.0 <= value <= 1.0:
                raise InputError(f"tasks: {self.name} has {key} {value!r}; a share of the run's steps, from 0 to 1")
        if self.start >= self.stop:
            raise InputError(
                f"tasks: {self.name} starts at {self.start} and stops at {self.stop}; stop lies behind start"
            )

    @property
    def always(self) -> bool:
        """Whether the task is drawn at every step."""
        return self.start == 0.0 and self.stop == 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return what `parse_tasks` reads back, options last."""
        said = asdict(self)
        return {key: said[key] for key in KEYS} | dict(self.options)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def parse_tasks(tasks: Mapping[str, Any]) -> dict[str, TaskSpec]:
    """Return the specs of a mixture, in the order of the configuration.

    Args:
        tasks: by task name a weight, a mapping of ``weight``, ``start``, ``stop`` and the task's own options, or a
            spec. ``{next_item: 1.0, sid_to_title: {weight: 0.5, stop: 0.4}}``

    Raises:
        InputError: no task, or what `TaskSpec` refuses.
    """
    if not tasks:
        raise InputError("tasks: none given; name at least one, such as next_item: 1.0")
    return {name: _spec(name, value) for name, value in tasks.items()}


def _spec(name: str, value: Any) -> TaskSpec:
    if isinstance(value, TaskSpec):
        return value
    if isinstance(value, Mapping):
        own = {key: value[key] for key in KEYS if key in value}
        return TaskSpec(name, **own, options={key: value[key] for key in value if key not in KEYS})
    return TaskSpec(name, value)
