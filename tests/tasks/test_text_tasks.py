"""Tasks of searches, written texts, reviews, ratings, denoising, profiles, rationales and chat."""

import inspect
import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from text_kit import (
    CATALOG,
    CUT,
    HELD_OUT,
    ITEM_IDS,
    SEQUENCES,
    make_vocab,
    write_all_texts,
    write_folder,
    write_texts,
)

from llmrec.data.folder import DatasetFolder, load_dataset
from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.tasks.chat_data import read_conversations, turns
from llmrec.tasks.example import Example
from llmrec.tasks.inputs import TaskInputs
from llmrec.tasks.mixture import TASKS, mix_tasks
from llmrec.tasks.needs import NEEDS, check_needs
from llmrec.tasks.profile import profile_of
from llmrec.tasks.search import make_query

GOLDEN = Path(__file__).parent / "golden" / "text_tasks.json"
VOCAB = make_vocab()
SID = re.compile(r"<a_\d><b_\d>")
CHAT = [
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": 'Say "hé", please'},
     {"role": "assistant", "content": "hé, 日本"}],
    [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"},
     {"role": "user", "content": "{and} 2 + 2?"}, {"role": "assistant", "content": " 4 "},
     {"role": "user", "content": "thanks"}],
    [{"role": "assistant", "content": "nobody asked"}],
]  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "query_to_sid": {"queries": 1},
    "intention_to_sid": {},
    "preference_to_sid": {"history": 2},
    "review_to_sid": {"max_characters": 12},
    "rating": {},
    "explanation": {},
    "denoise": {"history": 2},
    "user_profile": {"min_items": 2},
    "profile_to_sid": {"min_items": 2},
    "reasoning": {},
    "chat_data": {"path": "PATH"},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    folder = tmp_path_factory.mktemp("sets") / "desk"
    dataset = write_folder(folder)
    write_all_texts(folder)
    (folder / "chat.jsonl").write_text("".join(f"{json.dumps({'messages': row})}\n" for row in CHAT), encoding="utf-8")
    return dataset


def examples(
    dataset: DatasetFolder, task: str, *, split: str = "train", seed: int = 0, **options: Any
) -> list[Example]:
    splits = dataset.split()
    if options.get("path") == "PATH":
        options["path"] = str(dataset.path / "chat.jsonl")
    return mix_tasks(
        {task: {"weight": 1.0, **options}}, catalog=dataset.catalog, vocab=VOCAB, histories=splits.rows(split),
        seed=seed, inputs=TaskInputs.of(dataset, splits, split=split),
    )  # fmt: skip


def as_golden(example: Example) -> dict[str, Any]:
    """What a reader checks: the texts, and the items by their ids."""
    found: dict[str, Any] = {"prompt": example.prompt, "completion": example.completion}
    for name in ("target", "item"):
        row = getattr(example, name)
        if row is not None:
            found[name] = ITEM_IDS[row]
    return found | ({"history": list(example.history)} if example.history else {})


@pytest.mark.parametrize("task", OPTIONS)
def test_golden(dataset: DatasetFolder, task: str):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert [as_golden(example) for example in examples(dataset, task, **OPTIONS[task])] == golden[task]


def test_the_golden_file_holds_these_tasks():
    assert list(json.loads(GOLDEN.read_text(encoding="utf-8"))) == list(OPTIONS)
    assert set(OPTIONS) <= set(TASKS)


@pytest.mark.parametrize("task", OPTIONS)
def test_nothing_held_out_reaches_an_example(dataset: DatasetFolder, task: str):
    """Held-out texts carry a mark; the only SIDs after a training history are those of training targets."""
    for seed in range(5):
        found = examples(dataset, task, seed=seed, **OPTIONS[task])
        assert not [example for example in found if HELD_OUT in example.prompt + example.completion]
    if "inputs" in inspect.signature(TASKS[task]).parameters:
        allowed = {
            (SEQUENCES[user][:place], SEQUENCES[user][place]) for user in SEQUENCES for place in range(CUT[user])
        }
        named = {(taken(example), ITEM_IDS[example.target]) for example in found if example.target is not None}
        assert all(any(whole.endswith(part) and item == end for whole, end in allowed) for part, item in named)


