"""Tuning on validation, the cache, and the folders that baselines are kept in."""

import importlib
import json
from typing import ClassVar

import numpy as np
import pytest
import torch

from llmrec.artifacts import read_json, write_json
from llmrec.baselines import ALL_BASELINES, DenseText, GRU4Rec, ItemKNN, Popularity, neural_training
from llmrec.baselines.context import FitContext, training_times
from llmrec.baselines.tuning import FitData, code_hash, fit_baseline, fit_or_load, make_baseline, tune
from llmrec.data.folder import load_dataset, write_dataset
from llmrec.data.interactions import Interactions
from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.evaluation.evaluator import evaluate

ITEMS = 24
VECTORS = np.random.default_rng(1).normal(size=(ITEMS, 6)).astype(np.float32)
CLOSED = [
    "popularity",
    "item_knn",
    "transitions",
    "recent_popularity",
    "transition_graph",
    "ease",
    "als",
    "dense_text",
]
SMALL = {"als": {"factors": 4, "iterations": 2}}


def walks(seed: int = 0) -> list[tuple[int, ...]]:
    """Steps of 1 to 3 around a ring of items."""
    rng = np.random.default_rng(seed)
    return [tuple(((rng.integers(0, ITEMS) + np.cumsum(rng.integers(1, 4, 6))) % ITEMS).tolist()) for _ in range(40)]


def data(**context) -> FitData:
    return FitData(walks(), ITEMS, FitContext(**{"embeddings": VECTORS, "progress": False, **context}))


ROWS = [History(user, walk[:-1], walk[-1]) for user, walk in enumerate(walks(7))]


@pytest.mark.parametrize("name", CLOSED)
def test_saved_and_read_it_recommends_the_same(name, tmp_path):
    model = fit_baseline(ALL_BASELINES[name](**SMALL.get(name, {})), data())
    model.save_pretrained(tmp_path / "kept")
    again = type(model).from_pretrained(tmp_path / "kept")
    assert again.settings == model.settings
    histories = [row.items for row in ROWS] + [()]
    for exclude_seen in (False, True):
        lists = model.recommend(histories, 7, exclude_seen=exclude_seen)
        assert again.recommend(histories, 7, exclude_seen=exclude_seen).equal(lists)


@pytest.mark.parametrize("name", CLOSED)
def test_late_settings_need_no_other_fit(name):
    kind = ALL_BASELINES[name]
    assert kind.late <= kind.grid.keys()
    late = {key: kind.grid[key][-1] for key in kind.late}
    model = fit_baseline(kind(**SMALL.get(name, {})), data())
    before = model.settings
    found = model.with_late(late).recommend([row.items for row in ROWS], 7)
    assert model.settings == before
    fresh = fit_baseline(kind(**{**SMALL.get(name, {}), **late}), data())
    assert found.equal(fresh.recommend([row.items for row in ROWS], 7))
    with pytest.raises(InputError, match="nonsense cannot change after the fit"):
        model.with_late({"nonsense": 1})


def test_tuning_takes_the_best_of_all_combinations(tmp_path):
    found = tune(ItemKNN, data(), ROWS, name="item_knn", cache=tmp_path)
    assert len(found.trials) == 3 * 5
    # One by one, without sharing a fit: the same figures, and the first of the best is chosen
    figures = []
    for trial in found.trials:
        model = ItemKNN(**trial["settings"]).fit(walks(), items=ITEMS)
        expected = evaluate(model, ROWS, items=ITEMS, ks=(10,), progress=False).metrics
        assert trial["metrics"]["ndcg@10"] == expected["ndcg@10"]
        figures.append(expected["ndcg@10"])
    assert len(set(figures)) > 1
    assert found.settings == found.trials[int(np.argmax(figures))]["settings"]
    assert found.model.settings == found.settings
    fixed = tune(ItemKNN, data(), ROWS, name="item_knn", fixed={"shrinkage": 3.5})
    assert [trial["settings"]["shrinkage"] for trial in fixed.trials] == [3.5] * 5


def test_the_exclusion_of_seen_items_is_that_of_the_final_scoring(tmp_path):
    seen = [History(row.user, row.items, row.items[-1]) for row in ROWS]
    kept = tune(Popularity, data(), seen, name="popularity", cache=tmp_path)
    without = tune(Popularity, data(), seen, name="popularity", exclude_seen=True, cache=tmp_path)
    assert kept.trials[0]["metrics"]["recall@10"] > 0
    assert without.trials[0]["metrics"]["recall@10"] == 0


