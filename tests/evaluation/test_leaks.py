"""What may have been seen of the rows that are scored."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from bundle_kit import make_table
from hypothesis import assume, given
from hypothesis import strategies as st
from pens_dataset import write_pens
from reference import slow_evaluation

from llmrec.data.folder import DatasetFolder, load_dataset, write_dataset
from llmrec.data.interactions import Interactions
from llmrec.data.items import Catalog
from llmrec.data.splits import History, Splits, leave_one_out, temporal
from llmrec.embeddings.collaborative import sequences_hash
from llmrec.embeddings.store import save_embeddings
from llmrec.errors import InputError
from llmrec.evaluation.leaks import bundle_leaks, check_targets, embedding_leaks, later_than_test, stands_in_both

PEN = {"name": "pens", "domain": "pens", "source": "drawn", "licence": "none", "times": "position"}
walks = st.lists(st.integers(0, 3), min_size=3, max_size=9).map(tuple)


def interactions(*sequences, times=None):
    sizes = [len(sequence) for sequence in sequences]
    return Interactions(
        tuple(f"u{user}" for user in range(len(sequences))),
        users=np.repeat(np.arange(len(sequences)), sizes),
        items=np.concatenate([np.array(sequence, dtype=np.int64) for sequence in sequences]),
        timestamps=np.concatenate([np.arange(size) for size in sizes]) if times is None else np.array(times),
    )


def folder(path, *sequences, items=9, times=None, **published):
    catalog = Catalog(tuple(f"i{row}" for row in range(items)), {"title": ("pen",) * items})
    manifest = {**PEN, "times": "position" if times is None else "seconds"}
    rows = {"train": [], "valid": [], "test": [], **published} if published else None
    found = interactions(*sequences, times=times)
    write_dataset(path, catalog=catalog, interactions=found, manifest=manifest, published=rows)
    return load_dataset(path)


def check(dataset, splits=None, split="test"):
    splits = splits or dataset.split()
    check_targets(dataset, splits, splits.rows(split), split=split)


# A user who took 0 1 2 3: item 3 after 0 1 2 is the target.
TEST = History(0, (0, 1, 2), 3)


@pytest.mark.parametrize(
    ("train", "leaks"),
    [
        ([History(0, (0,), 1), History(0, (0, 1), 2)], False),
        ([History(0, (0,), 1), TEST], True),
        ([History(0, (0, 1, 2, 3), 4)], True),  # within a history
        ([History(0, (2, 3), 4)], True),  # within a history that was cut
        ([History(0, (3,), 4)], True),  # so far cut that nothing stands before it
        ([History(1, (0, 1, 2), 3)], False),  # of another user
    ],
)
def test_a_target_that_is_trained_on_is_refused(tmp_path, train, leaks):
    valid = [History(1, (0, 1), 2)]
    dataset = folder(tmp_path / "pens", (0, 1, 2, 3, 4), (0, 1, 2, 3), train=train, valid=valid, test=[TEST])
    if not leaks:
        return check(dataset)
    with pytest.raises(
        InputError, match=r"splits/test\.parquet: test row 0: its target, item 'i3', is trained on: .* took it 1 time"
    ):
        check(dataset)
    check(dataset, split="valid")


@pytest.mark.parametrize(
    ("taken", "train", "test", "leaks"),
    [
        # Taken again: 1 after 0, and 1 after 2. The second is scored, the first is trained on.
        ((0, 1, 2, 1), History(0, (0,), 1), History(0, (0, 1, 2), 1), False),
        ((0, 1, 2, 1), History(0, (0, 1), 2), History(0, (0, 1, 2), 1), False),
        # The second is trained on and scored.
        ((0, 1, 2, 1), History(0, (0, 1, 2), 1), History(0, (0, 1, 2), 1), True),
        # Of three, the one after 0 is in both: nothing but what stood before tells.
        ((0, 1, 2, 1, 3, 1), History(0, (0,), 1), History(0, (0,), 1), True),
        # Histories of two: 1 after (1, 1) happens twice, so the rows may be of two interactions, or three.
        ((1, 1, 1, 1), History(0, (1, 1), 1), History(0, (1, 1), 1), False),
        ((1, 1, 1), History(0, (1, 1), 1), History(0, (1, 1), 1), True),
    ],
)
def test_what_is_taken_again_is_refused_as_an_interaction_and_not_as_an_item(tmp_path, taken, train, test, leaks):
    dataset = folder(tmp_path / "pens", taken, train=[train], valid=[test], test=[test])
    if leaks:
        with pytest.raises(InputError, match=f"took it {taken.count(1)} time"):
            check(dataset)
    else:
        check(dataset)


@given(walks, st.integers(1, 4), st.integers(0, 2**9 - 1), st.integers(1, 8))
def test_rows_of_distinct_interactions_are_never_refused(taken, longest, chosen, scored):
    # Windows of a sequence, as published splits are; each interaction in one part alone.
    scored = min(scored, len(taken) - 1)
    rows = [History(0, taken[max(0, at - longest) : at], taken[at]) for at in range(1, len(taken))]
    test = rows[scored - 1]
    train = [row for at, row in enumerate(rows, start=1) if at < scored and chosen >> at & 1]
    splits = Splits("provided", train, [], [test], [])
    dataset = DatasetFolder(None, Catalog(tuple("abcd"), {"title": ("pen",) * 4}), interactions(taken), PEN, {})  # pyright: ignore[reportArgumentType]
    check(dataset, splits)


@given(walks, walks, st.integers(0, 3), walks)
def test_the_count_is_that_of_a_slow_twin(history, trained, target, taken):
    expected = slow_evaluation.stands_in_both(history, target, trained, taken)
    assert stands_in_both(history, target, trained, taken) == expected


@given(walks, st.integers(1, 8))
def test_what_happened_once_and_stands_in_both_parts_is_always_found(taken, at):
    at = min(at, len(taken) - 1)
    row = taken[: at + 1]
    assume(sum(taken[start : start + at + 1] == row for start in range(len(taken))) == 1)
    for end in range(at + 1, len(taken) + 1):
        assert stands_in_both(taken[:at], taken[at], taken[:end], taken)


@given(st.lists(walks, min_size=5, max_size=8))
def test_our_own_protocols_pass_on_data_that_repeats_items(sequences):
    found = interactions(*sequences)
    dataset = DatasetFolder(None, Catalog(tuple("abcd"), {"title": ("pen",) * 4}), found, PEN, {})  # pyright: ignore[reportArgumentType]
    for splits in (leave_one_out(found), temporal(found)):
        for split in ("valid", "test"):
            check(dataset, splits, split)


def test_another_file_is_named_for_another_protocol(tmp_path):
    dataset = folder(tmp_path / "pens", (0, 1, 2, 3, 4))
    splits = replace(dataset.split(), train=[History(0, (0, 1, 2, 3), 4)])
    with pytest.raises(InputError, match=r"interactions\.parquet: test row 0: its target, item 'i4'"):
        check(dataset, splits)
    check_targets(dataset, splits, splits.train, split="train")


def test_the_share_of_training_rows_after_the_median_test_target(tmp_path):
    # Test targets at 30, 50 and 90: 50 is the median. Training targets at 11, 45, 60 and 61; two of four are later.
    times = [10, 11, 20, 30, 40, 45, 46, 50, 59, 60, 61, 62, 90]
    dataset = folder(tmp_path / "pens", (0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3, 4), times=times)
    assert later_than_test(dataset, dataset.split("leave_one_out")) == pytest.approx(2 / 4)
    # By time no training row is later than a test row.
    many = folder(tmp_path / "more", *[tuple(range(6))] * 3, times=[*range(0, 60, 10), *range(3, 60, 10), *range(6)])
    assert later_than_test(many, many.split("temporal")) == 0
    assert later_than_test(folder(tmp_path / "none", (0, 1, 2, 3)), dataset.split("leave_one_out")) is None


def test_what_a_bundle_may_have_seen_is_named_and_warned_of(caplog):
    table = make_table()
    assert bundle_leaks({"protocol": "temporal"}, table, protocol="temporal") is None
    assert bundle_leaks({}, table, protocol="temporal") is None
    fused = replace(table, settings={"embeddings": {"encoder": "fuse", "protocol": "provided"}})
    with caplog.at_level(logging.WARNING):
        found = bundle_leaks({"protocol": "leave_one_out"}, fused, protocol="temporal")
    assert found == [
        "the model was trained on the training part of 'leave_one_out'",
        "the embeddings were fitted on the training part of 'provided'",
    ]
    assert "is scored by 'temporal'" in caplog.text


def test_sids_of_other_interactions_or_another_catalogue_are_named(tmp_path, caplog):
    dataset = load_dataset(write_pens(tmp_path / "pens"))
    splits = dataset.split()
    there = {"protocol": "leave_one_out", "dataset": dataset, "splits": splits}
    made = {"encoder": "ppmi_svd", "protocol": "leave_one_out"}

    def found(sequences, key="embeddings"):
        fitted_on = {"sequences_sha256": sequences_hash(sequences)}
        table = replace(make_table(), settings={key: {**made, "fitted_on": fitted_on}})
        return bundle_leaks({"protocol": "leave_one_out"}, table, **there)

    assert found(splits.sequences) is None
    all_of_them = dataset.interactions.sequences()
    assert found(all_of_them) == [
        "the embeddings were fitted on other interactions than the training part of 'leave_one_out'"
    ]
    assert found(all_of_them, "collaborative") == [
        "vectors of behaviour were fitted on other interactions than the training part of 'leave_one_out'"
    ]
    # The same items in another order are the same catalogue; rows cannot be compared then.
    turned = load_dataset(write_pens(tmp_path / "turned", order=list(range(40))[::-1]))
    assert bundle_leaks({}, make_table(), protocol="leave_one_out", dataset=turned, splits=turned.split()) is None
    more = load_dataset(write_pens(tmp_path / "more", extra=("new1", "new2")))
    with caplog.at_level(logging.WARNING):
        assert bundle_leaks({}, make_table(), protocol="leave_one_out", dataset=more, splits=more.split()) == [
            "the model and its SIDs are of another catalogue: 40 of its 40 items are among the dataset's 42"
        ]
    assert "of another catalogue" in caplog.text


def test_embeddings_that_saw_other_interactions_are_named(tmp_path):
    dataset = load_dataset(write_pens(tmp_path / "pens"))
    splits = dataset.split()
    path = tmp_path / "e.safetensors"

    def found(**manifest):
        save_embeddings(path, np.eye(40), {"encoder": "mine", "catalog_hash": dataset.catalog.hash, **manifest})
        return embedding_leaks(path, dataset, splits)

    def fitted(sequences, protocol="leave_one_out"):
        return {"protocol": protocol, "fitted_on": {"sequences_sha256": sequences_hash(sequences)}}

    assert found() is None
    assert found(**fitted(splits.sequences)) is None
    assert found(**fitted(splits.sequences, "temporal")) == [
        "the embeddings were fitted on the training part of 'temporal'"
    ]
    assert found(**fitted(dataset.interactions.sequences())) == [
        "the embeddings were fitted on other interactions than the training part of 'leave_one_out'"
    ]
    assert found(catalog_hash="other") == ["the embeddings are of another catalogue"]
