import json
from pathlib import Path

import pytest
from imported import shown

from llmrec.errors import InputError

USERS = "u1 a b x c\nu2 b a b\n\nu1 d\n"
ITEMS = '''item_id,title,brand,categories
a,"Shampoo, 1/2 ""big""",Acme,"['Beauty', 'Hair & Nails']"
b,,Acme,"'Beauty', ""Women's"""
c,Crème,,
a,Again,,
d,D,,
z,Never taken,,
'''


@pytest.fixture
def flags(tmp_path: Path) -> list[object]:
    folder = tmp_path / "bath"
    folder.mkdir()
    (folder / "users.txt").write_text(USERS, encoding="utf-8")
    (folder / "items.csv").write_text(ITEMS, encoding="utf-8")
    return ["--source", folder / "users.txt", "--items", folder / "items.csv"]


def test_a_dirty_source(importer, flags):
    dataset = importer("sequences")(*flags)
    assert shown(dataset) == {"u1": ["a", "b", "c", "d"], "u2": ["b", "a", "b"]}
    assert dataset.interactions.timestamps.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert dict(dataset.catalog.columns) == {
        "title": ('Shampoo, 1/2 "big"', "Acme. Beauty, Women's", "Crème", "D"),
        "brand": ("Acme", "Acme", "", ""),
        "categories": ("Beauty, Hair & Nails", "Beauty, Women's", "", ""),
    }
    assert dataset.manifest["times"] == "position"
    assert dataset.manifest["name"] == "bath"
    assert dataset.manifest["repairs"] == {
        "duplicate_items": 1, "interactions_with_unknown_items": 1, "items_without_title": 1,
    }  # fmt: skip
    with pytest.raises(InputError, match="its source has no times"):
        dataset.split("temporal")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("items.item", "item_id:token\ttitle:token\tprice:float\na\tA\t1\nb\tB\t2\nc\tC\t\nd\tD\t\nx\tX\t\n"),
        ("items.json", json.dumps({item: {"title": item.upper()} for item in "abcdx"}, indent=1)),
        ("items.jsonl", "\n".join(json.dumps({"item_id": item, "title": item.upper()}) for item in "abcdx")),
    ],
)
def test_item_tables_of_every_form(importer, flags, name, text):
    path = flags[1].parent / name
    path.write_text(text)
    dataset = importer("sequences")("--source", flags[1], "--items", path, "--strict")
    assert dataset.catalog.item_ids == ("a", "b", "x", "c", "d")
    assert dict(dataset.catalog.columns) == {"title": ("A", "B", "X", "C", "D")}


def test_other_column_names_and_no_item_table(importer, flags):
    path = flags[3]
    path.write_text(ITEMS.replace("item_id,title", "sku,label"))
    dataset = importer("sequences")(*flags, "--item_column", "sku", "--title_column", "label", "--name", "bath")
    assert dataset.catalog.titles[2] == "Crème"
    dataset = importer("sequences")(*flags[:2])
    assert dataset.catalog.titles == ("a", "b", "x", "c", "d")
    assert dataset.manifest["repairs"] == {"items_without_title": 5}


def test_limit_and_repeats(importer, flags):
    assert shown(importer("sequences")(*flags, "--limit", 4)) == {"u1": ["a", "b", "c"]}
    assert shown(importer("sequences")(*flags, "--drop_repeats", "last"))["u2"] == ["a", "b"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("", "", r"users\.txt: row 1: item 'x' is not in"),
        (" x", "", r"items\.csv: item 'b' has no title"),
    ],
)
def test_strict(importer, flags, old, new, message):
    flags[1].write_text(USERS.replace(old, new))
    flags[3].write_text(ITEMS.replace("a,Again,,\n", ""))
    with pytest.raises(InputError, match=message):
        importer("sequences")(*flags, "--strict")


@pytest.mark.parametrize(
    ("users", "items", "message"),
    [
        (None, ITEMS, r"users\.txt: no such file"),
        ("", ITEMS, r"users\.txt: it is empty"),
        (USERS, None, r"items\.csv: no such file"),
        (USERS, "", r"items\.csv: it is empty"),
        (USERS, "sku,title\na,A\n", "no column 'item_id'"),
        (USERS, "item_id,label\na,A\n", "no column 'title'.*--title_column"),
        ("u1 a b\nu2\n", ITEMS, "line 2 has a user, 'u2', and no items"),
        ("u1 a b\nu2 a b\n", ITEMS, "no user has 3 of them"),
    ],
)
def test_bad_input(importer, flags, users, items, message):
    for path, text in ((flags[1], users), (flags[3], items)):
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
    with pytest.raises(InputError, match=message):
        importer("sequences")(*flags)


@pytest.mark.real
def test_beauty(importer, real_data):
    folder = real_data / "beauty"
    dataset = importer("sequences")("--source", folder / "user_sequence.txt", "--items", folder / "Amazon_Beauty.item")
    assert dataset.manifest["counts"] == {"users": 22_363, "items": 12_101, "interactions": 198_502}
    assert dataset.manifest["repairs"] == {"items_without_title": 7}
    assert dataset.manifest["domain"] == "beauty products"
    assert dataset.catalog.item_ids[:2] == ("B004756YJA", "B004ZT0SSG")
    assert shown(dataset)["A1YJEY40YUW4SE"] == ["B004756YJA", "B004ZT0SSG", "B0020YLEYK", "7806397051", "B002WLWX82"]
    row = dataset.catalog.row_of["9788072216"]
    assert dataset.catalog.columns["categories"][row] == "Beauty, Fragrance, Women's, Eau de Parfum"
    assert len(dataset.split().test) == 22_363
