"""The value every task yields, and the type of a task."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.vocab import SIDVocab


@dataclass(frozen=True)
class Example:
    """One supervised example before tokenisation.

    Args:
        prompt: what the model reads, without chat markup; SIDs stand in it as their tokens.
        completion: what it must answer; not empty.
        target: the item row that the completion names, or None.
        task: the task's name; the prompt form may wrap prompts by task.
    """

    prompt: str
    completion: str
    target: int | None
    task: str

    def __post_init__(self) -> None:
        if not self.completion:
            raise InputError(f"task {self.task!r}: an example has an empty completion; skip such items in the task")


AlignmentTask = Callable[[Catalog, SIDVocab, Sequence[History], random.Random], Iterator[Example]]
