from pathlib import Path

import numpy as np
import pytest

from llmrec.embeddings.cache import RowCache, row_key

KEYS = [row_key(text, "model@1") for text in ("a", "b", "c")]
VECTORS = np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32)


def test_rows_come_back_in_the_order_asked_for(tmp_path: Path):
    cache = RowCache(tmp_path / "cache")
    cache.add(KEYS[:2], VECTORS[:2])
    cache.flush()
    cache.add(KEYS[2:], VECTORS[2:])
    cache.flush()
    later = RowCache(tmp_path / "cache")
    assert later.keys() == set(KEYS)
    np.testing.assert_array_equal(later.gather([KEYS[2], KEYS[0], KEYS[2], KEYS[1]]), [[5, 6], [1, 2], [5, 6], [3, 4]])


def test_rows_are_written_when_their_time_has_come(tmp_path: Path):
    patient, eager = RowCache(tmp_path / "p", flush_seconds=1e6), RowCache(tmp_path / "e", flush_seconds=0)
    for cache in (patient, eager):
        cache.add(KEYS, VECTORS)
    assert patient.keys() == set()
    assert eager.keys() == set(KEYS)


def test_a_row_that_nobody_made_is_no_silent_zero(tmp_path: Path):
    cache = RowCache(tmp_path)
    cache.add(KEYS[:1], VECTORS[:1])
    cache.flush()
    with pytest.raises(KeyError):
        cache.gather(KEYS)


def test_a_broken_shard_costs_its_rows_only(tmp_path: Path, caplog):
    cache = RowCache(tmp_path, flush_seconds=0)
    cache.add(KEYS[:1], VECTORS[:1])
    (broken,) = tmp_path.iterdir()
    cache.add(KEYS[1:], VECTORS[1:])
    broken.write_bytes(b"half")
    assert cache.keys() == set(KEYS[1:])
    assert "its rows are encoded again" in caplog.text


def test_keys_differ_by_text_and_by_encoder():
    assert len({row_key("a", "m@1"), row_key("b", "m@1"), row_key("a", "m@2"), row_key("1a", "m@")}) == 4
