"""Baselines of a table: tuned for each way that it is scored, and fitted without what they must not know."""

import argparse

import numpy as np
import pytest
from pens_dataset import write_pens

from llmrec.baselines import DenseText, ItemKNN, Popularity
from llmrec.baselines.context import FitContext
from llmrec.baselines.fitting import score_baselines, without_rows
from llmrec.baselines.flags import data_to_fit
from llmrec.baselines.tuning import FitData, tune
from llmrec.data.folder import load_dataset
from llmrec.data.splits import History
from llmrec.embeddings.store import save_embeddings
from llmrec.evaluation.scoring import Scoring


def test_items_that_must_not_be_known_leave_with_their_times():
    valid = [History(0, (4, 2), 3), History(1, (2,), 1), History(2, (1, 3), 2)]
    context = FitContext(timestamps=[(10, 20, 30), (5,), (1, 2)], valid=valid)
    found = without_rows(FitData([(2, 1, 3), (2,), (1, 1)], 5, context), np.array([2]))
    assert found.sequences == [(1, 3), (), (1, 1)]
    assert found.context.timestamps == [(20, 30), (), (1, 2)]
    # The second row has no history left, the third's target is gone.
    assert found.context.valid == [History(0, (4,), 3)]
    assert found.items == 5
    assert without_rows(FitData([(2, 1)], 5, FitContext()), np.array([2])).context.timestamps is None


@pytest.mark.parametrize("tuned", [True, False])
def test_each_way_of_scoring_has_the_settings_chosen_for_it(tmp_path, monkeypatch, tuned):
    pens = load_dataset(write_pens(tmp_path / "pens"))
    splits = pens.split()
    file = save_embeddings(
        tmp_path / "e.safetensors", np.random.default_rng(0).normal(size=(40, 4)),
        {"encoder": "drawn", "catalog_hash": pens.catalog.hash},
    )  # fmt: skip
    args = argparse.Namespace(tune=tuned, cache=None, embeddings=str(file), limit_users=20)
    kinds = {"popularity": Popularity, "item_knn": ItemKNN, "dense_text": DenseText}
    data = data_to_fit(pens, splits, kinds=kinds, embeddings=str(file), device="cpu")
    scoring = Scoring(pens, splits, splits.test, split="test", ks=(5, 10), exclude_seen="both", progress=False)
    last = score_baselines(scoring, kinds, data, args, given={"dense_text": {"last": 3}}, leaks=["seen"])
    assert [type(model) for model in last] == [DenseText] * (1 + tuned)
    rows = {row["name"]: row for row in scoring.results}
    assert set(rows) == {name + suffix for name in kinds for suffix in ("", " (seen excluded)")}
    for name, row in rows.items():
        kind = kinds[name.split()[0]]
        assert row.get("leaks") == (["seen"] if kind is DenseText else None)
        assert row.get("embeddings", {}).get("encoder") == ("drawn" if kind is DenseText else None)
        fixed = {"last": 3} if kind is DenseText else {}
        settings = kind(**fixed).settings
        if tuned:
            ways = {"fixed": fixed, "exclude_seen": row["exclude_seen"]}
            settings = tune(kind, data, splits.valid[:20], name=name, **ways).model.settings
            assert row["tuned"]["chosen"].items() <= settings.items()
        assert row.get("settings", {}) == settings
