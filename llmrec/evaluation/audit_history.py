"""How much a longer history helps, and whether its order matters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.evaluation.audit_transitions import flat_sequences
from llmrec.evaluation.evaluator import Evaluation, Recommender, evaluate
from llmrec.evaluation.histories import Histories
from llmrec.evaluation.intervals import mean_interval
from llmrec.evaluation.metrics import per_user
from llmrec.evaluation.slices import by_history_length, slice_metrics

LASTS: tuple[int | None, ...] = (1, 2, 5, None)
CUT = 10


@dataclass(frozen=True)
class LastItems:
    """A recommender that is shown the end of histories alone, and leaves out what stands in the whole of them.

    Args:
        recommender: what is asked; its lists must be filled.
        last: items that it sees; None shows all.
        items: size of the catalogue, the most that is asked of it; None sets no limit.

    Raises:
        InputError: ``last`` below 1.
    """

    recommender: Recommender
    last: int | None
    items: int | None = None

    def __post_init__(self) -> None:
        if self.last is not None and self.last < 1:
            raise InputError(f"audit: the last {self.last} items of a history; at least 1, or None for all")

    def recommend(self, histories: Sequence[Sequence[int]], k: int, *, exclude_seen: bool = False) -> Tensor:
        """Return ``(users, k)`` int64 item rows, best first; -1 behind them where fewer than ``k`` are unseen."""
        if self.last is None:
            return self.recommender.recommend(histories, k, exclude_seen=exclude_seen)
        ends = [history[-self.last :] for history in histories]
        if not exclude_seen:
            return self.recommender.recommend(ends, k)
        # Filtering a list of k + seen items leaves k: so many of a whole history can stand in it.
        longest = max(len(set(history)) for history in histories)
        most = k + longest if self.items is None else min(k + longest, self.items)
        lists = self.recommender.recommend(ends, most).numpy()
        whole = Histories.of([History(user, tuple(history), -1) for user, history in enumerate(histories)])
        seen = whole.contain(lists, items=int(lists.max(initial=0)) + int(whole.items.max(initial=0)) + 1)
        lists = np.where(seen, -1, lists)
        order = np.argsort(lists < 0, axis=1, kind="stable")[:, :k]
        return torch.from_numpy(np.take_along_axis(lists, order, axis=1))


def scores_of(evaluation: Evaluation, rows: Sequence[History]) -> dict[str, Any]:
    """Return recall and ndcg at `CUT`, and by ``recall@10_interval`` and so on the ends of their 95 % intervals.

    Args:
        evaluation: of the rows.
        rows: that were scored; those of one user are taken together.
    """
    users = np.array([row.user for row in rows])
    found: dict[str, Any] = {}
    for metric in (f"recall@{CUT}", f"ndcg@{CUT}"):
        interval = mean_interval(per_user(metric, evaluation.ranks), users=users)
        found[metric] = interval.mean
        found[f"{metric}_interval"] = [interval.low, interval.high]
    return found


def history_dependence(
    variants: Mapping[str, Recommender],
    rows: Sequence[History],
    *,
    items: int,
    exclude_seen: bool = False,
    lasts: Sequence[int | None] = LASTS,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Return how well a heuristic does that sees only the end of histories.

    For each number of items the variant with the highest ndcg is taken. It is chosen on the rows that it is scored on,
    which favours longer histories a little: with one item, variants that weigh items by age are all the same.

    Args:
        variants: fitted recommenders by name, such as one baseline with several weights of age; lists must be filled.
        rows: of validation.
        items: size of the catalogue.
        exclude_seen: keep the items of the whole history out of lists.
        lasts: numbers of last items that are seen; None is all.
        progress: show progress bars.

    Returns:
        One dict a number: ``last``, ``variant``, what `scores_of` returns, and ``slices`` by length of the whole
        history.

    Raises:
        InputError: no variants, or what `evaluate` raises.

    Paper: limited dependence on long histories is the third of the shortcuts of Han et al., arXiv 2605.07125.
    """
    if not variants:
        raise InputError("audit: no recommender to measure the dependence on history with")
    slicing = by_history_length(np.array([len(row.items) for row in rows]))
    found = []
    for last in lasts:
        best: tuple[str, Evaluation] | None = None
        for name, recommender in variants.items():
            shown = evaluate(
                LastItems(recommender, last, items), rows, items=items, ks=(CUT,), exclude_seen=exclude_seen,
                name=f"{name}, last {last or 'all'}", progress=progress, keep_lists=False,
            )  # fmt: skip
            if best is None or shown.metrics[f"ndcg@{CUT}"] > best[1].metrics[f"ndcg@{CUT}"]:
                best = (name, shown)
            if last == 1:
                break
        assert best is not None
        users = np.array([row.user for row in rows])
        slices = slice_metrics(best[1].ranks, slicing, metrics=[f"recall@{CUT}", f"ndcg@{CUT}"], users=users)
        found.append({"last": last, "variant": best[0], **scores_of(best[1], rows), "slices": slices})
    return found


