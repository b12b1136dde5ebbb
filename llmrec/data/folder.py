"""Dataset folders: ``items.parquet``, ``interactions.parquet``, ``manifest.json`` and published ``splits/``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmrec.artifacts import check_hash, file_sha256, made_by, read_json, whole_folder, write_json
from llmrec.data.interactions import Interactions
from llmrec.data.items import Catalog
from llmrec.data.splits import SPLITS, History, Splits, chain
from llmrec.errors import InputError

FORMAT_VERSION = 1
PROTOCOLS = (*SPLITS, "provided")
_OWN_NAMES = {"items.parquet", "interactions.parquet", "manifest.json", "splits"}


@dataclass(frozen=True)
class DatasetFolder:
    """A dataset folder in memory.

    Args:
        path: the folder.
        catalog: its items.
        interactions: all its interactions.
        manifest: name, domain phrase for prompts, source, licence, counts, hashes, and the command that made it;
            ``times`` is ``"seconds"`` or ``"position"``.
        published: rows of a published split by name; empty where the source publishes none.
    """

    path: Path
    catalog: Catalog
    interactions: Interactions
    manifest: Mapping[str, Any]
    published: Mapping[str, Sequence[History]]

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.manifest["name"]

    @property
    def default_protocol(self) -> str:
        """``provided`` where the source publishes its split, else ``leave_one_out``."""
        return "provided" if self.published else "leave_one_out"

    def split(self, protocol: str | None = None, *, max_history: int | None = None) -> Splits:
        """Divide the interactions by a protocol.

        Args:
            protocol: ``leave_one_out``, ``temporal`` or ``provided``; None takes `default_protocol`.
            max_history: most recent items that a row keeps; None keeps all (a published row keeps what it shows).

        Raises:
            InputError: an unknown protocol, ``temporal`` without times, ``provided`` without published splits, or too
                few interactions.
        """
        protocol = protocol or self.default_protocol
        if protocol not in PROTOCOLS:
            raise InputError(f"protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}")
        if protocol == "provided":
            if not self.published:
                raise InputError(f"{self.path}: no splits/ folder; protocol 'provided' needs a published split")
            rows = {
                name: [
                    History(row.user, row.items if max_history is None else row.items[-max_history:], row.target)
                    for row in self.published[name]
                ]
                for name in ("train", "valid", "test")
            }
            return Splits("provided", rows["train"], rows["valid"], rows["test"], chain(self.published["train"]))
        if protocol == "temporal" and self.manifest["times"] == "position":
            raise InputError(
                f"{self.path}: its source has no times (the timestamp is the position in the user's sequence), so "
                "protocol 'temporal' has no meaning here; use leave_one_out"
            )
        return SPLITS[protocol](self.interactions, max_history=max_history)


def check_free(path: str | Path) -> None:
    """Check that a dataset may be written to the folder ``path``; importers ask before they read anything.

    Raises:
        InputError: ``path`` is a file, or holds anything else than a dataset.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file; a dataset needs a folder, choose another --out")
    if path.is_dir() and any(path.iterdir()) and not (path / "manifest.json").is_file():
        raise InputError(f"{path}: holds files but no manifest.json, so it is no dataset folder; choose another --out")
    keep = [child for child in path.iterdir() if child.name not in _OWN_NAMES] if path.is_dir() else []
    if keep:
        raise InputError(
            f"{path}: holds {keep[0].name} beside the dataset; what was built on the old import would no longer fit: "
            "remove the folder or choose another --out"
        )


def write_dataset(
    path: str | Path,
    *,
    catalog: Catalog,
    interactions: Interactions,
    manifest: Mapping[str, Any],
    published: Mapping[str, Sequence[History]] | None = None,
) -> Path:
    """Write a dataset folder, whole or not at all.

    Args:
        path: the folder; one that holds something else than a dataset is refused.
        catalog: the items.
        interactions: all interactions.
        manifest: ``name``, ``domain``, ``source``, ``licence``, ``times`` and what the import counted; counts, hashes
            and how it was made are added here.
        published: rows of a published split by name.

    Raises:
        InputError: ``path`` holds other files, or ``manifest`` lacks a key.
    """
    path = Path(path)
    for key in ("name", "domain", "source", "licence", "times"):
        if key not in manifest:
            raise InputError(f"dataset manifest: no {key!r}; every dataset folder states it")
    check_free(path)
    with whole_folder(path) as part:
        ids = pa.array(catalog.item_ids, pa.string())
        columns = {name: pa.array(values, pa.string()) for name, values in catalog.columns.items()}
        pq.write_table(pa.table({"item_id": ids, **columns}), part / "items.parquet")
        user_ids = pa.array(interactions.user_ids, pa.string())
        table = {
            "user_id": user_ids.take(pa.array(interactions.users)),
            "item_id": ids.take(pa.array(interactions.items)),
            "timestamp": pa.array(interactions.timestamps, pa.int64()),
        }
        if interactions.ratings is not None:
            table["rating"] = pa.array(interactions.ratings, pa.float32())
        table.update(interactions.texts)
        pq.write_table(pa.table(table), part / "interactions.parquet")
        if published:
            (part / "splits").mkdir()
            for name, rows in published.items():
                split = {
                    "user_id": [interactions.user_ids[row.user] for row in rows],
                    "history": [[catalog.item_ids[item] for item in row.items] for row in rows],
                    "target": [catalog.item_ids[row.target] for row in rows],
                }
                schema = pa.schema(
                    [("user_id", pa.string()), ("history", pa.list_(pa.string())), ("target", pa.string())]
                )
                pq.write_table(pa.table(split, schema), part / "splits" / f"{name}.parquet")
        files = {str(file.relative_to(part)): file_sha256(file) for file in sorted(part.rglob("*")) if file.is_file()}
        counts = {
            "users": len(interactions.user_ids),
            "items": len(catalog),
            "interactions": len(interactions),
            **{f"{name}_rows": len(rows) for name, rows in (published or {}).items()},
        }
        whole = {
            "format_version": FORMAT_VERSION,
            **manifest,
            "counts": counts,
            "catalog_hash": catalog.hash,
            "files": files,
            "made_by": made_by(),
        }
        write_json(part / "manifest.json", whole)
    return path


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path}: no such file; the dataset folder is half written, import it again")


