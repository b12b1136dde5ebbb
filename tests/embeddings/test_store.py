import json
from pathlib import Path

import numpy as np
import pytest
from encoder_kit import small_catalog
from safetensors.numpy import save_file

from llmrec.embeddings.store import load_embeddings, load_manifest, manifest_path, save_embeddings
from llmrec.errors import InputError

CATALOG = small_catalog(5)
MANIFEST = {"encoder": "by hand", "catalog_hash": CATALOG.hash}
VECTORS = np.arange(15, dtype=np.float64).reshape(5, 3) / 7


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_embeddings(tmp_path / "embeddings.safetensors", VECTORS, MANIFEST)


def test_what_is_saved_comes_back_as_float32(saved: Path):
    vectors = load_embeddings(saved, catalog=CATALOG)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, VECTORS.astype(np.float32))
    manifest = load_manifest(saved)
    assert (manifest["items"], manifest["dim"], manifest["encoder"]) == (5, 3, "by hand")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_named_and_nothing_is_written(tmp_path: Path, value: float):
    vectors = VECTORS.copy()
    vectors[3, 1] = value
    with pytest.raises(InputError, match=r"1 of 5 embeddings hold NaN or infinite values \(first in row 3\)"):
        save_embeddings(tmp_path / "e.safetensors", vectors, MANIFEST)
    assert list(tmp_path.iterdir()) == []


def test_nan_in_a_file_from_elsewhere_is_refused(saved: Path):
    vectors = VECTORS.astype(np.float32)
    vectors[0, 0] = np.nan
    save_file({"embeddings": vectors}, saved)
    with pytest.raises(InputError, match="first in row 0"):
        load_embeddings(saved, catalog=CATALOG)


def test_a_wrong_number_of_rows_is_refused(saved: Path):
    save_file({"embeddings": VECTORS[:4].astype(np.float32)}, saved)
    with pytest.raises(InputError, match="4 embeddings for a catalogue of 5 items"):
        load_embeddings(saved, catalog=CATALOG)


@pytest.mark.parametrize("shape", [(5,), (5, 0), (0, 3), (5, 3, 1)])
def test_a_tensor_that_is_no_matrix_is_refused(tmp_path: Path, shape: tuple[int, ...]):
    with pytest.raises(InputError, match=r"expected \(items, dim\)"):
        save_embeddings(tmp_path / "e.safetensors", np.zeros(shape), MANIFEST)


def test_embeddings_of_another_catalogue_are_refused(saved: Path):
    with pytest.raises(InputError, match=r"another catalogue .*embed this dataset's items"):
        load_embeddings(saved, catalog=small_catalog(6))


def test_a_missing_file_or_manifest_names_the_remedy(saved: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.safetensors: no such file; make embeddings"):
        load_embeddings(tmp_path / "none.safetensors")
    manifest_path(saved).unlink()
    with pytest.raises(InputError, match=r"embeddings\.safetensors\.json: no such file; .*save_embeddings"):
        load_embeddings(saved)


def test_a_manifest_without_what_ties_it_to_a_catalogue_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="needs 'catalog_hash'"):
        save_embeddings(tmp_path / "e.safetensors", VECTORS, {"encoder": "by hand"})


def test_a_file_changed_since_is_refused(saved: Path):
    save_file({"embeddings": VECTORS.astype(np.float32) + 1}, saved)
    with pytest.raises(InputError, match="not the one that its manifest describes"):
        load_embeddings(saved, catalog=CATALOG)


def test_files_of_other_forms_are_refused(saved: Path):
    good = saved.read_bytes()
    saved.write_bytes(good[:20])
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_embeddings(saved)
    save_file({"weights": VECTORS.astype(np.float32)}, saved)
    with pytest.raises(InputError, match="no tensor 'embeddings'; it has weights"):
        load_embeddings(saved)
    saved.write_bytes(good)
    manifest_path(saved).write_text(json.dumps({"format_version": 9}))
    with pytest.raises(InputError, match="format_version 9, this llmrec reads 1"):
        load_embeddings(saved)
    manifest_path(saved).write_text("[]")
    with pytest.raises(InputError, match="format_version 'list'"):
        load_embeddings(saved)
