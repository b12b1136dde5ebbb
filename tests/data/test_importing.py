from pathlib import Path

import pytest

from llmrec.data.collecting import Row, collect
from llmrec.data.import_rules import ImportRules, Repairs
from llmrec.data.importing import Imported, Record, build, json_records, sort_ids, table_records
from llmrec.data.sources import open_table
from llmrec.errors import InputError

PATH, ITEMS = Path("x.inter"), Path("x.item")


def record(item_id: str, **fields) -> Record:
    return Record(len(item_id), item_id, {"title": f"T {item_id}", **fields})


def make(
    text: str, records: list[Record] | None, *, whole_catalogue: bool = False, has_times: bool = True, **rules
) -> tuple[Imported, Repairs]:
    """Import ``text``: a word an interaction, of user, item and an optional time ("ua5")."""
    whole = ImportRules(**rules)
    repairs = Repairs(strict=whole.strict)
    rows = [
        Row(line, word[0], word[1], int(word[2:] or line) if has_times else None)
        for line, word in enumerate(text.split(), start=1)
    ]
    collected = collect(rows, path=PATH, rules=whole, repairs=repairs)
    imported = build(
        collected,
        rules=whole,
        repairs=repairs,
        records=records,
        items_path=ITEMS,
        whole_catalogue=whole_catalogue,
        has_times=has_times,
    )
    return imported, repairs


def shown(imported: Imported) -> dict[str, str]:
    """Each user's items, oldest first, as one word."""
    ids = imported.catalog.item_ids
    sequences = imported.interactions.sequences()
    return {
        user: "".join(ids[item] for item in items)
        for user, items in zip(imported.interactions.user_ids, sequences, strict=True)
    }


def test_catalogue_in_order_of_first_appearance():
    imported, repairs = make("vb9 ua1 vc1 va5 ua2", [record(item) for item in "abcd"])
    assert imported.catalog.item_ids == ("b", "a", "c")
    assert imported.catalog.titles == ("T b", "T a", "T c")
    assert shown(imported) == {"v": "cab", "u": "aa"}
    assert imported.interactions.timestamps.tolist() == [1, 5, 9, 1, 2]
    assert not repairs.counts


def test_unseen_items_on_request():
    imported, _ = make("ub ua ub", [record(item) for item in "dcba"], keep_unseen_items=True)
    assert imported.catalog.item_ids == ("b", "a", "d", "c")
    assert shown(imported) == {"u": "bab"}


def test_a_whole_catalogue_is_in_numeric_order():
    imported, _ = make("u9 u1 u9", [record(item) for item in ("10", "9", "1", "2")], whole_catalogue=True)
    assert imported.catalog.item_ids == ("1", "2", "9", "10")
    assert shown(imported) == {"u": "919"}
    assert sort_ids(["b", "10", "9"]) == ("b", "10", "9")


def test_positions_stand_in_for_times():
    # Interleaved users, one of them with an unknown item in the middle: positions count what is kept.
    imported, repairs = make("ua va ux ub vb uc vc", [record(item) for item in "abc"], has_times=False)
    assert shown(imported) == {"u": "abc", "v": "abc"}
    assert imported.interactions.timestamps.tolist() == [0, 1, 2, 0, 1, 2]
    assert repairs.counts == {"interactions_with_unknown_items": 1}


def test_unknown_items_are_dropped_and_counted():
    text = "ua ux ub uc vx"
    imported, repairs = make(text, [record(item) for item in "abc"])
    assert shown(imported) == {"u": "abc"}
    assert imported.notes["repairs"] == {"interactions_with_unknown_items": 2}
    with pytest.raises(InputError, match=r"x\.inter: row 2: item 'x' is not in x\.item; without --strict: the inter"):
        make(text, [record(item) for item in "abc"], strict=True)
    assert not repairs.strict


def test_the_first_of_double_metadata_is_kept():
    records = [record("a", title="one"), record("a", title="two"), record("", title="none"), record("z"), record("z")]
    imported, repairs = make("ua ua ua", records)
    assert imported.catalog.titles == ("one",)
    assert repairs.counts == {"duplicate_items": 1, "items_without_id": 1}  # z is not wanted, so not read.
    with pytest.raises(InputError, match=r"x\.item: row 1: item 'a' stands there again"):
        make("ua ua ua", records, strict=True)


