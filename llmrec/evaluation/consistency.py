"""Can these numbers stand in one row? A check of any table of hit rates and NDCG, published ones included."""

import csv
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from llmrec.artifacts import read_json
from llmrec.errors import InputError

SPELLINGS = {
    "recall": ("recall", "r", "hr", "hit", "hits", "hitrate", "hit_rate"),
    "ndcg": ("ndcg", "n"),
    "mrr": ("mrr",),
    "map": ("map",),
}
"""How columns are called, with ``@K`` behind; upper and lower case are the same."""
GAINS: dict[str, Callable[[int], float]] = {
    "ndcg": lambda place: 1 / math.log2(place + 1),
    "mrr": lambda place: 1 / place,
    "map": lambda place: 1 / place,
}
"""What a hit is worth at a place from 1, where a row has one target."""
NAMES = ("name", "model", "method", "system")
EMPTY = ("", "-", "\u2013", "\u2014", "n/a", "na", "nan")
FLOAT_ERROR = 1e-9


@dataclass(frozen=True)
class Finding:
    """A cell that cannot stand beside others of its row.

    Args:
        name: of the row.
        metric: of the cell, such as ``ndcg@10``.
        value: as printed.
        low: least value that the others leave it; rounding of all is allowed for.
        high: largest such value.
        given: the other cells, as printed.
        digits: decimals of the cell.
    """

    name: str
    metric: str
    value: float
    low: float
    high: float
    given: Mapping[str, float]
    digits: int

    @property
    def message(self) -> str:
        """The finding in a sentence."""
        # The bounds as they could be printed; the last digit goes to the inside.
        unit = 10.0**-self.digits
        if self.value > self.high:
            bound = f"can be at most {math.floor(self.high / unit + FLOAT_ERROR) * unit:.{self.digits}f}"
        else:
            bound = f"must be at least {math.ceil(self.low / unit - FLOAT_ERROR) * unit:.{self.digits}f}"
        given = ", ".join(f"{metric} {value:g}" for metric, value in self.given.items())
        return f"{self.name}: {self.metric} {self.value:.{self.digits}f} {bound}, for {given}"


@dataclass(frozen=True)
class _Cell:
    """A number with half a unit of its last digit, which the number before rounding may differ by."""

    value: float
    slack: float
    digits: int
    per_cent: bool = False
    """Whether a per cent sign stands behind it."""

    def as_share(self) -> "_Cell":
        """Return what has a per cent sign as a share, and all else as it is."""
        return _Cell(self.value / 100, self.slack / 100, self.digits + 2) if self.per_cent else self


NOTHING = _Cell(0.0, 0.0, 0)
"""Any metric at a cut of 0."""


def check_table(rows: Sequence[Mapping[str, Any]], *, exact: bool = False) -> list[Finding]:
    """Return the cells of a table that contradict others of their row.

    With one target a row, whoever is hit from place ``a + 1`` to place ``b`` gains at most ``1 / log2(a + 2)`` and at
    least ``1 / log2(b + 1)``, so ``NDCG@b - NDCG@a`` lies between those times ``HR@b - HR@a``; ``a = 0``, where both
    are 0, gives the bounds of a single cut. The same holds for MRR with ``1 / (a + 1)`` and ``1 / b``. No metric falls
    as the cut grows. A number may be off by half a unit of its last printed digit.

    Args:
        rows: a mapping a row: a name under ``name``, ``model``, ``method`` or ``system``, and numbers or their texts
            under ``recall@5``, ``HR@10``, ``ndcg@10`` and so on. Shares or per cent; other columns are not looked at.
            An empty cell or a dash is none. Where numbers with a per cent sign stand beside ones without, those
            without are shares, unless one of the table is above 1: then they are per cent too.
        exact: numbers are not rounded; otherwise as many digits count as are written.

    Returns:
        At most one finding a cell, the worst. Which of the cells is wrong cannot be told from them.

    Raises:
        InputError: a cell that is no number, a metric twice in a row, or a table without any metric.
    """
    named: list[tuple[str, dict[str, dict[int, _Cell]]]] = []
    for number, row in enumerate(rows):
        name = next((str(row[key]) for key in row if str(key).strip().lower() in NAMES), f"row {number}")
        named.append((name, _cells(row, name, exact=exact)))
    cells = [cell for _, table in named for row in table.values() for cell in row.values()]
    bare = [cell.value for cell in cells if not cell.per_cent]
    findings = []
    for name, table in named:
        if bare and max(bare) <= 1:
            table = {metric: {cut: cell.as_share() for cut, cell in row.items()} for metric, row in table.items()}
        findings += [finding for _, finding in sorted(_check_row(name, table), key=lambda found: found[0])]
    if not cells:
        raise InputError(
            f"table of {len(rows)} rows: no cell under a metric; name columns recall@5, ndcg@5 and so on, or HR@5 "
            "and N@5"
        )
    return findings


