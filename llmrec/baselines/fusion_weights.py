"""Weights of a fusion, chosen on validation: the parts answer once, and every weight is tried on what they said."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from tqdm import tqdm

from llmrec.baselines.fusion import BeamFusion, Fusion, Gathered, RankFusion
from llmrec.baselines.tuning import CUT, METRIC
from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.evaluation.metrics import ranks_of, summarize

logger = logging.getLogger(__name__)

WEIGHTS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
"""What tuning tries for each part but the first, whose weight is 1."""

CONSTANTS = (0.0, 1.0, 5.0, 20.0, 60.0)
"""What tuning tries for the constant of reciprocal rank fusion."""

MOST_TRIALS = 2000


@dataclass(frozen=True)
class TunedFusion:
    """What `tune_fusion` chose.

    Args:
        fusion: with the chosen settings.
        settings: the chosen ones.
        trials: every setting tried, with its ``metrics`` on validation.
        parts: metrics on validation of each part alone whose lists were asked for (of a beam fusion, the model).
    """

    fusion: Fusion = field(repr=False)
    settings: Mapping[str, Any]
    trials: Sequence[Mapping[str, Any]]
    parts: Mapping[str, Mapping[str, float]]

    def said(self, parts: Mapping[str, Mapping[str, Any]], *, model: str | None = None) -> dict[str, Any]:
        """Return what a results row says: ``fused`` what it is, ``tuned`` how that was chosen, and what it inherits.

        Args:
            parts: what the rows of the parts say, by name; whatever leaked into one of them leaked into the fusion.
            model: name of the part whose ``seed`` and ``trained_as`` the fusion takes over; None for no such.
        """
        fusion = self.fusion
        leaks = [leak for name in fusion.parts for leak in parts.get(name, {}).get("leaks") or ()]
        trained = {} if model is None else parts.get(model, {})
        return {
            "seed": trained.get("seed"),
            "trained_as": trained.get("trained_as"),
            "leaks": list(dict.fromkeys(leaks)) or None,
            "fused": {
                "method": fusion.method,
                "parts": list(fusion.parts),
                **self.settings,
                "depth": fusion.depth,
                "chosen_on": "valid",
            },
            "tuned": {
                "split": "valid",
                "by": METRIC,
                "chosen": self.settings,
                "trials": self.trials,
                "parts": self.parts,
            },
        }


def tune_fusion(
    fusion: Fusion,
    rows: Sequence[History],
    *,
    exclude_seen: bool = False,
    weights: Sequence[float] = WEIGHTS,
    constants: Sequence[float] = CONSTANTS,
    batch_users: int = 8192,
    progress: bool = True,
) -> TunedFusion:
    """Choose weights, and the constant where there is one, by ndcg@10 on validation rows.

    Every part is asked once for each row. Among equals the first setting is chosen. A fusion that is no better than
    its best part on these rows is chosen all the same, and a warning says so.

    Args:
        fusion: whose parts are fused; its own settings do not matter.
        rows: of validation.
        exclude_seen: keep items of the history out of the lists, as the final scoring will.
        weights: to try for each part but the first, which weighs 1. For a beam fusion a weight of 1 means that scores
            vary as much within a list as the beam scores do (by their standard deviations): scores have units.
        constants: to try, for reciprocal rank fusion.
        batch_users: rows that the parts get at a time.
        progress: show a progress bar over settings.

    Raises:
        InputError: no rows, more than 2,000 settings, or what the parts or the fusion refuse.
    """
    if not rows:
        raise InputError("fusion: there are no validation rows to choose weights on; choose a protocol that has some")
    cut = min(CUT, fusion.items, fusion.depth)
    tries = len(weights) ** (len(fusion.parts) - 1) * (len(constants) if isinstance(fusion, RankFusion) else 1)
    if not 0 < tries <= MOST_TRIALS:
        raise InputError(
            f"fusion: {tries} settings of {len(fusion.parts)} parts to try, and {MOST_TRIALS} are most; fuse "
            "fewer parts, or give fewer weights or constants (at least one each)"
        )
    histories = [row.items for row in rows]
    starts = range(0, len(rows), batch_users)
    gathered = Gathered.join(
        [fusion.gather(histories[start : start + batch_users], exclude_seen=exclude_seen) for start in starts]
    )
    targets = np.array([row.target for row in rows])

    def measure(lists: np.ndarray) -> dict[str, float]:
        return summarize(ranks_of(lists, targets), lists, ks=(cut,), items=fusion.items)

    trials = []
    for settings in tqdm(
        list(choices(fusion, gathered, weights=weights, constants=constants)),
        desc=f"tune {fusion.method}", unit="setting", disable=not progress,
    ):  # fmt: skip
        tried = fusion.with_settings(settings)
        lists = [tried.fuse(gathered.part(slice(start, start + batch_users)), cut) for start in starts]
        trials.append({"settings": settings, "metrics": measure(np.concatenate(lists))})
    parts = {name: measure(lists[:, :cut]) for name, lists in zip(fusion.listing, gathered.lists, strict=True)}
    metric = f"ndcg@{cut}"
    chosen = max(trials, key=lambda trial: trial["metrics"][metric])
    alone = max(parts, key=lambda name: parts[name][metric])
    if chosen["metrics"][metric] <= parts[alone][metric]:
        logger.warning(
            "%s of %s: %s %.4f on validation with the best weights, and %s alone has %.4f: fusing does not help",
            fusion.method, " + ".join(fusion.parts), metric, chosen["metrics"][metric], alone, parts[alone][metric],
        )  # fmt: skip
    return TunedFusion(fusion.with_settings(chosen["settings"]), chosen["settings"], trials, parts)


def choices(
    fusion: Fusion, gathered: Gathered, *, weights: Sequence[float], constants: Sequence[float]
) -> list[dict[str, Any]]:
    """Return the settings that tuning tries; arguments are those of `tune_fusion`."""
    first, *others = fusion.parts
    scales = [1.0] * len(others)
    if isinstance(fusion, BeamFusion):
        beams, *scores = (spread(part, gathered.rows) for part in gathered.scores)
        scales = [beams / part if part > 0 and beams > 0 else 1.0 for part in scores]
    found = []
    for constant in constants if isinstance(fusion, RankFusion) else (None,):
        for given in product(weights, repeat=len(others)):
            # Six digits: enough to repeat it, and short enough to be read
            scaled = [float(f"{weight * scale:.6g}") for weight, scale in zip(given, scales, strict=True)]
            chosen: dict[str, Any] = {"weights": {first: 1.0, **dict(zip(others, scaled, strict=True))}}
            found.append(chosen if constant is None else {**chosen, "constant": constant})
    return found


def spread(scores: np.ndarray, rows: np.ndarray) -> float:
    """Return the root mean square distance of scores from their list's mean.

    Args:
        scores: ``(users, depth)``; what is not finite is left out.
        rows: ``(users, depth)`` item rows, -1 in an empty place, which is left out too.
    """
    real = (rows >= 0) & np.isfinite(scores)
    held = np.where(real, scores, 0.0).astype(np.float64)
    means = held.sum(axis=1, keepdims=True) / np.maximum(real.sum(axis=1, keepdims=True), 1)
    return float(np.sqrt((np.where(real, held - means, 0.0) ** 2).sum() / max(int(real.sum()), 1)))
