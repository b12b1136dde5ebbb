"""The pairs of a round on disk, and what made them."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import PartialState
from datasets import Dataset

from llmrec.artifacts import file_sha256, made_by, read_json, whole_file, write_json
from llmrec.errors import InputError

logger = logging.getLogger(__name__)

PAIRS_FILE, PAIRS_INFO = "pairs.parquet", "pairs.json"


@dataclass(frozen=True)
class PairFile:
    """The file of pairs in a folder.

    Args:
        folder: of a round.
        began: what lies in the folder as soon as a training on the pairs has begun.
    """

    folder: Path
    began: str

    def read_or(self, make: Callable[[], Dataset], said: Mapping[str, Any]) -> Dataset:
        """Return the pairs that lie there, where they were made as ``said``, or write new ones and return them.

        Args:
            make: makes them; called by all processes, or by none.
            said: what decides them.

        Raises:
            InputError: other pairs, with which a training has begun.
        """
        state = PartialState()
        known = self._known(said)
        state.wait_for_everyone()
        if not known:
            found = make()
            if state.is_main_process:
                with whole_file(self.path) as part:
                    pq.write_table(found.data.table, part)
                # Written last: pairs that were cut off have none and are made again.
                made = {"rows": len(found), "sha256": file_sha256(self.path), "made_by": made_by()}
                write_json(self.folder / PAIRS_INFO, {**said, **made})
            state.wait_for_everyone()
        # All processes read the file, so that they train on the same numbers to the last bit.
        try:
            return Dataset(pq.read_table(self.path))
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(
                f"{self.path}: not a readable file of pairs ({error}); delete it, and they are made again"
            ) from error

    @property
    def path(self) -> Path:
        """Where the pairs lie."""
        return self.folder / PAIRS_FILE

    def _known(self, said: Mapping[str, Any]) -> bool:
        info = self.folder / PAIRS_INFO
        if not (self.path.is_file() and info.is_file()):
            return False
        before = read_json(info, "description of pairs")
        changed = [name for name, value in said.items() if before.get(name) != value]
        if changed and (self.folder / self.began).exists():
            name = changed[0]
            raise InputError(
                f"{self.folder}: a training began with other pairs ({name} is {before.get(name)!r} there, "
                f"{said[name]!r} here); choose another --output_dir, or pass --overwrite_output_dir true"
            )
        if changed or before.get("sha256") != file_sha256(self.path):
            return False
        logger.info("%s: %d pairs that were made before", self.path, before["rows"])
        return True
