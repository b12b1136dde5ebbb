"""Import a dataset in MiniOneRec's form: item and index JSON, ``info`` text, and a CSV for each of three splits.

    python data_prep/minionerec.py --source ../shared/data/minionerec-industrial --name Industrial_and_Scientific \
        --out data/industrial

The published splits are kept as published. Where the train CSV is absent, training rows are recovered from the
histories of validation rows alone and the manifest says ``train: recovered`` (docs/data.md has the rule). The
catalogue is the published item table, whole. ``--limit`` counts rows of each CSV. ``--sids_out FOLDER`` also turns the
published index into a SID table.
"""

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmrec.data.import_flags import add_import_arguments, find_file, read_rules, write_import
from llmrec.data.import_rules import Repairs
from llmrec.data.importing import Imported, build_catalog, json_records, read_items, sort_ids
from llmrec.data.published import PublishedRow, build_published
from llmrec.data.sources import Table, literal, open_table, read_json_pairs, read_lines, require_file
from llmrec.errors import InputError, run_command
from llmrec.sids.table import SIDTable

DISAGREE = "rows_that_disagree_with_the_item_table"


def read_list(row: Mapping[str, Any], column: str, place: str) -> list[Any]:
    """Return a list that the CSV holds as a Python literal."""
    values = literal(row[column])
    if not isinstance(values, list):
        raise InputError(f"{place}: {column} is {row[column]!r:.60}, expected a list such as [12, 7]; mend the row")
    return values


def read_sids(path: Path) -> dict[str, str]:
    """Return the SIDs of an index JSON as text."""
    sids = {}
    for item_id, tokens in read_json_pairs(path, "SID index"):
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise InputError(f"{path}: item {item_id!r} has SID {tokens!r:.60}; expected a list of tokens")
        sids[item_id] = "".join(tokens)
    return sids


def read_split(
    table: Table, *, limit: int | None, titles: Mapping[str, str], sids: Mapping[str, str], repairs: Repairs
) -> Iterator[PublishedRow]:
    """Yield the rows of a split's CSV, counting those whose title or SIDs are not those of the item and index JSON."""
    for line, row in itertools.islice(table.rows, limit):
        place = f"{table.path}: row {line}"
        history = tuple(str(item) for item in read_list(row, "history_item_id", place))
        target = row["item_id"].strip()
        pairs = []
        if "item_title" in table.columns:
            pairs.append(("title", row["item_title"], titles.get(target)))
        if "item_sid" in table.columns:
            pairs.append(("SID", row["item_sid"], sids.get(target)))
        if "history_item_sid" in table.columns:
            shown = [str(sid) for sid in read_list(row, "history_item_sid", place)]
            pairs.append(("history of SIDs", shown, [sids.get(item) for item in history]))
        for what, found, expected in pairs:
            if found != expected:
                remedy = "item and index JSON are taken"
                repairs.note(DISAGREE, place, f"its {what} is {found!r:.80}, not {expected!r:.80}", remedy)
        yield PublishedRow(line, row["user_id"].strip(), history, target)


def check_info(path: Path, *, titles: Mapping[str, str], sids: Mapping[str, str], repairs: Repairs) -> None:
    """Count the lines of ``info`` (SID, title, item id) that are not those of the item and index JSON."""
    for number, line in read_lines(path, "info"):
        sid, _, rest = line.partition("\t")
        title, _, item_id = rest.rpartition("\t")
        if titles.get(item_id) != title or sids.get(item_id) != sid:
            remedy = "item and index JSON are taken"
            repairs.note(DISAGREE, f"{path}: row {number}", f"item {item_id!r} has {sid} {title!r:.60}", remedy)


def main(argv: Sequence[str] | None = None) -> None:
    """Import MiniOneRec's files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of the JSON files and of valid/ and test/")
    parser.add_argument("--sids_out", type=Path, help="folder for the published SIDs as a SID table")
    add_import_arguments(parser, filters=False)
    args = parser.parse_args(argv)
    rules = read_rules(args)
    repairs = Repairs(strict=rules.strict)

    items_path = find_file(args.source, f"{args.name or '*'}.item.json", "item table", flag="--name")
    name = items_path.name.removesuffix(".item.json")
    index_path = require_file(args.source / f"{name}.index.json", "SID index")
    tables = {}
    for split in ("train", "valid", "test"):
        if split != "train" or any((args.source / split).glob(f"{name}*.csv")):
            path = find_file(args.source / split, f"{name}*.csv", f"{split} rows", flag="--name")
            tables[split] = open_table(path, f"{split} rows")
            tables[split].require(["user_id", "history_item_id", "item_id"])

    records = list(json_records(items_path))
    titles = {record.item_id: str(record.fields.get("title") or "") for record in reversed(records)}
    sids = read_sids(index_path)
    texts = read_items(records, path=items_path, repairs=repairs)
    catalog = build_catalog(sort_ids(texts), texts, repairs=repairs, path=items_path)
    table = SIDTable.from_index_json(index_path, item_ids=catalog.item_ids) if args.sids_out else None
    for info in sorted(args.source.glob(f"{name}*.txt")):
        check_info(info, titles=titles, sids=sids, repairs=repairs)
    rows = {
        split: list(read_split(table, limit=rules.limit, titles=titles, sids=sids, repairs=repairs))
        for split, table in tables.items()
    }
    paths = {split: table.path for split, table in tables.items()}
    published = build_published(rows, catalog=catalog, paths=paths, repairs=repairs)
    notes = {
        "rules": {} if rules.limit is None else {"limit": rules.limit},
        "rows_read": sum(map(len, rows.values())),
        "dropped": {},
        "repairs": dict(sorted(repairs.counts.items())),
        **published.notes,
    }
    imported = Imported(catalog, published.interactions, notes, repairs.examples)
    report = write_import(
        args,
        imported,
        name=name,
        source=f"MiniOneRec files {items_path.name}, {index_path.name} and the CSVs of {', '.join(tables)}",
        licence="that of the source; Amazon review data is for research use, without redistribution",
        times="position",
        published=published.splits,
    )
    if table is not None:
        table.save(args.sids_out)
    print(report)
    if notes["train"] == "recovered":
        print(
            "  train rows are recovered from the histories of validation rows; the published train file is not there"
        )


if __name__ == "__main__":
    run_command(main)
