"""Intervals and tests against closed forms, hand-counted cases and twins written down plainly."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import slow_evaluation as slow
from scipy.special import stdtrit

from llmrec.errors import InputError
from llmrec.evaluation.corrections import benjamini_hochberg, holm
from llmrec.evaluation.intervals import mean_interval, paired_bootstrap
from llmrec.evaluation.seeds import pool_seeds, pooled_difference
from llmrec.evaluation.significance import randomisation_test


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


def test_the_score_interval_of_a_share():
    # Wilson's interval is where the share found is z standard errors of the share assumed away; 10 of 100 is the
    # textbook case: 0.0552 to 0.1744.
    hits = np.zeros(100)
    hits[:10] = 1
    interval = mean_interval(hits)
    assert (interval.mean, interval.users, interval.support) == (0.1, 100, 10)
    assert interval.low == pytest.approx(0.0552, abs=5e-5)
    assert interval.high == pytest.approx(0.1744, abs=5e-5)
    for end in (interval.low, interval.high):
        assert abs(0.1 - end) / math.sqrt(end * (1 - end) / 100) == pytest.approx(1.959964, rel=1e-6)
    assert interval.rests_on_few
    assert not mean_interval(np.resize([1, 0, 0, 0], 100)).rests_on_few


def test_no_hit_is_no_certainty():
    # With no hit at all Wilson's upper end is z^2 / (n + z^2) = 3.8415 / 103.8415.
    interval = mean_interval(np.zeros(100))
    assert (interval.mean, interval.low) == (0, 0)
    assert interval.high == pytest.approx(3.8415 / 103.8415, rel=1e-4)
    assert mean_interval(np.ones(100)).high == 1
    assert mean_interval(np.ones(100)).low == pytest.approx(100 / 103.8415, rel=1e-4)


def test_gains_below_one_narrow_the_interval_as_their_variance_does():
    # A hit worth one half, by 400 of 1000: mean .2, variance .5^2 x .4 x .6 = .06 instead of .2 x .8 = .16. Far from
    # 0 the interval is nearly mean +- z sqrt(.06 / 1000) = .2 +- .01518.
    values = np.zeros(1000)
    values[:400] = 0.5
    interval = mean_interval(values)
    assert interval.low == pytest.approx(0.2 - 0.01518, abs=0.0005)
    assert interval.high == pytest.approx(0.2 + 0.01518, abs=0.0005)
    drawn = mean_interval(values, method="percentile")
    assert (drawn.method, drawn.mean) == ("percentile", pytest.approx(0.2))
    assert drawn.low == pytest.approx(interval.low, abs=0.001)
    assert drawn.high == pytest.approx(interval.high, abs=0.001)


@given(st.lists(st.sampled_from([0.0, 0.0, 1.0, 0.63, 0.5, 0.29]), min_size=1, max_size=60), st.floats(0.5, 0.99))
@settings(deadline=None)
def test_an_interval_of_a_mean_holds_it_and_lies_within_what_metrics_can_be(values, level):
    interval = mean_interval(np.array(values), level=level)
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1
    assert interval.high > interval.low


@pytest.mark.parametrize("metric", ["recall", "ndcg"])
def test_intervals_of_means_cover_the_truth(metric):
    # 1,500 samples of 1,000 users, a tenth of them hit at a uniform rank: coverage .95 has standard error .0056.
    gains = np.ones(10) if metric == "recall" else 1 / np.log2(np.arange(10) + 2)
    values = np.append(gains, 0.0)
    truth, rng = 0.1 * gains.mean(), np.random.default_rng(1)
    covered = 0
    for counts in rng.multinomial(1000, np.append(np.full(10, 0.01), 0.9), size=1500):
        interval = mean_interval(np.repeat(values, counts))
        covered += interval.low <= truth <= interval.high
    assert covered / 1500 == pytest.approx(0.95, abs=0.015)


def test_intervals_of_differences_cover_the_truth():
    # Hits of a alone 6 %, of b alone 4 %, of both 5 %: the true difference is .02.
    rng, covered = np.random.default_rng(2), 0
    for only_a, only_b, both, _ in rng.multinomial(1000, [0.06, 0.04, 0.05, 0.85], size=400):
        a, b = np.zeros(1000), np.zeros(1000)
        a[: only_a + both] = 1
        b[only_a : only_a + both + only_b] = 1
        interval = paired_bootstrap(a, b, samples=500)
        covered += interval.low <= 0.02 <= interval.high
    assert covered / 400 == pytest.approx(0.95, abs=0.03)


def test_signs_are_counted_out_by_hand():
    # Differences 1, 1, 1, 0: of 8 sign patterns only +++ and --- reach |sum| 3.
    assert randomisation_test(np.array([1, 1, 1, 0]), np.zeros(4)) == pytest.approx(2 / 8)
    # 1, 1, -.5: |sum| 1.5; sums are +-2.5 and +-1.5 where the ones agree (4 of 8), +-.5 where they do not.
    assert randomisation_test(np.array([1, 1, 0]), np.array([0, 0, 0.5])) == pytest.approx(4 / 8)
    # 8 users changed for the better and 2 for the worse: the sign test, 2 x (1 + 10 + 45) / 1024.
    a, b = np.zeros(50), np.zeros(50)
    a[:8], b[8:10] = 1, 1
    assert randomisation_test(a, b) == pytest.approx(2 * 56 / 1024)
    assert randomisation_test(a, a) == 1
    assert randomisation_test(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, 0.63, 0.5])] * 2), min_size=1, max_size=9))
@settings(deadline=None, max_examples=60)
def test_exchanges_counted_out_agree_with_the_twin(pairs):
    a, b = np.array(pairs).T
    p = randomisation_test(a, b)
    assert p == pytest.approx(slow.randomisation_counted_out(a, b))
    assert p == pytest.approx(randomisation_test(b, a))


def test_drawn_exchanges_agree_with_the_twin():
    # 24 users whose differences are all different, so that 2^24 outcomes are too many to count out, and 40 users who
    # share eight: p near .1 has standard error sqrt(.09 / 4000) = .005 from 4,000 draws.
    rng = np.random.default_rng(5)
    alone = rng.normal(0.3, 1, 24)
    shared = rng.choice(np.linspace(0.1, 0.8, 8), 40) * rng.choice([1, -1], 40, p=[0.6, 0.4])
    for a in (alone, np.concatenate([alone, shared])):
        p = randomisation_test(a, np.zeros(len(a)), samples=50_000)
        assert p == pytest.approx(slow.randomisation_drawn(a, np.zeros(len(a)), 4000, rng), abs=0.02)
        assert p == randomisation_test(a, np.zeros(len(a)), samples=50_000)
        assert p != randomisation_test(a, np.zeros(len(a)), samples=50_000, seed=1)


def test_a_drawn_p_is_never_zero():
    a = np.linspace(1, 2, 200)
    assert randomisation_test(a, np.zeros(200), samples=999) == 1 / 1000


def test_the_null_is_rejected_as_often_as_it_says():
    rng = np.random.default_rng(7)
    values = np.array([1, 0.63, 0.5, 0, 0, 0])
    rejected = sum(randomisation_test(*rng.choice(values, (2, 80)), samples=400) < 0.1 for _ in range(400))
    assert rejected / 400 == pytest.approx(0.1, abs=0.04)  # standard error .015


def test_many_users_and_samples_are_quick():
    rng = np.random.default_rng(0)
    ranks = rng.integers(-300, 10, (2, 22_363))
    a, b = np.where(ranks >= 0, 1 / np.log2(np.maximum(ranks, 0) + 2), 0)
    started = time.process_time()
    randomisation_test(a, b, samples=10_000)
    assert time.process_time() - started < 1


def test_adjusted_p_by_hand():
    # Sorted .005 .01 .03 .04. Holm: x4 .02, x3 .03, x2 .06, x1 .04 -> .06 (never falls). Benjamini and Hochberg:
    # x4/1 .02, x4/2 .02, x4/3 .04, x4/4 .04.
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert benjamini_hochberg(p) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    # x2 1.2 -> 1; and .6 x 2/1 = 1.2 falls to the .7 of the larger p.
    assert holm([0.6, 0.7]).tolist() == [1, 1]
    assert benjamini_hochberg([0.6, 0.7]) == pytest.approx([0.7, 0.7])
    assert holm([]).tolist() == []
    assert benjamini_hochberg([0.2]).tolist() == [0.2]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.5))
def test_adjusted_p_reject_what_the_procedures_reject(p_values, alpha):
    count, rejected = len(p_values), set()
    for step, place in enumerate(sorted(range(count), key=p_values.__getitem__)):
        if p_values[place] > alpha / (count - step):
            break
        rejected.add(place)
    clear = 1e-9  # products and quotients differ in the last digit
    for place, value in enumerate(holm(p_values)):
        assert abs(value - alpha) < clear or (value <= alpha) == (place in rejected)
    ordered = sorted(p_values)
    last = max((step for step in range(count) if ordered[step] <= alpha * (step + 1) / count), default=-1)
    for value, p in zip(benjamini_hochberg(p_values), p_values, strict=True):
        assert abs(value - alpha) < clear or (value <= alpha) == (last >= 0 and p <= ordered[last])


def test_seeds_and_users_by_hand():
    # User means .25 .75, seed means .25 .75: variances .125, over 2 each .0625. With 1 degree of freedom t at .75 is
    # 1, so that at level .5 the half widths are .25 and .25, together sqrt(.125).
    values = np.array([[0, 0.5], [0.5, 1]])
    pooled = pool_seeds(values, level=0.5)
    assert (pooled.interval.mean, pooled.seed_means) == (0.5, (0.25, 0.75))
    assert pooled.spread == pytest.approx(math.sqrt(0.125))
    assert pooled.interval.high - 0.5 == pytest.approx(math.sqrt(0.125))
    assert 0.5 - pooled.interval.low == pytest.approx(math.sqrt(0.125))
    # With 1 degree of freedom P(|T| > t) = 1 - 2 / pi x atan(t); here t = .5 / sqrt(.125) = sqrt(2).
    assert pooled.p == pytest.approx(1 - 2 / math.pi * math.atan(math.sqrt(2)))
    assert pooled.interval.method == "two-way"
    # Metrics lie from 0 to 1, whatever t says: 12.7 x sqrt(.125) is 4.5.
    assert (pool_seeds(values).interval.low, pool_seeds(values).interval.high) == (0, 1)
    assert pooled_difference(values, values[:1]).interval.high == 1
    assert pool_seeds(values + 1).interval.high > 2


def test_equal_seeds_leave_the_chance_of_users_alone():
    values = np.random.default_rng(0).random(500)
    pooled = pool_seeds(np.stack([values, values, values]))
    half = 1.9647 * values.std(ddof=1) / math.sqrt(500)  # t with 499 degrees of freedom
    assert pooled.spread == pytest.approx(0)
    assert pooled.interval.high - pooled.interval.low == pytest.approx(2 * half, rel=1e-4)
    # Without any spread at all, no hit for one, it is the interval of a single seed.
    nothing, one = pool_seeds(np.zeros((2, 100))).interval, mean_interval(np.zeros(100))
    assert (nothing.low, nothing.high) == (one.low, one.high)
    assert pooled_difference(np.zeros((2, 4)), np.zeros((1, 4))).p == 1


def test_pooled_differences_pair_users_and_not_seeds():
    users = np.random.default_rng(1).random(2000)
    a = users + np.array([[0.1], [0.12], [0.14]])
    b = users + np.array([[0.0], [0.05]])
    found = pooled_difference(a, b)
    # Users cancel. Seeds: variance .02^2 / 3 = .000133 with 2 degrees of freedom and .05^2 / 2 / 2 = .000625 with 1,
    # together .000758 with .000758^2 / (.000133^2 / 2 + .000625^2) = 1.44 (Welch).
    assert found.interval.mean == pytest.approx(0.12 - 0.025)
    freedom = 0.000758333**2 / (0.000133333**2 / 2 + 0.000625**2)
    assert freedom == pytest.approx(1.439, abs=0.001)
    assert found.interval.high - found.interval.mean == pytest.approx(
        stdtrit(freedom, 0.975) * math.sqrt(0.000758333), rel=1e-4
    )
    assert not found.interval.excludes_zero
    assert found.p > 0.05
    assert found.spread is None
    one = pooled_difference(a[:1], b)
    assert one.interval.mean == pytest.approx(0.1 - 0.025)


def test_the_variance_of_pooled_seeds_agrees_with_drawing_both():
    # Ten seeds, so that the bootstrap, which takes seeds for the population, is short by a tenth only; what is of
    # neither seeds nor users alone is small, and both count it more than once.
    rng = np.random.default_rng(2)
    values = rng.normal(0, 1, 40) + rng.normal(0, 0.2, (10, 1)) + rng.normal(0, 0.1, (10, 40))
    drawn = np.std(slow.two_way_bootstrap(values.tolist(), 400, rng))
    pooled = pool_seeds(values, level=0.6827)
    assert (pooled.interval.high - pooled.interval.low) / 2 == pytest.approx(drawn, rel=0.15)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_pooled_seeds_cover_however_much_trainings_differ(seeds):
    # Normal means and spreads of 400 users: the error of seeds is 2 times that of users; Satterthwaite's degrees of
    # freedom covered .90, .93 and .94 here. Coverage .95 has standard error .007 of 1,000.
    rng, covered = np.random.default_rng(seeds), 0
    for _ in range(1000):
        values = rng.normal(0, 1, 400) + rng.normal(0, 2 / 20 * math.sqrt(seeds), (seeds, 1))
        interval = pool_seeds(values + rng.normal(0, 0.3, (seeds, 400))).interval
        covered += interval.low <= 0 <= interval.high
    assert covered / 1000 >= 0.95 - 0.015


def test_the_p_of_a_pooled_difference_is_where_its_interval_ends_at_0():
    rng = np.random.default_rng(6)
    a, b = rng.random((3, 200)) + 0.05, rng.random((4, 200))
    found = pooled_difference(a, b)
    edge = pooled_difference(a, b, level=1 - found.p).interval
    assert min(abs(edge.low), abs(edge.high)) == pytest.approx(0, abs=1e-9)
    assert pooled_difference(a + 100, b).p == pytest.approx(1e-6, abs=1e-4)


def test_bad_input_of_the_other_figures_is_refused():
    with pytest.raises(InputError, match="there are no users"):
        mean_interval(np.zeros(0))
    with pytest.raises(InputError, match="method 'normal'; choose one of wilson, percentile"):
        mean_interval(np.zeros(2), method="normal")
    with pytest.raises(InputError, match=r"values from -1 to 2, and method 'wilson' .* choose 'percentile'"):
        mean_interval(np.array([-1, 2]))
    with pytest.raises(InputError, match="level 95; give one between"):
        mean_interval(np.zeros(2), level=95)
    with pytest.raises(InputError, match=r"interval of a mean: samples 9 \(at least 100\)"):
        mean_interval(np.zeros(2), method="percentile", samples=9)
    with pytest.raises(InputError, match="randomisation test: 2 users against 3"):
        randomisation_test(np.zeros(2), np.zeros(3))
    with pytest.raises(InputError, match="randomisation test: samples 50; draw at least 100"):
        randomisation_test(np.zeros(2), np.zeros(2), samples=50)
    with pytest.raises(InputError, match=r"p values \[0\.5, nan\]"):
        holm([0.5, math.nan])
    with pytest.raises(InputError, match=r"\[\(1, 5\)\] \(seeds, users\); two of each"):
        pool_seeds(np.zeros((1, 5)))
    with pytest.raises(InputError, match=r"shapes \[\(2, 5\), \(2, 4\)\]; give"):
        pooled_difference(np.zeros((2, 5)), np.zeros((2, 4)))