def test_items_without_title_get_one():
    records = [
        record("a", title=" ", brand="Acme", categories="['Toys', 'Cards']"),
        record("b", title=None, brand=""),
        record("c", title="C &amp; D", brand="7"),
    ]
    imported, repairs = make("ua ub uc", records)
    assert imported.catalog.titles == ("Acme. Toys, Cards", "b", "C & D")
    assert repairs.counts == {"items_without_title": 2}
    with pytest.raises(
        InputError, match=r"x\.item: item 'a' has no title; without --strict: its title is 'Acme\. Toys"
    ):
        make("ua ub uc", records, strict=True)


def test_only_columns_of_text_are_kept():
    records = [
        record("a", price="1.5", year="1995", brand="7", note=""),
        record("b", price="", year="", brand="Acme", note=" "),
    ]
    imported, _ = make("ua ub ua", records)
    assert dict(imported.catalog.columns) == {"title": ("T a", "T b"), "year": ("1995", ""), "brand": ("7", "Acme")}


def test_no_item_table():
    imported, repairs = make("ua ub ua", None)
    assert imported.catalog.titles == ("a", "b")
    assert repairs.counts == {"items_without_title": 2}


def test_k_core_counts_known_items_alone():
    # 2-core with x: u and v, items a, b and x. Without metadata x goes, then v has one left and goes with it.
    text = "ua ub ux va vx ua ub"
    imported, _ = make(text, [record(item) for item in "abc"], k_core=2)
    assert shown(imported) == {"u": "abab"}
    assert imported.notes["repairs"] == {"interactions_with_unknown_items": 2}
    assert imported.notes["dropped"] == {"k_core": 1}
    assert imported.notes["rules"] == {"k_core": 2, "drop_repeats": "keep"}
    assert imported.notes["rows_read"] == 7


def test_repeats_go_before_the_k_core():
    imported, _ = make("ua ua ub va vb uc vc", [record(item) for item in "abc"], k_core=2, drop_repeats="first")
    assert shown(imported) == {"u": "abc", "v": "abc"}
    with pytest.raises(InputError, match="loosen --drop_repeats, --k_core"):
        make("ua ua ua ub", [record(item) for item in "ab"], k_core=2, drop_repeats="last")


@pytest.mark.parametrize(
    ("text", "rules", "message"),
    [
        ("ua ub va vb", {}, "of 4 interactions 4 are left, and no user has 3 of them; take a larger source"),
        ("ua ub uc", {"k_core": 2}, "of 3 interactions 0 are left, and no user has 3 of them; loosen --k_core"),
        ("ux uy uz ua", {}, "of 4 interactions 1 are left"),
        ("ua ub uc", {"limit": 2}, "no user has 3 of them; raise --limit"),
    ],
)
def test_no_user_with_enough_left(text, rules, message):
    with pytest.raises(InputError, match=message):
        make(text, [record(item) for item in "abc"], **rules)


def put(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_records_of_a_table(tmp_path: Path):
    path = put(tmp_path / "a.item", "sku:token\tname:token\tprice:float\tclass:token_seq\n7\tSeven\t1\tDrama\n")
    assert list(table_records(open_table(path, "items"), item_column="sku")) == [
        Record(2, "7", {"title": "Seven", "genres": "Drama"})
    ]
    path = put(tmp_path / "b.csv", "item_id,title,label\n7,no,yes\n")
    records = table_records(open_table(path, "items"), title_column="label")
    assert [record.fields["title"] for record in records] == ["yes"]
    for flags, message in (
        ({"item_column": "sku"}, "no column 'sku'; it has item_id, title, label"),
        ({"title_column": "caption"}, "no column 'caption'; .* choose another --title_column"),
    ):
        with pytest.raises(InputError, match=message):
            table_records(open_table(path, "items"), **flags)
    path = put(tmp_path / "c.csv", "item_id,brand\n7,x\n")
    with pytest.raises(InputError, match="no column 'title'; it has item_id, brand: name the one with the titles"):
        table_records(open_table(path, "items"))


def test_records_of_json(tmp_path: Path):
    path = put(tmp_path / "a.item.json", '{"0": {"title": "x", "brand": "y"}, "1": {"brand": "z"}}')
    assert list(json_records(path)) == [
        Record(1, "0", {"title": "x", "brand": "y"}),
        Record(2, "1", {"brand": "z"}),
    ]
    for text, message in (
        ('{"0": 5}', "item '0' is 5; expected an object"),
        ('{"0": {"brand": "y"}}', "no item has a"),
    ):
        with pytest.raises(InputError, match=message):
            list(json_records(put(path, text)))
