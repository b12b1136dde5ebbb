"""Bundles that go on with what is new: what counts as new, replay, and users before and after."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from llmrec.data.folder import DatasetFolder, load_dataset, write_dataset
from llmrec.data.interactions import Interactions
from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.tasks.prompt import PromptForm
from llmrec.training.collator import IGNORED
from llmrec.training.config import RecipeArguments
from llmrec.training.examples import encode_sequences, training_rows
from llmrec.training.incremental import Increment, compare, find_increment

SEQUENCES = {"ann": (0, 1, 2, 3, 4, 5, 6), "bob": (3, 4, 5, 6, 7, 8), "eve": (7, 8, 9, 10, 11)}
"""As of today; ``old`` holds the first five of ann, the first four of bob, and does not know eve."""


@pytest.fixture
def make_folder(catalog: Catalog, tmp_path: Path) -> Callable[..., DatasetFolder]:
    def make(name: str, sequences: dict[str, tuple[int, ...]], *, items: int = 30) -> DatasetFolder:
        users = tuple(sequences)
        interactions = Interactions.sort(
            users,
            users=np.repeat(np.arange(len(users)), [len(sequence) for sequence in sequences.values()]),
            items=np.concatenate([np.array(sequence) for sequence in sequences.values()]),
            timestamps=np.concatenate([np.arange(len(sequence)) for sequence in sequences.values()]),
        )
        kept = Catalog(catalog.item_ids[:items], {"title": catalog.titles[:items]})
        manifest = {"name": name, "domain": "pens", "source": "made up", "licence": "CC0-1.0", "times": "seconds"}
        write_dataset(tmp_path / name, catalog=kept, interactions=interactions, manifest=manifest)
        return load_dataset(tmp_path / name)

    return make


@pytest.fixture
def folders(make_folder) -> tuple[DatasetFolder, DatasetFolder]:
    old = make_folder("old", {"ann": SEQUENCES["ann"][:5], "bob": SEQUENCES["bob"][:4]}, items=10)
    return old, make_folder("new", SEQUENCES)


def increment_of(folders: tuple[DatasetFolder, DatasetFolder], replay: float = 1.0) -> Increment:
    old, new = folders
    return find_increment(str(old.path), new, new.split("leave_one_out"), replay=replay)


def test_what_was_held_out_before_is_new_now(folders) -> None:
    found = increment_of(folders)
    # Trained on then: ann's first 3 of 5, bob's first 2 of 4; on now: 5 of 7, 4 of 6 and 3 of 5
    assert found.begins == (3, 2, 0)
    assert found.learned_by_user == {0: 3, 1: 2}
    assert found.known_items.sum() == 10
    rows = [History(0, (1,), 9), History(2, (1,), 10), History(2, (1,), 3)]
    assert {name: mask.tolist() for name, mask in found.groups(rows).items()} == {
        "all": [True, True, True],
        "old users": [True, False, False],
        "new users": [False, True, True],
        "new items": [False, True, False],
    }


def learned_items(rows, vocab) -> list[tuple[int, ...]]:
    """The items that each row learns."""
    found = []
    for row in rows:
        labels = [label for label in row["labels"] if label != IGNORED]
        found.append(tuple(vocab.rows(labels[start : start + 3])[0] for start in range(0, len(labels), 3)))
    return found


def rows_of(folders, replay: float, supervise: str, tokenizer, vocab):
    new = folders[1]
    splits = new.split("leave_one_out")
    return training_rows(
        splits, tasks={"next_item": 1.0}, supervise=supervise, catalog=new.catalog, tokenizer=tokenizer, vocab=vocab,
        form=PromptForm(), max_length=None, seed=0, increment=increment_of(folders, replay), progress=False,
    )  # fmt: skip


@pytest.mark.parametrize("supervise", ["history", "row"])
def test_new_targets_are_learned_and_old_ones_replayed(folders, supervise: str, tokenizer, vocab) -> None:
    # New: ann's 3 and 4, bob's 5 and 6, eve's 8 and 9, each once; old: ann's 1 and 2, bob's 4
    new = {
        item for found in learned_items(rows_of(folders, 0.0, supervise, tokenizer, vocab), vocab) for item in found
    }
    assert new == {3, 4, 5, 6, 8, 9}
    every = learned_items(rows_of(folders, 10.0, supervise, tokenizer, vocab), vocab)
    assert sorted(item for found in every for item in found) == [1, 2, 3, 4, 4, 5, 6, 8, 9]
    some = learned_items(rows_of(folders, 1 / 6, supervise, tokenizer, vocab), vocab)
    assert 7 <= sum(len(found) for found in some) <= 8, "one old target, or the row of two that it stands in"


def test_new_targets_see_the_old_history(folders, tokenizer, vocab) -> None:
    rows = list(encode_sequences([SEQUENCES["ann"]], tokenizer=tokenizer, vocab=vocab, max_history=4, begins=[5]))
    assert learned_items(rows, vocab) == [(5, 6)]
    shown = rows[0]["input_ids"][1:]
    assert shown == [token for item in (2, 3, 4, 5, 6) for token in vocab.token_ids(item)], (
        "as much as the window holds"
    )


def test_a_folder_that_is_no_earlier_state_is_refused(folders, make_folder) -> None:
    old, new = folders
    other = make_folder("other", {"ann": (5, 4, 3, 2, 1), "bob": SEQUENCES["bob"][:4]}, items=12)
    splits = new.split("leave_one_out")
    with pytest.raises(InputError, match=r"user 'ann' in .*other are not the beginning of those in"):
        find_increment(str(other.path), new, splits, replay=1.0)
    with pytest.raises(InputError, match="has no training target that"):
        find_increment(str(new.path), new, splits, replay=1.0)
    with pytest.raises(InputError, match=r"holds item 'i10' \(20 such\), which .*old lacks"):
        find_increment(str(new.path), old, old.split("leave_one_out"), replay=1.0)
    with pytest.raises(InputError, match="replay: -1"):
        RecipeArguments(dataset="a", sids="b", start_from="c", old_dataset="d", replay=-1)
    with pytest.raises(InputError, match="old_dataset: it says what the bundle of start_from knows"):
        RecipeArguments(dataset="a", sids="b", old_dataset="d")


class Fixed:
    """Recommends one list to everybody."""

    def __init__(self, rows: list[int]) -> None:
        self.rows = rows

    def recommend(self, histories, k: int, *, exclude_seen: bool = False):
        return torch.tensor([self.rows[:k]] * len(histories))


def test_before_and_after_by_group(folders) -> None:
    rows = [History(0, (1,), 9), History(1, (1,), 5), History(2, (1,), 10)]
    found = compare(Fixed([9, 5]), Fixed([10, 9]), increment_of(folders), rows, items=30, ks=[1, 2])
    assert found["old users"]["users"] == 2
    assert found["old users"]["recall@2"]["before"] == 1.0
    assert found["old users"]["recall@2"]["after"] == 0.5
    assert found["old users"]["recall@2"]["difference"][0] == -0.5
    assert found["new users"] == found["new items"], "one row each, the same"
    assert found["new users"]["ndcg@1"] == {"before": 0.0, "after": 1.0}
    assert found["all"]["recall@1"]["before"] == pytest.approx(1 / 3)
