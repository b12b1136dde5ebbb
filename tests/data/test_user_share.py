"""A share of the users to train on: nested, whole users, and held-out rows as they were."""

from dataclasses import replace

import numpy as np
import pytest

from llmrec.data.interactions import Interactions
from llmrec.data.splits import Splits, chain, leave_one_out, temporal
from llmrec.data.user_share import take_users
from llmrec.errors import InputError

USERS = 40


@pytest.fixture(scope="module")
def interactions() -> Interactions:
    """40 users of 1 to 8 items; those with fewer than three train and are not scored."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, USERS)
    users = np.repeat(np.arange(USERS), lengths)
    return Interactions.sort(
        tuple(f"u{user}" for user in range(USERS)), users=users, items=rng.integers(0, 20, len(users)),
        timestamps=rng.permutation(len(users)),
    )  # fmt: skip


def published(interactions: Interactions) -> Splits:
    whole = leave_one_out(interactions)
    return replace(whole, sequences=chain(whole.train), parts=None)


@pytest.mark.parametrize("split", [leave_one_out, temporal, published])
def test_shares_are_nested_and_of_whole_users(interactions: Interactions, split):
    whole = split(interactions)
    before: set[int] = set()
    everyone = {row.user for row in whole.train}
    for share in (0.25, 0.5, 0.75, 1.0):
        part = take_users(whole, interactions, share)
        users = {row.user for row in part.train}
        assert len(users) == round(share * len(everyone))
        assert before <= users
        assert part.train == [row for row in whole.train if row.user in users]
        assert part.valid == whole.valid
        assert part.test == whole.test
        # Every target of a sequence is the target of a row, and of a user who was taken
        targets = sorted(item for sequence in part.sequences for item in sequence[1:])
        assert targets == sorted(row.target for row in part.train)
        if part.parts is not None:
            seen = interactions.users[part.parts == 0]
            assert set(seen.tolist()) >= users
            assert np.isin(seen, sorted(users)).all() or share == 1.0
            assert sum(len(sequence) for sequence in part.sequences) == int((part.parts == 0).sum())
            assert ((part.parts == 1) == (whole.parts == 1)).all()
        before = users


def test_a_whole_share_is_the_split_itself_and_others_depend_on_the_seed(interactions: Interactions):
    whole = leave_one_out(interactions)
    assert take_users(whole, interactions, 1.0) is whole
    first, again = (take_users(whole, interactions, 0.5, seed=0) for _ in range(2))
    assert first.train == again.train
    assert first.train != take_users(whole, interactions, 0.5, seed=1).train


def test_messages(interactions: Interactions):
    whole = leave_one_out(interactions)
    for share, message in (
        (0.0, r"^share of users 0\.0: above 0 and at most 1$"),
        (1.5, r"^share of users 1\.5: above 0 and at most 1$"),
        (0.001, r"^share of users 0\.001: none of \d+ is left; take more$"),
    ):
        with pytest.raises(InputError, match=message):
            take_users(whole, interactions, share)
