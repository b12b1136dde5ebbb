"""Write a generated dataset whose best reachable recall is known.

    python data_prep/synthetic.py --out data/synthetic

Users walk a known process over clusters of items; the manifest holds its settings and the ceiling on the
leave-one-out test rows. ``--texts`` adds ratings, queries, reviews, written texts and chat, in which the right answers
of all tasks are planted.
"""

import argparse
from collections.abc import Sequence
from dataclasses import fields

from llmrec.data.folder import write_dataset
from llmrec.data.planted import plant_texts
from llmrec.data.synthetic import Process, generate
from llmrec.errors import run_command

HELP = {
    "items": "items in the catalogue",
    "clusters": "clusters over which the items are spread",
    "users": "users who walk",
    "min_length": "fewest items of a user, at least 3",
    "max_length": "most items of a user",
    "successors": "clusters that a cluster likes to lead to",
    "stray": "probability that a step goes to any cluster",
    "exponent": "popularity within a cluster falls as 1 / rank ** exponent",
    "seed": "of everything that is drawn",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, generate, write the folder, print what is in it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", required=True, help="dataset folder to write")
    for setting in fields(Process):
        kind = type(setting.default)
        parser.add_argument(
            f"--{setting.name}", type=kind, default=setting.default, help=f"{HELP[setting.name]} (%(default)s)"
        )
    parser.add_argument("--texts", action="store_true", help="add texts and ratings with planted answers")
    options = vars(parser.parse_args(argv))
    out, texts = options.pop("out"), options.pop("texts")
    data = generate(Process(**options))
    planted = plant_texts(data) if texts else None
    data = planted.data if planted else data
    manifest = data.manifest()
    write_dataset(out, catalog=data.catalog, interactions=data.interactions, manifest=manifest)
    if planted:
        planted.save_beside(out)
    print(f"{out}: {len(data.catalog)} items, {data.process.users} users, {len(data.interactions)} interactions")
    print(
        "ceiling on the test rows: " + ", ".join(f"{name} {value:.4f}" for name, value in manifest["ceiling"].items())
    )


if __name__ == "__main__":
    run_command(main)
