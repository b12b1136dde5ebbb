"""The catalogue: item ids and their text, in an order that gives every item its row number."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from llmrec.artifacts import text_sha256
from llmrec.errors import InputError


@dataclass(frozen=True)
class Catalog:
    """Items in catalogue order; an item's row number is its only integer name everywhere.

    Args:
        item_ids: outside names, distinct and not empty.
        columns: text columns by name, each as long as ``item_ids``; ``title`` is required and never blank.

    Raises:
        InputError: no items, a duplicate or blank id, a missing ``title``, a column of another length, a blank title.
    """

    item_ids: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]] = field(repr=False)

    def __post_init__(self) -> None:
        if not self.item_ids:
            raise InputError("catalogue: it holds no items; import at least one")
        seen: set[str] = set()
        for row, item_id in enumerate(self.item_ids):
            if not item_id:
                raise InputError(f"catalogue: row {row} has an empty item_id; every item needs a name")
            if item_id in seen:
                raise InputError(f"catalogue: item_id {item_id!r} stands twice (again in row {row}); keep one of them")
            seen.add(item_id)
        if "title" not in self.columns:
            raise InputError(f"catalogue: no column 'title' among {sorted(self.columns)}; every catalogue has one")
        for name, values in self.columns.items():
            if len(values) != len(self.item_ids):
                raise InputError(f"catalogue: column {name!r} has {len(values)} rows for {len(self.item_ids)} items")
        for row, title in enumerate(self.columns["title"]):
            if not title.strip():
                raise InputError(
                    f"catalogue: item {self.item_ids[row]!r} (row {row}) has a blank title; the importers put its "
                    "brand and categories there, or its id"
                )

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def titles(self) -> tuple[str, ...]:
        """Titles in catalogue order."""
        return self.columns["title"]

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row number by item id."""
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the item ids in order: what embeddings and SID tables are tied to."""
        return text_sha256(*self.item_ids)

    def without_text(self, rows: Collection[int]) -> "Catalog":
        """Return the same items, of which some have no text: their ids as titles, as importers write it.

        Args:
            rows: of those items.
        """
        if not rows:
            return self
        hidden = [row in rows for row in range(len(self))]
        columns = {
            name: tuple(
                (self.item_ids[row] if name == "title" else "") if hidden[row] else value
                for row, value in enumerate(values)
            )
            for name, values in self.columns.items()
        }
        return Catalog(self.item_ids, columns)

    def texts(self, columns: Sequence[str]) -> list[str]:
        """Return one text an item: its non-blank values of ``columns`` joined by ``". "``, else its title.

        Raises:
            InputError: a column that the catalogue lacks.
        """
        for name in columns:
            if name not in self.columns:
                raise InputError(f"catalogue: no column {name!r}; it has {', '.join(sorted(self.columns))}")
        texts = []
        for row in range(len(self)):
            values = [self.columns[name][row].strip() for name in columns]
            texts.append(". ".join(value for value in values if value) or self.titles[row])
        return texts
