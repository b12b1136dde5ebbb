from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data.import_rules import Repairs
from llmrec.data.items import Catalog
from llmrec.data.published import Joined, Published, PublishedRow, build_published, join_rows, recover_rows
from llmrec.data.splits import History
from llmrec.errors import InputError

CATALOG = Catalog(tuple("abcdefgh"), {"title": tuple("ABCDEFGH")})
PATHS = {name: Path(f"{name}.csv") for name in ("train", "valid", "test")}


def rows_of(*words: str) -> list[PublishedRow]:
    """Rows from words "u:abc>d": user, history, target."""
    rows = []
    for line, word in enumerate(words, start=2):
        user, _, rest = word.partition(":")
        history, _, target = rest.partition(">")
        rows.append(PublishedRow(line, user, tuple(history), target))
    return rows


def make(*, strict: bool = False, **splits: list[PublishedRow]) -> tuple[Published, Repairs]:
    repairs = Repairs(strict=strict)
    return build_published(splits, catalog=CATALOG, paths=PATHS, repairs=repairs), repairs


def words_of(published: Published, split: str) -> list[str]:
    ids = CATALOG.item_ids
    users = published.interactions.user_ids
    return [
        f"{users[row.user]}:{''.join(ids[item] for item in row.items)}>{ids[row.target]}"
        for row in published.splits[split]
    ]


def sequences_of(published: Published) -> list[str]:
    return ["".join(CATALOG.item_ids[item] for item in items) for items in published.interactions.sequences()]


@pytest.mark.parametrize(
    ("rows", "items", "ends", "odd"),
    [
        ([([1, 2], 3), ([1, 2, 3], 4)], (1, 2, 3, 4), (2, 3), ()),
        ([([1, 2, 3], 4), ([2, 3, 4], 5), ([3, 4, 5], 6)], (1, 2, 3, 4, 5, 6), (3, 4, 5), ()),  # Cut at three.
        ([([1, 1, 1], 1), ([1, 1, 1], 1)], (1, 1, 1, 1, 1), (3, 4), ()),  # Repeats are interactions.
        ([([1, 2, 3], 4), ([1, 2], 3)], (1, 2, 3, 4), (3, 2), (1,)),  # Out of order: nothing new.
        ([([1, 2], 3), ([1, 2, 3], 4), ([1, 2], 3)], (1, 2, 3, 4), (2, 3, 2), (2,)),  # A row that stands twice.
        ([([1, 2], 3), ([2, 3], 4)], (1, 2, 3, 4), (2, 3), (1,)),  # Not all of the sequence, and not cut.
        ([([1, 2], 3), ([3, 7, 8], 9)], (1, 2, 3, 7, 8, 9), (2, 5), (1,)),  # A gap: 7 and 8 have no rows.
        ([([1, 2], 3), ([7, 8], 9)], (1, 2, 3, 7, 8, 9), (2, 5), (1,)),  # Nothing in common.
    ],
)
def test_rows_join_by_hand(rows, items, ends, odd):
    assert join_rows(rows, longest=3) == Joined(items, ends, odd)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=12), st.integers(1, 4), st.data())
def test_joining_undoes_the_cut_into_rows(items, longest, data):
    first = data.draw(st.integers(1, len(items) - 1))
    rows = [(items[max(0, stop - longest) : stop], items[stop]) for stop in range(first, len(items))]
    start = max(0, first - longest)
    joined = join_rows(rows, longest=longest)
    assert joined.items == tuple(items[start:])
    assert joined.ends == tuple(range(first - start, len(items) - start))
    assert joined.odd == ()


def test_recovered_rows_by_hand():
    # The first valid row shows 1 2 3, of which 2 and 3 are targets; 4 is a valid target, 5 a test target.
    joined = join_rows([([1, 2, 3], 4), ([1, 2, 3, 4], 5)], longest=10)
    rows, left_out = recover_rows(7, joined, sources=[True, False], sizes=[3, 4], longest=10)
    assert rows == [History(7, (1,), 2), History(7, (1, 2), 3)]
    assert left_out == 0
    # Two valid rows: the second shows the first one's target, which stays out.
    rows, left_out = recover_rows(7, joined, sources=[True, True], sizes=[3, 4], longest=10)
    assert rows == [History(7, (1,), 2), History(7, (1, 2), 3)]
    assert left_out == 1
    # Histories of test rows show nothing that may be trained on.
    assert recover_rows(7, joined, sources=[False, False], sizes=[3, 4], longest=10) == ([], 0)
    # No history is longer than the source's.
    rows, _ = recover_rows(7, joined, sources=[True, True], sizes=[3, 4], longest=1)
    assert rows == [History(7, (1,), 2), History(7, (2,), 3)]