def taken(example: Example) -> str:
    by_sid = {VOCAB.tokens(row): item_id for row, item_id in enumerate(ITEM_IDS)}
    return "".join(by_sid[sid] for part in example.history for sid in SID.findall(part))


@pytest.mark.parametrize("task", [name for name in OPTIONS if name not in ("denoise", "user_profile")])
def test_histories_can_be_shortened(dataset: DatasetFolder, task: str):
    for example in examples(dataset, task, **OPTIONS[task]):
        if len(example.history) > 1:
            shorter = example.recent(1)
            assert shorter.history == example.history[-1:]
            assert SID.findall(shorter.prompt) == SID.findall(example.prompt)[len(example.history) - 1 :]


@pytest.mark.parametrize("task", [name for name in OPTIONS if name != "chat_data"])
def test_one_wording_and_validation(dataset: DatasetFolder, task: str):
    """What evaluation asks for: one wording, about the validation targets."""
    found = examples(dataset, task, split="valid", wordings=1, **OPTIONS[task])
    heads = {example.prompt.split("{")[0][:6] for example in found}
    if task != "reasoning":
        assert len(heads) == 1
    if task in ("intention_to_sid", "preference_to_sid", "profile_to_sid"):
        valid = [ITEM_IDS[row.target] for row in dataset.split().valid]
        assert [ITEM_IDS[example.target] for example in found if example.target is not None] == valid


def test_queries_are_words_of_the_item():
    rng = random.Random(0)
    seen = {make_query("Alder garden lamp, red oak", "Alder", "lamps", rng=rng) for _ in range(300)}
    words = {"alder", "garden", "lamp", "red", "oak", "lamps"}
    assert all(set(query.split()) <= words for query in seen)
    assert all(query.split().count("alder") <= 1 for query in seen), "a brand in the title is not said twice"
    assert {len(query.split()) for query in seen} == {1, 2, 3, 4, 5}
    assert make_query("", "Büro", "", rng=rng) == "büro"
    assert make_query("日本 Crème!", "", "", rng=random.Random(3)) in ("日本", "crème", "日本 crème")
    assert make_query("--", "", "", rng=rng) == ""


def test_a_column_of_queries_stands_in_for_made_ones(dataset: DatasetFolder):
    catalog = Catalog(
        CATALOG.item_ids, {**CATALOG.columns, "query": ("white A4\nprinter, paper", "", "ruler", "", "", "")}
    )
    found = examples(replace(dataset, catalog=catalog), "query_to_sid", wordings=1)
    assert [(example.prompt, example.target) for example in found] == [
        ("Search: white A4\nID of an item:", 0),
        ("Search: printer, paper\nID of an item:", 0),
        ("Search: ruler\nID of an item:", 2),
    ]


def test_ratings_are_written_as_short_as_they_are(dataset: DatasetFolder):
    found = examples(dataset, "rating", wordings=1)
    # User a rates q 4.5 behind p, and r not at all; user b rates t 2 behind q. All ratings seen lie from 2 to 5.
    assert [(example.prompt, example.completion) for example in found] == [
        ("A customer took <a_0><b_0>. Their rating of <a_0><b_1>, from 2 to 5:", " 4.5"),
        ("A customer took <a_0><b_1>. Their rating of <a_2><b_0>, from 2 to 5:", " 2"),
    ]