def shuffled(rows: Sequence[History], *, seed: int) -> list[History]:
    """Return the rows with the items of each history in random order."""
    rng = np.random.default_rng(seed)
    return [History(row.user, tuple(rng.permutation(row.items).tolist()), row.target) for row in rows]


def order_dependence(
    recommender: Recommender,
    rows: Sequence[History],
    *,
    items: int,
    exclude_seen: bool = False,
    seeds: Sequence[int] = (0, 1, 2),
    name: str = "model",
    progress: bool = True,
) -> dict[str, Any]:
    """Return what is left of a recommender's score when the histories that it is shown are shuffled.

    Args:
        recommender: fitted on sequences in their own order.
        rows: of validation.
        items: size of the catalogue.
        exclude_seen: keep each history's items out of its list.
        seeds: one shuffle each; the mean is taken.
        name: of the recommender.
        progress: show progress bars.

    Returns:
        ``ndcg@10`` in order, ``shuffled``, the same when shuffled, and ``change``, the relative difference (None where
        there is nothing to lose).

    Raises:
        InputError: as `evaluate`.

    Paper: Klenitskiy et al., Does It Look Sequential?, RecSys 2024, second method; there with SASRec and GRU4Rec on
    test rows. A heuristic loses more than a model that reads the whole history would: after a shuffle, its last item
    is any item.
    """
    metric = f"ndcg@{CUT}"
    settings: dict[str, Any] = {
        "items": items, "ks": (CUT,), "exclude_seen": exclude_seen, "progress": progress, "keep_lists": False
    }  # fmt: skip
    kept = evaluate(recommender, rows, name=f"{name}, in order", **settings).metrics[metric]
    mixed = [
        evaluate(recommender, shuffled(rows, seed=seed), name=f"{name}, shuffled", **settings).metrics[metric]
        for seed in seeds
    ]
    lost = float(np.mean(mixed))
    return {metric: kept, "shuffled": lost, "change": (lost - kept) / kept if kept else None}


def sequential_rules(
    sequences: Sequence[Sequence[int]],
    *,
    items: int,
    support: int = 5,
    confidence: float = 0.1,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
) -> dict[str, Any]:
    """Count rules "this item, then that one", and how many are left when the sequences are shuffled.

    Args:
        sequences: training interactions alone, item rows, oldest first.
        items: size of the catalogue.
        support: sequences in which the second item comes right after the first, at least.
        confidence: those over the sequences that hold the first item, at least.
        seeds: one shuffle each; the mean is taken.

    Returns:
        ``rules``, ``shuffled`` and ``change``, their relative difference (None without rules).

    Paper: Klenitskiy et al., Does It Look Sequential?, RecSys 2024, first method, with its support and confidence.
    Only pairs are counted here, no triples, and only in the training part.
    """
    flat, owner = flat_sequences(sequences)
    held = np.bincount(np.unique(owner * items + flat) % items, minlength=items)
    rules = _rules(flat, owner, held, items, support, confidence)
    mixed = []
    for seed in seeds:
        order = np.lexsort((np.random.default_rng(seed).random(len(flat)), owner))
        mixed.append(_rules(flat[order], owner, held, items, support, confidence))
    left = float(np.mean(mixed))
    return {"rules": rules, "shuffled": left, "change": (left - rules) / rules if rules else None}


def _rules(flat: np.ndarray, owner: np.ndarray, held: np.ndarray, items: int, support: int, confidence: float) -> int:
    """Number of pairs with enough support and confidence; a sequence counts once for a pair."""
    follows = (owner[1:] == owner[:-1]) & (flat[1:] != flat[:-1])
    pairs = flat[:-1][follows] * items + flat[1:][follows]
    places = owner[1:][follows]
    order = np.lexsort((places, pairs))
    pairs, places = pairs[order], places[order]
    once = np.r_[True, (pairs[1:] != pairs[:-1]) | (places[1:] != places[:-1])][: len(pairs)]
    keys, counts = np.unique(pairs[once], return_counts=True)
    return int(((counts >= support) & (counts >= confidence * held[keys // items])).sum())
