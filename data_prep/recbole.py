"""Import a dataset in RecBole's atomic files: ``NAME.inter`` and ``NAME.item``, tab-separated, with typed heads.

    python data_prep/recbole.py --source ../shared/data/ml-100k --name ml-100k --out data/ml-100k

Columns: ``user_id``, ``item_id``, ``timestamp`` (``--no_times`` where the source has none: the order of the file
stands in), and where they exist ``rating`` and ``event_type``. All text columns of the item file are kept.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmrec.data.collecting import Row, collect
from llmrec.data.import_flags import add_import_arguments, read_rules, write_import
from llmrec.data.import_rules import Repairs
from llmrec.data.importing import build, table_records
from llmrec.data.sources import Table, open_table
from llmrec.errors import InputError, run_command


def find_name(source: Path, name: str | None) -> str:
    """Return the base name of the atomic files in a folder: ``name``, or that of the only ``.inter`` file."""
    if name is not None:
        return name
    found = sorted(path.stem for path in source.glob("*.inter"))
    if len(found) != 1:
        raise InputError(f"{source}: {len(found)} files end in .inter; say by --name which dataset to take")
    return found[0]


def read_rows(table: Table, *, event_column: str, times: bool) -> Iterator[Row]:
    """Yield the interactions of an ``.inter`` file."""
    for line, row in table.rows:
        timestamp = row["timestamp"] if times else None
        yield Row(line, row["user_id"], row["item_id"], timestamp, row.get("rating"), row.get(event_column))


def main(argv: Sequence[str] | None = None) -> None:
    """Import RecBole's atomic files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of NAME.inter and NAME.item")
    parser.add_argument("--title_column", help="column of the titles (default: found by name)")
    parser.add_argument("--event_column", default="event_type", help="column of the event types")
    parser.add_argument("--no_times", action="store_true", help="the source has no times: take the order of the file")
    add_import_arguments(parser, ratings=True, events=True)
    args = parser.parse_args(argv)
    rules = read_rules(args)
    repairs = Repairs(strict=rules.strict)

    name = find_name(args.source, args.name)
    interactions = open_table(args.source / f"{name}.inter", "interactions")
    interactions.require(["user_id", "item_id"])
    if not args.no_times:
        interactions.require(["timestamp"], remedy="with --no_times the order of the file stands in")
    if rules.min_rating is not None:
        interactions.require(["rating"], remedy="leave out --min_rating")
    if rules.event_types is not None:
        interactions.require([args.event_column], remedy="name the column by --event_column")
    items = open_table(args.source / f"{name}.item", "item table")
    records = table_records(items, title_column=args.title_column)

    rows = read_rows(interactions, event_column=args.event_column, times=not args.no_times)
    collected = collect(rows, path=interactions.path, rules=rules, repairs=repairs)

    imported = build(
        collected, rules=rules, repairs=repairs, records=records, items_path=items.path, has_times=not args.no_times
    )
    report = write_import(
        args,
        imported,
        name=name,
        source=f"RecBole atomic files {name}.inter and {name}.item",
        licence="that of the source; RecBole's datasets keep their owners' terms",
        times="position" if args.no_times else "seconds",
    )
    print(report)


if __name__ == "__main__":
    run_command(main)