def test_denoise_names_the_item_put_in(dataset: DatasetFolder):
    rows = [History(0, (0, 1, 2), 3), History(1, (4, 5), 0), History(2, (1,), 5)]
    places = set()
    for seed in range(60):
        for draw in ("popularity", "uniform"):
            found = list(TASKS["denoise"](CATALOG, VOCAB, rows, random.Random(seed), draw=draw))
            assert len(found) == 2, "a row of one item has nothing that belongs"
            for example, row in zip(found, rows, strict=False):
                assert example.target is not None
                assert example.target not in (*row.items, row.target)
                if draw == "popularity":
                    assert example.target in {other.target for other in rows}
                shown = SID.findall(example.prompt)
                places.add((len(row.items), shown.index(example.completion)))
                shown.remove(example.completion)
                assert shown == [VOCAB.tokens(item) for item in row.items]
    assert places == {(3, 0), (3, 1), (3, 2), (3, 3), (2, 0), (2, 1), (2, 2)}


def test_denoise_has_no_strange_item_where_a_row_holds_all():
    row = History(0, (0, 1, 2, 3, 4), 5)
    assert list(TASKS["denoise"](CATALOG, VOCAB, [row], random.Random(0))) == []
    # No other row's target will do: any item of the catalogue is drawn.
    found = list(TASKS["denoise"](CATALOG, VOCAB, [History(0, (0, 1, 2, 3), 5)], random.Random(0)))
    assert [example.target for example in found] == [4]


def test_profiles_by_hand():
    categories = ["pens", "ink", "", "pens", "paper", "clips"]
    brands = ["BIC", "", "BIC", "Etna", "Etna", ""]
    # Latest first: clips paper pens - ink pens: pens twice, then the more recent ones; Etna and BIC twice, Etna later.
    assert profile_of((0, 1, 2, 3, 4, 5), categories=categories, brands=brands) == "pens; clips; paper; by Etna"
    assert profile_of((0, 1), categories=categories, brands=brands, terms=1) == "ink"
    assert profile_of((2,), categories=categories, brands=None) == ""


@pytest.mark.parametrize(("direct", "shares"), [(0.0, (0, 3)), (1.0, (3, 0)), (0.5, None)])
def test_reasoning_answers_directly_in_a_share(dataset: DatasetFolder, direct: float, shares: tuple[int, int] | None):
    found = [example for seed in range(20) for example in examples(dataset, "reasoning", seed=seed, direct=direct)]
    at_once = [example for example in found if SID.fullmatch(example.completion)]
    aloud = [example for example in found if re.fullmatch(r" after \d, \w <a_\d><b_\d>", example.completion)]
    assert len(at_once) + len(aloud) == len(found) == 60, "the users' first items have no history"
    if shares is not None:
        assert (len(at_once), len(aloud)) == tuple(20 * share for share in shares)
    else:
        assert abs(len(at_once) - 30) <= 4 * math.sqrt(15)
    assert not {example.prompt.split("<")[0] for example in at_once} & {
        example.prompt.split(">")[-1] for example in aloud
    }


def test_rationales_of_a_file_come_before_those_of_a_column(dataset: DatasetFolder, tmp_path: Path):
    write_folder(tmp_path / "set")
    write_texts(tmp_path / "set", "rationales", [("a", 1, "written"), ("a", 3, HELD_OUT)])
    found = examples(load_dataset(tmp_path / "set"), "reasoning", direct=0.0)
    assert [example.completion for example in found] == [" written <a_0><b_1>"]


def test_explanations_are_taken_from_column_file_or_review(dataset: DatasetFolder, tmp_path: Path):
    assert examples(dataset, "explanation")[0].completion == ' "explanations", a — 1 日本'
    bare = write_folder(tmp_path / "set")
    assert examples(bare, "explanation")[0].completion == " Schreibt, weich — 柔らか"
    named = examples(dataset, "explanation", column="rationale")
    assert [example.completion for example in named] == [" after 1, q", " after 2, r", " after 1, t"]


def test_chat_is_rendered_without_a_template():
    assert [list(turns(row)) for row in CHAT] == [
        [('Be brief.\nSay "hé", please\n', "hé, 日本")],
        [("1 + 1?\n", "2"), ("User: 1 + 1?\nAssistant: 2\nUser: {and} 2 + 2?\nAssistant:\n", "4")],
        [],
    ]