def test_a_second_run_fits_nothing(tmp_path, monkeypatch):
    first = tune(ItemKNN, data(), ROWS, name="item_knn", cache=tmp_path)

    def worked(*_):
        raise AssertionError("it was fitted again")

    monkeypatch.setattr(ItemKNN, "_fit", worked)
    again = tune(ItemKNN, data(), ROWS, name="item_knn", cache=tmp_path)
    assert again.settings == first.settings
    assert again.trials == first.trials
    histories = [row.items for row in ROWS]
    assert again.model.recommend(histories, 5).equal(first.model.recommend(histories, 5))
    # Embeddings say nothing to item_knn, other sequences do
    tune(ItemKNN, data(embeddings=VECTORS + 1), ROWS, name="item_knn", cache=tmp_path)
    with pytest.raises(AssertionError, match="fitted again"):
        tune(ItemKNN, FitData(walks(3), ITEMS, FitContext(progress=False)), ROWS, name="item_knn", cache=tmp_path)


def test_a_tuning_that_was_cut_short_goes_on(tmp_path):
    whole = tune(ItemKNN, data(), ROWS, name="item_knn", cache=tmp_path / "whole")
    tune(ItemKNN, data(), ROWS, name="item_knn", cache=tmp_path / "part")
    (file,) = (tmp_path / "part").glob("*.trials.json")
    known = read_json(file, "trials")
    write_json(file, dict(list(known.items())[:7]))
    again = tune(ItemKNN, data(), ROWS, name="item_knn", cache=tmp_path / "part")
    assert (again.settings, again.trials) == (whole.settings, whole.trials)