def test_no_recovered_history_reaches_over_a_held_target():
    # Rows with a gap: 4 is a valid target, then 5 and 6 are shown without rows of their own, then 7 is a target.
    joined = join_rows([([1, 2, 3], 4), ([4, 5, 6], 7)], longest=3)
    rows, left_out = recover_rows(0, joined, sources=[True, True], sizes=[3, 3], longest=3)
    assert joined.items == (1, 2, 3, 4, 5, 6, 7)
    assert rows == [History(0, (1,), 2), History(0, (1, 2), 3), History(0, (5,), 6)]
    assert left_out == 0  # 4 is the first item of the second history, so it would have been no target.


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(2, 12), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=4))
def test_recovered_rows_never_show_what_is_held_out(users):
    # Every interaction is an item of its own: a history or target out of place cannot hide.
    for user, (length, valid, test) in enumerate(users):
        items = list(range(100 * user, 100 * user + length))
        held = min(valid + test, length - 1)
        stops = list(range(length - held, length))
        rows = [(items[max(0, stop - 4) : stop], items[stop]) for stop in stops]
        joined = join_rows(rows, longest=4)
        sources = [number < valid for number in range(len(rows))]
        found, _ = recover_rows(user, joined, sources=sources, sizes=[len(items) for items, _ in rows], longest=4)
        shown = {item for row in found for item in (*row.items, row.target)}
        assert not shown & {target for _, target in rows}
        first = rows[0][0] if any(sources) else []
        assert [row.target for row in found] == first[1:]


def test_train_is_recovered_where_it_is_absent():
    published, repairs = make(
        valid=rows_of("v:abc>d", "u:a>b", "v:abcd>e"), test=rows_of("w:ef>g", "v:abcde>f", "u:ab>a")
    )
    assert published.interactions.user_ids == ("v", "u", "w")
    assert sequences_of(published) == ["abcdef", "aba", "efg"]
    assert published.interactions.timestamps.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 1, 2]
    assert words_of(published, "train") == ["v:a>b", "v:ab>c"]
    assert words_of(published, "valid") == ["v:abc>d", "u:a>b", "v:abcd>e"]
    assert words_of(published, "test") == ["w:ef>g", "v:abcde>f", "u:ab>a"]
    assert published.notes == {
        "train": "recovered", "recovered": {"rows": 2, "left_out_targets": 1, "max_history": 5},
    }  # fmt: skip
    assert not repairs.counts


def test_train_is_kept_where_it_is_there():
    published, _ = make(train=rows_of("u:a>b", "u:ab>c"), valid=rows_of("u:abc>d"), test=rows_of("u:abcd>e"))
    assert sequences_of(published) == ["abcde"]
    assert words_of(published, "train") == ["u:a>b", "u:ab>c"]
    assert published.notes == {"train": "published"}


def test_dirty_rows_are_counted():
    valid = rows_of("u:axb>c", "v:x>a", "v:a>x", "u:>b", "u:abc>d", "u:bc>d")
    published, repairs = make(valid=valid, test=rows_of("u:abcd>e"))
    assert words_of(published, "valid") == ["u:ab>c", "u:abc>d", "u:bc>d"]
    assert sequences_of(published) == ["abcde"]
    assert repairs.counts == {
        "interactions_with_unknown_items": 3, "rows_without_history": 2, "rows_out_of_step": 1,
    }  # fmt: skip
    with pytest.raises(InputError, match=r"valid\.csv: row 2: item 'x' is not in the item table"):
        make(valid=valid, test=rows_of("u:abcd>e"), strict=True)
    with pytest.raises(InputError, match=r"valid\.csv: row 3: its history does not continue"):
        make(valid=rows_of("u:ab>c", "u:bc>d"), test=rows_of("u:abcd>e"), strict=True)


def test_splits_that_cannot_be_used():
    with pytest.raises(InputError, match=r"test\.csv: no row of it can be used"):
        make(valid=rows_of("u:ab>c"), test=rows_of("u:abc>x"))
    with pytest.raises(InputError, match=r"valid\.csv: no training row can be recovered"):
        make(valid=rows_of("u:a>b"), test=rows_of("u:ab>c"))
