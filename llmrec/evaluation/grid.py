"""A grid of ways to make semantic IDs, compared by one model trained alike: what is asked for, and rows on file."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmrec.artifacts import read_json, read_yaml, text_sha256, write_json
from llmrec.data.folder import DatasetFolder, load_dataset
from llmrec.embeddings.store import load_embeddings, load_manifest
from llmrec.errors import InputError
from llmrec.registry import resolve
from llmrec.sids.collisions import UNIQUE_METHODS
from llmrec.sids.learn import make_sid_tokenizer
from llmrec.sids.methods import SID_TOKENIZERS, load_sid_tokenizer
from llmrec.sids.quality import inspect_table, reconstruction_errors
from llmrec.sids.table import SIDTable

SPLITS = ("test", "valid")


@dataclass(frozen=True)
class GridEntry:
    """One way of making SIDs.

    Args:
        name: what the tables call it.
        method: a key of `SID_TOKENIZERS`, or ``package.module:attribute``.
        embeddings: file that it learns from.
        method_args: further arguments of its constructor.
        unique: a key of `UNIQUE_METHODS`.
        train: whether a model is trained on its SIDs; else they are measured alone.
    """

    name: str
    method: str
    embeddings: str
    method_args: Mapping[str, Any] = field(default_factory=dict)
    unique: str = "append_rank"
    train: bool = True


@dataclass(frozen=True)
class GridTraining:
    """How every entry's model is trained.

    Args:
        config: YAML file of ``recipes/sft.py``.
        settings: keys of that file that the grid sets otherwise.
        max_minutes: most that a run may take; said in the table.
    """

    config: str
    settings: Mapping[str, Any]
    max_minutes: float


@dataclass(frozen=True)
class GridConfig:
    """A grid, as its YAML file says it.

    Args:
        dataset: dataset folder.
        embeddings: file of the entries that name none; items are near when they are near in these.
        results: JSON file of the rows.
        work: folder for SIDs and models.
        entries: in the order in which they run.
        training: None measures SIDs alone.
        seeds: each is the seed of SIDs and of the model.
        collaborative: vectors of behaviour, for the methods that need them.
        levels: codes of a SID.
        codebook_size: codes a level.
        ks: cuts of the metrics.
        num_beams: of the search.
    """

    dataset: str
    embeddings: str
    results: str
    work: str
    entries: tuple[GridEntry, ...]
    training: GridTraining | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    collaborative: str | None = None
    levels: int = 3
    codebook_size: int = 256
    ks: tuple[int, ...] = (5, 10)
    num_beams: int = 20

    @classmethod
    def load(cls, path: str | Path) -> "GridConfig":
        """Read and check a grid's YAML file; the top level's ``unique`` holds for entries that name none.

        Raises:
            InputError: a missing or unreadable file, an unknown or missing key, two entries of one name, or a method
                or way to make SIDs unique that is not known.
        """
        values = read_yaml(path, "YAML of a grid")
        unique = values.pop("unique", "append_rank")
        entries = values.pop("entries", None)
        if not isinstance(entries, list) or not entries:
            raise InputError(f"{path}: no list 'entries'; each has at least name and method")
        made = []
        for place, entry in enumerate(entries):
            where = f"{path}: entry {place}"
            if not isinstance(entry, dict):
                raise InputError(f"{where}: expected a mapping, found {entry!r}")
            full = {"unique": unique, "embeddings": values.get("embeddings"), **entry}
            made.append(build_from(GridEntry, full, where))
            resolve(made[-1].method, SID_TOKENIZERS, "SID tokenizer")
            resolve(made[-1].unique, UNIQUE_METHODS, "way to make SIDs unique")
        names = [entry.name for entry in made]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"{path}: two entries are named {name!r}; give each a name of its own")
        training = values.pop("train", None)
        if training is not None:
            values["training"] = build_from(GridTraining, training, f"{path}: train")
            for key, value in values["training"].settings.items():
                if isinstance(value, dict | list):
                    raise InputError(f"{path}: train: settings: {key} is {value!r}; write it in {training['config']}")
        for name in ("seeds", "ks"):
            if name in values:
                values[name] = tuple(values[name])
        grid = build_from(cls, {**values, "entries": tuple(made)}, str(path))
        for entry in grid.entries:
            grid.behaviour(entry)
        return grid

    def tokenizer(self, entry: GridEntry, *, seed: int) -> Any:
        """Return the entry's SID tokenizer, not fitted."""
        return make_sid_tokenizer(
            entry.method, levels=self.levels, codebook_size=self.codebook_size, seed=seed,
            method_args=entry.method_args,
        )  # fmt: skip

    def behaviour(self, entry: GridEntry) -> str | None:
        """Return the file of vectors of behaviour for an entry whose method needs them, else None.

        Raises:
            InputError: the method needs them and the grid names none.
        """
        if "collaborative" not in type(self.tokenizer(entry, seed=0)).needs:
            return None
        if self.collaborative is None:
            raise InputError(
                f"entry {entry.name!r}: method {entry.method!r} needs vectors of behaviour; make them with "
                "data_prep/embed_behaviour.py and name the file under 'collaborative'"
            )
        return self.collaborative

    def chosen(self, names: Sequence[str] | None) -> list[GridEntry]:
        """Return the entries of these names, in the grid's order; a method stands for all its entries.

        Args:
            names: of entries, or of methods where no entry has that name; None returns all.

        Raises:
            InputError: a name that neither an entry nor a method has.
        """
        if names is None:
            return list(self.entries)
        own = {entry.name for entry in self.entries}
        for name in names:
            if name not in own | {entry.method for entry in self.entries}:
                raise InputError(
                    f"--only {name!r}: no entry of that name; there are "
                    f"{', '.join(repr(entry.name) for entry in self.entries)}"
                )
        methods = set(names) - own
        return [entry for entry in self.entries if entry.name in names or entry.method in methods]

    def files(self, entry: GridEntry) -> list[str]:
        """Return the embedding files that an entry's row is made from."""
        return [path for path in (self.embeddings, entry.embeddings, self.behaviour(entry)) if path is not None]

    def with_files(self) -> list[GridEntry]:
        """Return the entries whose files are there."""
        return [entry for entry in self.entries if all(Path(path).is_file() for path in self.files(entry))]


