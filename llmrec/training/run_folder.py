"""The output folder of a run: it belongs to one run, and a killed run goes on in it."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from llmrec.artifacts import read_json, write_json
from llmrec.errors import InputError

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"


def claim_run_folder(path: str | Path, run: Mapping[str, Any], *, overwrite: bool, finished: str) -> str | None:
    """Check that a run may write into a folder, and find where it goes on.

    Args:
        path: the output folder.
        run: what identifies the run: data, SIDs, model, method, seed. A killed run goes on only if all of it is equal.
        overwrite: delete what another run left.
        finished: name of the file that a finished run leaves.

    Returns:
        The last checkpoint of the same, unfinished run, or None to start anew.

    Raises:
        InputError: the folder holds another run, a finished one, or other files.
    """
    path = Path(path)
    if overwrite and path.is_dir():
        if any(path.iterdir()) and not (path / RUN_FILE).is_file():
            raise InputError(f"{path}: holds files but no {RUN_FILE}, so it is no run of llmrec; it is not deleted")
        shutil.rmtree(path)
    if not path.exists() or not any(path.iterdir()):
        write_json(path / RUN_FILE, run)
        return None
    remedy = "choose another --output_dir, or pass --overwrite_output_dir true to delete it"
    if not (path / RUN_FILE).is_file():
        raise InputError(
            f"{path}: holds files but no {RUN_FILE}, so it is no run of llmrec; choose another --output_dir"
        )
    before = read_json(path / RUN_FILE, "run description")
    changed = [key for key in run if before.get(key) != run[key]]
    if changed:
        key = changed[0]
        raise InputError(
            f"{path}: holds another run ({key} is {before.get(key)!r} there, {run[key]!r} here); {remedy}"
        )
    if (path / finished).is_file():
        raise InputError(f"{path}: holds this very run, finished; {remedy}")
    checkpoint = get_last_checkpoint(str(path))
    if checkpoint:
        logger.info("going on from %s", checkpoint)
    return checkpoint
