"""Sequences that a fitted baseline draws."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmrec.embeddings.store import save_embeddings
from llmrec.errors import InputError
from llmrec.training.config import RecipeArguments
from llmrec.training.walks import Walks, draw_walks, walks_for

STEPS: dict[str, Any] = {"baseline": "transitions"}


def test_walks_go_where_the_baseline_goes(catalog, dataset) -> None:
    sequences = dataset.split().sequences
    walks = draw_walks(
        Walks(**STEPS, alone=200, items=3, top=2, temperature=1.0), sequences, catalog=catalog, max_history=20, seed=0
    )
    assert len(walks) == 200
    assert all(len(walk) == 4 == len(set(walk)) for walk in walks)
    # The planted users step by 1 or 2; a walk knows nothing else, save where its two best are both behind it
    steps = Counter((b - a) % len(catalog) for walk in walks for a, b in pairwise(walk))
    assert steps[1] + steps[2] >= 0.95 * 600
    assert min(steps[1], steps[2]) > 100


def test_continuations_begin_with_training_histories(catalog, dataset) -> None:
    sequences = dataset.split().sequences
    walks = draw_walks(
        Walks(**STEPS, continuations=1.5, steps=2), sequences, catalog=catalog, max_history=20, seed=0, progress=False
    )
    assert len(walks) == 150
    # Once all users in order, then every second of them, drawn anew
    for walk, sequence in zip(walks, sequences, strict=False):
        assert walk[:-2] == tuple(sequence[: len(walk) - 2])
        assert not set(walk[-2:]) & set(walk[:-2])
    assert {len(walk) for walk in walks[:100]} > {4, 8}


def test_long_histories_keep_their_end(catalog, dataset) -> None:
    sequences = dataset.split().sequences
    walks = draw_walks(Walks(**STEPS, continuations=1.0, steps=2), sequences, catalog=catalog, max_history=4, seed=0)
    assert {len(walk) for walk in walks} <= {3, 4, 5}
    whole = [(walk, sequence) for walk, sequence in zip(walks, sequences, strict=True) if walk[:3] == sequence[-3:]]
    assert len(whole) > 30


def test_temperature_sharpens_a_draw(catalog) -> None:
    sequences = [(0, 1)] * 3 + [(0, 2)] * 2

    def share_of_the_best(temperature: float) -> float:
        walks = Walks(**STEPS, alone=600, items=1, top=2, temperature=temperature)
        drawn = draw_walks(walks, sequences, catalog=catalog, max_history=20, seed=0)
        return float(np.mean([walk[1] == 1 for walk in drawn if walk[0] == 0]))

    assert share_of_the_best(0.01) == 1.0
    assert 0.4 < share_of_the_best(1e6) < 0.6


def test_draws_follow_the_softmax_of_the_scores(catalog) -> None:
    # From item 0, item 1 followed three times and item 2 once: scores 3 and 1, 3 / 2 and 1 / 2 over a temperature of 2
    sequences = [(0, 1)] * 3 + [(0, 2)]
    walks = Walks(**STEPS, alone=4000, items=1, top=2, temperature=2.0)
    drawn = [walk[1] for walk in draw_walks(walks, sequences, catalog=catalog, max_history=5, seed=1) if walk[0] == 0]
    expected = np.exp(1.5) / (np.exp(1.5) + np.exp(0.5))
    share = np.mean([item == 1 for item in drawn])
    assert len(drawn) > 1000
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / len(drawn))


def test_same_seed_same_walks(catalog, dataset) -> None:
    sequences = dataset.split().sequences
    walks = Walks(**STEPS, alone=20, continuations=0.3)
    first, again, other = (
        draw_walks(walks, sequences, catalog=catalog, max_history=9, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "neither alone nor continuations is above 0"),
        ({"alone": -1}, "alone -1; a whole number, at least 0"),
        ({"alone": 5, "top": 0}, "top 0; a whole number, at least 1"),
        ({"alone": 5, "temperature": 0.0}, "temperature 0"),
        ({"continuations": float("nan")}, "continuations nan; a number, 0 or more"),
        ({"alone": 5, "length": 3}, "unknown field 'length'; choose from baseline, settings"),
    ],
)
def test_bad_walks_are_refused(given: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Walks.of(given)


def test_a_baseline_that_lacks_something_is_refused(catalog, dataset) -> None:
    sequences = dataset.split().sequences
    with pytest.raises(InputError, match="transition_graph reads the items' vectors; name their file as embeddings"):
        draw_walks(Walks(alone=5), sequences, catalog=catalog, max_history=5, seed=0)
    with pytest.raises(InputError, match="item_knn refuses settings"):
        draw_walks(Walks("item_knn", {"depth": 3}, alone=5), sequences, catalog=catalog, max_history=5, seed=0)
    with pytest.raises(InputError, match="been through the whole catalogue"):
        draw_walks(Walks(**STEPS, alone=5, items=30), sequences, catalog=catalog, max_history=5, seed=0)


@pytest.mark.parametrize("made", [{}, {"protocol": "leave_one_out"}, {"protocol": "temporal"}])
def test_vectors_that_know_what_is_held_out_are_refused(catalog, dataset, tmp_path: Path, made: dict) -> None:
    vectors = np.random.default_rng(0).normal(size=(len(catalog), 4))
    manifest = {"encoder": "drawn", "catalog_hash": catalog.hash, **made}
    path = save_embeddings(tmp_path / "vectors.safetensors", vectors, manifest)
    walks = {"alone": 5, "items": 2, "embeddings": str(path)}
    arguments = RecipeArguments(dataset="data/x", sids="data/x/sids", walks=walks)
    splits = dataset.split("leave_one_out")
    if made.get("protocol") == "temporal":
        with pytest.raises(
            InputError, match=r"walks: .*vectors.* fitted on the training part of 'temporal', and the "
        ):
            walks_for(arguments, splits, catalog, seed=0, progress=False)
    else:
        assert len(walks_for(arguments, splits, catalog, seed=0, progress=False)) == 5
