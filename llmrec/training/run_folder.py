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


def check_run_folder(path: str | Path, run: Mapping[str, Any], *, overwrite: bool, finished: str) -> str | None:
    """Check that a run may write into a folder, and find where it goes on; nothing is written or deleted.

    Args:
        path: the output folder.
        run: what identifies the run: data, SIDs, model, method, seed. A killed run goes on only if all of it is equal.
        overwrite: whether another run there may be deleted.
        finished: name of the file that a finished run leaves.

    Returns:
        The last checkpoint of the same, unfinished run, or None to start anew.

    Raises:
        InputError: the folder holds another run, a finished one, or other files.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file; choose another --output_dir")
    names = {child.name for child in path.iterdir()} if path.is_dir() else set()
    if names <= {RUN_FILE}:  # new, empty, or stopped before there was anything to keep
        return None
    if RUN_FILE not in names:
        raise InputError(
            f"{path}: holds files but no {RUN_FILE}, so it is no run of llmrec and is left alone; choose another "
            "--output_dir"
        )
    if overwrite:
        return None
    remedy = "choose another --output_dir, or pass --overwrite_output_dir true to delete it"
    before = read_json(path / RUN_FILE, "run description")
    changed = [key for key in run if before.get(key) != run[key]]
    if changed:
        key = changed[0]
        raise InputError(
            f"{path}: holds another run ({key} is {before.get(key)!r} there, {run[key]!r} here); {remedy}"
        )
    if finished in names:
        raise InputError(f"{path}: holds this very run, finished; {remedy}")
    return get_last_checkpoint(str(path))


def claim_run_folder(path: str | Path, run: Mapping[str, Any], *, checkpoint: str | None) -> None:
    """Make the folder the run's own, as `check_run_folder` allowed: delete what is there unless it goes on from it."""
    path = Path(path)
    if checkpoint:
        logger.info("going on from %s", checkpoint)
        return
    if path.is_dir():
        shutil.rmtree(path)
    write_json(path / RUN_FILE, run)
