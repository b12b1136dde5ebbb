"""Audits of planted datasets: a cycle, which is nothing but a shortcut, and noise."""

from pathlib import Path
from typing import Any

import numpy as np

from llmrec.baselines import ItemKNN, Popularity, TransitionGraph
from llmrec.baselines.context import FitContext
from llmrec.data.folder import load_dataset, write_dataset
from llmrec.data.interactions import Interactions
from llmrec.data.items import Catalog
from llmrec.evaluation.audit import examples, excludes_seen, heuristics, structure
from llmrec.evaluation.audit_words import judge

ITEMS = 120


def walks(kind: str, *, users: int = 150, length: int = 8) -> np.ndarray:
    """``cycle``: the next row follows, with few exceptions; ``noise``: any row follows."""
    rng = np.random.default_rng(0)
    found = np.stack([rng.choice(ITEMS, length, replace=False) for _ in range(users)])
    if kind == "cycle":
        found = (rng.integers(0, ITEMS, users)[:, None] + np.arange(length)) % ITEMS
    return found


def make_audit(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The audit of `walks`, and the titles for its page."""
    items = walks(kind)
    users, length = items.shape
    angle = 2 * np.pi * np.arange(ITEMS) / ITEMS
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    write_dataset(
        folder / kind,
        catalog=Catalog(
            tuple(f"i{row:03d}" for row in range(ITEMS)), {"title": tuple(f"pen <{row}>" for row in range(ITEMS))}
        ),
        interactions=Interactions(
            tuple(f"u{user:03d}" for user in range(users)), np.repeat(np.arange(users), length), items.ravel(),
            np.tile(np.arange(length), users),
        ),
        manifest={"name": kind, "domain": "pens", "source": "drawn", "licence": "none", "times": "position"},
    )  # fmt: skip
    dataset = load_dataset(folder / kind)
    splits = dataset.split()
    context = FitContext(embeddings=vectors)
    models = {
        name: model.fit(splits.sequences, items=ITEMS, context=context)
        for name, model in {
            "popularity": Popularity(), "item_knn": ItemKNN(), "transition_graph": TransitionGraph()
        }.items()
    }  # fmt: skip
    audit = {
        "dataset": kind,
        "protocol": splits.protocol,
        "train": None,
        **structure(dataset, splits, vectors=vectors, encoder="angles"),
        "heuristics": heuristics(
            models, {"item_knn": models["item_knn"]}, splits.rows("valid"), items=ITEMS,
            exclude_seen=excludes_seen(splits), ordered=("transition_graph",), progress=False,
        ),
    }  # fmt: skip
    return {**audit, "verdict": judge(audit)}, examples(dataset, splits)
