"""Read the files of strangers row by row: CSV, TSV, RecBole atomic files, JSON, JSON lines and parquet."""

import ast
import contextlib
import csv
import gzip
import io
import itertools
import json
import warnings
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from llmrec.errors import InputError

RECBOLE_KINDS = ("token", "token_seq", "float", "float_seq")
_QUOTED_LINES = 50
_TICK = 4096
_PEEK = 1000


@dataclass(frozen=True)
class Table:
    """A file seen as rows with named columns.

    Args:
        path: the file, for error messages.
        columns: column names, RecBole's ``:token`` endings taken off.
        rows: line (or row) number from 1 and values by column; can be walked once.
        kinds: RecBole's kind of each column ("token_seq"); empty for other files.
    """

    path: Path
    columns: tuple[str, ...]
    rows: Iterator[tuple[int, Mapping[str, Any]]] = field(repr=False)
    kinds: Mapping[str, str] = field(default_factory=dict)

    def require(self, columns: Sequence[str], *, remedy: str = "name another column, or another file") -> None:
        """Raise `InputError` when one of ``columns`` is missing."""
        for name in columns:
            if name not in self.columns:
                raise InputError(f"{self.path}: no column {name!r}; it has {', '.join(self.columns)}: {remedy}")


def require_file(path: str | Path, what: str) -> Path:
    """Return ``path`` when it is a file that is not empty.

    Args:
        path: the file.
        what: what it should be, for the error message ("item table").

    Raises:
        InputError: a missing or empty file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the {what}")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: it is empty; expected the {what}: download or copy it again")
    return path


def read_lines(
    path: str | Path, what: str, *, encoding: str = "utf-8-sig", member: str | None = None
) -> Iterator[tuple[int, str]]:
    r"""Yield the line number from 1 and the text of every line that is not blank, under a progress bar.

    Lines end at ``\n`` alone, so that the other characters that Unicode calls line ends stay inside titles.

    Args:
        path: a text file; a name that ends in ``.gz`` is unpacked on the way.
        what: what it should be, for error messages ("reviews").
        encoding: how its bytes become text.
        member: the file to read inside the zip archive ``path``.

    Raises:
        InputError: a missing, empty or damaged file, or bytes that are not ``encoding``.
    """
    path = require_file(path, what)
    place = f"{path}:{member}" if member else str(path)
    number, found = 0, False
    with contextlib.ExitStack() as stack:
        try:
            stream, counted, size = _open(stack, path, member)
            text = stack.enter_context(io.TextIOWrapper(stream, encoding=encoding, newline="\n"))
            bar = None
            for number, line in enumerate(text, start=1):
                if number == 2:  # Not before: a table opened for its head alone shows no bar.
                    name = Path(member or path.name).name
                    bar = stack.enter_context(tqdm(total=size, unit="B", unit_scale=True, desc=name, leave=False))
                if bar is not None and number % _TICK == 0:
                    bar.update(counted.tell() - bar.n)
                line = line.rstrip("\r\n")
                if line.strip():
                    found = True
                    yield number, line
            if bar is not None:
                bar.update(size - bar.n)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{place}: not {encoding} text after line {number} ({error.reason}); convert the {what} to UTF-8"
            ) from error
        except (EOFError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(
                f"{place}: damaged or cut off after line {number} ({error}); download the {what} again"
            ) from error
    if not found:
        raise InputError(f"{place}: it is empty; expected the {what}: download or copy it again")


def _open(stack: contextlib.ExitStack, path: Path, member: str | None) -> tuple[IO[bytes], IO[bytes], int]:
    """The stream of unpacked bytes, the stream whose position tells the progress, and where that one ends."""
    if member is not None:
        archive = stack.enter_context(zipfile.ZipFile(path))
        stream = stack.enter_context(archive.open(member))
        return stream, stream, archive.getinfo(member).file_size
    raw = stack.enter_context(path.open("rb"))
    if path.suffix == ".gz":
        return stack.enter_context(gzip.GzipFile(fileobj=raw)), raw, path.stat().st_size  # type: ignore[return-value]
    return raw, raw, path.stat().st_size


class _Ahead:
    """An iterator whose next items can be looked at before they are taken."""

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        self._lines = lines
        self._seen: deque[tuple[int, str]] = deque()

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return self

    def __next__(self) -> tuple[int, str]:
        return self._seen.popleft() if self._seen else next(self._lines)

    def peek(self, index: int) -> str | None:
        """The text of the line ``index`` places ahead, None behind the end."""
        while len(self._seen) <= index:
            line = next(self._lines, None)
            if line is None:
                return None
            self._seen.append(line)
        return self._seen[index][1]


def split_lines(
    lines: Iterator[tuple[int, str]], *, delimiter: str, width: int, path: object
) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the ``width`` fields of delimited lines.

    A field in proper quotes may hold the delimiter, doubled quotes and line ends, as pandas writes them; quotes that
    do not pair are characters like any other, as hand-made files have them.

    Args:
        lines: what `read_lines` yields.
        delimiter: one character.
        width: fields a line.
        path: the file, for error messages.

    Raises:
        InputError: a line with another number of fields.
    """
    ahead = _Ahead(lines)
    for number, line in ahead:
        fields = line.split(delimiter) if '"' not in line else _quoted_fields(line, ahead, delimiter, width)
        if len(fields) != width:
            raise InputError(
                f"{path}: line {number} has {len(fields)} fields, expected {width}: {line[:80]!r}; mend the line or "
                "download the file again"
            )
        yield number, fields


