import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from imported import shown

from llmrec.data.splits import History
from llmrec.errors import InputError
from llmrec.sids.table import SIDTable

NAME = "Industrial_and_Scientific"
TITLES = ["Tape, 1/2\" 'blue'", "Étui", "Drill &amp; Bit", "Glue", "Nut"]
ITEMS = {
    str(number): {"title": title, "description": "['A', 'b.']", "brand": "", "categories": ""}
    for number, title in enumerate(TITLES)
}
INDEX = {str(number): [f"<a_{number % 2}>", f"<b_{number // 2}>"] for number in range(5)}
SIDS = {item: "".join(tokens) for item, tokens in INDEX.items()}
COLUMNS = (
    "user_id", "history_item_title", "item_title", "history_item_id", "item_id", "history_item_sid", "item_sid",
)  # fmt: skip
VALID = [("v", [0, 1, 2], 3), ("u", [4], 0), ("v", [0, 1, 2, 3], 4)]
TEST = [("w", [2, 3], 4), ("u", [4, 0], 4), ("v", [0, 1, 2, 3, 4], 0)]


def write_rows(folder: Path, split: str, rows: Sequence[tuple[str, list[int], int]], **changed: object) -> None:
    """A split's CSV; ``changed`` overwrites cells of its first row."""
    (folder / split).mkdir(exist_ok=True)
    with open(folder / split / f"{NAME}_5_2016.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for number, (user, history, item) in enumerate(rows):
            cells = {
                "user_id": user,
                "history_item_title": [TITLES[row] if row < len(TITLES) else "?" for row in history],
                "item_title": TITLES[item] if item < len(TITLES) else "?",
                "history_item_id": history,
                "item_id": item,
                "history_item_sid": [SIDS.get(str(row)) for row in history],
                "item_sid": SIDS.get(str(item)),
            }
            cells |= changed if number == 0 else {}
            writer.writerow([cells[column] for column in COLUMNS])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / f"{NAME}.item.json").write_text(json.dumps(dict(reversed(ITEMS.items()))), encoding="utf-8")
    (folder / f"{NAME}.index.json").write_text(json.dumps(INDEX))
    info = "".join(f"{SIDS[item]}\t{fields['title']}\t{item}\n" for item, fields in ITEMS.items())
    (folder / f"{NAME}_5_2016.txt").write_text(info, encoding="utf-8")
    write_rows(folder, "valid", VALID)
    write_rows(folder, "test", TEST)
    return folder


def test_train_is_recovered_from_valid_histories(importer, source, capsys):
    dataset = importer("minionerec")("--source", source, "--name", NAME, "--strict")
    assert dataset.catalog.item_ids == ("0", "1", "2", "3", "4")
    assert dict(dataset.catalog.columns) == {
        "title": ("Tape, 1/2\" 'blue'", "Étui", "Drill & Bit", "Glue", "Nut"),
        "description": ("A b.",) * 5,
    }
    assert shown(dataset) == {"v": list("012340"), "u": list("404"), "w": list("234")}
    assert dataset.published["train"] == [History(0, (0,), 1), History(0, (0, 1), 2)]
    assert dataset.published["valid"] == [History(0, (0, 1, 2), 3), History(1, (4,), 0), History(0, (0, 1, 2, 3), 4)]
    assert [row.user for row in dataset.published["test"]] == [2, 1, 0]
    assert dataset.manifest["train"] == "recovered"
    assert dataset.manifest["recovered"] == {"rows": 2, "left_out_targets": 1, "max_history": 5}
    assert dataset.manifest["times"] == "position"
    assert dataset.manifest["domain"] == "industrial and scientific products"
    assert dataset.manifest["repairs"] == {}
    splits = dataset.split()
    assert splits.protocol == "provided"
    assert splits.sequences == [(0, 1, 2)]
    assert "train rows are recovered" in capsys.readouterr().out


def test_a_published_train_file_is_kept(importer, source, capsys):
    write_rows(source, "train", [("v", [0], 1), ("x", [3], 4), ("v", [0, 1], 2)])
    dataset = importer("minionerec")("--source", source, "--strict")
    assert dataset.published["train"] == [History(0, (0,), 1), History(1, (3,), 4), History(0, (0, 1), 2)]
    assert shown(dataset) == {"v": list("012340"), "x": list("34"), "u": list("404"), "w": list("234")}
    assert dataset.manifest["train"] == "published"
    assert "recovered" not in dataset.manifest
    assert "recovered" not in capsys.readouterr().out


def test_the_published_index_becomes_a_sid_table(importer, source, tmp_path):
    dataset = importer("minionerec")("--source", source, "--sids_out", tmp_path / "sids")
    table = SIDTable.load(tmp_path / "sids")
    table.check_catalog(dataset.catalog.hash, path="x")
    assert table.codes.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1], [0, 2]]


def test_limit_counts_rows_of_each_file(importer, source):
    dataset = importer("minionerec")("--source", source, "--limit", 1)
    assert [len(dataset.published[name]) for name in ("train", "valid", "test")] == [2, 1, 1]
    assert len(dataset.catalog) == 5


