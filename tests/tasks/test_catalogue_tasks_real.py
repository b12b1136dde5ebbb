"""Tasks of catalogue and histories on Office and Beauty: how many examples, none empty, all titles read back."""

import random
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmrec.data.folder import DatasetFolder, load_dataset
from llmrec.embeddings.store import save_embeddings
from llmrec.sids.table import SIDTable, pad_codes
from llmrec.tasks.categories import category_of
from llmrec.tasks.inputs import TaskInputs
from llmrec.tasks.mixture import TASKS
from llmrec.tasks.needs import NEEDS, runnable_tasks
from llmrec.tasks.short_text import TITLE_CHARACTERS, short_text
from llmrec.training.tokenizer import train_tokenizer
from llmrec.vocab import SIDVocab, add_sid_tokens

pytestmark = pytest.mark.real

SCRIPTS = Path(__file__).parents[2] / "data_prep"
NAMES = (
    "next_item", "next_session", "history_title_to_sid", "sid_history_to_title", "sid_history_to_description",
    "sid_to_title", "title_to_sid", "description_to_sid", "attributes_to_sid", "sid_to_category", "prefix_to_category",
    "similar_items",
)  # fmt: skip


@pytest.fixture(scope="module", params=["office", "beauty"])
def dataset(
    request: pytest.FixtureRequest, real_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> DatasetFolder:
    out = tmp_path_factory.mktemp("tasks") / request.param
    source = real_data / request.param
    if request.param == "office":
        script, arguments = "lcrec.py", ["--source", str(source), "--name", "Office"]
    else:
        items = str(source / "Amazon_Beauty.item")
        script, arguments = "sequences.py", ["--source", str(source / "user_sequence.txt"), "--items", items]
    runpy.run_path(str(SCRIPTS / script))["main"]([*arguments, "--out", str(out)])
    catalog = load_dataset(out).catalog
    vectors = np.random.default_rng(0).normal(size=(len(catalog), 8)).astype(np.float32)
    save_embeddings(out / "embeddings.safetensors", vectors, {"encoder": "drawn", "catalog_hash": catalog.hash})
    return load_dataset(out)


def test_every_task_runs(dataset: DatasetFolder) -> None:
    catalog, splits = dataset.catalog, dataset.split("leave_one_out", max_history=20)
    codes = pad_codes([[row % 64, row // 64 % 16, row // 1024] for row in range(len(catalog))], 3)
    table = SIDTable(catalog.item_ids, codes, (64, 16, 16))
    tokenizer = train_tokenizer(catalog.titles, vocab_size=1024)
    add_sid_tokens(tokenizer, table)
    vocab, inputs = SIDVocab(tokenizer, table), TaskInputs.of(dataset, splits)

    described = [row for row, text in enumerate(catalog.columns.get("description", ())) if text.strip()]
    sorted_in = sum(bool(category) for category in category_of(catalog))
    rows, items = len(splits.train), len(catalog)
    expected = {
        "next_item": rows,
        # A row starts a session when its user has a row after it: one row fewer than rows a user.
        "next_session": sum(max(len(sequence) - 2, 0) for sequence in splits.sequences),
        "history_title_to_sid": rows,
        "sid_history_to_title": rows,
        "sid_history_to_description": sum(row.target in set(described) for row in splits.train) if described else None,
        "sid_to_title": items,
        "title_to_sid": items,
        "description_to_sid": len(described) or None,
        "attributes_to_sid": items,
        "sid_to_category": sorted_in,
        "prefix_to_category": 64,
        "similar_items": None,
    }
    can_run = set(runnable_tasks(catalog, inputs))
    assert ("description_to_sid" in can_run) == bool(described) == (dataset.name.lower() == "office")
    for name in NAMES:
        beside: dict[str, Any] = {"inputs": inputs} if name == "similar_items" else {}
        if name not in can_run:
            assert NEEDS[name].missing(catalog, inputs)
            continue
        examples = list(TASKS[name](catalog, vocab, splits.train, random.Random(0), **beside))
        if expected[name] is not None:
            assert len(examples) == expected[name], name
        assert examples, name
        assert all(example.prompt.strip() and example.completion.strip() for example in examples), name
        for example in random.Random(1).sample(examples, min(200, len(examples))):
            for text in (example.prompt, example.completion):
                assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text, name
            assert "".join(example.history) in example.prompt
            if example.target is not None and not example.targets:
                assert example.completion == vocab.tokens(example.target) or name.startswith("sid_history")


def test_all_titles_read_back(dataset: DatasetFolder) -> None:
    tokenizer = train_tokenizer(dataset.catalog.titles[:500], vocab_size=512)
    titles = [short_text(title, TITLE_CHARACTERS) for title in dataset.catalog.titles]
    assert all(titles)
    encoded = tokenizer(titles, add_special_tokens=False)["input_ids"]
    assert tokenizer.batch_decode(encoded) == titles


def test_categories_say_something(dataset: DatasetFolder) -> None:
    names = category_of(dataset.catalog)
    assert all(names), "both sets name a category for every item"
    counts = sorted((names.count(name) for name in set(names)), reverse=True)
    # Leaves of a tree: many, none with a quarter of the items; few items keep a wide level that hardly another keeps.
    assert len(counts) > 50
    assert counts[0] < len(names) / 4
    assert sum(count for count in counts if count < 5) < len(names) / 20
