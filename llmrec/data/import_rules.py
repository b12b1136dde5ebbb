"""The rules of an import, and the count of what it mends."""

from collections import Counter
from dataclasses import dataclass

from llmrec.errors import InputError

REPEATS = ("keep", "first", "last")


@dataclass(frozen=True)
class ImportRules:
    """Which interactions of a source are taken, and what becomes of dirty ones.

    Args:
        limit: read only the first so many interactions; None reads all.
        strict: make every repair an error.
        k_core: fewest interactions of a kept user and item; 1 keeps all.
        min_rating: lowest rating that counts as an interaction; None takes all.
        event_types: the event types that count as interactions; None takes all.
        drop_repeats: what becomes of a user's repeats of one item: ``keep``, or only the ``first`` or ``last``.
        keep_unseen_items: keep items of the item table that no kept interaction names.

    Raises:
        InputError: a limit or k below 1, or another word for the repeats.
    """

    limit: int | None = None
    strict: bool = False
    k_core: int = 1
    min_rating: float | None = None
    event_types: tuple[str, ...] | None = None
    drop_repeats: str = "keep"
    keep_unseen_items: bool = False

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit {self.limit}: at least 1 interaction, or leave it out to read all")
        if self.k_core < 1:
            raise InputError(f"--k_core {self.k_core}: 1 keeps everything, 5 is the usual filter")
        if self.drop_repeats not in REPEATS:
            raise InputError(f"--drop_repeats {self.drop_repeats!r}: choose one of {', '.join(REPEATS)}")


class Repairs:
    """Counts what was mended on the way; under ``strict`` the first thing to mend is an error.

    Args:
        strict: raise instead of counting.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def note(self, kind: str, place: object, found: str, remedy: str) -> None:
        """Count a repair.

        Args:
            kind: the name under which it is counted ("items_without_title").
            place: file and row.
            found: what stands there.
            remedy: what was done about it.

        Raises:
            InputError: under ``strict``, with all of it.
        """
        if self.strict:
            raise InputError(f"{place}: {found}; without --strict: {remedy}")
        self.counts[kind] += 1
        if kind not in self.examples:
            self.examples[kind] = f"{place}: {found}; {remedy}"
