"""Import interactions and items from any CSV, TSV, JSON, JSON lines or parquet file, by column names.

    python data_prep/table.py --interactions orders.csv --items products.csv --user_column customer \
        --item_column sku --timestamp_column ordered_at --title_column label --name shop --out data/shop

Timestamps are numbers in ``--time_unit`` (seconds unless said), or parquet's own times. With ``--no_times`` the order
of the file stands in. Without ``--items`` titles are item ids. All text columns of the item table are kept.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmrec.data.collecting import TIME_UNITS, Row, collect
from llmrec.data.import_flags import add_import_arguments, read_rules, write_import
from llmrec.data.import_rules import Repairs
from llmrec.data.importing import build, table_records
from llmrec.data.sources import Table, open_table
from llmrec.errors import run_command


def read_rows(table: Table, args: argparse.Namespace) -> Iterator[Row]:
    """Yield the interactions of a table."""
    for line, row in table.rows:
        timestamp = None
        if not args.no_times:
            # A row that leaves its time out is an error further on; None would mean that the source has no times.
            timestamp = row.get(args.timestamp_column)
            timestamp = "" if timestamp is None else timestamp
        user_id, item_id = row.get(args.user_column), row.get(args.item_column)
        yield Row(line, user_id, item_id, timestamp, row.get(args.rating_column), row.get(args.event_column))


def main(argv: Sequence[str] | None = None) -> None:
    """Import a table of interactions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=Path, required=True, help="table with one interaction a row")
    parser.add_argument("--items", type=Path, help="item table; without it titles are item ids")
    parser.add_argument("--user_column", default="user_id", help="column of the user ids")
    parser.add_argument("--item_column", default="item_id", help="column of the item ids")
    parser.add_argument("--items_id_column", help="column of the ids in the item table (default: --item_column)")
    parser.add_argument("--title_column", help="column of the titles in the item table (default: found by name)")
    parser.add_argument("--timestamp_column", default="timestamp", help="column of the times")
    parser.add_argument("--time_unit", choices=TIME_UNITS, default="s", help="unit of times that are numbers")
    parser.add_argument("--no_times", action="store_true", help="the source has no times: take the order of the file")
    parser.add_argument("--rating_column", default="rating", help="column of the ratings, where there is one")
    parser.add_argument("--event_column", default="event_type", help="column of the event types, where there is one")
    parser.add_argument("--licence", default="that of the source", help="the data's terms, for the manifest")
    add_import_arguments(parser, ratings=True, events=True)
    args = parser.parse_args(argv)
    rules = read_rules(args)
    repairs = Repairs(strict=rules.strict)

    interactions = open_table(args.interactions, "interactions")
    interactions.require([args.user_column], remedy="name it by --user_column")
    interactions.require([args.item_column], remedy="name it by --item_column")
    if not args.no_times:
        interactions.require([args.timestamp_column], remedy="name it by --timestamp_column, or say --no_times")
    if rules.min_rating is not None:
        interactions.require([args.rating_column], remedy="name it by --rating_column, or leave out --min_rating")
    if rules.event_types is not None:
        interactions.require([args.event_column], remedy="name it by --event_column, or leave out --event_types")
    records = None
    if args.items is not None:
        items = open_table(args.items, "item table")
        id_column = args.items_id_column or args.item_column
        records = table_records(items, item_column=id_column, title_column=args.title_column)

    collected = collect(
        read_rows(interactions, args), path=args.interactions, rules=rules, repairs=repairs, time_unit=args.time_unit
    )
    imported = build(
        collected,
        rules=rules,
        repairs=repairs,
        records=records,
        items_path=args.items,
        has_times=not args.no_times,
    )
    report = write_import(
        args,
        imported,
        name=args.interactions.stem,
        source=args.interactions.name + (f" and {args.items.name}" if args.items else ""),
        licence=args.licence,
        times="position" if args.no_times else "seconds",
    )
    print(report)


if __name__ == "__main__":
    run_command(main)
