"""Tasks that read catalogue and histories alone: golden files, by-hand cases, refusals."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_tasks import CATALOG, ROWS, VECTORS, check_golden, make_vocab
from hypothesis import given
from hypothesis import strategies as st

from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.embeddings.store import save_embeddings
from llmrec.errors import InputError
from llmrec.sids.table import SIDTable, pad_codes
from llmrec.tasks.attributes import attribute_columns
from llmrec.tasks.categories import category_of, prefix_categories
from llmrec.tasks.example import Example
from llmrec.tasks.history_text import history_title_to_sid, sid_history_to_title
from llmrec.tasks.mixture import TASKS
from llmrec.tasks.needs import NEEDS, check_needs, runnable_tasks
from llmrec.tasks.next_session import next_session
from llmrec.tasks.short_text import short_text, short_titles
from llmrec.tasks.similar_items import near_pairs, similar_items
from llmrec.tasks.wordings import WORDINGS, wording, wordings_of
from llmrec.training.tokenizer import train_tokenizer
from llmrec.vocab import SIDVocab, add_sid_tokens

OPTIONS: dict[str, dict[str, Any]] = {
    "next_item": {},
    "next_session": {"items": 3},
    "history_title_to_sid": {"history": 2, "max_characters": 20},
    "sid_history_to_title": {"max_characters": 30},
    "sid_history_to_description": {"max_characters": 30},
    "sid_to_title": {"max_characters": 30},
    "title_to_sid": {"max_characters": 30},
    "description_to_sid": {"max_characters": 30},
    "attributes_to_sid": {"max_characters": 50},
    "sid_to_category": {"min_items": 2},
    "prefix_to_category": {"min_items": 2},
    "similar_items": {"neighbours": 1},
}


@pytest.fixture(scope="module")
def vocab() -> SIDVocab:
    return make_vocab()


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("vectors") / "embeddings.safetensors"
    return str(save_embeddings(path, VECTORS, {"encoder": "by hand", "catalog_hash": CATALOG.hash}))


@pytest.mark.parametrize("name", OPTIONS)
def test_examples_are_those_of_the_file(name: str, vocab: SIDVocab, embeddings: str) -> None:
    options = OPTIONS[name] | ({"embeddings": embeddings} if name == "similar_items" else {})
    check_golden(name, TASKS[name](CATALOG, vocab, ROWS, random.Random(6), **options))


@pytest.mark.parametrize("name", OPTIONS)
def test_the_same_seed_gives_the_same_examples(name: str, vocab: SIDVocab, embeddings: str) -> None:
    options = OPTIONS[name] | ({"embeddings": embeddings} if name == "similar_items" else {})

    def examples(seed: int, **more: Any) -> list[Example]:
        return list(TASKS[name](CATALOG, vocab, ROWS, random.Random(seed), **options, **more))

    assert examples(1) == examples(1)
    if name != "next_item":
        assert len({tuple(examples(seed)) for seed in range(8)}) > 1, "other seeds draw other wordings"
        canonical = WORDINGS[name][0].split("{")[0]
        assert all(example.prompt.startswith(canonical) for example in examples(3, wordings=1))
        assert examples(3, wordings=1) == examples(4, wordings=1)


def test_wordings() -> None:
    assert WORDINGS["sid_to_title"][0] == "Title of {sid}:", "bundles made before ask so"
    assert WORDINGS["title_to_sid"][0] == "ID of {title}:"
    assert all(len(texts) == len(set(texts)) >= 5 for texts in WORDINGS.values())
    drawn = {wording("sid_to_title", random.Random(seed)) for seed in range(50)}
    assert drawn == set(WORDINGS["sid_to_title"])
    assert wordings_of("sid_to_title", first=2) == WORDINGS["sid_to_title"][:2]
    for first in (0, 6, True, 1.0, "1"):
        with pytest.raises(InputError, match=r"task 'sid_to_title': wordings .*from 1 to 5, or none for all"):
            wordings_of("sid_to_title", first=first)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "characters", "expected"),
    [
        ("one two three", 13, "one two three"),
        ("one two three", 12, "one two"),
        ("one two three", 7, "one two"),  # the cut falls on the space
        ("one two three", 6, "one"),
        ("onetwothree", 4, "onet"),  # no space to cut at
        (" one\n\ttwo ", 7, "one two"),
        ("\"a\", 'b', {c}", 20, "\"a\", 'b', {c}"),
        ("日本 の ペン", 4, "日本 の"),
        ("   ", 5, ""),
    ],
)
def test_short_text(text: str, characters: int, expected: str) -> None:
    assert short_text(text, characters) == expected


@given(st.text(max_size=40), st.integers(1, 20))
def test_short_text_is_the_beginning_of_the_line(text: str, characters: int) -> None:
    line = " ".join(text.split())
    short = short_text(text, characters)
    assert line.startswith(short)
    assert len(short) <= characters
    assert bool(short) == bool(line)


def test_a_title_that_is_the_id_is_none_unless_all_are() -> None:
    assert short_titles(CATALOG)[2] == ""
    names = Catalog(("pen", "ink"), {"title": ("pen", "ink")})
    assert short_titles(names) == ["pen", "ink"]


def test_a_shortened_example_keeps_the_most_recent(vocab: SIDVocab) -> None:
    history = [History(0, (0, 4, 2, 6), 5)]
    [example] = history_title_to_sid(CATALOG, vocab, history, random.Random(0), wordings=1)
    head, tail = "A customer took these items, oldest first:", "\nID of the next item:"
    assert example.prompt == f'{head}\n- Paper, A4 "white" {{500}}\n- Pen & ink set\n- <a_0><b_1>\n- Пенал{tail}'
    assert example.recent(2).prompt == f"{head}\n- <a_0><b_1>\n- Пенал{tail}"
    assert example.recent(2).history == ("\n- <a_0><b_1>", "\n- Пенал")
    assert example.recent(2).recent(1) == example.recent(1)
    assert (example.recent(2).completion, example.recent(2).target) == (example.completion, 5)
    assert example.recent(4) is example
    assert example.recent(9) is example
    with pytest.raises(InputError, match="0 parts of a history; a prompt keeps at least 1"):
        example.recent(0)
    with pytest.raises(InputError, match="does not stand in its prompt"):
        Example("a, b", "c", None, "mine", history=("a", "b")).recent(1)


def test_sessions_follow_a_users_rows_in_any_order_of_users(vocab: SIDVocab) -> None:
    def targets(rows: list[History], **options: int) -> list[tuple[int, ...]]:
        return [example.targets for example in next_session(CATALOG, vocab, rows, random.Random(0), **options)]

    mixed = [
        History(0, (0,), 1),
        History(1, (3,), 4),
        History(0, (0, 1), 2),
        History(1, (3, 4), 5),
        History(0, (1, 2), 6),
    ]
    assert targets(mixed) == [(1, 2, 6), (4, 5), (2, 6)]
    assert targets(mixed, items=2) == [(1, 2), (4, 5), (2, 6)]
    assert targets(mixed, items=3, least=3) == [(1, 2, 6)]
    assert targets([History(0, (0,), 1), History(0, (3,), 2)]) == [], "the second row does not continue the first"
    for options, message in (({"items": 1}, "items 1; at least 2"), ({"least": 6}, "least 6 is above items 5")):
        with pytest.raises(InputError, match=message):
            targets(mixed, **options)
    with pytest.raises(InputError, match=r"items 2\.5; give a whole number"):
        targets(mixed, items=2.5)  # type: ignore[arg-type]


def test_category_is_the_most_specific_level_that_enough_items_share() -> None:
    # Copy paper 1, Paper 1, Pens 3, Fountain pens 2, Boxes 1, Rulers 1, Office 6.
    assert category_of(CATALOG, min_items=2) == [
        "Office",
        "Fountain pens",
        "",
        "Office",
        "Fountain pens",
        "Office",
        "Pens",
    ]
    assert category_of(CATALOG, min_items=3) == ["Office", "Pens", "", "Office", "Pens", "Office", "Pens"]
    assert category_of(CATALOG, min_items=1)[0] == "Copy paper"
    assert category_of(CATALOG, min_items=7)[1] == "Office", "the widest where none is shared by so many"
    commas = Catalog(("a", "b"), {"title": ("A", "B"), "genres": ("Home, Tea", "Home, Tea")})
    assert category_of(commas, min_items=2) == ["Tea", "Tea"]
    mixed = Catalog(("a", "b"), {"title": ("A", "B"), "categories": ("Home > Tea, herbal", "Home > Tea, herbal")})
    assert category_of(mixed, min_items=2) == ["Tea, herbal"] * 2, "where a stronger mark divides, a comma does not"
    assert category_of(Catalog(("a",), {"title": ("A",)})) == [""]


def test_a_prefix_stands_for_its_most_common_category(vocab: SIDVocab) -> None:
    # <a_0>: Office twice and an item without one; <a_1>: Fountain pens twice, Office, Pens.
    assert prefix_categories(CATALOG, vocab, min_items=2) == {"<a_0>": "Office", "<a_1>": "Fountain pens"}
    two = prefix_categories(CATALOG, vocab, levels=2, min_items=2)
    # <a_0><b_1> is a whole SID. <a_1><b_1> has Office and Pens once each: Office stands in the earlier row.
    assert two == {"<a_0><b_0>": "Office", "<a_1><b_0>": "Fountain pens", "<a_1><b_1>": "Office"}
    assert prefix_categories(CATALOG, vocab, levels=3) == {}


def test_attribute_columns() -> None:
    assert attribute_columns(CATALOG) == ["brand", "categories"]
    long = Catalog(("a",), {"title": ("A",), "notes": ("x" * 101,), "year": ("1999",), "empty": (" ",)})
    assert attribute_columns(long) == ["year"]
    assert attribute_columns(long, ["notes"]) == ["notes"]
    assert attribute_columns(long, "notes") == ["notes"]
    for columns in (["colour"], []):
        with pytest.raises(
            InputError, match=r"attributes_to_sid': columns .*; choose some of empty, notes, title, year"
        ):
            attribute_columns(long, columns)


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 4))
def test_near_pairs_against_a_loop(seed: int, items: int, neighbours: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(items, 3)).astype(np.float32)
    vectors[rng.random(items) < 0.2] = 0
    known = [row for row in range(items) if vectors[row].any()]
    pairs = set()
    for row in known:
        cosines = {
            other: float(vectors[row] @ vectors[other] / np.linalg.norm(vectors[row]) / np.linalg.norm(vectors[other]))
            for other in known if other != row
        }  # fmt: skip
        for other in sorted(cosines, key=lambda other: -cosines[other])[:neighbours]:
            pairs |= {(row, other), (other, row)}
    assert near_pairs(vectors, neighbours=neighbours) == sorted(pairs)


def test_similar_items_refuses_what_it_cannot_use(vocab: SIDVocab, embeddings: str, tmp_path: Path) -> None:
    def run(**options: Any) -> list[Example]:
        return list(similar_items(CATALOG, vocab, ROWS, random.Random(0), **options))

    with pytest.raises(InputError, match=r"task 'similar_items': no embeddings, .*embeddings: PATH"):
        run()
    other = save_embeddings(tmp_path / "other.safetensors", VECTORS, {"encoder": "by hand", "catalog_hash": "0" * 64})
    with pytest.raises(InputError, match="embeddings of another catalogue"):
        run(embeddings=str(other))
    with pytest.raises(InputError, match="neighbours 0; at least 1"):
        run(embeddings=embeddings, neighbours=0)
    # Far more neighbours than there are: every pair of the six items with a vector, but p1 and p4 share a SID.
    assert len(run(embeddings=embeddings, neighbours=50)) == 6 * 5 - 2


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in ("next_item", "next_session")])
def test_options_are_checked(name: str, vocab: SIDVocab) -> None:
    option = {"sid_to_category": "min_items", "prefix_to_category": "levels", "similar_items": "neighbours"}.get(
        name, "max_characters"
    )
    for value, message in ((0, f"{option} 0; at least 1"), ("many", f"{option} 'many'; give a whole number")):
        with pytest.raises(InputError, match=f"task '{name}': {message}"):
            list(TASKS[name](CATALOG, vocab, ROWS, random.Random(0), **{option: value}))


@pytest.mark.parametrize("name", ["description_to_sid", "sid_history_to_description"])
def test_another_column_holds_the_description(name: str, vocab: SIDVocab) -> None:
    examples = list(TASKS[name](CATALOG, vocab, ROWS, random.Random(0), column="brand"))
    assert examples
    assert all("Boîte" in f"{text.prompt}{text.completion}" or "Söhne" in f"{text.prompt}{text.completion}"
               for text in examples)  # fmt: skip
    with pytest.raises(
        InputError, match=rf"task '{name}': no column 'story'; the catalogue has brand, categories, description, title"
    ):
        list(TASKS[name](CATALOG, vocab, ROWS, random.Random(0), column="story"))


def test_a_target_without_words_gives_no_example(vocab: SIDVocab) -> None:
    rows = [History(0, (0,), 2), History(0, (0, 2), 1)]
    [example] = sid_history_to_title(CATALOG, vocab, rows, random.Random(0), wordings=1)
    assert example.prompt == "A customer took <a_0><b_0><c_0><a_0><b_1>. Title of the next item:"
    assert example.completion == " Crème pen; 'soft', 日本"


def test_needs_name_the_column_the_task_and_what_can_run() -> None:
    bare = Catalog(("a", "b"), {"title": ("A", "B"), "description": ("", "")})
    anywhere = [
        "next_item",
        "next_session",
        "history_title_to_sid",
        "sid_history_to_title",
        "sid_to_title",
        "title_to_sid",
    ]
    assert [name for name in runnable_tasks(bare, None) if name in OPTIONS] == anywhere
    check_needs(anywhere, bare, None)
    message = (
        r"tasks: description_to_sid needs a column 'description' with text in items\.parquet, or its option 'column'; "
        r"the dataset has item columns description, title\. Tasks that can run on it: next_item, next_session, "
    )
    with pytest.raises(InputError, match=message):
        check_needs(["next_item", "description_to_sid"], bare, None)
    with pytest.raises(InputError, match=r"attributes_to_sid needs a short text column .*\(brand, categories, \.\.\)"):
        check_needs(["attributes_to_sid"], bare, None)
    with pytest.raises(InputError, match=r"sid_to_category needs a column 'categories' .*or a column 'genres'"):
        check_needs(["sid_to_category"], bare, None)
    with pytest.raises(
        InputError, match=r"similar_items needs embeddings\.safetensors in the dataset folder, or its option"
    ):
        check_needs(["similar_items"], bare, None)
    check_needs(["similar_items", "mine.tasks:task"], bare, None, options={"similar_items": ["embeddings"]})
    check_needs(list(OPTIONS), CATALOG, None, options={"similar_items": ["embeddings"]})


def test_every_named_task_says_what_it_needs() -> None:
    assert set(OPTIONS) <= set(NEEDS)
    assert set(OPTIONS) <= set(TASKS)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "similar_items"])
def test_time_grows_with_the_rows_alone(name: str) -> None:
    """3,000 items and 12,000 rows of 20: none of the tasks may do work a row that grows with the catalogue."""
    items, rng = 3000, random.Random(0)
    catalog = Catalog(
        tuple(f"i{row}" for row in range(items)),
        {"title": tuple(f"item number {row}" for row in range(items)), "categories": ("a, b",) * items,
         "description": ("some words",) * items},
    )  # fmt: skip
    codes = pad_codes([[row // 256, row % 256] for row in range(items)], 2)
    table = SIDTable(catalog.item_ids, codes, (12, 256))
    tokenizer = train_tokenizer(catalog.titles[:50], vocab_size=300)
    add_sid_tokens(tokenizer, table)
    rows = [History(number, tuple(rng.choices(range(items), k=20)), rng.randrange(items)) for number in range(12_000)]
    calls = 0

    class Counted(SIDVocab):
        def tokens(self, row: int) -> str:
            nonlocal calls
            calls += 1
            return super().tokens(row)

    for _ in TASKS[name](catalog, Counted(tokenizer, table), rows, random.Random(0)):
        pass
    assert calls <= 2 * items, "each SID is written once, not once a row"