def build_from(kind: Any, values: Any, where: str) -> Any:
    """Return ``kind(**values)`` of a dataclass, from what a YAML file holds.

    Args:
        kind: the dataclass.
        values: a mapping of its fields.
        where: the place in the file, for the message.

    Raises:
        InputError: no mapping, or an unknown or missing key.
    """
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected a mapping, found {values!r}")
    for key in values:
        if key not in kind.__dataclass_fields__:
            raise InputError(f"{where}: unknown key {key!r}; known are {', '.join(kind.__dataclass_fields__)}")
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(f"{where}: {str(error).split('() ')[-1]}; add it") from error


def _digest(settings: Any) -> str:
    return text_sha256(json.dumps(settings, sort_keys=True))[:8]


@dataclass(frozen=True)
class GridTask:
    """A row to make: an entry, a seed, and the settings that the row is good for.

    Args:
        entry: what.
        seed: of the SIDs and of the model.
        sids: settings that decide the SIDs and their quality.
        training: settings that decide the model and its metrics; None where none is trained.
    """

    entry: GridEntry
    seed: int
    sids: Mapping[str, Any]
    training: Mapping[str, Any] | None

    @property
    def settings(self) -> dict[str, Any]:
        """What the row says of its settings."""
        return {"sids": dict(self.sids), "training": None if self.training is None else dict(self.training)}

    @property
    def training_digest(self) -> str:
        """Eight digits that are others for other settings of the model."""
        return _digest(self.training)

    def folder(self, work: str | Path, *, seed: int | None = None) -> Path:
        """Return where the entry's SIDs and models lie under ``work``; other settings have another folder.

        Args:
            work: the grid's folder.
            seed: another seed than the task's.
        """
        name = "".join(letter if letter.isalnum() else "-" for letter in self.entry.name)
        return Path(work) / f"{name}-{_digest(self.sids)}-seed{self.seed if seed is None else seed}"


