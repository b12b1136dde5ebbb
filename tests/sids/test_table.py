import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.data.items import Catalog
from llmrec.errors import InputError
from llmrec.sids.table import SIDTable, pad_codes

IDS = ("x", "ü", "z")
CODES = np.array([[0, 1], [0, 2], [3, 0]])


def table(codes: np.ndarray | list = CODES, sizes: tuple[int, ...] = (4, 3), ids: tuple[str, ...] = IDS) -> SIDTable:
    return SIDTable(ids, np.asarray(codes), sizes, "by_hand", {"seed": 1}, {"items": 3})


def test_tokens_by_hand():
    assert table().tokens(2) == ["<a_3>", "<b_0>"]
    assert table().level_tokens() == [["<a_0>", "<a_1>", "<a_2>", "<a_3>"], ["<b_0>", "<b_1>", "<b_2>"]]
    assert table([[1, -1], [0, 2], [0, 0]]).tokens(0) == ["<a_1>"]


def test_a_folder_gives_the_table_back(tmp_path: Path):
    table().save(tmp_path, extra_columns={"title": ["a", "b", "c"]})
    loaded = SIDTable.load(tmp_path)
    assert loaded.item_ids == IDS
    np.testing.assert_array_equal(loaded.codes, CODES)
    assert (loaded.codebook_sizes, loaded.method, loaded.settings) == ((4, 3), "by_hand", {"seed": 1})
    assert (loaded.quality, loaded.hash, loaded.unique) == ({"items": 3}, table().hash, True)
    assert pq.read_table(tmp_path / "sid_table.parquet").column("title").to_pylist() == ["a", "b", "c"]
    config = json.loads((tmp_path / "sid_config.json").read_text())
    assert (config["levels"], config["unique"], config["items"]) == (2, True, 3)


@st.composite
def tables(draw: st.DrawFn) -> SIDTable:
    """Tables of SIDs of one to three codes, none of them a prefix of another."""
    sizes = tuple(draw(st.lists(st.integers(2, 5), min_size=1, max_size=3)))
    rows = draw(st.lists(st.tuples(*(st.integers(0, size - 1) for size in sizes)), min_size=1, max_size=12))
    if len(sizes) == 3:
        # Every SID that starts with an even code ends after it; the others have all three codes.
        rows = [row[:1] if row[0] % 2 == 0 else row for row in rows]
    ids = tuple(f"item {row}" for row in range(len(rows)))
    return SIDTable(ids, pad_codes(rows, len(sizes)), sizes)


@given(tables())
def test_both_forms_on_disk_give_the_codes_back(tmp_path_factory: pytest.TempPathFactory, made: SIDTable):
    path = tmp_path_factory.mktemp("table")
    made.save(path)
    made.save_index_json(path / "index.json")
    loaded = SIDTable.load(path)
    read = SIDTable.from_index_json(path / "index.json", item_ids=made.item_ids, codebook_sizes=made.codebook_sizes)
    for back in (loaded, read):
        np.testing.assert_array_equal(back.codes, made.codes)
        assert back.hash == made.hash


def test_the_public_form_by_hand(tmp_path: Path):
    file = tmp_path / "Set.index.json"
    table().save_index_json(file)
    assert json.loads(file.read_text()) == {"x": ["<a_0>", "<b_1>"], "ü": ["<a_0>", "<b_2>"], "z": ["<a_3>", "<b_0>"]}
    read = SIDTable.from_index_json(file, item_ids=("z", "x"))
    assert read.item_ids == ("z", "x")
    assert read.codes.tolist() == [[3, 0], [0, 1]]
    assert read.codebook_sizes == (4, 2)  # largest codes 3 and 1
    assert read.settings == {"index": "Set.index.json"}


def test_given_codebook_sizes_hold(tmp_path: Path):
    table().save_index_json(tmp_path / "i.json")
    read = SIDTable.from_index_json(tmp_path / "i.json", item_ids=IDS, codebook_sizes=(256, 256, 8))
    assert read.codebook_sizes == (256, 256, 8)
    assert read.codes.tolist() == [[0, 1, -1], [0, 2, -1], [3, 0, -1]]
    with pytest.raises(InputError, match="a SID of 2 tokens, but codebook_sizes names 1 levels"):
        SIDTable.from_index_json(tmp_path / "i.json", item_ids=IDS, codebook_sizes=(4,))


def test_items_may_share_a_sid():
    shared = table([[0, 1], [0, 1], [3, 0]])
    assert not shared.unique


