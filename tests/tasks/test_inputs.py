"""Task inputs: what is visible under each protocol, and that nothing held out is."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from text_kit import HELD_OUT, ITEM_IDS, SEQUENCES, TRAINING, write_all_texts, write_folder, write_texts

from llmrec.data.folder import DatasetFolder, load_dataset, write_dataset
from llmrec.data.hold_out import hold_out_items
from llmrec.data.interactions import Interactions
from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.tasks.inputs import TaskInputs, given


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    folder = tmp_path_factory.mktemp("sets") / "desk"
    dataset = write_folder(folder)
    write_all_texts(folder)
    return dataset


def items(inputs: TaskInputs) -> str:
    return "".join(ITEM_IDS[item] for item in inputs.interactions.items.tolist())


def test_training_sees_training_interactions_alone(dataset: DatasetFolder):
    inputs = TaskInputs.of(dataset, dataset.split())
    assert items(inputs) == "".join(TRAINING.values())
    assert inputs.about.all()
    assert inputs.positions.tolist() == [0, 1, 2, 0, 1, 0]
    assert inputs.texts("review") == ['"Crisp", I\'d say', "Schreibt, weich — 柔らか", "", "ok {really}",
                                      "stains,\nbadly", "zips"]  # fmt: skip
    np.testing.assert_array_equal(inputs.ratings(), np.array([5, 4.5, np.nan, 3, 2, 4], dtype=np.float32))


def test_a_split_is_about_its_own_targets(dataset: DatasetFolder):
    splits = dataset.split()
    for name, shown in (("valid", "pqrtqtpup"), ("test", "".join(SEQUENCES.values()))):
        inputs = TaskInputs.of(dataset, splits, split=name)
        assert items(inputs) == shown
        found = [(moment.user, moment.history, moment.item) for moment in inputs.moments()]
        assert found == [(row.user, row.items, row.target) for row in splits.rows(name)]
        assert all(HELD_OUT in inputs.texts("review")[moment.row] for moment in inputs.moments())


def test_moments_are_training_rows_and_first_items(dataset: DatasetFolder):
    inputs = TaskInputs.of(dataset, dataset.split())
    found = [(moment.user, moment.position, moment.history, moment.item) for moment in inputs.moments(history=1)]
    # p q r of user 0, q t of user 1, u of user 2, as rows of the catalogue.
    assert found == [(0, 0, (), 0), (0, 1, (0,), 1), (0, 2, (1,), 2), (1, 0, (), 1), (1, 1, (1,), 4), (2, 0, (), 5)]
    assert next(iter(inputs.moments(history=0))).history == ()


def test_temporal_parts(tmp_path: Path):
    # Twelve targets behind three first items; 8:1:1 of 12 is 9 (to time 11), 1 (time 12), 2 (times 13 and 14).
    users = np.repeat([0, 1, 2], [6, 6, 3])
    times = np.array([0, 2, 4, 6, 8, 14, 1, 3, 5, 7, 9, 13, 10, 11, 12])
    interactions = Interactions(("a", "b", "c"), users, np.zeros(15, np.int64), times)
    manifest = {"name": "x", "domain": "x", "source": "x", "licence": "x", "times": "seconds"}
    catalog = Catalog(("i",), {"title": ("I",)})
    write_dataset(tmp_path / "set", catalog=catalog, interactions=interactions, manifest=manifest)
    dataset = load_dataset(tmp_path / "set")
    splits = dataset.split("temporal")
    for name, about in (("train", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]), ("valid", [12]), ("test", [13, 14])):
        inputs = TaskInputs.of(dataset, splits, split=name)
        assert sorted(inputs.interactions.timestamps[inputs.about].tolist()) == about
        rows = sorted((row.user, len(row.items)) for row in splits.rows(name))
        assert sorted((moment.user, len(moment.history)) for moment in inputs.moments() if moment.history) == rows


def test_published_splits_hold_out_a_user_and_item_everywhere(dataset: DatasetFolder):
    # User a: q is learnt from and is a test target too, so no place of q is seen in training.
    published = {
        "train": [History(0, (0,), 1), History(1, (1,), 4)],
        "valid": [History(0, (0, 1), 2)],
        "test": [History(0, (0, 2), 1)],
    }
    other = dataclasses.replace(dataset, published=published)
    splits = other.split("provided")
    inputs = TaskInputs.of(other, splits)
    assert items(inputs) == "p" + "qt"
    assert inputs.positions.tolist() == [0, 0, 1]
    assert [moment.item for moment in TaskInputs.of(other, splits, split="valid").moments()] == [2]
    assert [moment.item for moment in TaskInputs.of(other, splits, split="test").moments()] == [1]


@pytest.mark.parametrize("kind", ["intentions", "explanations", "preferences"])
def test_texts_that_know_of_held_out_interactions_serve_nothing(dataset: DatasetFolder, kind: str):
    found = list(TaskInputs.of(dataset, dataset.split()).written(kind))
    assert found
    assert not [text for _, text in found if HELD_OUT in text]


def test_a_preference_serves_what_follows_it(dataset: DatasetFolder, tmp_path: Path):
    write_folder(tmp_path / "set")
    write_texts(tmp_path / "set", "preferences", [("a", 1, "one"), ("a", 3, "three"), ("a", 4, HELD_OUT)])
    dataset = load_dataset(tmp_path / "set")
    splits = dataset.split()
    by_split = {name: TaskInputs.of(dataset, splits, split=name) for name in ("train", "valid", "test")}
    found = {
        name: [(moment.position, text) for moment, text in inputs.written("preferences")]
        for name, inputs in by_split.items()
    }
    # Validation is at 3, behind three training interactions; test at 4 may know the validation item.
    assert found == {"train": [(1, "one"), (2, "one")], "valid": [(3, "three")], "test": [(4, HELD_OUT)]}


BAD_TEXTS = [
    ("intentions", {"user_ids": ["z"]}, r"intentions.parquet: row 0 names user 'z', whom the dataset lacks"),
    ("intentions", {"positions": [5]}, r"row 0 has position 5; user 'a' has 5 interactions, .* between 0 and 4"),
    ("preferences", {"positions": [0]}, r"row 0 has position 0; .* between 1 and 5"),
    (
        "intentions",
        {"item_ids": ["q"]},
        r"about item 'q' at position 0 of user 'a', where the dataset has 'p'; .*again",
    ),
    ("intentions", {"item_ids": ["z"]}, r"about item 'z' at position 0 of user 'a', where the dataset has 'p'"),
    ("intentions", {"texts": [" "]}, r"row 0 has a blank text; drop it"),
    (
        "intentions",
        {"item_ids": None},
        r"no column 'item_id' \(it has user_id, position, text\); a row names its user",
    ),
]


@pytest.mark.parametrize(("kind", "changes", "message"), BAD_TEXTS)
def test_texts_that_do_not_fit(dataset: DatasetFolder, tmp_path: Path, kind: str, changes: dict, message: str):
    folder = tmp_path / "set"
    inputs = TaskInputs.of(write_folder(folder), dataset.split())
    write_texts(folder, kind, [("a", 0, "x")], **changes)
    with pytest.raises(InputError, match=message):
        list(inputs.written(kind))


def test_files_that_cannot_be_read(dataset: DatasetFolder, tmp_path: Path):
    folder = tmp_path / "set"
    inputs = TaskInputs.of(write_folder(folder, texts=False), dataset.split())
    assert not inputs.has_file("intentions")
    with pytest.raises(InputError, match=r"intentions.parquet: no such file; .*write_texts.py --kind intentions"):
        list(inputs.written("intentions"))
    with pytest.raises(InputError, match=r"interactions.parquet has no column 'review'; it has no text columns"):
        inputs.texts("review")
    path = folder / "intentions.parquet"
    path.write_bytes(b"none")
    with pytest.raises(InputError, match="not a readable parquet file"):
        list(inputs.written("intentions"))
    pq.write_table(pa.table({"user_id": ["a"], "item_id": ["p"], "position": [0.0], "text": ["x"]}), path)
    with pytest.raises(InputError, match="column 'position' is double, expected int64"):
        list(inputs.written("intentions"))
    pq.write_table(
        pa.table({"user_id": ["a"], "item_id": ["p"], "position": [0], "text": pa.array([None], "string")}), path
    )
    with pytest.raises(InputError, match="column 'text' has 1 empty values"):
        list(inputs.written("intentions"))
    write_texts(folder, "intentions", [("a", 0, "x")])
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(InputError, match="differs from the manifest's"):
        list(inputs.written("intentions"))


def test_refusals(dataset: DatasetFolder):
    with pytest.raises(InputError, match="split 'dev' of task inputs: choose one of train, valid, test"):
        TaskInputs.of(dataset, dataset.split(), split="dev")
    with pytest.raises(InputError, match="kind 'poems' of written texts: choose one of intentions, preferences"):
        list(TaskInputs.of(dataset, dataset.split()).written("poems"))
    bare = dataclasses.replace(TaskInputs.of(dataset, dataset.split()), folder=None)
    with pytest.raises(InputError, match=r"there is no dataset folder to read intentions.parquet from"):
        list(bare.written("intentions"))
    unrated = dataclasses.replace(bare, interactions=dataclasses.replace(bare.interactions, ratings=None))
    with pytest.raises(InputError, match=r"interactions.parquet has no column 'rating'"):
        unrated.ratings()
    with pytest.raises(
        InputError, match="tasks: rating reads ratings or texts of a dataset folder, and was given none"
    ):
        given(None, "rating")


def test_texts_of_interactions_travel(dataset: DatasetFolder, tmp_path: Path):
    assert sorted(dataset.interactions.texts) == ["rationale", "review"]
    held = hold_out_items(dataset, share=0.2, seed=1)
    assert len(held.interactions.texts["review"]) == len(held.interactions)
    kept = dataset.interactions.keep(dataset.interactions.items == 0)
    assert [text.as_py()[:6] for text in kept.texts["review"]] == ['"Crisp', "HELD-O", "HELD-O"]
    order = np.array([2, 0, 1])
    first = Interactions.sort(("x",), users=np.zeros(3, np.int64), items=order, timestamps=order,
                              texts={"review": pa.array(["c", "a", "b"])})  # fmt: skip
    assert first.texts["review"].to_pylist() == ["a", "b", "c"]
    with pytest.raises(InputError, match="interactions: review has 1 rows, users has 3"):
        dataclasses.replace(first, texts={"review": pa.array(["a"])})
