"""Write the tables of results from the results files, and fail when they were others.

    python recipes/results_table.py
    python recipes/results_table.py --check

``recipes/results/table.json`` says which systems of which files stand in the README's table, and which published rows
beside them, ``full_table.json`` the same of ``docs/results.md``. Ends with status 1, and prints the difference, when a
table was not the one that the files make; ``--check`` leaves the documents as they are.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from llmrec.errors import InputError, run_command
from llmrec.evaluation.results_table import SPEC_FILE, section_diff

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "recipes" / "results"
DOCUMENTS = {ROOT / "README.md": RESULTS / SPEC_FILE, ROOT / "docs" / "results.md": RESULTS / "full_table.json"}
"""Whose table is made from which list of rows."""


def main(argv: Sequence[str] | None = None) -> None:
    """Make the table, compare, write and fail when it differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only; write nothing")
    parser.add_argument("--table", type=Path, help="which rows a table has (default: those of the two documents)")
    parser.add_argument("--document", type=Path, help="markdown file with the two markers")
    args = parser.parse_args(argv)
    if (args.table is None) != (args.document is None):
        raise InputError("--table and --document: give both, or neither for the README and docs/results.md")

    documents = DOCUMENTS if args.document is None else {args.document: args.table}
    differences = {path: section_diff(path, spec, write=not args.check) for path, spec in documents.items()}
    for path, difference in differences.items():
        if not difference:
            print(f"{path}: its table is the one that {documents[path]} makes")
            continue
        print(difference)
        print(f"{path}: {'its table differs' if args.check else 'the table was another; it is written anew'}")
    if any(differences.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(main)