@pytest.mark.parametrize(
    ("codes", "sizes", "message"),
    [
        ([[0, 1], [0, 2], [4, 0]], (4, 3), "item 'z' has code 4 at level 0, whose codebook holds 4"),
        ([[0, 1], [0, -2], [3, 0]], (4, 3), "item 'ü' has code -2 at level 1"),
        ([[0, 1], [-1, -1], [3, 0]], (4, 3), "item 'ü' has an empty SID"),
        ([[0, 1, 0], [0, -1, 2], [3, 0, 0]], (4, 3, 3), r"padding \(-1\) before a code"),
        ([[0, 1], [0, -1], [3, 0]], (4, 3), r"item 'ü', \(0,\), is a prefix of that of 'x', \(0, 1\)"),
        ([[0, 1], [0, 2]], (4, 3), r"codes are \(2, 2\), expected \(3, 2\)"),
        ([[0], [1], [2]], (4, 3), r"codes are \(3, 1\), expected \(3, 2\)"),
        ([[0] * 27] * 3, (2,) * 27, "27 levels; 1 to 26"),
    ],
)
def test_tables_that_cannot_be(codes: list, sizes: tuple[int, ...], message: str):
    with pytest.raises(InputError, match=message):
        table(codes, sizes)


def test_another_catalogue_is_refused():
    same, other = Catalog(IDS, {"title": ("a", "b", "c")}), Catalog(("x", "z", "ü"), {"title": ("a", "b", "c")})
    table().check_catalog(same.hash, path="sids")
    with pytest.raises(InputError, match=r"sids: .* another catalogue .* learn SIDs for this dataset"):
        table().check_catalog(other.hash, path="sids")


def test_files_of_different_fits_are_refused(tmp_path: Path):
    table().save(tmp_path / "one")
    table([[0, 1], [0, 2], [3, 1]]).save(tmp_path / "two")
    (tmp_path / "one" / "sid_table.parquet").replace(tmp_path / "two" / "sid_table.parquet")
    with pytest.raises(InputError, match="of different fits"):
        SIDTable.load(tmp_path / "two")


def test_hashes_tell_tables_apart():
    others = [table([[0, 1], [0, 2], [3, 1]]), table(sizes=(4, 4)), table(ids=("x", "u", "z"))]
    assert len({table().hash, *(other.hash for other in others)}) == 4


def test_a_folder_that_is_no_table(tmp_path: Path):
    with pytest.raises(InputError, match=r"sid_config\.json: no such file; expected the SID config"):
        SIDTable.load(tmp_path)
    table().save(tmp_path)
    file = tmp_path / "sid_table.parquet"
    for column in (
        {"item_id": IDS},
        {"item_id": IDS, "codes": [[0, 1], [0, 2, 2], [3]]},
        {"item_id": IDS, "codes": [1, 2, 3]},
    ):
        pq.write_table(pa.table(column), file)
        with pytest.raises(InputError, match=r"sid_table\.parquet: not a readable SID table"):
            SIDTable.load(tmp_path)
    file.write_bytes(b"")
    with pytest.raises(InputError, match="not a readable SID table"):
        SIDTable.load(tmp_path)
    file.unlink()
    with pytest.raises(InputError, match=r"no such file; learn SIDs with data_prep/learn_sids\.py"):
        SIDTable.load(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"x": ["<a_0>"], "z": ["<a_1>"]}, "no SID for item 'ü'; the index is of another catalogue"),
        ({"x": ["<b_0>"], "ü": ["<a_0>"], "z": ["<a_1>"]}, "token '<b_0>' at level 0; expected <a_NUMBER>"),
        ({"x": ["a_0"], "ü": ["<a_0>"], "z": ["<a_1>"]}, "token 'a_0' at level 0"),
        ({"x": [7], "ü": ["<a_0>"], "z": ["<a_1>"]}, "token 7 at level 0"),
        ({"x": None, "ü": ["<a_0>"], "z": ["<a_1>"]}, "item 'x' has None; expected a list of tokens"),
        ({"x": [], "ü": ["<a_0>"], "z": ["<a_1>"]}, "item 'x' has an empty SID"),
        ({"x": ["<a_0>"], "ü": ["<a_0>", "<b_0>"], "z": ["<a_1>"]}, "is a prefix of that of 'ü'"),
        ([1], "expected a JSON object of item id to tokens, found list"),
    ],
)
def test_an_index_that_cannot_be_read(tmp_path: Path, index: object, message: str):
    (tmp_path / "i.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=message):
        SIDTable.from_index_json(tmp_path / "i.json", item_ids=IDS)


@pytest.mark.real
def test_published_indexes_have_the_sids_that_their_readme_counts(real_data: Path):
    for name, items, distinct in (
        ("office/Office.index.rq-kmeans.json", 2420, 2415),
        ("minionerec-industrial/Industrial_and_Scientific.index.json", 3686, 3670),
    ):
        ids = list(json.loads((real_data / name).read_text()))
        read = SIDTable.from_index_json(real_data / name, item_ids=ids)
        assert len(read) == items
        assert len(np.unique(read.codes, axis=0)) == distinct
        assert not read.unique
