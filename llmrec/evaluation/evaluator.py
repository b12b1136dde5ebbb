"""Score any recommender on the rows of a split: the model and every baseline go through here."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.evaluation.metrics import ranks_of, summarize


class Recommender(Protocol):
    """Item rows in, item rows out; the evaluator cannot tell a model from a baseline."""

    def recommend(self, histories: Sequence[Sequence[int]], k: int, *, exclude_seen: bool = False) -> Tensor:
        """Return the best items after each history.

        Args:
            histories: item rows, oldest first; one may be empty.
            k: length of the lists.
            exclude_seen: keep the items of a history out of its list. The design's protocol has no such argument; it
                stands here because filtering afterwards would leave lists too short.

        Returns:
            ``(users, k)`` int64 item rows, best first, distinct within a list; -1 in places left empty at its end.

        Raises:
            InputError: ``k`` above the number of items that may come out.
        """
        ...


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Args:
        name: of the system.
        ranks: ``(users,)`` int64, the target's place in its list from 0, -1 where it is absent.
        metrics: means over users, by ``ndcg@10`` and so on.
        users: rows scored.
        seconds: wall time of recommending.
    """

    name: str
    ranks: np.ndarray = field(repr=False)
    metrics: dict[str, float]
    users: int
    seconds: float


def evaluate(
    recommender: Recommender,
    rows: Sequence[History],
    *,
    items: int,
    ks: Sequence[int] = (5, 10),
    exclude_seen: bool = False,
    name: str = "model",
    batch_users: int = 2048,
    progress: bool = True,
) -> Evaluation:
    """Recommend for every row and score the lists by item over the whole catalogue.

    Args:
        recommender: model or baseline.
        rows: histories with their targets; a negative target is an item outside the catalogue and a miss.
        items: size of the catalogue.
        ks: cuts of the metrics, from 1 up to ``items``.
        exclude_seen: keep each history's items out of its list.
        name: of the system, for the result and the progress bar.
        batch_users: rows handed over at a time; it bounds memory and changes no number.
        progress: show a progress bar.

    Raises:
        InputError: no rows, a cut out of range, or lists of a wrong shape, with items out of range or twice.
    """
    if not rows:
        raise InputError(f"evaluation of {name!r}: there are no rows to score; choose a split that has some")
    if not ks or min(ks) < 1 or max(ks) > items:
        raise InputError(f"ks {list(ks)}: give cuts from 1 to the {items} items of the catalogue")
    lists = []
    started = time.perf_counter()
    with tqdm(total=len(rows), desc=f"evaluate {name}", unit="user", disable=not progress) as bar:
        for start in range(0, len(rows), batch_users):
            part = rows[start : start + batch_users]
            found = recommender.recommend([row.items for row in part], max(ks), exclude_seen=exclude_seen).cpu()
            _check_lists(found, len(part), max(ks), items, name)
            lists.append(found)
            bar.update(len(part))
    seconds = time.perf_counter() - started
    recommended = torch.cat(lists)
    ranks = ranks_of(recommended, torch.tensor([row.target for row in rows]))
    return Evaluation(name, ranks, summarize(ranks, recommended, ks=ks, items=items), len(rows), seconds)


def _check_lists(found: Tensor, users: int, k: int, items: int, name: str) -> None:
    if tuple(found.shape) != (users, k):
        raise InputError(f"recommender {name!r}: its lists are {tuple(found.shape)}, expected {(users, k)} (users, k)")
    if found.dtype != torch.int64 or found.min() < -1 or found.max() >= items:
        raise InputError(
            f"recommender {name!r}: its lists must be int64 rows from 0 to {items - 1}, or -1 for a place left empty"
        )
    in_order = found.sort(dim=1).values
    twice = ((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)).nonzero()
    if len(twice):
        user, place = twice[0].tolist()
        raise InputError(f"recommender {name!r}: item {int(in_order[user, place])} stands twice in list {user}")