def grid_tasks(
    grid: GridConfig, entries: Iterable[GridEntry], *, seeds: Sequence[int], device: str = "cpu", train: bool = True
) -> list[GridTask]:
    """Return the rows to make: all entries of the first seed, those that train a model first, then the next seed.

    Args:
        grid: the grid.
        entries: of it.
        seeds: in this order.
        device: where SIDs are fitted and models are trained.
        train: False measures the SIDs of all entries alone.

    Raises:
        InputError: a missing file, or embeddings of another catalogue.
    """
    entries = list(entries)
    dataset = load_dataset(grid.dataset)
    hashes = {}
    for entry in entries:
        for path in grid.files(entry):
            if path not in hashes:
                if not Path(path).is_file():
                    raise InputError(
                        f"{path}: no such file, and entry {entry.name!r} learns from it; make it with "
                        "data_prep/embed_items.py, embed_behaviour.py or fuse_embeddings.py, or leave the entry out "
                        "by --only"
                    )
                load_embeddings(path, catalog=dataset.catalog)
                hashes[path] = load_manifest(path)["sha256"]
    training = None
    if grid.training is not None and train:
        own = {"dataset", "sids", "output_dir", "seed"}
        merged = {**read_yaml(grid.training.config, "YAML of a training"), **grid.training.settings}
        training = {key: value for key, value in merged.items() if key not in own}
        training |= {"ks": list(grid.ks), "num_beams": grid.num_beams, "device": device}
    tasks = []
    for seed in seeds:
        for entry in sorted(entries, key=lambda entry: not entry.train):
            behaviour = grid.behaviour(entry)
            sids = {
                "files": dict(dataset.manifest.get("files", {})),
                "protocol": dataset.default_protocol,
                "method": entry.method,
                "method_args": dict(entry.method_args),
                "levels": grid.levels,
                "codebook_size": grid.codebook_size,
                "unique": entry.unique,
                "embeddings": hashes[entry.embeddings],
                "collaborative": None if behaviour is None else hashes[behaviour],
                "near_in": hashes[grid.embeddings],
                "device": device,
            }
            tasks.append(GridTask(entry, seed, sids, training if entry.train else None))
    return tasks


def inspect_entry(grid: GridConfig, entry: GridEntry, sids: str | Path, *, other: str | Path | None) -> dict[str, Any]:
    """Measure the SIDs of an entry.

    Args:
        grid: its ``embeddings`` say which items are near.
        entry: its own embeddings say how well the codes reconstruct.
        sids: folder of the SIDs.
        other: folder of the same entry's SIDs by another seed; None leaves stability out.

    Returns:
        As `inspect_table`, with ``stability`` by the name ``"other seed"``.
    """
    dataset: DatasetFolder = load_dataset(grid.dataset)
    table = SIDTable.load(sids)
    near = load_embeddings(grid.embeddings, catalog=dataset.catalog)
    others = {} if other is None else {"other seed": SIDTable.load(other)}
    report = inspect_table(table, embeddings=near, sequences=dataset.split().sequences, others=others)
    own = near
    if entry.embeddings != grid.embeddings:
        own = load_embeddings(entry.embeddings, catalog=dataset.catalog)
    try:
        report["reconstruction"] = reconstruction_errors(load_sid_tokenizer(sids), own, table.codes[:, : grid.levels])
        report["left_out"].pop("reconstruction", None)
    except InputError as error:  # a method without reconstruction says so
        report["left_out"]["reconstruction"] = str(error)
    return report


class GridRows:
    """The rows on file, one an entry and seed; written whole after every row.

    Args:
        path: JSON file, made when the first row is there.

    Raises:
        InputError: the file holds something else.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, Any]] = []
        if self.path.exists():
            found = read_json(self.path, "rows of a grid")
            if not isinstance(found, dict) or not isinstance(found.get("rows"), list):
                raise InputError(f"{self.path}: no list 'rows', so it is no file of a grid; name another 'results'")
            self.rows = found["rows"]

    def find(self, task: GridTask) -> dict[str, Any] | None:
        """Return the task's row if it is on file with the same settings; a trained row serves for its SIDs too."""
        row = self._of(task)
        wanted = None if task.training is None else _as_read(task.training)
        return row if row is not None and wanted in (None, row["settings"]["training"]) else None

    def shown(self, task: GridTask) -> dict[str, Any] | None:
        """Return the task's row if it is on file with the same SIDs; without metrics where the model is another."""
        row = self._of(task)
        if row is None or task.training is None or row["settings"]["training"] == _as_read(task.training):
            return row
        return {key: value for key, value in row.items() if key not in ("metrics", "cost", "users")}

    def _of(self, task: GridTask) -> dict[str, Any] | None:
        sids = _as_read(task.sids)
        for row in self.rows:
            if (row["name"], row["seed"]) == (task.entry.name, task.seed) and row["settings"]["sids"] == sids:
                return row
        return None

    def put(self, row: Mapping[str, Any]) -> None:
        """Write a row; one of the same entry and seed is replaced."""
        key = (row["name"], row["seed"])
        self.rows = [old for old in self.rows if (old["name"], old["seed"]) != key] + [dict(row)]
        write_json(self.path, {"rows": self.rows})


def _as_read(value: Mapping[str, Any]) -> Any:
    """The value as it comes back from a JSON file."""
    return json.loads(json.dumps(dict(value)))
