"""The baselines of a table, fitted as the flags ask and scored as everything else in it."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llmrec.baselines.flags import fit_asked
from llmrec.baselines.hstu import timed_rows
from llmrec.baselines.neural_training import TimedItems
from llmrec.baselines.tuning import FitData
from llmrec.data.splits import History
from llmrec.evaluation.scoring import Scoring


def score_baselines(
    scoring: Scoring,
    kinds: Mapping[str, type],
    data: FitData,
    args: argparse.Namespace,
    *,
    given: Mapping[str, Mapping[str, Any]],
    leaks: list[str] | None = None,
) -> list[Any]:
    """Fit or tune each baseline and add it to a table.

    Where the table holds rows with seen items kept and left out, a baseline is tuned for each, and scored with the
    settings that were chosen so; one that is not tuned is fitted once.

    Args:
        scoring: the table.
        kinds: classes by the baseline's name.
        data: what they are fitted on; settings are chosen on its validation rows.
        args: the flags of `add_baseline_flags`, and ``limit_users``.
        given: settings by name; they are not tuned.
        leaks: what `embedding_leaks` found in the embeddings; rows of baselines that read them say it.

    Returns:
        The last baseline, fitted: one model, or one for each value of ``exclude_seen`` that it was tuned for. Those
        before it are let go, for each can be large.

    Raises:
        InputError: as `fit_asked` and `Scoring.add`.
    """
    models: list[Any] = []
    valid = data.context.valid[: args.limit_users]
    for name, kind in kinds.items():
        models.clear()
        for only in scoring.values if args.tune else (None,):
            asked = {"settings": given.get(name, {}), "valid": valid, "exclude_seen": bool(only)}
            fitted = fit_asked(name, kind, data, args, dataset=scoring.dataset.name, **asked)
            said = {**fitted.said, "leaks": leaks if "embeddings" in fitted.said else None}
            scoring.add(fitted.model, name, only=only, rows=rows_for(scoring, [fitted.model]), **said)
            models.append(fitted.model)
        fitted = None
    return models


def rows_for(scoring: Scoring, models: Sequence[Any]) -> Sequence[History] | None:
    """Return the rows of a table with the times of their histories, where a baseline reads them.

    Args:
        scoring: the table.
        models: fitted baselines that are asked together.

    Returns:
        Rows whose histories know their times; None where no model reads them, and the table's own rows do.

    Raises:
        InputError: a protocol whose rows come without times.
    """
    if not any(getattr(model, "reads_times", False) for model in models):
        return None
    protocol, split = scoring.splits.protocol, scoring.split
    return timed_rows(scoring.dataset.interactions, protocol=protocol, split=split)[: len(scoring.rows)]


def without_rows(data: FitData, rows: np.ndarray) -> FitData:
    """Return what baselines are fitted on that must not know some items.

    Args:
        data: what is there.
        rows: catalogue rows that are left out of the sequences, with their times, and of the validation rows: those
            with such a target go, and so do those whose history is empty then.
    """
    gone, context = set(rows.tolist()), data.context
    kept = [[item not in gone for item in sequence] for sequence in data.sequences]
    times = None if context.timestamps is None else _chosen(context.timestamps, kept)
    shown = [(row, _without(row.items, gone)) for row in context.valid]
    valid = [History(row.user, items, row.target) for row, items in shown if items and row.target not in gone]
    return FitData(_chosen(data.sequences, kept), data.items, replace(context, timestamps=times, valid=valid))


def _without(items: tuple[int, ...], gone: set[int]) -> tuple[int, ...]:
    if not isinstance(items, TimedItems):
        return tuple(item for item in items if item not in gone)
    kept = [(item, time) for item, time in zip(items, items.times, strict=True) if item not in gone]
    return TimedItems([item for item, _ in kept], [time for _, time in kept])


def _chosen(sequences: Sequence[Sequence[int]], kept: Sequence[Sequence[bool]]) -> list[tuple[int, ...]]:
    return [
        tuple(value for value, keep in zip(sequence, keeps, strict=True) if keep)
        for sequence, keeps in zip(sequences, kept, strict=True)
    ]
