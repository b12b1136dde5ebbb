"""Texts about interactions that a model wrote, in files beside a dataset: what they hold, and that they fit it.

``intentions.parquet``, ``preferences.parquet``, ``explanations.parquet`` and ``rationales.parquet`` have one schema. A
row names its moment: the user, and ``position``, the number of the user's interactions that came before. Whoever wrote
the row's text saw those, and, in all files but preferences, the interaction at the position as well (``item_id`` says
which). So a text that knows of a validation or test interaction can be told, under any protocol.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmrec.artifacts import check_hash, file_sha256, made_by, read_json, whole_file, write_json
from llmrec.data.interactions import Interactions
from llmrec.errors import InputError

KINDS = ("intentions", "preferences", "explanations", "rationales")
SCHEMA = {"user_id": pa.string(), "item_id": pa.string(), "position": pa.int64(), "text": pa.string()}


@dataclass(frozen=True)
class WrittenTexts:
    """One text a row, each about a moment of a user.

    Args:
        kind: one of `KINDS`.
        users: ``(texts,)`` int64 user numbers.
        positions: ``(texts,)`` int64 numbers of the user's interactions before the moment.
        texts: the texts, none blank.
    """

    kind: str
    users: np.ndarray = field(repr=False)
    positions: np.ndarray = field(repr=False)
    texts: Sequence[str] = field(repr=False)

    def __len__(self) -> int:
        return len(self.texts)


def written_path(folder: str | Path, kind: str) -> Path:
    """Return where a dataset folder holds the texts of a kind.

    Raises:
        InputError: another kind.
    """
    if kind not in KINDS:
        raise InputError(f"kind {kind!r} of written texts: choose one of {', '.join(KINDS)}")
    return Path(folder) / f"{kind}.parquet"


def manifest_path(path: Path) -> Path:
    """Return where the manifest of a file of written texts lies: ``intentions.json`` beside ``intentions.parquet``."""
    return path.with_suffix(".json")


def save_written_texts(
    folder: str | Path,
    kind: str,
    *,
    user_ids: Sequence[str],
    item_ids: Sequence[str] | None,
    positions: Sequence[int],
    texts: Sequence[str],
    manifest: Mapping[str, Any],
) -> Path:
    """Write the texts of a kind into a dataset folder, and their manifest beside them.

    Args:
        folder: the dataset folder.
        kind: one of `KINDS`.
        user_ids: of each text.
        item_ids: of each text; None for preferences, which are about what came before.
        positions: numbers of the user's interactions before each text's moment.
        texts: the texts.
        manifest: who wrote them: model, revision, template, seed; counts, hash and command are added here.
    """
    path = written_path(folder, kind)
    columns = {"user_id": user_ids, "item_id": item_ids, "position": positions, "text": texts}
    arrays = {name: pa.array(values, SCHEMA[name]) for name, values in columns.items() if values is not None}
    with whole_file(path) as part:
        pq.write_table(pa.table(arrays), part)
        digest = file_sha256(part)
    found = {"kind": kind, **manifest, "texts": len(texts), "files": {path.name: digest}, "made_by": made_by()}
    write_json(manifest_path(path), found)
    return path


def load_written_texts(
    folder: str | Path, kind: str, *, interactions: Interactions, item_ids: Sequence[str]
) -> WrittenTexts:
    """Read the texts of a kind and check them against the dataset's interactions.

    Args:
        folder: the dataset folder.
        kind: one of `KINDS`.
        interactions: all interactions of the dataset.
        item_ids: the catalogue's.

    Raises:
        InputError: no such file, a missing column or one of another type, empty values, an unknown user, a position
            outside the user's interactions, or an item that does not stand at its position.
    """
    path = written_path(folder, kind)
    if not path.is_file():
        raise InputError(f"{path}: no such file; write it with data_prep/write_texts.py --kind {kind}")
    if manifest_path(path).is_file():
        check_hash(path, file_sha256(path), read_json(manifest_path(path), "manifest of written texts"))
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({error}); write it again") from error
    needed = [name for name in SCHEMA if not (kind == "preferences" and name == "item_id")]
    for name in needed:
        if name not in table.column_names:
            raise InputError(
                f"{path}: no column {name!r} (it has {', '.join(table.column_names)}); a row names its user, the "
                "number of that user's interactions before it as position, and what the text is about"
            )
        found = table.schema.field(name).type
        if found != SCHEMA[name]:
            raise InputError(f"{path}: column {name!r} is {found}, expected {SCHEMA[name]}")
        if table.column(name).null_count:
            raise InputError(f"{path}: column {name!r} has {table.column(name).null_count} empty values; none may be")
    users = _numbers(table.column("user_id"), interactions.user_ids)
    positions = table.column("position").to_numpy().astype(np.int64)
    texts = table.column("text").to_pylist()
    _refuse(
        path, users < 0, lambda row: f"names user {table.column('user_id')[row].as_py()!r}, whom the dataset lacks"
    )
    starts = interactions.user_starts()
    counts = np.diff(starts)[users] if len(users) else np.zeros(0, dtype=np.int64)
    # A preference may be about all that a user did; the others are about an interaction that is there.
    most = counts if kind == "preferences" else counts - 1
    least = 1 if kind == "preferences" else 0
    _refuse(
        path,
        (positions < least) | (positions > most),
        lambda row: (
            f"has position {positions[row]}; user {interactions.user_ids[users[row]]!r} has {counts[row]} "
            f"interactions, so a position lies between {least} and {most[row]}"
        ),
    )
    _refuse(path, np.array([not text.strip() for text in texts], dtype=bool), lambda row: "has a blank text; drop it")
    if kind != "preferences":
        items = _numbers(table.column("item_id"), item_ids)
        there = interactions.items[starts[users] + positions] if len(users) else items
        _refuse(
            path,
            items != there,
            lambda row: (
                f"is about item {table.column('item_id')[row].as_py()!r} at position {positions[row]} of user "
                f"{interactions.user_ids[users[row]]!r}, where the dataset has {item_ids[int(there[row])]!r}; "
                "the texts belong to another import, write them again"
            ),
        )
    return WrittenTexts(kind, users, positions, texts)


def _numbers(names: pa.ChunkedArray, known: Sequence[str]) -> np.ndarray:
    found = pc.index_in(names, value_set=pa.array(known, pa.string()))  # pyright: ignore[reportAttributeAccessIssue]
    return pc.fill_null(found, -1).to_numpy().astype(np.int64)  # pyright: ignore[reportAttributeAccessIssue]


def _refuse(path: Path, wrong: np.ndarray, say: Any) -> None:
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InputError(f"{path}: row {row} {say(row)}")