def _read_table(path: Path, required: Mapping[str, pa.DataType], manifest: Mapping[str, Any], key: str) -> pa.Table:
    _check_there(path)
    check_hash(path, file_sha256(path), {"files": {path.name: manifest.get("files", {}).get(key)}})
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({error}); import the dataset again") from error
    for name, kind in required.items():
        if name not in table.column_names:
            raise InputError(f"{path}: no column {name!r}; it has {', '.join(table.column_names)}")
        if table.schema.field(name).type != kind:
            raise InputError(f"{path}: column {name!r} is {table.schema.field(name).type}, expected {kind}")
        if table.column(name).null_count:
            raise InputError(f"{path}: column {name!r} has {table.column(name).null_count} empty values; none may be")
    return table


def _rows_of(names: pa.ChunkedArray, known: Sequence[str], path: Path, what: str) -> np.ndarray:
    """Numbers of ``names`` in ``known``; an unknown one is an error that names it and its row."""
    found = pc.index_in(names, value_set=pa.array(known, pa.string()))  # pyright: ignore[reportAttributeAccessIssue]
    if found.null_count:
        row = int(np.flatnonzero(found.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputError(f"{path}: row {row} names {what} {names[row].as_py()!r}, which the dataset does not hold")
    return found.to_numpy().astype(np.int64)


def load_dataset(path: str | Path) -> DatasetFolder:
    """Read and check a dataset folder.

    Args:
        path: the folder that an importer of ``data_prep/`` wrote.

    Raises:
        InputError: a missing or changed file, a missing column or one of another type, empty values, an unknown item,
            a blank title, or interactions that do not stand in order of user and time.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such dataset folder; make one with a script of data_prep/")
    manifest = read_json(path / "manifest.json", "dataset manifest")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}/manifest.json: format_version {manifest.get('format_version')!r}, this llmrec reads "
            f"{FORMAT_VERSION}; import the dataset again"
        )
    for key in ("name", "domain", "times"):
        if key not in manifest:
            raise InputError(f"{path}/manifest.json: no {key!r}; import the dataset again")
    for name in manifest.get("files", {}):
        _check_there(path / name)
    items_path, inter_path = path / "items.parquet", path / "interactions.parquet"
    items = _read_table(items_path, {"item_id": pa.string(), "title": pa.string()}, manifest, "items.parquet")
    columns = {
        name: tuple(value or "" for value in items.column(name).to_pylist())
        for name in items.column_names
        if name != "item_id" and pa.types.is_string(items.schema.field(name).type)
    }
    catalog = Catalog(tuple(items.column("item_id").to_pylist()), columns)
    required = {"user_id": pa.string(), "item_id": pa.string(), "timestamp": pa.int64()}
    table = _read_table(inter_path, required, manifest, "interactions.parquet")
    user_ids = tuple(table.column("user_id").unique().to_pylist())
    # Texts stay in Arrow's memory: what does not read them pays for no Python strings.
    texts = {
        field.name: pc.fill_null(table.column(field.name).combine_chunks(), "")  # pyright: ignore[reportAttributeAccessIssue]
        for field in table.schema
        if field.name not in required and pa.types.is_string(field.type)
    }
    try:
        interactions = Interactions(
            user_ids,
            users=_rows_of(table.column("user_id"), user_ids, inter_path, "user"),
            items=_rows_of(table.column("item_id"), catalog.item_ids, inter_path, "item"),
            timestamps=table.column("timestamp").to_numpy(),
            ratings=table.column("rating").to_numpy().astype(np.float32) if "rating" in table.column_names else None,
            texts=texts,
        )
    except InputError as error:
        raise InputError(f"{inter_path}: {error}") from error
    published = {}
    if (path / "splits").is_dir():
        for name in ("train", "valid", "test"):
            file = path / "splits" / f"{name}.parquet"
            required = {"user_id": pa.string(), "history": pa.list_(pa.string()), "target": pa.string()}
            rows = _read_table(file, required, manifest, f"splits/{name}.parquet")
            users = _rows_of(rows.column("user_id"), user_ids, file, "user").tolist()
            targets = _rows_of(rows.column("target"), catalog.item_ids, file, "item").tolist()
            histories = rows.column("history").combine_chunks()
            flat = _rows_of(pa.chunked_array([histories.flatten()]), catalog.item_ids, file, "item").tolist()
            ends = np.cumsum([len(history) for history in histories]).tolist()
            published[name] = [
                History(user, tuple(flat[start:stop]), target)
                for user, start, stop, target in zip(users, [0, *ends], ends, targets, strict=False)
            ]
    return DatasetFolder(path, catalog, interactions, manifest, published)
