"""One bundle on many tasks: next item, cold start, search, denoising and titles; and a control beside it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmrec.data.folder import DatasetFolder
from llmrec.data.splits import Splits, training_popularity
from llmrec.errors import InputError
from llmrec.evaluation.new_items import bring_new_items
from llmrec.evaluation.slices import by_popularity
from llmrec.evaluation.task_answers import TaskModel
from llmrec.evaluation.task_examples import NOT_SCORED, TaskExamples, examples_to_score
from llmrec.evaluation.task_scores import TaskScore, compare_scores, score_task
from llmrec.hub import load_bundle
from llmrec.sids.table import SIDTable
from llmrec.tasks.mixture import held_out_rows
from llmrec.tasks.prompt import PromptForm
from llmrec.vocab import SIDVocab

logger = logging.getLogger(__name__)

SUITE = ("next_item", "query_to_sid", "denoise", "sid_to_title")
"""What every bundle is asked, whether it was trained on it or not; ``cold_start`` is `next_item` on rare targets."""
COLD_START = "cold_start"
COLD_SLICES = ("tail", "unseen")
"""Slices of `by_popularity` whose targets count as cold: the items that share the last third of the interactions."""


@dataclass(frozen=True)
class SuiteBundle:
    """A bundle whose SIDs stand in the order of a dataset's catalogue.

    Args:
        source: folder or hub id.
        model: it, ready to answer.
        info: what its ``llmrec.json`` says.
        splits: the dataset's rows, with histories as long as its prompts.
        held_out: item rows that tasks of items left out of its training.
        new: item rows that it got after its training.
    """

    source: str
    model: TaskModel
    info: Mapping[str, Any] = field(repr=False)
    splits: Splits = field(repr=False)
    held_out: frozenset[int] = field(repr=False)
    new: frozenset[int] = frozenset()

    @property
    def tasks(self) -> dict[str, Any]:
        """The tasks that it was trained on, as the configuration said them."""
        return dict(self.info.get("tasks") or {"next_item": 1.0})


def open_bundle(
    source: str | Path,
    dataset: DatasetFolder,
    *,
    protocol: str | None = None,
    device: str | torch.device | None = None,
    new_items: bool = False,
    **settings: Any,
) -> SuiteBundle:
    """Load a bundle for the tasks of a dataset.

    Args:
        source: folder or hub id.
        dataset: the dataset folder.
        protocol: of the split; None takes the one that the bundle was trained with.
        device: where the model goes.
        new_items: give SIDs to items that the bundle does not know, by its own quantizer.
        settings: of `TaskModel`.

    Raises:
        InputError: what is there is no bundle, or it lacks items of the dataset.
    """
    bundle = load_bundle(source, device=device)
    ids, held_out = dataset.catalog.item_ids, _held_out(bundle.info, bundle.vocab.table.item_ids)
    known = set(bundle.vocab.table.item_ids)
    new = frozenset(row for row, item_id in enumerate(ids) if item_id not in known)
    if new and new_items:
        bundle, _ = bring_new_items(bundle, dataset, device=device or "cpu")
    form = PromptForm(**bundle.info["prompt"])
    splits = dataset.split(protocol or bundle.info.get("protocol"), max_history=form.max_history)
    popularity = training_popularity(splits.sequences, items=len(ids))
    vocab = SIDVocab(bundle.tokenizer, _in_order(bundle.vocab.table, ids, source), popularity=popularity)
    rows = frozenset(row for row, item_id in enumerate(ids) if item_id in held_out)
    model = TaskModel(bundle.model, bundle.tokenizer, vocab, form, **settings)
    return SuiteBundle(str(source), model, bundle.info, splits, rows, new)


def _held_out(info: Mapping[str, Any], item_ids: Sequence[str]) -> frozenset[str]:
    share = (info.get("settings") or {}).get("hold_out_items", 0.0)
    return frozenset(item_ids[row] for row in held_out_rows(len(item_ids), share, info.get("seed") or 0))


def _in_order(table: SIDTable, item_ids: Sequence[str], source: str | Path) -> SIDTable:
    """Return the SIDs of a dataset's items, in its order."""
    row_of = {item_id: row for row, item_id in enumerate(table.item_ids)}
    missing = [item_id for item_id in item_ids if item_id not in row_of]
    if missing:
        raise InputError(
            f"{source}: it has no SID for {len(missing)} items of the dataset, {missing[0]!r} the first; choose the "
            "dataset that it was trained on, or pass --new_items"
        )
    codes = table.codes[[row_of[item_id] for item_id in item_ids]]
    return SIDTable(tuple(item_ids), codes, table.codebook_sizes, table.method, table.settings, table.quality)


