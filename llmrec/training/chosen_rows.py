"""Which training rows reinforcement learning and preferences take."""

from collections.abc import Sequence

import numpy as np

from llmrec.data.splits import History


def choose_rows(
    rows: Sequence[History],
    *,
    prompts: int = 0,
    seed: int = 0,
    start: int = 0,
    targets: str = "all",
    retired: np.ndarray | None = None,
) -> tuple[np.ndarray, int]:
    """Draw training rows, different ones for each ``start`` until all were drawn once.

    All rows are put into one seeded order; a call takes ``prompts`` of them from place ``start``, and begins anew at
    the end.

    Args:
        rows: all training rows.
        prompts: how many; 0, or more than there are, takes all.
        seed: of the order.
        start: how many rows were taken before.
        targets: ``all``, or ``last`` for the last row of each user alone.
        retired: ``(items,)`` bool: rows with such a target are left out, for no search can find them.

    Returns:
        Places in ``rows``, ascending; and how many rows were left out for their retired target.
    """
    kept = np.arange(len(rows))
    if targets == "last":
        last = {row.user: place for place, row in enumerate(rows)}
        kept = np.sort(np.fromiter(last.values(), dtype=np.int64))
    gone = np.zeros(len(kept), dtype=bool)
    if retired is not None:
        gone = np.isin([rows[place].target for place in kept.tolist()], np.flatnonzero(retired))
        kept = kept[~gone]
    if 0 < prompts < len(kept):
        order = np.random.default_rng(seed).permutation(kept)
        kept = np.sort(np.take(order, np.arange(start, start + prompts), mode="wrap"))
    return kept, int(gone.sum())
