"""Import raw Amazon Reviews of 2014, 2018 or 2023: a file of reviews and one of metadata, gzipped or not.

    python data_prep/amazon.py --reviews reviews_Beauty.json.gz --meta meta_Beauty.json.gz --out data/beauty-2014
    python data_prep/amazon.py --reviews All_Beauty.jsonl.gz --meta meta_All_Beauty.jsonl.gz --out data/beauty-2023

``--review_texts`` keeps what users wrote, as column ``review`` of the interactions, for the tasks that read it.
The release is told from the keys of the first review. Users and items keep at least five interactions (``--k_core``);
a review that stands twice (user, item and time) counts once; milliseconds (2023) become seconds.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from llmrec.data.collecting import Row, collect, drop_same_events
from llmrec.data.import_flags import add_import_arguments, read_rules, write_import
from llmrec.data.import_rules import Repairs
from llmrec.data.importing import Record, build
from llmrec.data.sources import read_json_lines, require_file
from llmrec.errors import InputError, run_command

TEXTS = {
    "title": "title",
    "brand": "brand",
    "store": "brand",
    "category": "categories",
    "categories": "categories",
    "description": "description",
}


class Release(NamedTuple):
    """The keys that a release of the reviews uses."""

    years: str
    user: str
    item: str
    rating: str
    time: str
    time_unit: str
    text: str


RELEASES = (
    Release("2014 or 2018", "reviewerID", "asin", "overall", "unixReviewTime", "s", "reviewText"),
    Release("2023", "user_id", "parent_asin", "rating", "timestamp", "ms", "text"),
)


def find_release(reviews: Path) -> Release:
    """Return the release that a file of reviews belongs to.

    Raises:
        InputError: its first line has the keys of none.
    """
    _, first = next(read_json_lines(reviews, "reviews"))
    for release in RELEASES:
        if {release.user, release.item, release.time} <= set(first):
            return release
    wanted = " or ".join(f"{release.user}, {release.item}, {release.time}" for release in RELEASES)
    raise InputError(f"{reviews}: the first review has the keys {', '.join(first)}; expected {wanted}")


def read_rows(reviews: Path, release: Release, *, texts: bool = False) -> Iterator[Row]:
    """Yield the interactions of a file of reviews, with what users wrote where ``texts`` asks for it."""
    for line, review in read_json_lines(reviews, "reviews"):
        # A review without its time is an error further on; None would mean that the source has no times.
        timestamp = review.get(release.time, "")
        timestamp = "" if timestamp is None else timestamp
        written = str(review.get(release.text) or "") if texts else None
        user, item, rating = review.get(release.user), review.get(release.item), review.get(release.rating)
        yield Row(line, user, item, timestamp, rating, review=written)


def read_records(meta: Path, release: Release) -> Iterator[Record]:
    """Yield the items of a file of metadata."""
    for line, item in read_json_lines(meta, "metadata"):
        if line == 1 and release.item not in item:
            raise InputError(
                f"{meta}: the first item has no {release.item!r} but {', '.join(item)}; take the metadata of the "
                f"{release.years} release"
            )
        fields = {TEXTS[key]: value for key, value in item.items() if key in TEXTS and value}
        yield Record(line, str(item.get(release.item) or ""), fields)


def main(argv: Sequence[str] | None = None) -> None:
    """Import Amazon reviews."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reviews", type=Path, required=True, help="reviews, .json, .jsonl or either with .gz")
    parser.add_argument("--meta", type=Path, required=True, help="metadata of the same release")
    parser.add_argument("--review_texts", action="store_true", help="keep the texts of the reviews")
    add_import_arguments(parser, ratings=True, k=5)
    args = parser.parse_args(argv)
    rules = read_rules(args)
    repairs = Repairs(strict=rules.strict)

    require_file(args.meta, "metadata")
    release = find_release(args.reviews)
    next(read_records(args.meta, release))
    collected = collect(
        read_rows(args.reviews, release, texts=args.review_texts),
        path=args.reviews,
        rules=rules,
        repairs=repairs,
        time_unit=release.time_unit,
    )
    imported = build(
        drop_same_events(collected, repairs),
        rules=rules,
        repairs=repairs,
        records=read_records(args.meta, release),
        items_path=args.meta,
    )
    report = write_import(
        args,
        imported,
        name=args.reviews.name.split(".")[0].removeprefix("reviews_").removesuffix("_5"),
        source=f"Amazon Reviews {release.years}: {args.reviews.name} and {args.meta.name}",
        licence="Amazon review data, for research use, without redistribution",
        times="seconds",
    )
    print(report)


if __name__ == "__main__":
    run_command(main)