def test_chat_of_a_parquet_file_and_limits(dataset: DatasetFolder, tmp_path: Path):
    path = tmp_path / "chat.parquet"
    pq.write_table(pa.table({"messages": CHAT}), path)
    assert read_conversations(path) == CHAT
    whole = examples(dataset, "chat_data", path=str(path))
    assert whole == examples(dataset, "chat_data", path="PATH")
    assert [example.completion for example in whole] == ["hé, 日本", "2", "4"]
    assert len({examples(dataset, "chat_data", path=str(path), limit=2, seed=seed)[0].completion
                for seed in range(9)}) == 2  # fmt: skip
    assert [example.completion for example in examples(dataset, "chat_data", path=str(path), max_characters=8)] == [
        "2"
    ]


BAD_CHAT = [
    ("chat.txt", "", "ends in '.txt'; expected conversations in .jsonl or .parquet"),
    ("chat.jsonl", "{", "line 1 is no JSON"),
    ("chat.jsonl", "\n", "it holds no conversations"),
    ("chat.jsonl", '{"text": "x"}', "row 0: messages is None; expected a list of role and content"),
    (
        "chat.jsonl",
        '{"messages": [{"role": "bot", "content": "x"}]}',
        "a message has role 'bot'; expected one of system",
    ),
    ("chat.jsonl", '{"messages": [{"role": "user", "content": 1}]}', "a message of user has content 1; expected text"),
    ("chat.parquet", "x", "not a readable parquet file"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD_CHAT)
def test_bad_chat_files(tmp_path: Path, name: str, text: str, message: str):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_conversations(tmp_path / name)


BAD_OPTIONS = [
    ("denoise", {"draw": "often"}, "task 'denoise': draw 'often'; choose one of popularity, uniform"),
    ("denoise", {"history": 1}, "task 'denoise': history 1; at least 2"),
    ("reasoning", {"direct": 1.5}, "task 'reasoning': direct 1.5; a share of the examples, from 0 to 1"),
    ("rating", {"history": 0}, "task 'rating': history 0; at least 1"),
    ("review_to_sid", {"column": "said"}, "interactions.parquet has no column 'said'; it has review, rationale"),
    ("chat_data", {"path": "no.jsonl"}, "no.jsonl: no such file; expected conversations"),
    ("chat_data", {"limit": 0, "path": "PATH"}, "task 'chat_data': limit 0; at least 1"),
]


@pytest.mark.parametrize(("task", "options", "message"), BAD_OPTIONS)
def test_options_out_of_range(dataset: DatasetFolder, task: str, options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=re.escape(message)):
        examples(dataset, task, **options)


LACKING = [
    ("rating", "rating needs a column 'rating' in interactions.parquet"),
    ("review_to_sid", "review_to_sid needs a column 'review' in interactions.parquet"),
    ("intention_to_sid", "intention_to_sid needs intentions.parquet in the dataset folder"),
    ("reasoning", "reasoning needs a column 'rationale' in interactions.parquet, or rationales.parquet"),
    ("user_profile", "user_profile needs a column 'categories' with text in items.parquet"),
    ("chat_data", "chat_data needs its option 'path'"),
]


@pytest.mark.parametrize(("task", "message"), LACKING)
def test_what_a_dataset_lacks_is_named(dataset: DatasetFolder, tmp_path: Path, task: str, message: str):
    bare = write_folder(tmp_path / "set", texts=False)
    inputs = TaskInputs.of(bare, bare.split())
    inputs = replace(inputs, interactions=replace(inputs.interactions, ratings=None))
    titles = Catalog(CATALOG.item_ids, {"title": CATALOG.titles})
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        check_needs([task], titles, inputs)
    assert "Tasks that can run on it: next_item," in str(refused.value)
    assert "query_to_sid, denoise" in str(refused.value)
    assert task in NEEDS
