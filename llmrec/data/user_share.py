"""A share of the users to train on: the smaller share lies within the larger, and what is held out stays."""

from dataclasses import replace

import numpy as np

from llmrec.data.interactions import Interactions
from llmrec.data.splits import Splits, chain
from llmrec.errors import InputError


def take_users(splits: Splits, interactions: Interactions, share: float, *, seed: int = 0) -> Splits:
    """Return splits whose training rows and sequences are those of a share of the users.

    Users are put into one random order, and a share takes its beginning: half of the users are among any larger
    share. Validation and test rows stay whole, so that shares are compared on the same rows.

    Args:
        splits: of a dataset.
        interactions: of the same dataset.
        share: of the users with a training row, above 0 and at most 1; 1 returns ``splits``.
        seed: of the order.

    Raises:
        InputError: a share out of its range, or so small that no user is left.
    """
    if not 0.0 < share <= 1.0:
        raise InputError(f"share of users {share}: above 0 and at most 1")
    if share == 1.0:
        return splits
    users = np.unique([row.user for row in splits.train])
    chosen = np.random.default_rng(seed).permutation(users)[: round(share * len(users))]
    if not len(chosen):
        raise InputError(f"share of users {share}: none of {len(users)} is left; take more")
    taken = np.zeros(int(interactions.users.max(initial=0)) + 1, dtype=bool)
    taken[chosen] = True
    train = [row for row in splits.train if taken[row.user]]
    if splits.parts is None:
        return replace(splits, train=train, sequences=chain(train))
    # One sequence a user with a training interaction, in the order of the users
    owners = np.unique(interactions.users[splits.parts == 0])
    sequences = [sequence for user, sequence in zip(owners.tolist(), splits.sequences, strict=True) if taken[user]]
    parts = np.where((splits.parts == 0) & ~taken[interactions.users], -1, splits.parts).astype(np.int8)
    return replace(splits, train=train, sequences=sequences, parts=parts)
