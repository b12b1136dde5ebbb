"""How hard is a dataset, and what do its shortcuts give away: a verdict here, a JSON, and a page with real titles.

python recipes/audit.py --dataset data/office --embeddings data/office/embeddings.safetensors \
    --output runs/audit-office.html

The JSON lies beside the page and holds aggregates alone; the page shows titles and stays out of git. Heuristics are
scored on validation rows, never on test: of test rows it is only described how near their targets lie. Without
--embeddings, TF-IDF of the items' text is taken.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmrec.artifacts import made_by, write_json
from llmrec.baselines.base import Baseline
from llmrec.baselines.context import FitContext
from llmrec.baselines.item_knn import ItemKNN
from llmrec.baselines.popularity import Popularity
from llmrec.baselines.transition_graph import TransitionGraph
from llmrec.baselines.transitions import Transitions
from llmrec.data.folder import PROTOCOLS, DatasetFolder, load_dataset
from llmrec.embeddings.store import load_embeddings, load_manifest
from llmrec.embeddings.tfidf import embed_tfidf
from llmrec.errors import InputError, run_command
from llmrec.evaluation.audit import examples, excludes_seen, heuristics, structure
from llmrec.evaluation.audit_page import write_audit_page
from llmrec.evaluation.audit_words import judge, verdict_text
from llmrec.evaluation.leaks import embedding_leaks

TEXT_COLUMNS = ("title", "brand", "categories")
TFIDF_DIM = 128
RECENCIES = (0.5, 0.8, 1.0)
ORDERED = ("transitions", "transition_graph")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--dataset", type=Path, required=True, help="dataset folder")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="how the split is made (default: the dataset's)")
    parser.add_argument("--embeddings", type=Path, help="of the items (default: TF-IDF of their text)")
    parser.add_argument(
        "--exclude_seen", choices=("auto", "true", "false"), default="auto",
        help="keep items of the history out of lists (default: where no row of training and validation repeats one)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="*.html (default: runs/audit-NAME.html); the JSON lies beside it")
    return parser.parse_args(argv)


def read_vectors(args: argparse.Namespace, dataset: DatasetFolder) -> tuple[np.ndarray, str]:
    """Return the items' vectors, and what made them."""
    if args.embeddings is not None:
        vectors = load_embeddings(args.embeddings, catalog=dataset.catalog)
        return vectors, str(load_manifest(args.embeddings)["encoder"])
    texts = dataset.catalog.texts([name for name in TEXT_COLUMNS if name in dataset.catalog.columns])
    words = {word for text in texts for word in text.split()}
    return embed_tfidf(texts, dim=max(1, min(TFIDF_DIM, len(texts) - 1, len(words) // 2))), "TF-IDF"


def main(argv: Sequence[str] | None = None) -> None:
    """Describe, score heuristics on validation, judge, print and write."""
    args = parse(argv)
    if args.output is not None and args.output.suffix != ".html":
        raise InputError(f"--output {args.output}: the page is a *.html file; the JSON gets the same name with .json")
    dataset = load_dataset(args.dataset)
    items = len(dataset.catalog)
    splits = dataset.split(args.protocol)
    rows = splits.rows("valid")
    vectors, encoder = read_vectors(args, dataset)
    exclude_seen = excludes_seen(splits) if args.exclude_seen == "auto" else args.exclude_seen == "true"
    found = structure(dataset, splits, vectors=vectors, encoder=encoder)

    context = FitContext(embeddings=vectors)
    makers: dict[str, Baseline] = {
        "popularity": Popularity(),
        "transitions": Transitions(fills_beside_seen=True),
        "item_knn": ItemKNN(),
        "transition_graph": TransitionGraph(),
    }
    baselines = {name: maker.fit(splits.sequences, items=items, context=context) for name, maker in makers.items()}
    knn = baselines["item_knn"]
    variants = {f"item_knn, recency {recency}": knn.with_late({"recency": recency}) for recency in RECENCIES}
    scores = heuristics(baselines, variants, rows, items=items, exclude_seen=exclude_seen, ordered=ORDERED)

    audit = {
        "dataset": dataset.name,
        "protocol": splits.protocol,
        "train": dataset.manifest.get("train"),
        "catalog": dataset.catalog.hash,
        "leaks": None if args.embeddings is None else embedding_leaks(args.embeddings, dataset, splits),
        **found,
        "heuristics": scores,
    }
    audit["verdict"] = judge(audit)
    audit["made_by"] = made_by()
    output = args.output or Path("runs") / f"audit-{dataset.path.resolve().name}.html"
    write_json(output.with_suffix(".json"), audit)
    write_audit_page(output, audit, examples=examples(dataset, splits))
    print(verdict_text(audit))
    print(f"written to {output} and {output.with_suffix('.json')}")


if __name__ == "__main__":
    run_command(main)