def _quoted_fields(line: str, ahead: _Ahead, delimiter: str, width: int) -> list[str]:
    quoted = _unquote(line, delimiter)
    if quoted is not None and len(quoted) == width:
        return quoted
    plain = line.split(delimiter)
    if len(plain) == width and delimiter == "\t":
        # Hand-made TSV: an open quote is plain text where the next line stands alone; else its field goes on there.
        after = ahead.peek(0)
        if after is None or len(_unquote(after, delimiter) or after.split(delimiter)) == width:
            return plain
    for taken in range(_QUOTED_LINES):
        after = ahead.peek(taken)
        if after is None:
            break
        line += "\n" + after
        quoted = _unquote(line, delimiter)
        if quoted is not None and len(quoted) == width:
            for _ in range(taken + 1):
                next(ahead)
            return quoted
    return plain


def _unquote(line: str, delimiter: str) -> list[str] | None:
    """The fields of a line in proper CSV quoting, None where its quotes do not pair."""
    try:
        # StringIO, unlike str.splitlines, ends lines at \n alone.
        return next(csv.reader(io.StringIO(line, newline="\n"), delimiter=delimiter, strict=True))
    except csv.Error:
        return None


def literal(text: str) -> Any:
    """Return the value of a Python literal, None where ``text`` is none; never runs code."""
    with warnings.catch_warnings():
        # A backslash in a title, as in '1\2 inch', is a warning to Python's parser and nothing to us.
        warnings.simplefilter("ignore")
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None