@pytest.mark.parametrize(
    ("changed", "count", "message"),
    [
        ({"item_title": "Other"}, 1, "row 2: its title is 'Other', not 'Glue'"),
        ({"item_sid": "<a_9>"}, 1, "row 2: its SID is '<a_9>', not '<a_1><b_1>'"),
        ({"history_item_sid": ["<a_0><b_0>"]}, 1, "row 2: its history of SIDs is"),
    ],
)
def test_rows_that_disagree_with_the_item_table(importer, source, changed, count, message):
    write_rows(source, "valid", VALID, **changed)
    dataset = importer("minionerec")("--source", source)
    assert dataset.manifest["repairs"] == {"rows_that_disagree_with_the_item_table": count}
    assert dataset.published["valid"][0] == History(0, (0, 1, 2), 3)
    with pytest.raises(InputError, match=message):
        importer("minionerec")("--source", source, "--strict")


def test_info_that_disagrees(importer, source):
    path = source / f"{NAME}_5_2016.txt"
    path.write_text(path.read_text().replace("Glue\t3", "Paste\t3"))
    assert importer("minionerec")("--source", source).manifest["repairs"] == {
        "rows_that_disagree_with_the_item_table": 1
    }
    with pytest.raises(InputError, match=r"_5_2016\.txt: row 4: item '3' has <a_1><b_1> 'Paste'"):
        importer("minionerec")("--source", source, "--strict")


def test_dirty_rows_and_items(importer, source):
    write_rows(source, "valid", [("u", [4], 7), ("v", [0, 1, 9, 2], 3), ("w", [], 1), ("v", [1, 2], 3)])
    text = json.dumps({**ITEMS, "1": {"title": "", "brand": "Acme"}})
    (source / f"{NAME}.item.json").write_text(text[:-1] + ', "0": {"title": "Again"}}')
    dataset = importer("minionerec")("--source", source)
    assert dataset.manifest["repairs"]["interactions_with_unknown_items"] == 2
    assert dataset.manifest["repairs"]["rows_without_history"] == 1
    # Row ([1, 2], 3) of v starts in the middle, and no row has 4, which v's test history shows, as its target.
    assert dataset.manifest["repairs"]["rows_out_of_step"] == 2
    assert shown(dataset)["v"] == list("012340")
    assert dataset.manifest["repairs"]["items_without_title"] == 1
    assert dataset.manifest["repairs"]["duplicate_items"] == 1
    assert dataset.catalog.titles[:2] == ("Tape, 1/2\" 'blue'", "Acme")
    assert [row.items for row in dataset.published["valid"]] == [(0, 1, 2), (1, 2)]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (f"{NAME}.item.json", None, r"\.item\.json: no such file; expected the item table"),
        (f"{NAME}.index.json", None, r"\.index\.json: no such file; expected the SID index"),
        (f"{NAME}.index.json", "[1]", "expected the SID index as a JSON object"),
        (f"{NAME}.index.json", '{"0": 5}', "item '0' has SID 5; expected a list of tokens"),
        (f"valid/{NAME}_5_2016.csv", None, r"\.csv: no such file; expected the valid rows"),
        (f"test/{NAME}_5_2016.csv", "", "it is empty; expected the test rows"),
        (f"test/{NAME}_5_2016.csv", "user_id,item_id\nu,1\n", "no column 'history_item_id'"),
        (f"test/{NAME}_5_2016.csv", ",".join(COLUMNS) + "\n", "no row of it can be used"),
        (f"test/{NAME}_b.csv", "x", "several files could be the test rows"),
    ],
)
def test_bad_input(importer, source, file, text, message):
    if text is None:
        (source / file).unlink()
    else:
        (source / file).write_text(text)
    with pytest.raises(InputError, match=message):
        importer("minionerec")("--source", source)
    assert not (source.parent / "out").exists()


@pytest.mark.parametrize("history", ["__import__('os').getcwd()", "[1, 2", "7"])
def test_a_history_is_a_literal_and_never_code(importer, source, history):
    write_rows(source, "test", TEST, history_item_id=history)
    with pytest.raises(InputError, match=r"row 2: history_item_id is .*, expected a list such as \[12, 7\]"):
        importer("minionerec")("--source", source)


@pytest.mark.real
def test_industrial(importer, real_data, tmp_path):
    dataset = importer("minionerec")(
        "--source", real_data / "minionerec-industrial", "--name", NAME, "--sids_out", tmp_path / "sids"
    )
    assert dataset.manifest["counts"] == {
        "users": 3285, "items": 3686, "interactions": 22_743,
        "train_rows": 6424, "valid_rows": 4532, "test_rows": 4533,
    }  # fmt: skip
    assert dataset.manifest["repairs"] == {}
    assert dataset.manifest["train"] == "recovered"
    assert dataset.manifest["recovered"] == {"rows": 6424, "left_out_targets": 2521, "max_history": 10}
    table = SIDTable.load(tmp_path / "sids")
    assert len({tuple(codes) for codes in table.codes.tolist()}) == 3670
    splits = dataset.split()
    assert sum(len(items) - 1 for items in splits.sequences) == 6424
    # Of the users with validation rows, nothing that train shows stands at or behind their first validation target.
    first = {}
    for row in splits.valid:
        first.setdefault(row.user, row.items)
    for row in splits.train:
        known = first[row.user]
        assert (*row.items, row.target) == known[: len(row.items) + 1]
    # The README of the data counts 1,353 test histories that hold a validation target of the same user.
    targets = {}
    for row in splits.valid:
        targets.setdefault(row.user, set()).add(row.target)
    assert sum(bool(targets.get(row.user, set()) & set(row.items)) for row in splits.test) == 1353
