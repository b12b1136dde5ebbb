"""Keep a share of a catalogue's items away from everything that is fitted, as if they came later."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from llmrec.data.folder import DatasetFolder
from llmrec.data.interactions import Interactions
from llmrec.data.items import Catalog
from llmrec.data.splits import History
from llmrec.errors import InputError


@dataclass(frozen=True)
class HeldOut:
    """A dataset without some of its items.

    Args:
        catalog: the items that stay, in their order.
        interactions: those with items that stay; users left without any are gone.
        published: rows of the published split whose target stays; items held out are taken from their histories, and
            rows whose history is empty then are gone.
        item_ids: the items held out, in catalogue order.
    """

    catalog: Catalog
    interactions: Interactions
    published: dict[str, list[History]]
    item_ids: tuple[str, ...]


def hold_out_items(dataset: DatasetFolder, *, share: float, seed: int = 0) -> HeldOut:
    """Draw items and take them out of a dataset.

    The training part of what remains lies within the training part of the whole, under ``leave_one_out`` and
    ``provided``, so that a model trained on it may be tested on the whole. Of users who keep fewer than three of three
    interactions or more, and would be trained on whole, the whole's last two are taken out for that.

    Args:
        dataset: the whole.
        share: of the items that go, above 0 and below 1; at least one goes and at least one stays.
        seed: of the draw.

    Raises:
        InputError: a share out of range, or no interactions left.
    """
    items = len(dataset.catalog)
    if not 0 < share < 1 or items < 2:
        raise InputError(f"share {share}: give a number above 0 and below 1, of at least two items (here {items})")
    count = min(items - 1, max(1, round(share * items)))
    gone = np.zeros(items, dtype=bool)
    gone[np.random.default_rng(seed).choice(items, count, replace=False)] = True
    new_row = np.where(gone, -1, np.cumsum(~gone) - 1)
    stay = np.flatnonzero(~gone).tolist()
    ids = dataset.catalog.item_ids
    columns = {name: tuple(values[row] for row in stay) for name, values in dataset.catalog.columns.items()}

    whole = dataset.interactions
    kept = ~gone[whole.items]
    starts = whole.user_starts()
    lengths, left = np.diff(starts), np.bincount(whole.users[kept], minlength=len(whole.user_ids))
    for user in np.flatnonzero((lengths >= 3) & (left < 3)).tolist():
        kept[starts[user + 1] - 2 : starts[user + 1]] = False
    if not kept.any():
        raise InputError(f"share {share}: no interaction is left without the items drawn; hold out fewer")
    old_users, users = np.unique(whole.users[kept], return_inverse=True)
    interactions = Interactions(
        tuple(whole.user_ids[user] for user in old_users.tolist()),
        users=users.reshape(-1).astype(np.int64),
        items=new_row[whole.items[kept]],
        timestamps=whole.timestamps[kept],
        ratings=None if whole.ratings is None else whole.ratings[kept],
        texts={name: values.filter(pa.array(kept)) for name, values in whole.texts.items()},
    )
    user_number = dict(zip(old_users.tolist(), range(len(old_users)), strict=True))
    published: dict[str, list[History]] = {}
    for name, rows in dataset.published.items():
        published[name] = []
        for row in rows:
            shown = tuple(int(new_row[item]) for item in row.items if not gone[item])
            if shown and not gone[row.target] and row.user in user_number:
                published[name].append(History(user_number[row.user], shown, int(new_row[row.target])))
    catalog = Catalog(tuple(ids[row] for row in stay), columns)
    return HeldOut(catalog, interactions, published, tuple(ids[row] for row in np.flatnonzero(gone).tolist()))
