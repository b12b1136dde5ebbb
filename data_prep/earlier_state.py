"""Write a dataset folder as it was earlier, so that a bundle can be trained on it and go on with what came since.

    python data_prep/earlier_state.py --dataset data/demo --share 0.8 --out data/demo-earlier

A daily job needs none of this: it keeps the folder that the last bundle was trained on.
"""

import argparse
from collections.abc import Sequence

from llmrec.data.earlier import earlier_interactions
from llmrec.data.folder import check_free, load_dataset, write_dataset
from llmrec.errors import run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Cut, write, and print what is left."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--dataset", required=True, help="dataset folder without a published split")
    cut = parser.add_mutually_exclusive_group(required=True)
    cut.add_argument("--before", type=int, help="keep interactions before this time, in seconds")
    cut.add_argument("--share", type=float, help="keep this share of each user's interactions, the first ones")
    parser.add_argument("--out", required=True, help="dataset folder to write")
    args = parser.parse_args(argv)
    check_free(args.out)
    dataset = load_dataset(args.dataset)
    kept = earlier_interactions(dataset.interactions, before=args.before, share=args.share)
    own = ("format_version", "counts", "catalog_hash", "files", "made_by")
    manifest = {key: value for key, value in dataset.manifest.items() if key not in own}
    cut_by = {"before": args.before} if args.share is None else {"share": args.share}
    write_dataset(args.out, catalog=dataset.catalog, interactions=kept, manifest={**manifest, "earlier": cut_by})
    print(
        f"wrote {args.out}: {len(kept):,} of {len(dataset.interactions):,} interactions, {len(kept.user_ids):,} of "
        f"{len(dataset.interactions.user_ids):,} users, all {len(dataset.catalog):,} items"
    )


if __name__ == "__main__":
    run_command(main)