def score_suite(
    bundle: SuiteBundle,
    dataset: DatasetFolder,
    tasks: Mapping[str, Any],
    *,
    split: str,
    seed: int = 0,
    limit: int | None = None,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, TaskScore]:
    """Score a bundle on tasks, and on the cold starts among the rows of ``next_item`` where that is one of them.

    Args:
        bundle: as `open_bundle` gives it.
        dataset: the dataset folder.
        tasks: as for `parse_tasks`.
        split: ``valid`` or ``test``.
        seed: of the tasks' choices and of the samples.
        limit: most examples a task; None takes all.
        ks: cuts.

    Raises:
        InputError: a task that the dataset lacks something for.
    """
    made = {"dataset": dataset, "splits": bundle.splits, "split": split, "vocab": bundle.model.vocab, "seed": seed}
    asked = {}
    for name, value in tasks.items():
        if name in NOT_SCORED:
            continue
        asked |= examples_to_score({name: value}, limit=limit, held_out=bundle.held_out, **made)
        if name == "next_item":
            whole = examples_to_score({name: value}, **made)[name]
            cold = _cold(whole, bundle, limit)
            asked |= {COLD_START: cold} if cold.examples else {}
    if bundle.model.model.config.is_encoder_decoder:
        for name in [name for name, examples in asked.items() if examples.kind == "items"]:
            logger.warning("%s: an encoder-decoder model writes no list item by item; it is left out", name)
            del asked[name]
    return {name: score_task(bundle.model, examples, ks=ks) for name, examples in asked.items()}


def _cold(whole: TaskExamples, bundle: SuiteBundle, limit: int | None) -> TaskExamples:
    """Return the rows whose target is new to the bundle, or where it knows all, rare in training."""
    targets = np.array([example.target for example in whole.examples])
    if bundle.new:
        cold = np.isin(targets, sorted(bundle.new))
    else:
        slicing = by_popularity(targets, bundle.model.vocab.popularity)
        cold = np.isin(slicing.member, [slicing.labels.index(label) for label in COLD_SLICES])
    examples = [whole.examples[place] for place in np.flatnonzero(cold)]
    every = 1 if limit is None else max(1, len(examples) // limit)
    return replace(whole, name=COLD_START, examples=examples[::every][:limit])


def suite_rows(
    scores: Mapping[str, TaskScore], bundle: SuiteBundle, control: Mapping[str, TaskScore] | None = None
) -> list[dict[str, Any]]:
    """Return the rows of a results file: each task's metrics, and by how much they are above the control's.

    Args:
        scores: by task.
        bundle: whose they are.
        control: scores of another bundle on the same examples.
    """
    rows = []
    for name, score in scores.items():
        row = score.row() | {"learned": ("next_item" if name == COLD_START else name) in bundle.tasks}
        if control is not None and name in control:
            row["control"] = control[name].metrics
            row["differences"] = compare_scores(score, control[name])
        rows.append(row)
    return rows


def format_suite(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as aligned text: each task's main metric, beside the control's and their difference."""
    lines = [["task", "examples", "metric", "bundle", "control", "difference, 95 % interval"]]
    for row in rows:
        main = row["main"]
        beside = ["", ""]
        if "control" in row:
            found = row["differences"].get(main)
            said = "" if found is None else f"{found['difference']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})"
            beside = [f"{row['control'][main]:.4f}", said]
        marks = ("" if row["learned"] else " (not trained on)") + (" (seen in training)" if row["trained"] else "")
        lines.append([row["task"] + marks, str(row["examples"]), main, f"{row['metrics'][main]:.4f}", *beside])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
