import json
from pathlib import Path

import pytest
from imported import shown

from llmrec.errors import InputError
from llmrec.sids.table import SIDTable

INTER = {"0": [0, 1, 10, 7], "1": ["1", "0", "1"]}
ITEMS = {
    "0": {
        "title": "Phone &amp; \"Fax\", 'x'", "brand": "VTech", "categories": "Office, Phones",
        "description": "['A', 'b.']",
    },
    "10": {"title": "", "brand": "", "categories": "Kindle, Styluses", "description": ""},
    "1": {"title": "Étui", "brand": "", "categories": "", "description": ""},
    "2": {"title": "Never taken", "brand": "", "categories": "", "description": ""},
}  # fmt: skip
INDEX = {"0": ["<a_1>", "<b_2>"], "10": ["<a_1>", "<b_3>"], "1": ["<a_0>", "<b_0>"], "2": ["<a_0>", "<b_0>"]}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "Office.inter.json").write_text(json.dumps(INTER))
    text = json.dumps(ITEMS, ensure_ascii=False)
    (folder / "Office.item.json").write_text(text[:-1] + ', "2": {"title": "Again"}}', encoding="utf-8")
    (folder / "Office.index.rq.json").write_text(json.dumps(INDEX))
    return folder


def test_a_dirty_source(importer, source):
    dataset = importer("lcrec")("--source", source, "--name", "Office")
    assert dataset.catalog.item_ids == ("0", "1", "2", "10")
    assert dict(dataset.catalog.columns) == {
        "title": ("Phone & \"Fax\", 'x'", "Étui", "Never taken", "Kindle, Styluses"),
        "brand": ("VTech", "", "", ""),
        "categories": ("Office, Phones", "", "", "Kindle, Styluses"),
        "description": ("A b.", "", "", ""),
    }
    assert shown(dataset) == {"0": ["0", "1", "10"], "1": ["1", "0", "1"]}
    assert dataset.interactions.timestamps.tolist() == [0, 1, 2, 0, 1, 2]
    assert dataset.manifest["times"] == "position"
    assert dataset.manifest["domain"] == "office products"
    assert dataset.manifest["repairs"] == {
        "duplicate_items": 1, "interactions_with_unknown_items": 1, "items_without_title": 1,
    }  # fmt: skip


def test_the_published_index_becomes_a_sid_table(importer, source, tmp_path):
    dataset = importer("lcrec")("--source", source, "--sids_out", tmp_path / "sids")
    table = SIDTable.load(tmp_path / "sids")
    table.check_catalog(dataset.catalog.hash, path="x")
    assert table.item_ids == dataset.catalog.item_ids
    assert table.codes.tolist() == [[1, 2], [0, 0], [0, 0], [1, 3]]
    assert not table.unique


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "Office.index.rq.json").unlink(), "no such file; expected the SID index"),
        (
            lambda folder: (folder / "Office.index.rqvae.json").write_text("{}"),
            "several files .* choose one by --index",
        ),
        (lambda folder: (folder / "Office.index.rq.json").write_text('{"0": ["<a_1>"]}'), "no SID for item '1'"),
    ],
)
def test_an_index_that_cannot_be_used_leaves_nothing_behind(importer, source, tmp_path, change, message):
    change(source)
    with pytest.raises(InputError, match=message):
        importer("lcrec")("--source", source, "--sids_out", tmp_path / "sids")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "sids").exists()


def test_limit(importer, source):
    dataset = importer("lcrec")("--source", source, "--limit", 3)
    assert shown(dataset) == {"0": ["0", "1", "10"]}
    assert len(dataset.catalog) == 4


@pytest.mark.parametrize(
    ("inter", "items", "message"),
    [
        (INTER, ITEMS, r"Office\.inter\.json: row 1: item '7' is not in .*Office\.item\.json"),
        ({"0": [0, 1, 10]}, ITEMS, r"Office\.item\.json: item '10' has no title"),
    ],
)
def test_strict(importer, source, inter, items, message):
    (source / "Office.inter.json").write_text(json.dumps(inter))
    (source / "Office.item.json").write_text(json.dumps(items))
    with pytest.raises(InputError, match=message):
        importer("lcrec")("--source", source, "--strict")


def test_strict_refuses_double_metadata(importer, source):
    with pytest.raises(InputError, match="row 5: item '2' stands there again"):
        importer("lcrec")("--source", source, "--strict")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("Office.inter.json", None, r"\*\.inter\.json: no such file; expected the interactions"),
        ("Office.inter.json", "", r"Office\.inter\.json: it is empty"),
        ("Office.inter.json", '{"0": [1, 2', "not a readable interactions"),
        ("Office.inter.json", "[1]", "expected the interactions as a JSON object with entries, found list"),
        ("Office.inter.json", '{"0": 5}', "user '0' has 5; expected a list of items"),
        ("Office.inter.json", '{"0": [0, 1]}', "no user has 3 of them"),
        ("Office.item.json", None, r"Office\.item\.json: no such file; expected the item table"),
        ("Office.item.json", "", r"Office\.item\.json: it is empty"),
        ("Office.item.json", '{"0": "Phone"}', "item '0' is 'Phone'; expected an object with a title"),
        ("Office.item.json", '{"0": {"brand": "x"}}', "no item has a field 'title'; fields found: brand"),
    ],
)
def test_bad_input(importer, source, file, text, message):
    if text is None:
        (source / file).unlink()
    else:
        (source / file).write_text(text)
    with pytest.raises(InputError, match=message):
        importer("lcrec")("--source", source)
    assert not (source.parent / "out").exists()


def test_which_folder_and_which_dataset(importer, source):
    with pytest.raises(InputError, match="no such folder; --source is the folder"):
        importer("lcrec")("--source", source / "gone")
    (source / "Beauty.inter.json").write_text("{}")
    with pytest.raises(InputError, match=r"Beauty\.inter\.json, Office\.inter\.json\); choose one by --name"):
        importer("lcrec")("--source", source)


@pytest.mark.real
def test_office(importer, real_data, tmp_path):
    dataset = importer("lcrec")("--source", real_data / "office", "--name", "Office", "--sids_out", tmp_path / "sids")
    assert dataset.manifest["counts"] == {"users": 4905, "items": 2420, "interactions": 53_258}
    assert dataset.manifest["repairs"] == {"items_without_title": 3}
    assert dataset.catalog.item_ids == tuple(map(str, range(2420)))
    table = SIDTable.load(tmp_path / "sids")
    assert len({tuple(codes) for codes in table.codes.tolist()}) == 2415
    assert len(dataset.split().test) == 4905