def test_what_is_cached_depends_on_settings_data_and_code(tmp_path):
    fit_or_load(ItemKNN, {}, data(), name="knn", cache=tmp_path)
    fit_or_load(ItemKNN, {"recency": 0.5}, data(), name="knn", cache=tmp_path)  # the default, said
    assert len(list(tmp_path.iterdir())) == 1
    fit_or_load(ItemKNN, {"recency": 0.9}, data(), name="knn", cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    fit_or_load(DenseText, {}, data(), name="text", cache=tmp_path)
    fit_or_load(DenseText, {}, data(embeddings=VECTORS + 1), name="text", cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    assert code_hash(ItemKNN) != code_hash(DenseText)


def test_a_damaged_folder_of_the_cache_is_made_again(tmp_path, caplog):
    model = fit_or_load(ItemKNN, {}, data(), name="knn", cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / "baseline.safetensors").write_bytes(b"half")
    again = fit_or_load(ItemKNN, {}, data(), name="knn", cache=tmp_path)
    assert "is made again" in caplog.text
    histories = [row.items for row in ROWS]
    assert again.recommend(histories, 5).equal(model.recommend(histories, 5))
    assert ItemKNN.from_pretrained(folder).recommend(histories, 5).equal(model.recommend(histories, 5))


def test_wrong_folders_are_refused(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    model = fit_baseline(Popularity(), data())
    with pytest.raises(InputError, match=r"holds no baseline\.json, so it is no baseline"):
        model.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="it is not fitted"):
        Popularity().save_pretrained(tmp_path / "new")
    model.save_pretrained(tmp_path / "kept")
    with pytest.raises(InputError, match=r"baseline 'llmrec\.baselines\.popularity:Popularity', expected"):
        ItemKNN.from_pretrained(tmp_path / "kept")
    config = json.loads((tmp_path / "kept" / "baseline.json").read_text())
    write_json(tmp_path / "kept" / "baseline.json", {**config, "format_version": 9})
    with pytest.raises(InputError, match="of format 1; fit it again"):
        Popularity.from_pretrained(tmp_path / "kept")


def test_the_code_of_a_class_is_all_that_it_imports_from_its_folder(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    files = {name: tmp_path / "mine" / f"{name}.py" for name in ("__init__", "model", "layers", "losses", "other")}
    for file in files.values():
        file.write_text("")
    files["model"].write_text("from mine.layers import Layer\n\n\nclass Model(Layer):\n    pass\n")
    files["layers"].write_text("from mine.losses import loss\n\n\nclass Layer:\n    loss = loss\n")
    files["losses"].write_text("loss = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    kind = importlib.import_module("mine.model").Model
    before = code_hash(kind)
    files["other"].write_text("loss = 3\n")
    assert code_hash(kind) == before
    for name in ("losses", "layers", "model"):
        text = files[name].read_text()
        files[name].write_text(text + "# other\n")
        assert code_hash(kind) != before, name
        files[name].write_text(text)
    assert code_hash(kind) == before


class Killed(GRU4Rec):
    """Is killed in its second epoch, once."""

    grid: ClassVar = {}
    kills: ClassVar[list[int]] = []

    def _lesson(self, rows, draws):
        self.kills.append(1)
        if len(self.kills) == 2:
            raise KeyboardInterrupt
        return super()._lesson(rows, draws)


def test_a_tuning_killed_within_a_fit_goes_on_within_it(tmp_path, monkeypatch):
    monkeypatch.setattr(neural_training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(Killed, "kills", [])
    fixed = {"epochs": 3, "dim": 8, "batch_size": 64}
    whole = tune(GRU4Rec, data(valid=ROWS), ROWS, name="gru", fixed={**fixed, "dropout": 0.5, "temperature": None})
    with pytest.raises(KeyboardInterrupt):
        tune(Killed, data(valid=ROWS), ROWS, name="gru", fixed=fixed, cache=tmp_path)
    (left,) = tmp_path.glob("*.checkpoint")
    found = tune(Killed, data(valid=ROWS), ROWS, name="gru", fixed=fixed, cache=tmp_path)
    assert len(Killed.kills) == 2 + 2  # one lesson an epoch: the first epoch was not learned again
    assert not left.exists()
    assert found.trials[0]["metrics"] == whole.trials[0]["metrics"]


def test_seen_items_left_out_need_no_other_fit(tmp_path, monkeypatch):
    fixed = {"epochs": 2, "dim": 8, "dropout": 0.3}
    kept = tune(GRU4Rec, data(valid=ROWS), ROWS, name="gru", fixed=fixed, cache=tmp_path)
    assert len(kept.trials) == 2

    def worked(*_, **__):
        raise AssertionError("it was fitted again")

    monkeypatch.setattr(GRU4Rec, "fit", worked)
    without = tune(GRU4Rec, data(valid=ROWS), ROWS, name="gru", fixed=fixed, exclude_seen=True, cache=tmp_path)
    assert [trial["settings"] for trial in without.trials] == [trial["settings"] for trial in kept.trials]


class Bare:
    """A user's own, as docs/evaluation.md asks for it, and no more."""

    grid: ClassVar = {"first": (5, 3)}

    def __init__(self, *, first: int = 0) -> None:
        self.first = first

    def fit(self, sequences, *, items):
        self.items = items
        return self

    def recommend(self, histories, k, *, exclude_seen=False):
        order = [self.first, *(item for item in range(self.items) if item != self.first)]
        return torch.tensor([order[:k]] * len(histories))


def test_a_class_of_ones_own_is_tuned_without_a_context_or_a_folder(tmp_path):
    rows = [History(0, (1,), 3)]
    found = tune(Bare, data(), rows, name="tests:Bare", cache=tmp_path)
    assert found.settings == {"first": 3}
    assert found.model.first == 3
    assert [path.suffixes[-2:] for path in tmp_path.iterdir()] == [[".trials", ".json"]]
    assert tune(Bare, data(), rows, name="tests:Bare", cache=tmp_path).model.first == 3


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ease", {"l3": 1}, "ease: no setting 'l3'; it has l2, recency, max_memory_gib"),
        ("popularity", {"x": 1}, "popularity: no setting 'x'; it has none"),
        ("ease", {"l2": "much"}, "ease: a setting is of the wrong type .* given are {'l2': 'much'}"),
        ("sasrec", {"depth": 1}, "no setting 'depth'; it has dim"),
    ],
)
def test_bad_settings_are_refused(name, settings, message):
    with pytest.raises(InputError, match=message):
        make_baseline(ALL_BASELINES[name], settings, name=name)


@pytest.mark.parametrize("protocol", ["leave_one_out", "temporal"])
def test_training_times_are_those_of_the_training_sequences(tmp_path, protocol):
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(12), rng.integers(1, 8, 12))
    times = rng.permutation(1000)[: len(users)]
    interactions = Interactions.sort(
        tuple(f"u{user}" for user in range(12)),
        users=users,
        items=times % 9,  # an item tells its time: equal sequences mean equal interactions
        timestamps=times,
    )
    manifest = {"name": "x", "domain": "x", "source": "drawn", "licence": "none", "times": "seconds"}
    ids = tuple(f"i{item}" for item in range(9))
    write_dataset(tmp_path / "x", catalog=Catalog(ids, {"title": ids}), interactions=interactions, manifest=manifest)
    dataset = load_dataset(tmp_path / "x")
    found = training_times(dataset, protocol)
    sequences = dataset.split(protocol).sequences
    assert found is not None
    assert [tuple(time % 9 for time in user) for user in found] == list(sequences)
    assert training_times(load_dataset(tmp_path / "x"), "provided") is None
