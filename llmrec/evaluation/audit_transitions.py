"""How far the last item or two decide the next one: successors, entropy and reach of the training transitions."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from scipy import sparse

from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.evaluation.histories import Histories

MAX_REACHED = 2**23
"""Most places of a rows-by-items table of reached items that stand in memory at a time."""

WAYS = {
    "one hop from the last item": (1, 1),
    "one hop from the last two": (1, 2),
    "two hops from the last item": (2, 1),
    "two hops from the last two": (2, 2),
}
"""Most hops, and last items from which they start."""


def flat_sequences(sequences: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(interactions,)`` int64 item rows end to end, and the number of the sequence of each."""
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    flat = np.fromiter(chain.from_iterable(sequences), np.int64, int(lengths.sum()))
    return flat, np.repeat(np.arange(len(sequences)), lengths)


def next_pairs(sequences: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(transitions,)`` int64 items and what came right after each, repeats of an item included."""
    flat, owner = flat_sequences(sequences)
    follows = owner[1:] == owner[:-1]
    return flat[:-1][follows], flat[1:][follows]


def entropy_bits(counts: np.ndarray) -> float:
    """Return the entropy in bits of what was counted ``(values,)`` times; 0 where nothing was."""
    counts = counts[counts > 0]
    total = counts.sum()
    return float(np.log2(total) - (counts * np.log2(counts)).sum() / total) if len(counts) else 0.0


def _conditional_bits(first: np.ndarray, second: np.ndarray, items: int) -> float:
    """Entropy of the second given the first: that of the pair less that of the first."""
    pairs = np.unique(first * items + second, return_counts=True)[1]
    return entropy_bits(pairs) - entropy_bits(np.bincount(first, minlength=items))


def branching(sequences: Sequence[Sequence[int]], *, items: int, shuffles: int = 5, seed: int = 0) -> dict[str, Any]:
    """Return how many ways lead on from an item, and how much an item says of the next.

    Entropies are those of the counts themselves. Of an item that was left five times these can be 2.3 bits at most,
    so sparse data look decided when they are not: beside the entropy of the next item given the last stands what
    comes out when the same next items are dealt anew to the same last ones, where the last item says nothing. The
    difference is what it does say.

    Args:
        sequences: training interactions alone, item rows, oldest first.
        items: size of the catalogue.
        shuffles: deals, at least 1; their mean is taken.
        seed: of the deals.

    Returns:
        ``transitions``, ``distinct``; ``repeated_share``, the share of transitions whose pair occurs more than once;
        ``successors`` of items that have any: ``items``, ``mean``, ``median``, ``p90``, ``most``; ``next_bits``,
        the entropy of next items; ``next_given_last_bits``; ``dealt_anew_bits``; ``information_bits``, their
        difference.

    Raises:
        InputError: no sequence of two items or more.

    Paper: low branching is the first of the shortcuts of Han et al., arXiv 2605.07125. The deals are ours.
    """
    first, second = next_pairs(sequences)
    if not len(first):
        raise InputError("audit: no training sequence holds two items, so there are no transitions to count")
    keys, counts = np.unique(first * items + second, return_counts=True)
    successors = np.bincount(keys // items, minlength=items)
    successors = successors[successors > 0]
    rng = np.random.default_rng(seed)
    given = _conditional_bits(first, second, items)
    dealt = [_conditional_bits(first, rng.permutation(second), items) for _ in range(shuffles)]
    return {
        "transitions": len(first),
        "distinct": len(keys),
        "repeated_share": float(counts[counts > 1].sum() / len(first)),
        "successors": {
            "items": len(successors),
            "mean": float(successors.mean()),
            "median": float(np.median(successors)),
            "p90": float(np.quantile(successors, 0.9)),
            "most": int(successors.max()),
        },
        "next_bits": entropy_bits(np.bincount(second, minlength=items)),
        "next_given_last_bits": given,
        "dealt_anew_bits": float(np.mean(dealt)),
        "information_bits": float(np.mean(dealt)) - given,
    }


def reach(
    sequences: Sequence[Sequence[int]], rows: Sequence[History], *, items: int, popularity: np.ndarray
) -> dict[str, dict[str, float | None]]:
    """Return how many targets lie within a hop or two, in the graph of training transitions, of the history's end.

    A way of two hops that comes back to where it began reaches nothing new; an item that followed itself in training
    is one hop from itself.

    Args:
        sequences: training interactions alone, item rows, oldest first.
        rows: histories with their targets.
        items: size of the catalogue.
        popularity: ``(items,)`` training counts.

    Returns:
        By way (`WAYS`): ``share`` of targets reached; ``chance``, the share that would be if targets were drawn by
        training popularity; ``lift``, their quotient (None where chance is 0); ``candidates``, the mean number of
        items reached.

    Raises:
        InputError: no rows.
    """
    if not rows:
        raise InputError("audit: there are no rows whose targets could be reached; choose a protocol that has some")
    first, second = next_pairs(sequences)
    graph = sparse.csr_array(sparse.coo_array((np.ones(len(first)), (first, second)), shape=(items, items)))
    taken = popularity / max(1, popularity.sum())
    found: dict[str, dict[str, float | None]] = {}
    histories = Histories.of(rows)
    ends = histories.starts[1:]
    for name, (hops, last) in WAYS.items():
        hits, mass, sizes = 0, 0.0, 0
        step = max(1, MAX_REACHED // items)
        for start in range(0, len(rows), step):
            stop = min(start + step, len(rows))
            begins = _last_items(histories, ends[start:stop], histories.lengths[start:stop], last, items)
            reached = _ones(begins @ graph)
            if hops == 2:
                beyond = _ones(reached @ graph)
                # What stands in `begins` came back; only a direct transition reaches it.
                beyond = _ones(beyond - beyond.multiply(begins))
                reached = _ones(reached + beyond)
            targets = histories.targets[start:stop]
            inside = (targets >= 0) & (targets < items)
            wanted = sparse.csr_array(
                (np.ones(int(inside.sum())), (np.flatnonzero(inside), targets[inside])), shape=reached.shape
            )
            hits += int(reached.multiply(wanted).sum())
            mass += float((reached @ taken).sum())
            sizes += reached.nnz
        share, chance = hits / len(rows), mass / len(rows)
        found[name] = {
            "share": share,
            "chance": chance,
            "lift": share / chance if chance else None,
            "candidates": sizes / len(rows),
        }
    return found


def _ones(matrix: sparse.csr_array) -> sparse.csr_array:
    """The same places, each with 1."""
    matrix = sparse.csr_array(matrix)
    matrix.eliminate_zeros()
    matrix.data[:] = 1.0
    return matrix


def _last_items(
    histories: Histories, ends: np.ndarray, lengths: np.ndarray, last: int, items: int
) -> sparse.csr_array:
    """Return ``(rows, items)`` with 1 at the last items of histories that end at ``ends``."""
    row, item = [], []
    for age in range(last):
        there = np.flatnonzero(lengths > age)
        row.append(there)
        item.append(histories.items[ends[there] - 1 - age])
    rows, columns = np.concatenate(row), np.concatenate(item)
    return _ones(sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(ends), items)))


def target_places(
    sequences: Sequence[Sequence[int]], rows: Sequence[History], *, items: int, popularity: np.ndarray
) -> np.ndarray:
    """Return the place of each target among the successors of the last item, from 1; 0 where it is none of them.

    Successors stand by count, then training popularity, then row: the order of the baseline `transitions`.

    Args:
        sequences: training interactions alone, item rows, oldest first.
        rows: histories with their targets.
        items: size of the catalogue.
        popularity: ``(items,)`` training counts.

    Returns:
        ``(users,)`` int64.
    """
    first, second = next_pairs(sequences)
    keys, counts = np.unique(first * items + second, return_counts=True)
    last, after = np.divmod(keys, items)
    order = np.lexsort((after, -popularity[after], -counts, last))
    place = np.empty(len(keys), dtype=np.int64)
    starts = np.searchsorted(last, last)
    place[order] = np.arange(len(keys)) - starts[order] + 1
    wanted = np.array([row.items[-1] * items + row.target if 0 <= row.target < items else -1 for row in rows])
    at = np.minimum(np.searchsorted(keys, wanted), max(0, len(keys) - 1))
    return np.where(keys[at] == wanted, place[at], 0) if len(keys) else np.zeros(len(rows), dtype=np.int64)


def median_place(places: np.ndarray) -> float | None:
    """Return the median place of those targets that are successors of the last item at all, None where none is.

    Args:
        places: ``(users,)`` as `target_places` returns them.
    """
    reached = places[places > 0]
    return float(np.median(reached)) if len(reached) else None
