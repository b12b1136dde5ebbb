import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.artifacts import file_sha256
from llmrec.data.folder import check_free, load_dataset, write_dataset
from llmrec.data.interactions import Interactions
from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.errors import InputError

CATALOG = Catalog(("a", "b", "c", "d"), {"title": ("Ä, 'x'", 'B "y"', "C", "D"), "brand": ("Acme", "", "", "")})
INTERACTIONS = Interactions(
    ("u", "v"),
    users=np.array([0, 0, 0, 0, 1, 1, 1]),
    items=np.array([0, 1, 2, 3, 3, 1, 0]),
    timestamps=np.array([1, 2, 2, 9, 5, 6, 7]),
    ratings=np.array([5, 4, 3, 2, 1, 5, 4], dtype=np.float32),
)
MANIFEST = {"name": "tiny", "domain": "things", "source": "made up", "licence": "none", "times": "seconds"}
PUBLISHED = {
    "train": [History(0, (0,), 1)],
    "valid": [History(0, (0, 1), 2)],
    "test": [History(1, (3, 1), 0), History(0, (0, 1, 2), 3)],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_dataset(
        tmp_path / "set", catalog=CATALOG, interactions=INTERACTIONS, manifest=MANIFEST, published=PUBLISHED
    )


def rewrite(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change a parquet file and put its new hash into the manifest, so that only the content is wrong."""
    pq.write_table(change(pq.read_table(file)), file)
    manifest_path = file.parent / "manifest.json"
    manifest = json.loads(manifest_path.read_text())
    manifest["files"][file.name] = file_sha256(file)
    manifest_path.write_text(json.dumps(manifest))


def replaced(table: pa.Table, column: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(column), column, values)


def test_what_is_written_is_read(folder: Path):
    dataset = load_dataset(folder)
    assert dataset.catalog == CATALOG
    assert dataset.interactions.user_ids == INTERACTIONS.user_ids
    for name in ("users", "items", "timestamps", "ratings"):
        np.testing.assert_array_equal(getattr(dataset.interactions, name), getattr(INTERACTIONS, name))
    assert dataset.published == PUBLISHED
    assert dataset.name == "tiny"
    assert dataset.manifest["counts"] == {
        "users": 2, "items": 4, "interactions": 7, "train_rows": 1, "valid_rows": 1, "test_rows": 2,
    }  # fmt: skip
    assert dataset.manifest["catalog_hash"] == CATALOG.hash
    assert set(dataset.manifest["files"]) == {
        "items.parquet", "interactions.parquet", "splits/train.parquet", "splits/valid.parquet", "splits/test.parquet",
    }  # fmt: skip
    assert {"command", "commit", "versions", "date"} <= set(dataset.manifest["made_by"])


def test_protocols(folder: Path, tmp_path: Path):
    dataset = load_dataset(folder)
    assert dataset.default_protocol == "provided"
    splits = dataset.split(max_history=1)
    assert splits.protocol == "provided"
    assert splits.test[1] == History(0, (2,), 3)
    assert splits.sequences == [(0, 1)]
    assert dataset.split("leave_one_out").test[1] == History(1, (3, 1), 0)
    with pytest.raises(InputError, match="protocol 'random': choose one of leave_one_out, temporal, provided"):
        dataset.split("random")

    path = write_dataset(
        tmp_path / "plain", catalog=CATALOG, interactions=INTERACTIONS, manifest={**MANIFEST, "times": "position"}
    )
    plain = load_dataset(path)
    assert plain.default_protocol == "leave_one_out"
    assert plain.published == {}
    with pytest.raises(InputError, match="no splits/ folder"):
        plain.split("provided")
    with pytest.raises(InputError, match="its source has no times"):
        plain.split("temporal")


def test_a_dataset_is_replaced_whole(folder: Path):
    write_dataset(folder, catalog=CATALOG, interactions=INTERACTIONS, manifest={**MANIFEST, "name": "again"})
    dataset = load_dataset(folder)
    assert dataset.name == "again"
    assert dataset.published == {}
    assert sorted(path.name for path in folder.parent.iterdir()) == ["set"]


def test_a_failed_write_leaves_the_old_folder(folder: Path):
    with pytest.raises(IndexError):
        write_dataset(
            folder,
            catalog=CATALOG,
            interactions=INTERACTIONS,
            manifest=MANIFEST,
            published={"train": [History(0, (99,), 1)]},
        )
    assert load_dataset(folder).published == PUBLISHED
    assert sorted(path.name for path in folder.parent.iterdir()) == ["set"]


def test_other_files_are_never_replaced(folder: Path, tmp_path: Path):
    (folder / "sids").mkdir()
    with pytest.raises(InputError, match="holds sids beside the dataset"):
        check_free(folder)
    with pytest.raises(InputError, match="holds sids beside the dataset"):
        write_dataset(folder, catalog=CATALOG, interactions=INTERACTIONS, manifest=MANIFEST)
    other = tmp_path / "other"
    other.mkdir()
    check_free(other)
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds files but no manifest\.json"):
        check_free(other)
    with pytest.raises(InputError, match="is a file"):
        check_free(other / "thesis.txt")
    check_free(tmp_path / "new")


@pytest.mark.parametrize("key", MANIFEST)
def test_a_manifest_without_a_key_is_refused(key: str, tmp_path: Path):
    manifest = {name: value for name, value in MANIFEST.items() if name != key}
    with pytest.raises(InputError, match=f"no '{key}'"):
        write_dataset(tmp_path / "set", catalog=CATALOG, interactions=INTERACTIONS, manifest=manifest)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("name", ["items.parquet", "interactions.parquet", "manifest.json", "splits/valid.parquet"])
def test_a_half_written_folder_is_refused(folder: Path, name: str):
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name}: no such file"):
        load_dataset(folder)


def test_a_folder_without_its_splits_is_refused(folder: Path):
    shutil.rmtree(folder / "splits")
    with pytest.raises(InputError, match=r"splits/.*: no such file; the dataset folder is half written"):
        load_dataset(folder)


def test_no_folder_and_an_unreadable_manifest(folder: Path, tmp_path: Path):
    with pytest.raises(InputError, match="no such dataset folder"):
        load_dataset(tmp_path / "nothing")
    whole = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(whole[:50])
    with pytest.raises(InputError, match="not a readable dataset manifest"):
        load_dataset(folder)
    (folder / "manifest.json").write_text(whole.replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(InputError, match="format_version 99"):
        load_dataset(folder)


def test_a_changed_or_cut_file_is_refused(folder: Path):
    file = folder / "items.parquet"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"items\.parquet: sha256 .* differs from the manifest's"):
        load_dataset(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["items.parquet"] = file_sha256(file)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="not a readable parquet file"):
        load_dataset(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("items.parquet", lambda t: t.drop(["title"]), "no column 'title'; it has item_id, brand"),
        (
            "items.parquet",
            lambda t: replaced(t, "item_id", pa.array([1, 2, 3, 4])),
            "'item_id' is int64, expected string",
        ),
        (
            "items.parquet",
            lambda t: replaced(t, "title", pa.array(["x", None, "y", "z"])),
            "'title' has 1 empty values",
        ),
        ("items.parquet", lambda t: replaced(t, "title", pa.array(["x", " ", "y", "z"])), "'b' .* has a blank title"),
        ("items.parquet", lambda t: replaced(t, "item_id", pa.array(list("abca"))), "item_id 'a' stands twice"),
        ("interactions.parquet", lambda t: t.drop(["timestamp"]), "no column 'timestamp'"),
        (
            "interactions.parquet",
            lambda t: t.set_column(2, "timestamp", t["timestamp"].cast(pa.float64())),
            "column 'timestamp' is double, expected int64",
        ),
        ("interactions.parquet", lambda t: replaced(t, "item_id", pa.array(list("abxdaba"))), "row 2 names item 'x'"),
        ("interactions.parquet", lambda t: t.take([3, 0, 1, 2, 4, 5, 6]), "not sorted by user and time"),
        ("interactions.parquet", lambda t: t.take([0, 4, 1, 2, 3, 5, 6]), "not sorted by user and time"),
        ("interactions.parquet", lambda t: t.slice(0, 0), "none are left"),
    ],
)
def test_wrong_content_is_refused(folder: Path, name, change, message):
    rewrite(folder / name, change)
    with pytest.raises(InputError, match=message):
        load_dataset(folder)


def test_a_split_that_names_strangers_is_refused(folder: Path):
    file = folder / "splits" / "test.parquet"
    table = pq.read_table(file)
    manifest = json.loads((folder / "manifest.json").read_text())
    for column, values, message in (
        ("user_id", pa.array(["v", "w"]), "row 1 names user 'w'"),
        ("target", pa.array(["a", "x"]), "row 1 names item 'x'"),
        ("history", pa.array([["a"], ["y"]]), "names item 'y'"),
        ("history", pa.array([["a"], []], pa.list_(pa.string())), "it is empty"),
    ):
        pq.write_table(replaced(table, column, values), file)
        manifest["files"]["splits/test.parquet"] = file_sha256(file)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(InputError, match=message):
            load_dataset(folder)
