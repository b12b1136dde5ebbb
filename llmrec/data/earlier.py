"""A dataset as it was earlier: the beginning of its interactions, with the whole catalogue."""

from dataclasses import replace

import numpy as np

from llmrec.data.interactions import Interactions
from llmrec.errors import InputError


def earlier_interactions(
    interactions: Interactions, *, before: int | None = None, share: float | None = None
) -> Interactions:
    """Return the interactions before a time, or the first share of each user's; users without any left are gone.

    Args:
        interactions: all of them.
        before: seconds; what has this time or a later one is left out.
        share: of each user's interactions, rounded to the nearest, above 0 and below 1; for data without times.

    Raises:
        InputError: neither or both, a share out of its range, or nothing that is left or left out.
    """
    if (before is None) == (share is None):
        raise InputError("earlier state: give a time or a share of each user's interactions, one of the two")
    if share is not None and not 0.0 < share < 1.0:
        raise InputError(f"earlier state: share {share}; above 0 and below 1")
    if before is not None:
        kept = interactions.timestamps < before
    else:
        starts = interactions.user_starts()
        places = np.arange(len(interactions)) - starts[interactions.users]
        kept = places < np.round(float(share or 0) * np.diff(starts))[interactions.users]
    if not kept.any() or kept.all():
        said = f"before {before}" if share is None else f"share {share}"
        raise InputError(
            f"earlier state: {said} keeps {int(kept.sum())} of {len(interactions)} interactions; choose it so that "
            "some are left and some are not"
        )
    left = interactions.keep(kept)
    owners, users = np.unique(left.users, return_inverse=True)
    return replace(
        left, user_ids=tuple(left.user_ids[owner] for owner in owners.tolist()), users=users.astype(np.int64)
    )
