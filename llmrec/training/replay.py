"""Near misses: prompts whose target the policy almost found, kept to be asked again."""

import random
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from llmrec.errors import InputError


class NearMisses:
    """A bounded store of training rows; the oldest leave first.

    Rows are the same when prompt and target are, so that one that comes again is moved, not stored twice.

    Args:
        size: most rows that are kept, at least 1.

    Raises:
        InputError: a size below 1.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise InputError(f"replay_size {size}: at least 1")
        self.size = size
        self._rows: OrderedDict[tuple[str, int], tuple[dict[str, Any], int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, row: Mapping[str, Any]) -> bool:
        return _key(row) in self._rows

    def add(self, row: Mapping[str, Any], place: int) -> None:
        """Keep a row as the newest.

        Args:
            row: columns that JSON can hold, with ``prompt`` and ``target`` among them.
            place: where the target stood, 0 the first.
        """
        key = _key(row)
        self._rows.pop(key, None)
        self._rows[key] = (dict(row), int(place))
        while len(self._rows) > self.size:
            self._rows.popitem(last=False)

    def forget(self, row: Mapping[str, Any]) -> None:
        """Drop a row, whether it is kept or not."""
        self._rows.pop(_key(row), None)

    def draw(self, count: int, *, seed: int | str, without: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
        """Return rows drawn evenly, none twice; they stay in the store.

        Args:
            count: how many; fewer come where there are fewer.
            seed: of the draw, which leaves no state behind.
            without: rows that are not wanted.
        """
        gone = {_key(row) for row in without}
        kept = [row for key, (row, _) in self._rows.items() if key not in gone]
        return [dict(row) for row in random.Random(seed).sample(kept, min(count, len(kept)))]

    def state_dict(self) -> list[dict[str, Any]]:
        """Return what `load_state_dict` takes: values for JSON, oldest first."""
        return [{"row": dict(row), "place": place} for row, place in self._rows.values()]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Take over another store's rows; where there are more than fit, the newest.

        Raises:
            InputError: no list of rows with their places.
        """
        self._rows.clear()
        try:
            for entry in state:
                self.add(entry["row"], entry["place"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"near misses of the checkpoint: not what was saved ({error!r}); start from another checkpoint"
            ) from error


def _key(row: Mapping[str, Any]) -> tuple[str, int]:
    prompt = row["prompt"]
    return prompt if isinstance(prompt, str) else repr(prompt), int(row["target"])
