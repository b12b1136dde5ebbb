"""Specs of a mixture: options, start and stop, temperature, held-out items, and all that is refused."""

import math
import random
import re
from collections.abc import Iterator

import pytest

from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.sids.table import SIDTable, pad_codes
from llmrec.tasks.example import Example
from llmrec.tasks.mixture import (
    check_tasks,
    held_out_rows,
    make_examples,
    mix_tasks,
    mixture_weights,
    task_options,
    task_rng,
)
from llmrec.tasks.spec import TaskSpec, parse_tasks
from llmrec.training.tokenizer import train_tokenizer
from llmrec.vocab import SIDVocab, add_sid_tokens

TITLES = tuple(f"pen number {row}" for row in range(12))
CATALOG = Catalog(tuple(f"i{row}" for row in range(12)), {"title": TITLES})
ROWS = [History(user, (user % 12, (user + 1) % 12), (user + 2) % 12) for user in range(40)]


@pytest.fixture(scope="module")
def vocab() -> SIDVocab:
    table = SIDTable(CATALOG.item_ids, pad_codes([[row // 4, row % 4] for row in range(12)], 2), (3, 4))
    tokenizer = train_tokenizer(TITLES, vocab_size=300)
    add_sid_tokens(tokenizer, table)
    return SIDVocab(tokenizer, table)


def words(catalog, vocab, histories, rng, *, repeat: int = 1, loud: bool = False) -> Iterator[Example]:
    for row, title in enumerate(catalog.titles):
        for _ in range(repeat):
            yield Example(f"say {row}", title.upper() if loud else title, None, "words", item=row)


def needy(catalog, vocab, histories, rng, *, path: str) -> Iterator[Example]:
    yield Example("a", path, None, "needy")


def beside(catalog, vocab, histories, rng, *, inputs) -> Iterator[Example]:
    yield Example("a", f"{inputs}", None, "beside")


WORDS, NEEDY, BESIDE = (f"{__name__}:{name}" for name in ("words", "needy", "beside"))


def test_specs_from_weights_and_mappings() -> None:
    specs = parse_tasks({"next_item": 1, WORDS: {"weight": 0.5, "stop": 0.4, "repeat": 2}, "b": TaskSpec("b", 3.0)})
    assert specs["next_item"] == TaskSpec("next_item", 1)
    assert specs[WORDS] == TaskSpec(WORDS, 0.5, 0.0, 0.4, {"repeat": 2})
    assert specs["b"].weight == 3.0
    assert [spec.always for spec in specs.values()] == [True, False, True]
    assert parse_tasks({WORDS: specs[WORDS].to_dict()}) == {WORDS: specs[WORDS]}


def test_options_reach_the_task(vocab: SIDVocab) -> None:
    settings = {"catalog": CATALOG, "vocab": vocab, "histories": ROWS, "seed": 0}
    mixed = mix_tasks({WORDS: {"repeat": 3, "loud": True, "weight": 0.5}}, **settings)
    assert len(mixed) == 18  # half of 3 x 12
    assert all(example.completion.startswith("PEN") for example in mixed)
    assert mix_tasks({BESIDE: 1.0}, **settings)[0].completion == "None"
    assert task_options(WORDS) == {"repeat": 1, "loud": False}


def test_temperature_flattens_shares_and_keeps_the_sum() -> None:
    """100 and 4 examples, weights 1 and 2: 108 an epoch; at T = 2 shares are 1 x 10 to 2 x 2, at infinity 1 to 2."""
    specs, counts = parse_tasks({"a": 1.0, "b": 2.0}), {"a": 100, "b": 4}

    def taken(temperature: float) -> dict[str, float]:
        weights = mixture_weights(specs, counts, temperature=temperature)
        return {name: weights[name] * counts[name] for name in counts}

    assert taken(1.0) == {"a": 100.0, "b": 8.0}
    assert taken(2.0) == pytest.approx({"a": 108 * 10 / 14, "b": 108 * 4 / 14})
    assert taken(math.inf) == pytest.approx({"a": 36.0, "b": 72.0})
    for temperature in (0.0, -1.0, math.nan, True):
        with pytest.raises(InputError, match=r"task_temperature .*: above 0; 1 leaves the weights as they are"):
            mixture_weights(specs, counts, temperature=temperature)


def test_the_temperature_acts_on_the_examples(vocab: SIDVocab) -> None:
    mixed = mix_tasks(
        {"next_item": 1.0, WORDS: 1.0},
        catalog=CATALOG, vocab=vocab, histories=ROWS, seed=0, temperature=math.inf,
    )  # fmt: skip
    names = [example.task for example in mixed]
    assert (names.count("next_item"), names.count("words")) == (26, 26)  # 40 + 12 in halves


def test_draws_do_not_depend_on_company(vocab: SIDVocab) -> None:
    settings = {"catalog": CATALOG, "vocab": vocab, "histories": ROWS, "seed": 3}
    alone = make_examples({"title_to_sid": {"weight": 0.5}}, **settings)["title_to_sid"]
    beside = make_examples({"next_item": 2.0, "sid_to_title": 1.0, "title_to_sid": 0.5}, **settings)["title_to_sid"]
    assert alone.examples == beside.examples
    assert alone.take(0.5) == beside.take(0.5)
    assert task_rng(3, "a").random() == random.Random("3/a").random()


def test_held_out_items_stay_out_of_tasks_of_items_alone(vocab: SIDVocab) -> None:
    held_out = held_out_rows(12, 0.25, seed=5)
    assert len(held_out) == 3
    assert held_out == held_out_rows(12, 0.25, seed=5) != held_out_rows(12, 0.25, seed=6)
    mixed = mix_tasks(
        {"next_item": 1.0, "title_to_sid": 1.0, "sid_to_title": 1.0},
        catalog=CATALOG, vocab=vocab, histories=ROWS, seed=0, without=held_out,
    )  # fmt: skip
    items = [example for example in mixed if example.task != "next_item"]
    assert len(items) == 18
    assert not {example.item for example in items} & held_out
    assert sum(example.task == "next_item" for example in mixed) == 40, "histories hold all items"


def test_no_task_sees_words_of_items_held_out(vocab: SIDVocab) -> None:
    """A history in titles names them by their SIDs, as it names items without a title."""
    held_out = held_out_rows(12, 0.25, seed=5)
    settings = {"catalog": CATALOG, "vocab": vocab, "histories": ROWS, "seed": 0}
    tasks = {"history_title_to_sid": 1.0, "next_item": 1.0}
    words = re.compile("|".join(rf"{CATALOG.titles[row]}(?!\d)" for row in held_out))
    assert any(words.search(example.prompt) for example in mix_tasks(tasks, **settings))
    mixed = mix_tasks(tasks, **settings, without=held_out)
    assert len(mixed) == 80
    assert not any(words.search(example.prompt) for example in mixed)
    assert any(vocab.tokens(row) in example.prompt for example in mixed for row in held_out)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({}, "tasks: none given; name at least one"),
        ({"next_item": math.nan}, "tasks: next_item has weight nan; a weight is above 0"),
        ({"next_item": math.inf}, "tasks: next_item has weight inf; a weight is above 0"),
        ({"next_item": True}, "tasks: next_item has weight True"),
        ({"next_item": {"weight": -1}}, "tasks: next_item has weight -1"),
        ({"next_item": {"start": 1.5}}, "tasks: next_item has start 1.5; a share of the run's steps, from 0 to 1"),
        ({"next_item": {"stop": "late"}}, "tasks: next_item has stop 'late'"),
        ({"next_item": {"start": 0.5, "stop": 0.4}}, "tasks: next_item starts at 0.5 and stops at 0.4"),
        ({"next_items": 1.0}, "unknown task 'next_items': choose one of"),
        ({"next_item": {"stpo": 0.5}}, r"next_item has no option 'stpo'; it has no options \(beside weight, start"),
        ({WORDS: {"repeats": 2}}, r"has no option 'repeats'; its options are repeat, loud \(beside weight"),
        ({NEEDY: 1.0}, "needs its option 'path'; write"),
    ],
)
def test_refusals(tasks: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_tasks(tasks)


def test_a_missing_column_is_named_with_the_tasks_that_can_run(vocab: SIDVocab) -> None:
    with pytest.raises(InputError, match=r"sid_to_category needs a column 'categories' .*can run on it: next_item"):
        mix_tasks({"sid_to_category": 1.0}, catalog=CATALOG, vocab=vocab, histories=ROWS, seed=0)
