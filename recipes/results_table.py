"""Write the README's table of results from the results files, and fail when it was another.

    python recipes/results_table.py
    python recipes/results_table.py --check

``recipes/results/table.json`` says which systems of which files stand in the table, and which published rows beside
them. Ends with status 1, and prints the difference, when the table in the README was not the one that the files make;
``--check`` leaves the README as it is.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from llmrec.errors import run_command
from llmrec.evaluation.results_table import SPEC_FILE, section_diff

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> None:
    """Make the table, compare, write and fail when it differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only; write nothing")
    parser.add_argument("--table", default=ROOT / "recipes" / "results" / SPEC_FILE, help="which rows it has")
    parser.add_argument("--document", default=ROOT / "README.md", help="markdown file with the two markers")
    args = parser.parse_args(argv)

    difference = section_diff(args.document, args.table, write=not args.check)
    if not difference:
        print(f"{args.document}: its table is the one that {args.table} makes")
        return
    print(difference)
    print(f"{args.document}: {'its table differs' if args.check else 'the table was another; it is written anew'}")
    raise SystemExit(1)


if __name__ == "__main__":
    run_command(main)