def read_json_lines(path: str | Path, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and object of JSON lines, plain or gzipped; a line may be a Python dict (Amazon 2014).

    Raises:
        InputError: a missing, empty or damaged file, or a line that is no object.
    """
    for number, line in read_lines(path, what):
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            value = literal(line)
        if not isinstance(value, dict):
            raise InputError(
                f"{path}: line {number} is no JSON object: {line[:80]!r}; mend the line or download the {what} again"
            )
        yield number, value


def read_json_pairs(path: str | Path, what: str) -> list[tuple[str, Any]]:
    """Return the entries of a JSON object in file order, a key that stands twice included; inner objects are dicts.

    Raises:
        InputError: a missing, empty or unreadable file, or one that holds something else than an object.
    """
    path = require_file(path, what)
    try:
        value = json.loads(_whole_text(path, what), object_pairs_hook=_Pairs)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not a readable {what} ({error}); download or copy it again") from error
    if not isinstance(value, _Pairs) or not value:
        raise InputError(f"{path}: expected the {what} as a JSON object with entries, found {type(value).__name__}")
    return [(key, _plain(inner)) for key, inner in value]


def _whole_text(path: Path, what: str) -> str:
    return "\n".join(line for _, line in read_lines(path, what))


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it stands in the file, before double keys are lost."""


def _plain(value: Any) -> Any:
    if isinstance(value, _Pairs):
        return {key: _plain(inner) for key, inner in reversed(value)}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def open_table(path: str | Path, what: str, *, member: str | None = None, encoding: str = "utf-8-sig") -> Table:
    """Open a table of any form that is told by its name; only its head is read until the rows are walked.

    ``.csv`` (commas), ``.tsv``, ``.inter``, ``.item`` and ``.user`` (tabs), ``.parquet``, ``.jsonl`` and ``.json`` (an
    object a line; a list of objects; or an object of objects by item id, whose key becomes the column ``item_id``).
    All but parquet may end in ``.gz``.

    Args:
        path: the file.
        what: what it should be, for error messages ("item table").
        member: the file to read inside the zip archive ``path``.
        encoding: how its bytes become text.

    Raises:
        InputError: a missing, empty or damaged file, another form, or a head without columns.
    """
    path = require_file(path, what)
    suffixes = [suffix for suffix in Path(member or path.name).suffixes if suffix != ".gz"]
    suffix = suffixes[-1].lower() if suffixes else ""
    if suffix == ".parquet":
        return _open_parquet(path, what)
    if suffix in (".json", ".jsonl", ".ndjson"):
        return _open_json(path, what)
    if suffix not in (".csv", ".tsv", ".inter", ".item", ".user"):
        raise InputError(
            f"{path}: cannot tell the form of the {what} from its name; use .csv, .tsv, .jsonl or .parquet"
        )
    return _open_delimited(path, what, "," if suffix == ".csv" else "\t", member, encoding)


def _open_delimited(path: Path, what: str, delimiter: str, member: str | None, encoding: str) -> Table:
    lines = read_lines(path, what, member=member, encoding=encoding)
    _, head = next(lines)
    columns, kinds = [], {}
    for name in _unquote(head, delimiter) or head.split(delimiter):
        base, _, kind = name.strip().rpartition(":")
        if base and kind in RECBOLE_KINDS:
            columns.append(base)
            kinds[base] = kind
        else:
            columns.append(name.strip())
    double = next((name for name in columns if columns.count(name) > 1), None)
    if double is not None:
        raise InputError(f"{path}: column {double!r} stands twice in the head; rename one of them")
    records = split_lines(lines, delimiter=delimiter, width=len(columns), path=path)
    rows = ((number, dict(zip(columns, fields, strict=True))) for number, fields in records)
    return Table(path, tuple(columns), rows, kinds)


def _open_parquet(path: Path, what: str) -> Table:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({error}); make the {what} again") from error
    if file.metadata.num_rows == 0:
        raise InputError(f"{path}: it is empty; it has the columns of the {what} but no rows")

    def rows() -> Iterator[tuple[int, Mapping[str, Any]]]:
        number = 0
        with tqdm(total=file.metadata.num_rows, unit="row", desc=path.name, leave=False) as bar:
            for batch in file.iter_batches(batch_size=8192):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
                bar.update(len(batch))

    return Table(path, tuple(file.schema_arrow.names), rows())


def _open_json(path: Path, what: str) -> Table:
    first = next(read_lines(path, what))[1].lstrip()
    head = None
    if first.startswith("{"):
        with contextlib.suppress(json.JSONDecodeError, RecursionError):
            head = json.loads(first)
        head = literal(first) if head is None else head
    if isinstance(head, dict) and not (head and all(isinstance(value, dict) for value in head.values())):
        # The head alone need not show every column: objects leave out what they lack.
        some = [entry for _, entry in itertools.islice(read_json_lines(path, what), _PEEK)]
        columns = tuple(dict.fromkeys(name for entry in some for name in entry))
        return Table(path, columns, read_json_lines(path, what))
    if first.startswith("{"):
        pairs = read_json_pairs(path, what)
        entries = [{"item_id": key, **value} if isinstance(value, dict) else value for key, value in pairs]
    else:
        try:
            entries = json.loads(_whole_text(path, what))
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{path}: not a readable {what} ({error}); make it again") from error
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path}: expected the {what} as JSON objects, one a row; found another form")
    columns = tuple(dict.fromkeys(name for entry in entries for name in entry))
    return Table(path, columns, iter(enumerate(entries, start=1)))
