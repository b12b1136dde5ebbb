"""Import a dataset in the JSON form of LC-Rec and LETTER: ``NAME.inter.json`` and ``NAME.item.json``.

    python data_prep/lcrec.py --source ../shared/data/office --name Office --out data/office

The catalogue is the published item table, whole, in the order of its numeric ids. The source has no times: positions
in the user's sequence stand in. ``--sids_out FOLDER`` also turns the published ``NAME.index*.json`` into a SID table.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmrec.data.collecting import Row, collect
from llmrec.data.import_flags import add_import_arguments, find_file, read_rules, write_import
from llmrec.data.import_rules import Repairs
from llmrec.data.importing import build, json_records
from llmrec.data.sources import read_json_pairs, require_file
from llmrec.errors import InputError, run_command
from llmrec.sids.table import SIDTable


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the interactions of an ``.inter.json``, an object of item lists by user id."""
    for number, (user_id, item_ids) in enumerate(read_json_pairs(path, "interactions"), start=1):
        if not isinstance(item_ids, list):
            raise InputError(f"{path}: user {user_id!r} has {item_ids!r:.60}; expected a list of items, oldest first")
        for item_id in item_ids:
            yield Row(number, user_id, item_id)


def main(argv: Sequence[str] | None = None) -> None:
    """Import LC-Rec's JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of NAME.inter.json and NAME.item.json")
    parser.add_argument("--sids_out", type=Path, help="folder for the published SIDs as a SID table")
    parser.add_argument("--index", type=Path, help="the index JSON to take (default: the only NAME.index*.json)")
    add_import_arguments(parser, unseen=False)
    args = parser.parse_args(argv)
    rules = read_rules(args)
    repairs = Repairs(strict=rules.strict)

    interactions = find_file(args.source, f"{args.name or '*'}.inter.json", "interactions", flag="--name")
    name = interactions.name.removesuffix(".inter.json")
    items = require_file(args.source / f"{name}.item.json", "item table")
    index = args.index
    if args.sids_out and index is None:
        index = find_file(args.source, f"{name}.index*.json", "SID index", flag="--index")

    collected = collect(read_rows(interactions), path=interactions, rules=rules, repairs=repairs)
    imported = build(
        collected,
        rules=rules,
        repairs=repairs,
        records=json_records(items),
        items_path=items,
        whole_catalogue=True,
        has_times=False,
    )
    table = SIDTable.from_index_json(index, item_ids=imported.catalog.item_ids) if args.sids_out else None
    report = write_import(
        args,
        imported,
        name=name,
        source=f"LC-Rec files {interactions.name} and {items.name}",
        licence="that of the source; Amazon review data is for research use, without redistribution",
        times="position",
    )
    if table is not None:
        table.save(args.sids_out)
    print(report)


if __name__ == "__main__":
    run_command(main)
