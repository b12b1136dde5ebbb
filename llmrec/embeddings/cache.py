"""Finished rows on disk, so that a killed embedding run goes on where it stopped."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from llmrec.artifacts import text_sha256, whole_file

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 20.0


def row_key(text: str, encoder: str) -> bytes:
    """Return the 32 bytes that stand for one text under one encoder.

    Args:
        text: the item's whole text.
        encoder: the encoder's identity: model, revision and every setting that changes a vector.
    """
    return bytes.fromhex(text_sha256(encoder, text))


class RowCache:
    """A folder of safetensors shards, each holding some rows and their keys.

    Several processes may add to one folder at the same time; a row becomes visible to others when it is flushed.

    Args:
        folder: made when missing.
        flush_seconds: longest time that a finished row stays in memory only.
    """

    def __init__(self, folder: str | Path, *, flush_seconds: float = FLUSH_SECONDS) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.flush_seconds = flush_seconds
        self._pending_keys: list[bytes] = []
        self._pending: list[np.ndarray] = []
        self._flushed_at = time.monotonic()

    def keys(self) -> set[bytes]:
        """Return the keys of every flushed row."""
        return {key for shard in self._shards() for key in self._read_keys(shard)}

    def add(self, keys: Sequence[bytes], vectors: np.ndarray) -> None:
        """Keep finished rows, and write them out when ``flush_seconds`` have passed since the last time.

        Args:
            keys: one `row_key` a row.
            vectors: ``(rows, dim)`` float32.
        """
        self._pending_keys.extend(keys)
        self._pending.append(vectors)
        if time.monotonic() - self._flushed_at >= self.flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Write out what is held in memory."""
        if self._pending_keys:
            keys = np.frombuffer(b"".join(self._pending_keys), dtype=np.uint8).reshape(-1, 32)
            name = text_sha256(keys.tobytes().hex())[:16]
            with whole_file(self.folder / f"rows-{name}.safetensors") as part:
                save_file({"keys": keys, "vectors": np.concatenate(self._pending)}, part)
        self._pending_keys, self._pending = [], []
        self._flushed_at = time.monotonic()

    def gather(self, keys: Sequence[bytes]) -> np.ndarray:
        """Return ``(len(keys), dim)`` float32 vectors; a key may stand several times.

        Raises:
            KeyError: a key of which no flushed row exists.
        """
        position: dict[bytes, int] = {}
        parts: list[np.ndarray] = []
        offset = 0
        wanted = set(keys)
        for shard in self._shards():
            shard_keys = self._read_keys(shard)
            chosen = [row for row, key in enumerate(shard_keys) if key in wanted and key not in position]
            if not chosen:
                continue
            with safe_open(shard, framework="numpy") as file:
                parts.append(file.get_tensor("vectors")[chosen])
            position.update((shard_keys[row], offset + index) for index, row in enumerate(chosen))
            offset += len(chosen)
        rows = [position[key] for key in keys]
        return np.concatenate(parts)[rows]

    def _shards(self) -> list[Path]:
        return sorted(self.folder.glob("rows-*.safetensors"))

    def _read_keys(self, shard: Path) -> list[bytes]:
        try:
            with safe_open(shard, framework="numpy") as file:
                keys = file.get_tensor("keys")
        except (SafetensorError, OSError) as error:
            logger.warning("%s: unreadable (%s); its rows are encoded again", shard, error)
            return []
        return [row.tobytes() for row in keys]
