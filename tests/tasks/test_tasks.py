"""Tasks and their mixture."""

import random

import pytest

from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.sids.table import SIDTable, pad_codes
from llmrec.tasks.example import Example
from llmrec.tasks.item_text import sid_to_title, title_to_sid
from llmrec.tasks.mixture import TASKS, mix_tasks, repeat_by_weight
from llmrec.tasks.needs import NEEDS
from llmrec.tasks.next_item import next_item
from llmrec.tasks.short_text import TITLE_CHARACTERS, short_text
from llmrec.training.tokenizer import train_tokenizer
from llmrec.vocab import SIDVocab, add_sid_tokens

TITLES = ('Paper, A4 "white"', "Crème pen; 'soft', 日本", "x" * 300)
ROWS = [History(0, (0, 1), 2), History(1, (2,), 0)]


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog(("p", "q", "r"), {"title": TITLES})


@pytest.fixture(scope="module")
def vocab(catalog: Catalog) -> SIDVocab:
    table = SIDTable(catalog.item_ids, pad_codes([[0, 1], [1, 0], [1, 1]], 2), (2, 2))
    tokenizer = train_tokenizer(TITLES, vocab_size=300)
    add_sid_tokens(tokenizer, table)
    return SIDVocab(tokenizer, table)


def test_next_item(catalog: Catalog, vocab: SIDVocab) -> None:
    assert list(next_item(catalog, vocab, ROWS, random.Random(0))) == [
        Example("<a_0><b_1><a_1><b_0>", "<a_1><b_1>", 2, "next_item", ("<a_0><b_1>", "<a_1><b_0>")),
        Example("<a_1><b_1>", "<a_0><b_1>", 0, "next_item", ("<a_1><b_1>",)),
    ]


def test_item_text_keeps_quotes_commas_and_other_scripts(catalog: Catalog, vocab: SIDVocab) -> None:
    titles = list(sid_to_title(catalog, vocab, ROWS, random.Random(0), wordings=1))
    assert titles[0] == Example("Title of <a_0><b_1>:", ' Paper, A4 "white"', None, "sid_to_title", item=0)
    assert titles[1].completion == " Crème pen; 'soft', 日本"
    sids = list(title_to_sid(catalog, vocab, ROWS, random.Random(0), wordings=1))
    assert sids[1] == Example("ID of Crème pen; 'soft', 日本:", "<a_1><b_0>", 1, "title_to_sid", item=1)


def test_long_titles_are_cut_at_a_space() -> None:
    assert short_text("x" * 300, TITLE_CHARACTERS) == "x" * TITLE_CHARACTERS
    long = "word " * 60
    assert short_text(long, TITLE_CHARACTERS) == ("word " * 40).strip()
    assert short_text("short", TITLE_CHARACTERS) == "short"


def test_weights_count_examples(catalog: Catalog, vocab: SIDVocab) -> None:
    def mixed(weights: dict[str, float], seed: int = 0) -> list[Example]:
        return mix_tasks(weights, catalog=catalog, vocab=vocab, histories=ROWS, seed=seed)

    # 2 rows and 3 items: 2 x 1.5 = 3 next_item examples, 3 x 2/3 = 2 titles.
    tasks = [example.task for example in mixed({"next_item": 1.5, "sid_to_title": 2 / 3})]
    assert tasks.count("next_item") == 3
    assert tasks.count("sid_to_title") == 2
    assert mixed({"title_to_sid": 0.4}) == mixed({"title_to_sid": 0.4})
    alone, beside = mixed({"title_to_sid": 0.4}), mixed({"sid_to_title": 1.0, "title_to_sid": 0.4})
    assert alone == beside[3:], "a task's draw does not depend on its company"
    assert len({tuple(mixed({"title_to_sid": 0.4}, seed)) for seed in range(20)}) > 1


def test_repeat_by_weight() -> None:
    rng = random.Random(0)
    assert repeat_by_weight([1, 2], 2.0, rng) == [1, 2, 1, 2]
    assert sorted(repeat_by_weight([1, 2, 3, 4], 1.5, rng))[0] == 1
    assert len(set(repeat_by_weight(list(range(100)), 0.5, rng))) == 50


def no_examples(catalog, vocab, histories, rng):
    return iter(())


def test_refusals(catalog: Catalog, vocab: SIDVocab) -> None:
    settings = {"catalog": catalog, "vocab": vocab, "histories": ROWS, "seed": 0}
    with pytest.raises(InputError, match=r"unknown task 'titles': choose one of .*next_item, .*title_to_sid"):
        mix_tasks({"titles": 1.0}, **settings)
    for weight in (0.0, -1.0):
        with pytest.raises(InputError, match=r"tasks: next_item has weight .*above 0"):
            mix_tasks({"next_item": weight}, **settings)
    with pytest.raises(InputError, match="gives no examples on this dataset"):
        mix_tasks({f"{__name__}:no_examples": 1.0}, **settings)
    with pytest.raises(InputError, match="an example has an empty completion"):
        Example("a", "", None, "mine")
    assert set(NEEDS) == set(TASKS), "each task says what it needs of a dataset"