def check_file(path: str | Path) -> list[Finding]:
    """Return the cells of a file's table that contradict others of their row.

    Args:
        path: a CSV or, named ``.tsv``, a tab-separated file with a head, as `check_table` has it; a results file of
            llmrec, whose numbers are exact; or a JSON list of rows.

    Raises:
        InputError: a missing or unreadable file, a line with more cells than the head, or as `check_table`.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".json":
            return _check_json(path)
        if not path.is_file():
            raise InputError("no such file; give a CSV with a column name and columns such as recall@5 and ndcg@5")
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            rows = []
            for row in reader:
                if None in row:
                    raise InputError(f"line {reader.line_num}: more cells than the head has; quote cells with commas")
                rows.append({key: "" if value is None else value for key, value in row.items()})
        return check_table(rows)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable table ({error}); write it as CSV in UTF-8") from error
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error


def format_findings(findings: Sequence[Finding]) -> str:
    """Return findings as text, a line each; a line that says so where there are none."""
    if not findings:
        return "every row is consistent: its numbers can stand beside one another"
    return "\n".join(finding.message for finding in findings)


def _check_json(path: Path) -> list[Finding]:
    value = read_json(path, "table")
    rows = value.get("results") if isinstance(value, dict) else value
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError("no list of rows, nor a results file; write a list of objects with name, recall@5 and so on")
    if isinstance(value, dict):
        metrics = [row.get("metrics") if isinstance(row.get("metrics"), dict) else {} for row in rows]
        named = [{**cells, "name": row.get("name", "")} for row, cells in zip(rows, metrics, strict=True)]
        return check_table(named, exact=True)
    return check_table(rows)


def _cells(row: Mapping[str, Any], name: str, *, exact: bool) -> dict[str, dict[int, _Cell]]:
    """Return the cells of a row by metric and cut."""
    table: dict[str, dict[int, _Cell]] = {}
    for column, value in row.items():
        metric, _, cut = str(column).strip().lower().replace(" ", "").partition("@")
        known = next((key for key, spellings in SPELLINGS.items() if metric in spellings), None)
        text = "" if value is None else str(value).strip()
        if known is None or not cut.isdecimal() or int(cut) < 1 or text.lower() in EMPTY:
            continue
        if int(cut) in table.setdefault(known, {}):
            raise InputError(f"{name!r} has two columns of {known}@{cut}, the second {column!r}; keep one")
        table[known][int(cut)] = _cell(text, name, str(column), exact=exact)
    return table


def _cell(text: str, name: str, column: str, *, exact: bool) -> _Cell:
    number = re.fullmatch(r"\**([0-9]*)(?:\.([0-9]*))?(?:[eE]([+-]?[0-9]+))?\s*%?\**", text)
    if number is None or not (number[1] or number[2]):
        raise InputError(f"{column!r} of {name!r} is {text!r}; write a number that is not negative, such as 0.0423")
    plain = text.strip("*% ")
    digits = max(0, len(number[2] or "") - int(number[3] or 0))
    slack = 0.0 if exact else 0.5 * 10.0**-digits
    return _Cell(float(plain), slack, min(digits, 6) if exact else digits, "%" in text)


def _check_row(name: str, table: Mapping[str, Mapping[int, _Cell]]) -> Iterator[tuple[tuple[str, int], Finding]]:
    """Yield the worst finding of every cell, with its metric and cut."""
    hits = {0: NOTHING, **table.get("recall", {})}
    for metric, cells in table.items():
        worst: dict[int, tuple[float, Finding]] = {}
        cells = {0: NOTHING, **cells}
        for a, b in combinations(sorted(cells), 2):
            low, high = cells[a].value - cells[a].slack, math.inf
            given = {f"{metric}@{a}": cells[a].value} if a else {}
            if metric in GAINS and a in hits and b in hits:
                gained, slack = hits[b].value - hits[a].value, hits[b].slack + hits[a].slack
                if gained + slack < 0:
                    continue  # recall falls, and is found itself
                low += max(0.0, gained - slack) * GAINS[metric](b)
                high = cells[a].value + cells[a].slack + (gained + slack) * GAINS[metric](a + 1)
                given |= {f"recall@{cut}": hits[cut].value for cut in (a, b) if cut}
            cell = cells[b]
            excess = max(cell.value - cell.slack - high, low - cell.value - cell.slack)
            if excess > FLOAT_ERROR and excess > worst.get(b, (0.0,))[0]:
                low, high = max(0.0, low - cell.slack), high + cell.slack
                worst[b] = excess, Finding(name, f"{metric}@{b}", cell.value, low, high, given, cell.digits)
        yield from (((metric, cut), finding) for cut, (_, finding) in worst.items())
