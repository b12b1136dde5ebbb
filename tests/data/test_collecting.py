import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.slow_data import slow_drop_repeats

from llmrec.data.collecting import Collected, Row, collect, drop_repeats, drop_same_events, whole_seconds
from llmrec.data.import_rules import ImportRules, Repairs
from llmrec.errors import InputError

PATH = Path("x.inter")


def take(rows: list[Row], *, strict: bool = False, time_unit: str = "s", **rules) -> tuple[Collected, Repairs]:
    repairs = Repairs(strict=strict)
    rows_taken = collect(
        iter(rows), path=PATH, rules=ImportRules(strict=strict, **rules), repairs=repairs, time_unit=time_unit
    )
    return rows_taken, repairs


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (881250949, "s", (881250949, True)),
        ("881250949", "s", (881250949, True)),
        ("881250949.0", "s", (881250949, False)),
        (881250949.9, "s", (881250949, False)),
        (-1.5, "s", (-2, False)),
        (1588687728923, "ms", (1588687728, True)),
        ("1588687728923", "ms", (1588687728, True)),
        (datetime.datetime(1970, 1, 2), "s", (86400, True)),
        (datetime.datetime(1970, 1, 2, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=1))), "s", (86400, True)),
    ],
)
def test_timestamps(value, unit, expected):
    assert whole_seconds(value, unit=unit) == expected


@pytest.mark.parametrize("value", ["", "nan", "inf", "1998-01-01", "12a", 1e300, True, [1], datetime.date(1970, 1, 2)])
def test_timestamps_that_are_no_number(value):
    with pytest.raises(InputError, match=r"x\.inter: row 7 has timestamp .*; expected a number of seconds since 1970"):
        take([Row(7, "u", "i", value)])


def test_rows_become_numbers_in_order_of_appearance():
    collected, repairs = take([Row(2, "v", 10, "5", "4"), Row(3, " u ", "b", 6.0, None), Row(5, "v", "b", 7, "")])
    assert collected.user_ids == ("v", "u")
    assert collected.item_ids == ("10", "b")
    assert collected.users.tolist() == [0, 1, 0]
    assert collected.items.tolist() == [0, 1, 1]
    assert collected.timestamps.tolist() == [5, 6, 7]
    assert collected.lines.tolist() == [2, 3, 5]
    assert collected.ratings is not None
    np.testing.assert_array_equal(collected.ratings, [4, np.nan, np.nan])
    assert repairs.counts == {"timestamps_not_whole": 1}
    assert repairs.examples["timestamps_not_whole"].startswith("x.inter: row 3: timestamp 6.0 is no whole number")


def test_strict_makes_a_fraction_an_error():
    with pytest.raises(InputError, match=r"x\.inter: row 3: timestamp '6.0' is no whole number; without --strict"):
        take([Row(3, "u", "b", "6.0")], strict=True)


def test_rows_without_ids_are_dropped():
    rows = [Row(1, "u", " ", 1), Row(2, None, "i", 1), Row(3, "u", "i", 1)]
    collected, repairs = take(rows)
    assert collected.lines.tolist() == [3]
    assert repairs.counts == {"rows_without_ids": 2}
    with pytest.raises(InputError, match="row 1: no item id"):
        take(rows, strict=True)


def test_filters_of_a_row():
    rows = [Row(1, "u", "a", 1, "5", "buy"), Row(2, "u", "b", 2, "3.5", "view"), Row(3, "u", "c", 3, "4", "buy")]
    assert take(rows, limit=2)[0].lines.tolist() == [1, 2]
    collected, _ = take(rows, min_rating=3.6)
    assert collected.lines.tolist() == [1, 3]
    assert collected.dropped == {"min_rating": 1}
    collected, _ = take(rows, event_types=("view", "cart"))
    assert collected.lines.tolist() == [2]
    assert collected.dropped == {"event_types": 2}
    assert collected.read == 3


@pytest.mark.parametrize(
    ("row", "rules", "message"),
    [
        (Row(4, "u", "a", 1, "good"), {}, "row 4 has rating 'good', which is no number"),
        (Row(4, "u", "a", 1, "nan"), {}, "row 4 has rating 'nan', which is no number"),
        (Row(4, "u", "a", 1), {"min_rating": 3}, "row 4 has no rating; leave out --min_rating"),
        (Row(4, "u", "a", 1), {"event_types": ("buy",)}, "row 4 has no event type; leave out --event_types"),
        (Row(4, "u", "a", 1, None, "view"), {"event_types": ("buy",)}, r"--event_types \(event types found: view\)"),
        (Row(4, "u", "a", 1, 2), {"min_rating": 3}, "none of 1 interactions is left after --min_rating"),
        (Row(4, "", "a", 1), {}, "none of 1 interactions is left after dropping dirty rows"),
    ],
)
def test_rows_and_filters_that_do_not_fit(row, rules, message):
    with pytest.raises(InputError, match=message):
        take([row], **rules)


def test_no_rows():
    with pytest.raises(InputError, match=r"x\.inter: no interactions in it"):
        take([])


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"limit": 0}, "--limit 0"),
        ({"k_core": 0}, "--k_core 0"),
        ({"drop_repeats": "all"}, "--drop_repeats 'all': choose one of keep, first, last"),
    ],
)
def test_illegal_rules_do_not_construct(rules, message):
    with pytest.raises(InputError, match=message):
        ImportRules(**rules)


def test_same_events_count_once():
    rows = [Row(1, "u", "a", 5), Row(2, "v", "a", 5), Row(3, "u", "a", 5), Row(4, "u", "a", 6), Row(5, "u", "a", 5)]
    collected, repairs = take(rows)
    assert drop_same_events(collected, repairs).lines.tolist() == [1, 2, 4]
    assert repairs.counts == {"duplicate_interactions": 2}
    with pytest.raises(InputError, match="row 3: user 'u' and item 'a' stand in an earlier row with the same time"):
        drop_same_events(collected, Repairs(strict=True))


def test_repeats_by_hand():
    # By time, user u takes a (row 2), b (row 1), a (row 3).
    collected, _ = take([Row(1, "u", "b", 5), Row(2, "u", "a", 1), Row(3, "u", "a", 9)])
    assert drop_repeats(collected, "keep").lines.tolist() == [1, 2, 3]
    first = drop_repeats(collected, "first")
    assert first.lines.tolist() == [1, 2]
    assert first.dropped == {"drop_repeats": 1}
    assert drop_repeats(collected, "last").lines.tolist() == [1, 3]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=25),
    st.sampled_from(["first", "last"]),
)
def test_repeats_are_the_slow_ones(events, which):
    rows = [Row(number, user, item, time) for number, (user, item, time) in enumerate(events)]
    collected, _ = take(rows)
    assert set(drop_repeats(collected, which).lines.tolist()) == slow_drop_repeats(events, which)
