"""Planted texts: what they say follows from clusters and looks, and the process underneath stays as it is."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from llmrec.data.folder import load_dataset, write_dataset
from llmrec.data.interactions import Interactions
from llmrec.data.items import Catalog
from llmrec.data.planted import Planted, plant_texts
from llmrec.data.synthetic import Process, Synthetic, generate
from llmrec.tasks.inputs import TaskInputs


@pytest.fixture(scope="module")
def planted() -> Planted:
    return plant_texts(generate(Process(items=60, clusters=6, users=40, seed=3)))


def test_titles_walks_and_times_stay(planted: Planted):
    plain = generate(Process(items=60, clusters=6, users=40, seed=3))
    assert planted.data.catalog.titles == plain.catalog.titles
    for name in ("users", "items", "timestamps"):
        np.testing.assert_array_equal(getattr(planted.data.interactions, name), getattr(plain.interactions, name))


def test_texts_by_hand():
    # Cluster 0 leads to 1 (0.6) and to itself (0.4); cluster 1 to itself. One user walks items 0, 1, 2, 1.
    process = Process(items=4, clusters=2, users=1, min_length=3, max_length=6, stray=0.0)
    titles = ("Alder office lamp, amber oak", "Birch & Co garden kettle, red steel", "Alder garden kettle, blue cork",
              "Alder office lamp, red oak")  # fmt: skip
    brands = ("Alder", "Birch & Co", "Alder", "Alder")
    data = Synthetic(
        process,
        Catalog(("a", "b", "c", "d"), {"title": titles, "brand": brands}),
        Interactions(("u",), np.zeros(4, np.int64), np.array([0, 1, 2, 0]), np.arange(4)),
        np.array([0, 1, 1, 0]),
        np.full(4, 0.5),
        np.array([[0.4, 0.6], [0.1, 0.9]]),
    )
    found = plant_texts(data)
    whole = found.data
    assert whole.catalog.columns["description"][0] == "A lamp of oak for the office, amber all over, made by Alder."
    assert whole.catalog.columns["query"][1] == "red kettle for the garden\ngarden kettle made of steel"
    # The first item has no item before it; 0 -> 1 and 1 -> 1 are the likeliest steps, 1 -> 0 the second likeliest.
    assert whole.interactions.ratings is not None
    assert whole.interactions.ratings.tolist() == [4, 5, 5, 3]
    explanations = whole.interactions.texts["explanation"].to_pylist()
    assert explanations[:2] == ["", "An office lamp asks for a garden kettle, and red steel goes with it."]
    assert whole.interactions.texts["review"][3].as_py().endswith("It will do for now.")
    assert [row.text for row in found.written["preferences"]] == [
        "Lately an office lamp.",
        "Lately a garden kettle, before that an office lamp.",
        "Lately a garden kettle, before that a garden kettle.",
    ]
    assert found.written["rationales"][2].text == "The last was a garden kettle, which an office lamp follows."
    assert found.written["intentions"][0].text == "Something amber for the office: a lamp, best of oak."


def test_steps_that_stray_are_rated_lowest(planted: Planted):
    data = planted.data
    clusters = data.cluster_of[data.interactions.items]
    assert data.interactions.ratings is not None
    for row in np.flatnonzero(np.diff(data.interactions.users) == 0).tolist():
        chances = data.transitions[clusters[row]]
        better = int((chances > chances[clusters[row + 1]]).sum())
        expected = {0: 5, 1: 3}.get(better, 1)
        assert data.interactions.ratings[row + 1] == expected


def test_a_folder_with_texts(planted: Planted, tmp_path: Path):
    folder = tmp_path / "set"
    data = planted.data
    write_dataset(folder, catalog=data.catalog, interactions=data.interactions, manifest=data.manifest())
    planted.save_beside(folder)
    dataset = load_dataset(folder)
    assert dataset.catalog == data.catalog
    for name in ("review", "explanation"):
        assert dataset.interactions.texts[name].equals(data.interactions.texts[name])
    inputs = TaskInputs.of(dataset, dataset.split())
    training = int(inputs.about.sum())
    # Every training interaction has an intention; the users' first ones have no preference and no rationale.
    assert len(list(inputs.written("intentions"))) == training
    assert len(list(inputs.written("preferences"))) == len(list(inputs.written("rationales"))) == training - 40
    chat = [json.loads(line) for line in (folder / "chat.jsonl").read_text().splitlines()]
    held_out = [json.loads(line) for line in (folder / "chat_held_out.jsonl").read_text().splitlines()]
    assert len(held_out) == round(0.1 * len(planted.chat))
    assert [*held_out, *chat] == [{"messages": messages} for messages in planted.chat]
    assert not [row for row in held_out if row in chat]


def test_the_same_settings_give_the_same_texts(planted: Planted):
    again = plant_texts(generate(planted.data.process))
    assert again.written == planted.written
    assert again.chat == planted.chat
    other = plant_texts(generate(dataclasses.replace(planted.data.process, seed=4)))
    assert other.chat != planted.chat
