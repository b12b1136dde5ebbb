"""The flags that all importers share, and how an import ends: a dataset folder and a short table of counts."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmrec.data.folder import check_free, write_dataset
from llmrec.data.import_rules import REPEATS, ImportRules
from llmrec.data.importing import Imported
from llmrec.data.sources import require_file
from llmrec.data.splits import History
from llmrec.errors import InputError

DOMAINS = {
    "all_beauty": "beauty products",
    "amazon_beauty": "beauty products",
    "arts_crafts_and_sewing": "arts, crafts and sewing products",
    "beauty": "beauty products",
    "books": "books",
    "cds_and_vinyl": "music albums",
    "industrial_and_scientific": "industrial and scientific products",
    "instruments": "musical instruments",
    "movies_and_tv": "movies and TV shows",
    "musical_instruments": "musical instruments",
    "office": "office products",
    "sports": "sports and outdoor products",
    "sports_and_outdoors": "sports and outdoor products",
    "toys": "toys and games",
    "toys_and_games": "toys and games",
    "video_games": "video games",
}


def write_import(
    args: argparse.Namespace,
    imported: Imported,
    *,
    name: str,
    source: str,
    licence: str,
    times: str,
    extra: Mapping[str, Any] | None = None,
    published: Mapping[str, Sequence[History]] | None = None,
) -> str:
    """Write the dataset folder ``args.out`` and return a short table of what it holds and what was mended.

    Args:
        args: the flags of `add_import_arguments`.
        imported: what to write.
        name: the dataset's name where ``--name`` is not given.
        source: what was imported, in words.
        licence: its terms.
        times: ``seconds`` or ``position``.
        extra: further entries of the manifest.
        published: rows of a published split by name.

    Raises:
        InputError: the folder holds something else than a dataset.
    """
    name = args.name or name
    manifest = {
        "name": name,
        "domain": args.domain or domain_phrase(name),
        "source": source,
        "licence": licence,
        "times": times,
        **imported.notes,
        **(extra or {}),
    }
    write_dataset(
        args.out,
        catalog=imported.catalog,
        interactions=imported.interactions,
        manifest=manifest,
        published=published,
    )
    lines = [f"{args.out}: {name}"]
    counts = {
        "users": len(imported.interactions.user_ids),
        "items": len(imported.catalog),
        "interactions": len(imported.interactions),
        **{f"{split} rows": len(rows) for split, rows in (published or {}).items()},
        **{f"dropped by --{rule}": count for rule, count in imported.notes["dropped"].items()},
        **{f"repaired: {kind}": count for kind, count in imported.notes["repairs"].items()},
    }
    width = max(map(len, counts))
    for label, count in counts.items():
        kind = label.removeprefix("repaired: ")
        example = f"   e.g. {imported.examples[kind]}" if kind in imported.examples else ""
        lines.append(f"  {label:<{width}}  {count:>12,}{example}")
    return "\n".join(lines)


def domain_phrase(name: str) -> str:
    """Return the phrase that prompts use for a dataset's items: a known one, else the name in plain words."""
    key = name.lower().replace("-", "_").removesuffix("_5")
    if key.startswith("ml_"):
        return "movies"
    return DOMAINS.get(key, name.replace("_", " "))


def add_import_arguments(
    parser: argparse.ArgumentParser,
    *,
    filters: bool = True,
    unseen: bool = True,
    ratings: bool = False,
    events: bool = False,
    k: int = 1,
) -> None:
    """Add the flags that importers share.

    Args:
        parser: the importer's parser.
        filters: whether k-core and repeats are its user's choice (not where a split is published).
        unseen: whether items without interactions are (not where the item table is kept whole).
        ratings: whether the source has ratings.
        events: whether the source can have an event column.
        k: default of ``--k_core``.
    """
    parser.add_argument("--out", type=Path, required=True, help="dataset folder to write")
    parser.add_argument("--name", help="the dataset's name (default: from the source's file name)")
    parser.add_argument("--domain", help='phrase for its items in prompts, such as "office products"')
    parser.add_argument("--limit", type=int, help="read only the first so many interactions, for a quick look")
    parser.add_argument("--strict", action="store_true", help="make everything that would be repaired an error")
    if filters:
        parser.add_argument("--k_core", type=int, default=k, help=f"fewest interactions of a user or item ({k})")
        parser.add_argument(
            "--drop_repeats",
            choices=REPEATS,
            default="keep",
            help="a user's repeats of an item: keep all, first, last",
        )
    if filters and unseen:
        parser.add_argument(
            "--keep_unseen_items", action="store_true", help="keep items that no kept interaction names"
        )
    if ratings:
        parser.add_argument("--min_rating", type=float, help="lowest rating that counts as an interaction")
    if events:
        parser.add_argument("--event_types", nargs="+", help="event types that count as interactions (default: all)")


def read_rules(args: argparse.Namespace) -> ImportRules:
    """Return the rules that the flags state, after checking that ``args.out`` may be written.

    Raises:
        InputError: an illegal rule, or a folder that holds something else than a dataset.
    """
    check_free(args.out)
    events = getattr(args, "event_types", None)
    return ImportRules(
        limit=args.limit,
        strict=args.strict,
        k_core=getattr(args, "k_core", 1),
        min_rating=getattr(args, "min_rating", None),
        event_types=None if events is None else tuple(events),
        drop_repeats=getattr(args, "drop_repeats", "keep"),
        keep_unseen_items=getattr(args, "keep_unseen_items", False),
    )


def find_file(folder: Path, pattern: str, what: str, *, flag: str) -> Path:
    """Return the one file of a folder that matches a pattern.

    Args:
        folder: the source's folder.
        pattern: as for `pathlib.Path.glob`.
        what: what the file should be, for error messages.
        flag: the flag that chooses among several.

    Raises:
        InputError: no folder, no such file, several, or an empty one.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; --source is the folder that holds the {what}")
    found = sorted(folder.glob(pattern))
    if not found:
        raise InputError(f"{folder / pattern}: no such file; expected the {what} (check --source and --name)")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(f"{folder}: several files could be the {what} ({names}); choose one by {flag}")
    return require_file(found[0], what)
