"""Compare systems user by user: one HTML page that needs nothing else, a markdown table and a JSON file.

    python recipes/compare.py runs/office-results.json --reference transitions --dataset data/office \
        --output runs/office-compare.html
    python recipes/compare.py runs/a.json:model runs/b.json:model --metrics ndcg@10
    python recipes/compare.py --check TABLE.csv

RESULTS are files that ``evaluate.py``, ``baselines.py`` and ``fuse.py`` wrote, or systems of them. All must be of the
same rows; results with seen items kept and left out get a table each, and seeds of one configuration are pooled.
Beside PAGE.html stand PAGE.md and PAGE.comparison.json, without titles. With ``--dataset`` the page shows ten worked
examples with titles: keep such a page where git ignores it. ``--check`` reads a table of HR and NDCG (a
CSV, or a results file), published ones too, prints the cells that cannot be, and ends with status 1 where some are.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from llmrec.artifacts import made_by, whole_file, write_json
from llmrec.data.folder import load_dataset
from llmrec.errors import InputError, run_command
from llmrec.evaluation.consistency import check_file, format_findings
from llmrec.evaluation.corrections import CORRECTIONS
from llmrec.evaluation.report import pairs_markdown, read_makings, report_groups, report_markdown, scores_markdown
from llmrec.evaluation.report_examples import EXAMPLES, examples_of, examples_section
from llmrec.evaluation.report_html import write_html
from llmrec.evaluation.report_page import report_page
from llmrec.evaluation.results import check_output


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", metavar="RESULTS", help="FILE.json or FILE.json:NAME")
    parser.add_argument("--output", type=Path, help="the page, .html; .md and .comparison.json go beside it")
    parser.add_argument("--metrics", nargs="+", help="recall@K, ndcg@K, mrr@K (default: recall and ndcg of all files)")
    parser.add_argument("--reference", help="the system that others are compared with (default: each with each)")
    parser.add_argument("--dataset", help="dataset folder, for worked examples with titles")
    parser.add_argument("--bundles", nargs="+", default=[], metavar="[NAME=]FOLDER", help="for training curves, SIDs")
    parser.add_argument("--samples", type=int, help="of bootstraps and tests (default: 10000, more for many pairs)")
    parser.add_argument("--seed", type=int, default=0, help="of samples and examples (default: 0)")
    parser.add_argument("--level", type=float, default=0.95, help="confidence (default: 0.95)")
    parser.add_argument("--correction", choices=tuple(CORRECTIONS), default="holm", help="for many tests")
    parser.add_argument(
        "--examples", type=int, default=EXAMPLES, help=f"worked examples, 0 for none (default: {EXAMPLES})"
    )
    parser.add_argument("--check", metavar="TABLE", help="check a table of HR and NDCG, and compare nothing")
    for old in ("--a", "--b", "--metric"):  # how systems were named before there were several
        parser.add_argument(old, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.a or args.b or args.metric:
        wanted = " ".join(filter(None, [args.a or "A", args.b or "B", args.metric and f"--metrics {args.metric}"]))
        raise InputError(f"--a, --b and --metric are no more: write recipes/compare.py {wanted}")
    for flag, low in (("samples", 1), ("examples", 0), ("seed", 0)):
        if (given := getattr(args, flag)) is not None and given < low:
            raise InputError(f"--{flag} {given}: at least {low}")
    if not 0 < args.level < 1:
        raise InputError(f"--level {args.level}: between 0 and 1, such as 0.95")
    if not args.results and not args.check:
        raise InputError("no RESULTS: name at least one FILE.json or FILE.json:NAME, or give --check TABLE")
    return args


def files_beside(page: Path, results: Sequence[str]) -> tuple[Path, Path]:
    """Return the markdown and the JSON file beside a page, none of which may be one of the results."""
    check_output(page, [])
    if page.suffix != ".html":
        raise InputError(f"--output {page}: name the page, such as {page.with_suffix('.html')}")
    beside = page.with_suffix(".md"), page.with_suffix(".comparison.json")
    for path in (page, *beside):
        if any(source == str(path) or source.startswith(f"{path}:") for source in results):
            raise InputError(f"--output {page}: {path} is among the RESULTS and would be lost; choose another name")
    return beside


def main(argv: Sequence[str] | None = None) -> None:
    """Read, compare, print and write."""
    args = parse(argv)
    if args.check:
        findings = check_file(args.check)
        print(format_findings(findings))
        raise SystemExit(bool(findings))
    beside = files_beside(args.output, args.results) if args.output else None
    dataset = load_dataset(args.dataset) if args.dataset else None
    groups = report_groups(
        args.results,
        metrics=args.metrics,
        reference=args.reference,
        samples=args.samples,
        seed=args.seed,
        level=args.level,
        correction=args.correction,
        progress=True,
    )
    made = made_by()
    line = f"Made by `{made['command']}` at commit {made['commit'] or 'unknown'}, {made['date']}."
    for group in groups:
        print("\n\n".join(filter(None, [group.said, scores_markdown(group), pairs_markdown(group)])))
    if beside is None:
        return
    examples, left_out = None, {}
    if dataset is not None and not args.examples:
        left_out = {"Worked examples": "--examples 0 asks for none"}
    elif dataset is not None:
        # The first table's rows: those of the others are the same.
        metric = groups[0].comparison.metrics[-1]
        chosen, without = examples_of(groups[0].runs, dataset, metric=metric, examples=args.examples, seed=args.seed)
        titles = dataset.catalog.titles
        examples = examples_section(chosen, titles, seed=args.seed, metric=metric, without=without)
        left_out = {} if chosen else {"Worked examples": "no .lists.parquet stands beside the results; evaluate again"}
    page = report_page(
        groups, makings=read_makings(groups, args.bundles), examples=examples, left_out=left_out, made=line
    )
    write_html(args.output, page)
    with whole_file(beside[0]) as part:
        part.write_text(report_markdown(groups, made=line), encoding="utf-8")
    write_json(beside[1], {"groups": [group.to_json() for group in groups], "made_by": made})
    print(f"written to {args.output}, {beside[0]} and {beside[1]}")


if __name__ == "__main__":
    run_command(main)
