"""The named tasks, and their mixture by weight."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.registry import resolve
from llmrec.tasks.example import AlignmentTask, Example
from llmrec.tasks.item_text import sid_to_title, title_to_sid
from llmrec.tasks.next_item import next_item
from llmrec.vocab import SIDVocab

TASKS: dict[str, AlignmentTask] = {
    "next_item": next_item,
    "sid_to_title": sid_to_title,
    "title_to_sid": title_to_sid,
}


def mix_tasks(
    weights: Mapping[str, float],
    *,
    catalog: Catalog,
    vocab: SIDVocab,
    histories: Sequence[History],
    seed: int,
) -> list[Example]:
    """Return the examples of all tasks, each task's examples as often as its weight says.

    Args:
        weights: by task name (or ``package.module:function``): 1.0 takes each example once, 0.5 a random half, 2.0
            each twice.
        catalog: the items.
        vocab: their SIDs.
        histories: training rows.
        seed: of the sampling, and of the tasks' own choices.

    Raises:
        InputError: an unknown task, a weight that is not above 0, or a task without examples.
    """
    mixed: list[Example] = []
    for name, weight in weights.items():
        if weight <= 0:
            raise InputError(f"tasks: {name} has weight {weight}; a weight is above 0, leave the task out instead")
        # A string seed: each task's draw depends on its own name alone, not on which other tasks run.
        rng = random.Random(f"{seed}/{name}")
        examples = list(resolve(name, TASKS, "task")(catalog, vocab, histories, rng))
        if not examples:
            raise InputError(f"tasks: {name} gives no examples on this dataset; leave it out")
        mixed.extend(repeat_by_weight(examples, weight, rng))
    return mixed


def repeat_by_weight(values: Sequence[Any], weight: float, rng: random.Random) -> list[Any]:
    """Return each value ``floor(weight)`` times, and the fraction that is left as a random sample without repeats."""
    whole, part = divmod(weight, 1.0)
    return [*list(values) * int(whole), *rng.sample(list(values), round(part * len(values)))]
