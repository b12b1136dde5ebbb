"""The value every task yields, and the type of a task."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from llmrec.errors import InputError


@dataclass(frozen=True)
class Example:
    """One supervised example before tokenisation.

    Args:
        prompt: what the model reads, without chat markup; SIDs stand in it as their tokens.
        completion: what it must answer; not empty.
        target: the item row that the completion names, or None.
        task: the task's name; the prompt form may wrap prompts by task.
        history: the parts of the prompt that name a history, oldest first, with what stands between them; joined, they
            stand in the prompt word for word. Empty where the prompt cannot be shortened.
        targets: item rows in order, where the completion names several; ``target`` is the first of them then.
        item: the item row that the example tells words of, so that held-out items can be left out; None where it tells
            of none in particular.
    """

    prompt: str
    completion: str
    target: int | None
    task: str
    history: tuple[str, ...] = ()
    targets: tuple[int, ...] = ()
    item: int | None = None

    def __post_init__(self) -> None:
        if not self.completion:
            raise InputError(f"task {self.task!r}: an example has an empty completion; skip such items in the task")

    def recent(self, parts: int) -> "Example":
        """Return this example with the ``parts`` most recent items of its history alone: a prompt too long is cut so.

        Args:
            parts: how many of ``history`` stay, at least 1; more than there are changes nothing.

        Raises:
            InputError: ``parts`` below 1, or a history that does not stand in the prompt.
        """
        if parts < 1:
            raise InputError(f"task {self.task!r}: {parts} parts of a history; a prompt keeps at least 1")
        if parts >= len(self.history):
            return self
        before, found, after = self.prompt.partition("".join(self.history))
        if not found:
            raise InputError(
                f"task {self.task!r}: the history of an example does not stand in its prompt; give its parts with "
                "what stands between them"
            )
        kept = self.history[-parts:]
        return replace(self, prompt=f"{before}{''.join(kept)}{after}", history=kept)


AlignmentTask = Callable[..., Iterator[Example]]
"""``(catalog, vocab, histories, rng, *, OPTIONS..) -> Iterator[Example]``; keyword-only parameters are the options."""
