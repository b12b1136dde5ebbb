from pathlib import Path

import pytest
from imported import shown

from llmrec.errors import InputError

INTER = """user_id:token\titem_id:token\trating:float\ttimestamp:float\tevent_type:token
u\ta\t5\t881250951.0\tbuy
v\tb\t2\t881250949\tview
u\tb\t4\t881250950\tbuy
u\tx\t3\t881250952\tbuy
u\tc\t3\t881250953\tview
v\ta\t4\t881250960\tbuy
v\td\t5\t881250961\tbuy
"""
ITEM = """item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\tprice:float
b\tQuoted "B", Part 1/2\t1995\tDrama War\t1
a\tAmélie & Co. &amp; 'x'\t2001\tComedy\t2
c\t\t1990\t\t3
a\tAnother A\t2001\tComedy\t2
d\tD\t\tDrama\t
e\tNever taken\t1970\tDrama\t
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "set.inter").write_text(INTER, encoding="utf-8")
    (folder / "set.item").write_text(ITEM, encoding="utf-8")
    return folder


def test_a_dirty_source(importer, source, capsys):
    dataset = importer("recbole")("--source", source)
    assert dataset.catalog.item_ids == ("a", "b", "c", "d")
    assert dict(dataset.catalog.columns) == {
        "title": ("Amélie & Co. & 'x'", 'Quoted "B", Part 1/2', "c", "D"),
        "year": ("2001", "1995", "1990", ""),
        "genres": ("Comedy", "Drama War", "", "Drama"),
    }
    assert dataset.interactions.user_ids == ("u", "v")
    assert dataset.interactions.sequences() == [(1, 0, 2), (1, 0, 3)]  # u: b, a, c by time.
    assert dataset.interactions.ratings is not None
    assert dataset.interactions.ratings.tolist() == [4, 5, 3, 2, 4, 5]
    assert dataset.manifest["name"] == "set"
    assert dataset.manifest["times"] == "seconds"
    assert dataset.manifest["repairs"] == {
        "duplicate_items": 1,
        "interactions_with_unknown_items": 1,
        "items_without_title": 1,
        "timestamps_not_whole": 1,
    }
    printed = capsys.readouterr().out
    assert "interactions" in printed
    assert "repaired: duplicate_items" in printed
    assert "set.item: row 5: item 'a' stands there again; the first is kept" in printed


CLEAN_INTER = INTER.replace("951.0", "951").replace("u\tx\t", "u\td\t")
CLEAN_ITEM = ITEM.replace("c\t\t", "c\tC\t").replace("a\tAnother A\t2001\tComedy\t2\n", "")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("set.inter", "881250949", "881250949.0", r"set\.inter: row 3: timestamp '881250949\.0' is no whole number"),
        ("set.inter", "u\td\t", "u\tx\t", r"set\.inter: row 5: item 'x' is not in .*set\.item"),
        ("set.inter", "u\td\t", "\td\t", r"set\.inter: row 5: no user id"),
        ("set.item", "e\tNever", "a\tNever", r"set\.item: row 6: item 'a' stands there again"),
        ("set.item", "c\tC\t", "c\t \t", r"set\.item: item 'c' has no title"),
    ],
)
def test_strict_makes_each_repair_an_error(importer, source, file, old, new, message):
    (source / "set.inter").write_text(CLEAN_INTER)
    (source / "set.item").write_text(CLEAN_ITEM)
    assert importer("recbole")("--source", source, "--strict").manifest["repairs"] == {}
    (source / file).write_text((source / file).read_text().replace(old, new))
    with pytest.raises(InputError, match=message):
        importer("recbole")("--source", source, "--strict")


@pytest.mark.parametrize(
    ("flags", "sequences"),
    [
        (["--min_rating", "3"], {"u": "bac", "v": "ad"}),
        (["--limit", "5"], {"v": "b", "u": "bac"}),
        (["--no_times"], {"u": "abc", "v": "bad"}),
        (["--event_types", "buy", "view"], {"u": "bac", "v": "bad"}),
    ],
)
def test_filters(importer, source, flags, sequences):
    dataset = importer("recbole")("--source", source, *flags)
    assert {user: "".join(items) for user, items in shown(dataset).items()} == sequences


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        (["--min_rating", "3.5"], "loosen --min_rating"),
        (["--event_types", "buy"], "loosen --event_types"),
        (["--k_core", "2"], "loosen --k_core"),
        (["--limit", "3"], "raise --limit"),
    ],
)
def test_filters_that_leave_too_little(importer, source, flags, remedy):
    with pytest.raises(InputError, match=f"no user has 3 of them; {remedy}"):
        importer("recbole")("--source", source, *flags)


def test_unseen_items_and_names(importer, source):
    flags = ["--keep_unseen_items", "--name", "set", "--domain", "old films"]
    dataset = importer("recbole")("--source", source, *flags)
    assert dataset.catalog.item_ids == ("a", "b", "c", "d", "e")
    assert dataset.manifest["domain"] == "old films"


@pytest.mark.parametrize(
    ("file", "change", "flags", "message"),
    [
        ("set.inter", None, ["--name", "set"], r"set\.inter: no such file"),
        ("set.item", None, [], r"set\.item: no such file"),
        ("set.inter", lambda t: "", [], r"set\.inter: it is empty; expected the interactions"),
        ("set.inter", lambda t: t.split("\n")[0] + "\n", [], "no interactions in it"),
        ("set.inter", lambda t: t.replace("user_id", "who"), [], "no column 'user_id'; it has who"),
        ("set.inter", lambda t: t.replace("timestamp", "when"), [], "no column 'timestamp'.*--no_times"),
        ("set.inter", lambda t: t.replace("rating", "stars"), ["--min_rating", "3"], "no column 'rating'"),
        ("set.inter", lambda t: t.replace("event_type", "e"), ["--event_types", "x"], "no column 'event_type'"),
        ("set.inter", lambda t: t.replace("881250960", "1998-01-01"), [], "row 7 has timestamp '1998-01-01'"),
        ("set.inter", lambda t: t + "u\tb\n", [], "line 9 has 2 fields, expected 5"),
        ("set.item", lambda t: t.replace("movie_title", "label"), [], "no column 'title'"),
        ("set.item", lambda t: t.replace("item_id", "sku"), [], "no column 'item_id'"),
    ],
)
def test_bad_input(importer, source, file, change, flags, message):
    if change is None:
        (source / file).unlink()
    else:
        (source / file).write_text(change((source / file).read_text()))
    with pytest.raises(InputError, match=message):
        importer("recbole")("--source", source, *flags)
    assert not (source.parent / "out").exists()


def test_which_of_several_datasets(importer, source):
    (source / "other.inter").write_text(INTER)
    with pytest.raises(InputError, match=r"2 files end in \.inter; say by --name"):
        importer("recbole")("--source", source)


def test_the_folder_is_checked_before_anything_is_read(importer, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds files but no manifest\.json"):
        importer("recbole")("--source", tmp_path / "nothing")


@pytest.mark.real
def test_movielens_100k(importer, real_data):
    dataset = importer("recbole")("--source", real_data / "ml-100k", "--name", "ml-100k", "--strict")
    assert dataset.manifest["counts"] == {"users": 943, "items": 1682, "interactions": 100_000}
    assert dataset.manifest["repairs"] == {}
    assert dataset.manifest["domain"] == "movies"
    assert set(dataset.catalog.columns) == {"title", "year", "genres"}
    row = dataset.catalog.row_of["12"]
    assert dataset.catalog.titles[row] == "Usual Suspects, The"
    assert len(dataset.split("leave_one_out").test) == 943
    temporal = dataset.split("temporal", max_history=10)
    assert [len(temporal.rows(name)) for name in ("train", "valid", "test")] == [79_245, 9_906, 9_906]  # Of 99,057.
