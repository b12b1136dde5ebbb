"""The flags that every evaluating command has, so that tables made by different commands can be compared."""

import argparse
from collections.abc import Sequence

from llmrec.data.folder import PROTOCOLS, DatasetFolder
from llmrec.data.splits import SPLIT_NAMES, History, Splits
from llmrec.errors import InputError
from llmrec.evaluation.evaluator import BOTH, named_exclusions


def true_or_false(text: str) -> bool:
    """Return the bool that a flag's value ``true`` or ``false`` means."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r}: write true or false")
    return text.lower() == "true"


def exclude_seen_value(text: str) -> bool | str:
    """Return what ``--exclude_seen`` means: True, False, or ``both``."""
    if text.lower() not in ("true", "false", BOTH):
        raise argparse.ArgumentTypeError(f"{text!r}: write true or false, or {BOTH}")
    return BOTH if text.lower() == BOTH else text.lower() == "true"


def add_evaluation_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--dataset --split --protocol --ks --exclude_seen --limit_users --output`` to a parser."""
    parser.add_argument("--dataset", required=True, help="dataset folder")
    parser.add_argument("--split", default="test", choices=SPLIT_NAMES, help="rows to score (default: test)")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="how the split is made")
    parser.add_argument("--ks", type=int, nargs="+", default=[5, 10], help="cuts of the metrics (default: 5 10)")
    parser.add_argument(
        "--exclude_seen", type=exclude_seen_value, default=False, metavar="true|false|both",
        help="keep items of the history out of the lists (default: false); both: two rows a system",
    )  # fmt: skip
    parser.add_argument("--limit_users", type=int, help="score only the first so many rows")
    parser.add_argument("--output", required=True, help="results file (JSON); ranks go beside it")


def rows_to_score(
    dataset: DatasetFolder, *, protocol: str, split: str, limit_users: int | None
) -> tuple[Splits, Sequence[History]]:
    """Return a dataset's splits and the rows that the flags ask for.

    Raises:
        InputError: a limit below 1, or what `DatasetFolder.split` and `Splits.rows` raise.
    """
    if limit_users is not None and limit_users < 1:
        raise InputError(f"--limit_users {limit_users}: at least 1")
    splits = dataset.split(protocol)
    return splits, splits.rows(split)[:limit_users]


def check_ks(ks: Sequence[int], items: int) -> None:
    """Raise `InputError` when a cut lies outside 1 to ``items``."""
    if min(ks) < 1 or max(ks) > items:
        raise InputError(f"--ks {' '.join(map(str, ks))}: give cuts from 1 to the {items} items of the catalogue")


def system_names(names: Sequence[str], exclude_seen: bool | str) -> list[str]:
    """Return what the systems of a results file are called, two for each name where ``exclude_seen`` is ``both``."""
    return [called for name in names for _, called in named_exclusions(name, exclude_seen)]
