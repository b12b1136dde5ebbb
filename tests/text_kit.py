"""A small dataset with all that tasks of texts read: quotes, commas, other scripts, gaps, held-out marks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llmrec.data.folder import DatasetFolder, load_dataset, write_dataset
from llmrec.data.interactions import Interactions
from llmrec.data.items import Catalog
from llmrec.data.written_texts import save_written_texts
from llmrec.sids.table import SIDTable, pad_codes
from llmrec.training.tokenizer import train_tokenizer
from llmrec.vocab import SIDVocab, add_sid_tokens

HELD_OUT = "HELD-OUT"
ITEM_IDS = ("p", "q", "r", "s", "t", "u")
CATALOG = Catalog(
    ITEM_IDS,
    {
        "title": ('Paper, A4 "white"', "Crème pen; 'soft', 日本", "Ruler {30 cm}", "s", "Ink, 50% off", "Étui"),
        "brand": ("BIC", "Büro & Co", "BIC", "", "Büro & Co", ""),
        "categories": ("Office, Paper", "Office, Pens", "Office, Tools", "", "Office, Pens", "Office, Cases"),
    },
)
# User a takes p q r t s, user b takes q t p r, user c takes u p q: the last two of each are held out.
SEQUENCES = {"a": "pqrts", "b": "qtpr", "c": "upq"}
TRAINING = {"a": "pqr", "b": "qt", "c": "u"}
RATINGS = {"a": (5, 4.5, np.nan, 1, 1), "b": (3, 2, 1, 1), "c": (4, 1, 1)}
REVIEWS = {
    "a": ('"Crisp", I\'d say', "Schreibt, weich — 柔らか", "", f"{HELD_OUT} a3", f"{HELD_OUT} a4"),
    "b": ("ok {really}", "stains,\nbadly", f"{HELD_OUT} b2", f"{HELD_OUT} b3"),
    "c": ("zips", f"{HELD_OUT} c1", f"{HELD_OUT} c2"),
}
# The first position that is held out, by user.
CUT = {user: len(items) for user, items in TRAINING.items()}
CODES = [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]


def interactions(*, texts: bool = True) -> Interactions:
    flat = [(user, item) for user, items in SEQUENCES.items() for item in items]
    reviews = [text for texts_ in REVIEWS.values() for text in texts_]
    rationales = [f"{HELD_OUT} why" if place >= CUT[user] else f"after {place}, {items[place]}" if place else ""
                  for user, items in SEQUENCES.items() for place in range(len(items))]  # fmt: skip
    return Interactions(
        tuple(SEQUENCES),
        users=np.array(["abc".index(user) for user, _ in flat]),
        items=np.array([ITEM_IDS.index(item) for _, item in flat]),
        timestamps=np.arange(len(flat)),
        ratings=np.array([rating for ratings in RATINGS.values() for rating in ratings], dtype=np.float32),
        texts={"review": pa.array(reviews), "rationale": pa.array(rationales)} if texts else {},
    )


def write_texts(folder: Path, kind: str, rows: Sequence[tuple[str, int, str]], **changes: Any) -> Path:
    """Write rows of (user, position, text); the items are those of the dataset."""
    columns = {
        "user_ids": [user for user, _, _ in rows],
        "item_ids": None if kind == "preferences" else [SEQUENCES[user][place] for user, place, _ in rows],
        "positions": [place for _, place, _ in rows],
        "texts": [text for _, _, text in rows],
        **changes,
    }
    return save_written_texts(folder, kind, **columns, manifest={"model": "by hand"})


def write_folder(folder: Path, *, texts: bool = True) -> DatasetFolder:
    manifest = {"name": "desk", "domain": "desk things", "source": "by hand", "licence": "none", "times": "seconds"}
    write_dataset(folder, catalog=CATALOG, interactions=interactions(texts=texts), manifest=manifest)
    return load_dataset(folder)


def write_all_texts(folder: Path) -> None:
    """Write intentions and explanations of every interaction, preferences of every history; mark held-out ones."""
    every = [(user, place) for user, items in SEQUENCES.items() for place in range(len(items))]
    for kind in ("intentions", "explanations"):
        rows = [
            (user, place, f"{HELD_OUT} {place}" if place >= CUT[user] else f'"{kind}", {user} — {place} 日本')
            for user, place in every
        ]
        write_texts(folder, kind, rows)
    # A preference at the cut knows all training interactions and nothing else: it may serve validation.
    rows = [(user, place, f"likes, {user} to {place}" if place <= CUT[user] else f"{HELD_OUT} {place}")
            for user, place in every if place]  # fmt: skip
    write_texts(folder, "preferences", rows)


def make_vocab() -> SIDVocab:
    table = SIDTable(ITEM_IDS, pad_codes(CODES, 2), (3, 2))
    tokenizer = train_tokenizer(CATALOG.titles, vocab_size=300)
    add_sid_tokens(tokenizer, table)
    return SIDVocab(tokenizer, table)
