"""Rows of one user are not independent: intervals and tests take users, not rows, as what is drawn."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import slow_evaluation as slow
from scipy.special import stdtrit

from llmrec.errors import InputError
from llmrec.evaluation.by_user import error_of_mean, number_users, repeated_users
from llmrec.evaluation.intervals import difference_interval, mean_interval, paired_bootstrap
from llmrec.evaluation.seeds import pool_seeds, pooled_difference
from llmrec.evaluation.significance import randomisation_test

VALUES = st.sampled_from([0.0, 0.0, 1.0, 0.63, 0.5])
ROWS = st.lists(st.tuples(VALUES, VALUES, st.integers(0, 4)), min_size=6, max_size=14)


def several_users(rows, *, seed=0, sigma=1.0, users=40):
    """Users of rows, some of whom have many."""
    rng = np.random.default_rng(seed)
    weights = np.exp(sigma * rng.standard_normal(users))
    return rng.choice(users, rows, p=weights / weights.sum())


def test_users_are_numbered_as_they_appear():
    numbers = number_users([70, 12, 70, 5, 12])
    assert (numbers.tolist(), numbers.dtype) == ([0, 1, 0, 2, 1], np.int32)
    assert repeated_users(np.array([3, 1, 2]), 3) is None
    assert repeated_users(None, 3) is None
    with pytest.raises(InputError, match="users of 2 rows, and there are 3 values"):
        mean_interval(np.zeros(3), users=np.array([0, 0]))


def test_the_error_of_a_mean_by_hand():
    # Users of 2, 1 and 1 rows, values (1 1) (0) (0), mean .5. Without each: 0/2 = 0, 2/3, 2/3. Squares from .5:
    # .25 + 2 x .0278 = .3056, times 2/3 = .2037. Degrees of freedom 4^2 / (4 + 1 + 1) - 1 = 1.667.
    variance, freedom = error_of_mean(np.array([1.0, 1, 0, 0]), np.array([0, 0, 1, 2]))
    assert variance == pytest.approx(0.2037, abs=5e-5)
    assert freedom == pytest.approx(5 / 3)
    # One row each: the variance over users through their number, as ever.
    values = np.random.default_rng(0).random(30)
    assert error_of_mean(values, np.arange(30)) == pytest.approx(error_of_mean(values))
    assert error_of_mean(values)[0] == pytest.approx(values.var(ddof=1) / 30)


@given(ROWS)
@settings(deadline=None, max_examples=60)
def test_the_jackknife_and_the_exchanges_agree_with_their_twins(rows):
    a, b, users = (np.array(column) for column in zip(*rows, strict=True))
    assert randomisation_test(a, b, users=users) == pytest.approx(slow.user_exchanges_counted_out(a, b, users))
    numbers = repeated_users(users, len(users))
    if numbers is not None and len(set(users.tolist())) > 1:
        assert error_of_mean(a, numbers)[0] == pytest.approx(slow.user_jackknife(a.tolist(), users.tolist()))


def test_the_bootstrap_draws_whole_users():
    users = several_users(200)
    rng = np.random.default_rng(1)
    a, b = rng.random(200) + 0.3 * (users % 3), rng.random(200)
    found = paired_bootstrap(a, b, users=users, samples=20_000)
    low, high = np.quantile(slow.user_bootstrap((a - b).tolist(), users.tolist(), 4000, rng), [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.01)
    assert found.high == pytest.approx(high, abs=0.01)
    assert found.mean == pytest.approx((a - b).mean())
    assert (found.method, found.users, found.rows) == ("percentile by user", len(set(users.tolist())), 200)


def test_the_interval_of_a_difference_is_the_jackknife_of_users():
    # Users of 2, 1 and 1 rows, as above: mean .5, variance .2037, t at .975 with 1.667 degrees of freedom.
    users = np.array([0, 0, 1, 2])
    found = difference_interval(np.array([1.0, 1, 0, 0]), np.zeros(4), users=users)
    assert (found.mean, found.users, found.rows, found.support) == (0.5, 3, 4, 1)
    assert found.method == "jackknife by user"
    assert found.high - 0.5 == pytest.approx(stdtrit(5 / 3, 0.975) * 0.2037**0.5, rel=1e-3)
    assert difference_interval(np.ones(4), np.zeros(4)) == paired_bootstrap(np.ones(4), np.zeros(4))
    alone = difference_interval(np.ones(4), np.zeros(4), users=np.zeros(4, dtype=int))
    assert (alone.low, alone.high) == (-1, 1)
    with pytest.raises(InputError, match="paired interval: level 95"):
        difference_interval(np.ones(4), np.zeros(4), users=users, level=95)


def test_rows_that_repeat_their_user_say_nothing_new():
    # Each of 300 users three times over: what is found of 900 rows is what is found of 300.
    rng = np.random.default_rng(2)
    a, b = (rng.random((2, 300)) < [[0.3], [0.2]]).astype(float)
    users = np.repeat(np.arange(300), 3)
    thrice = [np.repeat(values, 3) for values in (a, b)]
    assert randomisation_test(*thrice, users=users) == pytest.approx(randomisation_test(a, b))
    assert randomisation_test(*thrice) < randomisation_test(a, b) / 2
    one, found = paired_bootstrap(a, b), paired_bootstrap(*thrice, users=users)
    assert (found.mean, found.support) == (pytest.approx(one.mean), one.support)
    assert (found.low, found.high) == (pytest.approx(one.low, abs=0.004), pytest.approx(one.high, abs=0.004))
    one, found = mean_interval(a), mean_interval(thrice[0], users=users)
    assert (found.mean, found.users, found.support) == (one.mean, 300, one.support)
    assert (found.low, found.high) == (pytest.approx(one.low, abs=5e-4), pytest.approx(one.high, abs=5e-4))
    seeds = (rng.random((3, 300)) < 0.3).astype(float)
    one, found = pool_seeds(seeds), pool_seeds(np.repeat(seeds, 3, axis=1), users=users)
    assert found.seed_means == one.seed_means
    assert (found.p, found.interval.low) == (pytest.approx(one.p), pytest.approx(one.interval.low))
    assert (found.interval.method, found.interval.rows) == ("two-way by user", 900)
    difference = (
        pooled_difference(seeds, b[None]),
        pooled_difference(np.repeat(seeds, 3, axis=1), thrice[1][None], users=users),
    )
    assert difference[0].p == pytest.approx(difference[1].p)


def test_a_row_a_user_is_as_without_users():
    rng = np.random.default_rng(3)
    a, b, users = rng.random(50), rng.random(50), rng.permutation(50)
    assert mean_interval(a, users=users) == mean_interval(a)
    assert paired_bootstrap(a, b, users=users) == paired_bootstrap(a, b)
    assert randomisation_test(a, b, users=users) == randomisation_test(a, b)
    assert pool_seeds(np.stack([a, b]), users=users) == pool_seeds(np.stack([a, b]))


def test_one_user_tells_nothing_of_others():
    one = np.zeros(4, dtype=int)
    values = np.array([1.0, 0, 1, 1])
    assert (mean_interval(values, users=one).low, mean_interval(values, users=one).high) == (0, 1)
    found = paired_bootstrap(values, np.zeros(4), users=one)
    assert (found.low, found.high, found.users) == (-1, 1, 1)
    assert randomisation_test(values, np.zeros(4), users=one) == 1
    pooled = pool_seeds(np.stack([values, values]), users=one)
    assert (pooled.interval.low, pooled.interval.high, pooled.p) == (0, 1, 1)


def test_no_hit_is_no_certainty_with_several_rows_either():
    users = np.repeat(np.arange(100), 4)
    found = mean_interval(np.zeros(400), users=users)
    assert found.low == 0
    assert found.high == pytest.approx(mean_interval(np.zeros(100)).high, rel=0.05)


def test_intervals_cover_where_users_differ_in_rows_and_in_luck():
    # 166 users of 30 rows in the median and 300 in the largest, hits Beta(.65, 4.35): coverage of .95 has standard
    # error .009 of 600. Taken as independent, rows cover a quarter of it.
    rng = np.random.default_rng(4)
    covered, independent = 0, 0
    for _ in range(600):
        sizes = np.maximum(1, np.exp(1.2 * rng.standard_normal(166)) * 30).astype(int)
        users = np.repeat(np.arange(166), sizes)
        values = (rng.random(len(users)) < rng.beta(0.65, 4.35, 166)[users]).astype(float)
        found, alone = mean_interval(values, users=users), mean_interval(values)
        covered += found.low <= 0.13 <= found.high
        independent += alone.low <= 0.13 <= alone.high
    assert covered / 600 == pytest.approx(0.95, abs=0.025)
    assert independent / 600 < 0.5


def test_many_rows_and_users_are_quick():
    users = several_users(10_000, users=2000)
    rng = np.random.default_rng(0)
    ranks = rng.integers(-60, 10, (2, 10_000))
    a, b = np.where(ranks >= 0, 1 / np.log2(np.maximum(ranks, 0) + 2), 0)
    started = time.process_time()
    randomisation_test(a, b, users=users, samples=2000)
    paired_bootstrap(a, b, users=users, samples=2000)
    assert time.process_time() - started < 2
