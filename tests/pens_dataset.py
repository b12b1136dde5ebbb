"""A dataset folder of the items that `bundle_kit` makes bundles of."""

from pathlib import Path

import numpy as np
from bundle_kit import ITEMS, TITLES, make_table

from llmrec.data.folder import write_dataset
from llmrec.data.interactions import Interactions
from llmrec.data.items import Catalog


def write_pens(path: Path, *, order: list[int] | None = None, extra: tuple[str, ...] = (), seed: int = 0) -> Path:
    """Thirty users of six items. ``order``: bundle rows in the dataset's order; ``extra``: more items, used too."""
    order = list(range(ITEMS)) if order is None else order
    ids = [make_table().item_ids[row] for row in order]
    place = {row: number for number, row in enumerate(order)}
    rng = np.random.default_rng(seed)
    walks = [[place[int(row)] for row in rng.choice(ITEMS, 6, replace=False)] for _ in range(30)]
    for number in range(len(extra)):
        walks[number][2] = walks[number + 10][-1] = len(order) + number
    write_dataset(
        path,
        catalog=Catalog((*ids, *extra), {"title": (*(TITLES[row] for row in order), *extra)}),
        interactions=Interactions(
            tuple(f"u{user}" for user in range(30)),
            users=np.repeat(np.arange(30), 6),
            items=np.array(walks).ravel(),
            timestamps=np.tile(np.arange(6), 30),
        ),
        manifest={
            "name": "pens",
            "domain": "pens",
            "source": "drawn",
            "licence": "none",
            "times": "position",
            "train": "recovered",
        },
    )
    return path
