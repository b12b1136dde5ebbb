"""Paired intervals against closed forms and a bootstrap written down plainly."""

import numpy as np
import pytest

from llmrec.errors import InputError
from llmrec.evaluation.significance import paired_bootstrap


def test_a_constant_difference_has_no_width():
    a = np.array([0.25, 0.5, 0.75])
    interval = paired_bootstrap(a, a - 0.125)
    assert (interval.mean, interval.low, interval.high) == (0.125, 0.125, 0.125)
    assert interval.excludes_zero
    assert not paired_bootstrap(a, a).excludes_zero


def test_mean_and_normal_width():
    # 400 hits against 300 among 1000 users, 200 of them common: differences +1 x 200, -1 x 100, 0 x 700.
    # Mean 0.1, variance 0.3 - 0.01 = 0.29, standard error sqrt(0.29 / 1000) = 0.01703; half width 1.96 x that, 0.0334.
    a, b = np.zeros(1000), np.zeros(1000)
    a[:400] = 1
    b[200:500] = 1
    interval = paired_bootstrap(a, b, samples=20_000)
    assert interval.mean == pytest.approx(0.1)
    assert interval.low == pytest.approx(0.1 - 0.0334, abs=0.0015)
    assert interval.high == pytest.approx(0.1 + 0.0334, abs=0.0015)
    narrow = paired_bootstrap(a, b, samples=20_000, level=0.68)
    assert narrow.high - narrow.low == pytest.approx(2 * 0.9945 * 0.01703, abs=0.0015)
    assert (interval.level, interval.users) == (0.95, 1000)


def test_agrees_with_drawing_users_one_by_one():
    rng = np.random.default_rng(3)
    a, b = rng.random(60), rng.random(60)
    means = sorted((a - b)[rng.integers(0, 60, 60)].mean() for _ in range(20_000))
    interval = paired_bootstrap(a, b, samples=20_000)
    assert interval.low == pytest.approx(means[500], abs=0.005)
    assert interval.high == pytest.approx(means[19_500], abs=0.005)


def test_the_seed_decides():
    rng = np.random.default_rng(0)
    a, b = rng.random(50), rng.random(50)
    assert paired_bootstrap(a, b, seed=1) == paired_bootstrap(a, b, seed=1)
    assert paired_bootstrap(a, b, seed=1) != paired_bootstrap(a, b, seed=2)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="2 users against 3"):
        paired_bootstrap(np.zeros(2), np.zeros(3))
    with pytest.raises(InputError, match="0 users against 0"):
        paired_bootstrap(np.zeros(0), np.zeros(0))
    with pytest.raises(InputError, match="samples 5"):
        paired_bootstrap(np.zeros(2), np.zeros(2), samples=5)
    with pytest.raises(InputError, match=r"level 95"):
        paired_bootstrap(np.zeros(2), np.zeros(2), level=95)
