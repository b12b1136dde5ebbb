"""What tasks are scored on: held-out rows and items, canonical wordings, and what the row says of it."""

import pytest

from llmrec.data.folder import DatasetFolder, load_dataset, write_dataset
from llmrec.data.planted import plant_texts
from llmrec.data.synthetic import Process, generate
from llmrec.errors import InputError
from llmrec.evaluation.task_examples import OF_CATALOGUE, TaskExamples, examples_to_score, scored_options
from llmrec.sids.table import SIDTable, pad_codes
from llmrec.tasks.categories import category_of
from llmrec.tasks.mixture import TASKS, held_out_rows
from llmrec.tasks.spec import TaskSpec
from llmrec.tasks.wordings import WORDINGS
from llmrec.training.tokenizer import train_tokenizer
from llmrec.vocab import SIDVocab, add_sid_tokens

WITHOUT_FILES = [name for name in TASKS if name not in ("chat_data", "similar_items")]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> DatasetFolder:
    path = tmp_path_factory.mktemp("data") / "planted"
    planted = plant_texts(generate(Process(items=60, clusters=12, users=40, min_length=5, max_length=9)))
    data = planted.data
    write_dataset(path, catalog=data.catalog, interactions=data.interactions, manifest=data.manifest())
    planted.save_beside(path)
    return load_dataset(path)


@pytest.fixture(scope="module")
def vocab(dataset: DatasetFolder) -> SIDVocab:
    items = len(dataset.catalog)
    table = SIDTable(dataset.catalog.item_ids, pad_codes([[row // 8, row % 8] for row in range(items)], 2), (8, 8))
    tokenizer = train_tokenizer(dataset.catalog.titles, vocab_size=300)
    add_sid_tokens(tokenizer, table)
    return SIDVocab(tokenizer, table)


def made(dataset: DatasetFolder, vocab: SIDVocab, tasks, **changes) -> dict[str, TaskExamples]:
    splits = dataset.split("leave_one_out", max_history=20)
    settings = {"dataset": dataset, "splits": splits, "split": "test", "vocab": vocab, "seed": 0, **changes}
    return examples_to_score(tasks, **settings)


def test_every_task_has_examples_of_held_out_rows_or_items(dataset: DatasetFolder, vocab: SIDVocab) -> None:
    held_out = held_out_rows(60, 0.2, seed=0)
    found = made(dataset, vocab, dict.fromkeys(WITHOUT_FILES, 1.0), held_out=held_out)
    test_rows = dataset.split("leave_one_out", max_history=20).test
    assert set(found) == set(WITHOUT_FILES)
    assert {name: task.kind for name, task in found.items() if task.kind not in ("item", "text")} == {
        "next_session": "items", "rating": "number",
    }  # fmt: skip
    texts = [name for name, task in found.items() if task.kind == "text"]
    assert texts == [
        "sid_history_to_title", "sid_history_to_description", "sid_to_title", "sid_to_category", "prefix_to_category",
        "explanation", "user_profile",
    ]  # fmt: skip
    for name, task in found.items():
        assert task.examples, name
        assert not task.trained
        items = {example.item for example in task.examples}
        if name in OF_CATALOGUE:
            assert items <= held_out, name
    asked = [(example.prompt, example.target) for example in found["next_item"].examples]
    assert asked == [("".join(map(vocab.tokens, row.items)), row.target) for row in test_rows]
    assert {example.item for example in found["review_to_sid"].examples} <= held_out
    assert not {example.item for example in found["reasoning"].examples} <= held_out, "answered from histories"


def test_without_held_out_items_the_row_says_that_they_were_seen(dataset: DatasetFolder, vocab: SIDVocab) -> None:
    found = made(dataset, vocab, {"title_to_sid": 1.0, "next_item": 1.0, "chat_data": {"path": "nowhere"}})
    assert {name: task.trained for name, task in found.items()} == {"title_to_sid": True, "next_item": False}
    assert len(found["title_to_sid"].examples) == 60


def test_prompts_have_the_canonical_wording_and_answers_are_direct(dataset: DatasetFolder, vocab: SIDVocab) -> None:
    found = made(dataset, vocab, {"sid_to_title": 1.0, "reasoning": {"direct": 0.0}})
    assert found["sid_to_title"].examples[3].prompt == f"Title of {vocab.tokens(3)}:"
    beginning = WORDINGS["reasoning"][0].split("{")[0]
    assert all(example.prompt.startswith(beginning) for example in found["reasoning"].examples)
    assert all(example.completion == vocab.tokens(example.target) for example in found["reasoning"].examples)
    assert scored_options(TaskSpec("next_session", options={"items": 3}))["items"] == 3


def test_a_session_is_asked_for_in_its_length(dataset: DatasetFolder, vocab: SIDVocab) -> None:
    task = made(dataset, vocab, {"next_session": {"items": 3}})["next_session"]
    row = dataset.split("leave_one_out", max_history=20).test[0]
    assert task.length == 3
    assert task.examples[0].prompt == WORDINGS["next_session"][0].format(
        history="".join(vocab.tokens(item) for item in row.items), items=3
    )
    assert task.examples[0].targets == (row.target,)


def test_a_prefix_is_expected_to_tell_the_item_own_category(dataset: DatasetFolder, vocab: SIDVocab) -> None:
    task = made(dataset, vocab, {"prefix_to_category": {"min_items": 3}})["prefix_to_category"]
    own = category_of(dataset.catalog, min_items=3)
    assert [example.completion for example in task.examples] == [f" {category}" for category in own]
    assert len({example.prompt for example in task.examples}) == 8, "eight first codes"


def test_samples_are_seeded(dataset: DatasetFolder, vocab: SIDVocab) -> None:
    whole, some, other = (
        made(dataset, vocab, {"denoise": 1.0}, limit=limit, seed=seed)["denoise"].examples
        for limit, seed in ((None, 0), (7, 0), (7, 1))
    )
    assert len(some) == 7
    assert some == [example for example in whole if example in some]
    assert some == made(dataset, vocab, {"next_item": 1.0, "denoise": 1.0}, limit=7)["denoise"].examples
    assert some != other


def test_nothing_to_score_is_refused(dataset: DatasetFolder, vocab: SIDVocab) -> None:
    with pytest.raises(InputError, match="tasks: title_to_sid gives no examples to score on the test split"):
        made(dataset, vocab, {"title_to_sid": 1.0}, held_out=frozenset([1000]))
