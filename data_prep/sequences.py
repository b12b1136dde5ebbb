"""Import a text file with one line a user (user id, then item ids, oldest first) and the item table beside it.

    python data_prep/sequences.py --source ../shared/data/beauty/user_sequence.txt \
        --items ../shared/data/beauty/Amazon_Beauty.item --out data/beauty

The item table is a RecBole ``.item`` file, CSV, TSV, JSON, JSON lines or parquet. Without one, titles are item ids.
The source has no times: positions in the user's sequence stand in.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmrec.data.collecting import Row, collect
from llmrec.data.import_flags import add_import_arguments, read_rules, write_import
from llmrec.data.import_rules import Repairs
from llmrec.data.importing import build, table_records
from llmrec.data.sources import open_table, read_lines, require_file
from llmrec.errors import InputError, run_command


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the interactions of a file of sequences."""
    for line, text in read_lines(path, "user sequences"):
        user_id, *item_ids = text.split()
        if not item_ids:
            raise InputError(f"{path}: line {line} has a user, {user_id!r}, and no items; expected a user, then items")
        for item_id in item_ids:
            yield Row(line, user_id, item_id)


def main(argv: Sequence[str] | None = None) -> None:
    """Import user sequences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="file of user sequences")
    parser.add_argument("--items", type=Path, help="item table; without it titles are item ids")
    parser.add_argument("--item_column", default="item_id", help="column of the ids in the item table")
    parser.add_argument("--title_column", help="column of the titles in the item table (default: found by name)")
    add_import_arguments(parser)
    args = parser.parse_args(argv)
    rules = read_rules(args)
    repairs = Repairs(strict=rules.strict)

    source = require_file(args.source, "user sequences")
    records = None
    if args.items is not None:
        table = open_table(args.items, "item table")
        records = table_records(table, item_column=args.item_column, title_column=args.title_column)

    collected = collect(read_rows(source), path=source, rules=rules, repairs=repairs)
    imported = build(collected, rules=rules, repairs=repairs, records=records, items_path=args.items, has_times=False)
    report = write_import(
        args,
        imported,
        name=source.resolve().parent.name or source.stem,
        source=f"user sequences {source.name}" + (f" and item table {args.items.name}" if args.items else ""),
        licence="that of the source; Amazon review data is for research use, without redistribution",
        times="position",
    )
    print(report)


if __name__ == "__main__":
    run_command(main)
