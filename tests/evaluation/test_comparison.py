"""Comparisons hold the figures of the functions they are made of, and say which tests were corrected together."""

import json
from pathlib import Path

import numpy as np
import pytest

from llmrec.errors import InputError
from llmrec.evaluation.comparison import compare_runs
from llmrec.evaluation.corrections import benjamini_hochberg, holm
from llmrec.evaluation.intervals import difference_interval, mean_interval, paired_bootstrap
from llmrec.evaluation.runs import Run
from llmrec.evaluation.seeds import pool_seeds, pooled_difference
from llmrec.evaluation.significance import randomisation_test

WHAT = {"dataset": "toys", "split": "test", "protocol": "leave_one_out", "exclude_seen": False}


def run(name, ranks, *, display=None, k=10, users=None, **row):
    ranks = np.asarray(ranks)
    file = Path(f"{display or name}.json")
    return Run(display or name, {"name": name, **WHAT, **row}, ranks, k, file, users=users)


def ranks(seed, share, users=300):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(users) < share, rng.integers(0, 10, users), -1)


A, B, C = run("a", ranks(0, 0.5)), run("b", ranks(1, 0.2)), run("c", ranks(2, 0.18))


def test_each_with_each():
    found = compare_runs([A, B, C], metrics=["recall@10", "ndcg@5"], samples=500)
    assert [system.name for system in found.systems] == ["a", "b", "c"]
    assert [(pair.metric, pair.a, pair.b) for pair in found.pairs] == [
        ("recall@10", "a", "b"), ("recall@10", "a", "c"), ("recall@10", "b", "c"),
        ("ndcg@5", "a", "b"), ("ndcg@5", "a", "c"), ("ndcg@5", "b", "c"),
    ]  # fmt: skip
    score = found.score("b", "ndcg@5")
    assert score.interval == mean_interval(B.values("ndcg@5"))
    assert (score.seed_means, score.spread) == ((B.values("ndcg@5").mean(),), None)
    pair = found.pair("a", "c", "recall@10")
    assert pair.interval == paired_bootstrap(A.values("recall@10"), C.values("recall@10"), samples=500)
    p = [
        randomisation_test(one.values("recall@10"), other.values("recall@10"), samples=500)
        for one, other in ((A, B), (A, C), (B, C))
    ]
    assert [pair.p for pair in found.pairs[:3]] == p
    assert [pair.adjusted for pair in found.pairs[:3]] == holm(p).tolist()
    assert [pair.mark for pair in found.pairs[:3]] == ["*" if value < 0.05 else "" for value in holm(p)]
    assert {pair.mark for pair in found.pairs[:3]} == {"*", ""}
    assert pair.test == "randomisation"
    assert found.family.startswith("the 3 pairs under one metric, each with each")
    with pytest.raises(KeyError, match="no pair of c and a under recall@10"):
        found.pair("c", "a", "recall@10")


def test_each_with_a_reference():
    found = compare_runs([A, B, C], metrics=["ndcg@10"], reference="b", samples=200, correction="benjamini_hochberg")
    assert [(pair.a, pair.b) for pair in found.pairs] == [("a", "b"), ("c", "b")]
    assert [pair.adjusted for pair in found.pairs] == benjamini_hochberg([pair.p for pair in found.pairs]).tolist()
    assert found.family.startswith("the 2 pairs under one metric, each with b")


def test_seeds_of_a_configuration_are_one_system():
    seeds = [run("a", ranks(number, 0.3), display=f"a (s{number})", seed=number) for number in range(3)]
    found = compare_runs([*seeds, B], metrics=["recall@10"], samples=200)
    assert [system.name for system in found.systems] == ["a", "b"]
    assert found.systems[0].seeds == (0, 1, 2)
    values = np.stack([one.values("recall@10") for one in seeds])
    pooled = pool_seeds(values)
    score = found.score("a", "recall@10")
    assert (score.interval, score.seed_means, score.spread) == (pooled.interval, pooled.seed_means, pooled.spread)
    pair, expected = found.pairs[0], pooled_difference(values, B.values("recall@10")[None])
    assert (pair.interval, pair.p, pair.test) == (expected.interval, expected.p, "two-way t")
    other = run("a", ranks(9, 0.3), display="a (wide)", seed=0, settings={"dim": 128})
    assert [system.name for system in compare_runs([*seeds, other], samples=200).systems] == ["a (s0)", "a (wide)"]


def test_all_of_it_is_json():
    found = compare_runs([A, run("none", np.full(300, -1))], metrics=["recall@10"], samples=200).to_json()
    assert json.loads(json.dumps(found)) == found
    assert found["systems"][0] == {"name": "a", "seeds": [None], "sources": ["a.json"]}
    assert (found["rows"], found["users"]) == (300, 300)
    assert [score["interval"]["rests_on_few"] for score in found["scores"]] == [False, True]
    assert (found["level"], found["samples"], found["seed"], found["correction"]) == (0.95, 200, 0, "holm")
    assert {"metric", "a", "b", "interval", "p", "adjusted", "test", "mark"} == set(found["pairs"][0])


def test_too_few_samples_for_so_many_pairs_are_said(caplog):
    # 15 pairs: the least p that can be drawn from 200 samples is 1/201, and 15/201 is above .05; 15/301 is not.
    runs = [run(f"m{number}", ranks(number, 0.2, users=20)) for number in range(6)]
    assert compare_runs(runs, metrics=["recall@10"], samples=300).least_samples == 0
    assert not caplog.records
    found = compare_runs(runs, metrics=["recall@10"], samples=200)
    assert found.least_samples == 300
    assert "15 pairs with 200 samples: no p that is drawn can earn a mark; 300 samples are the least" in caplog.text
    # Benjamini and Hochberg's least p is not multiplied by the pairs where all are as small.
    assert compare_runs(runs, metrics=["recall@10"], samples=200, correction="benjamini_hochberg").least_samples == 0


def test_samples_grow_with_the_pairs_where_none_are_asked_for():
    assert compare_runs([A, B], metrics=["recall@10"]).samples == 10_000
    # 66 pairs at level .999: 66 / .001 samples are the least, and twice as many are more than are drawn at most.
    runs = [run(f"m{number}", ranks(number, 0.2, users=5)) for number in range(12)]
    assert compare_runs(runs, metrics=["recall@10"], level=0.998).samples == 66_000
    assert compare_runs(runs, metrics=["recall@10"], level=0.999).samples == 100_000


def test_rows_of_one_user_go_together():
    users = np.repeat(np.arange(100), 3)
    first, second = ranks(3, 0.5), ranks(4, 0.4)
    found = compare_runs([run("a", first, users=users), run("b", second)], metrics=["recall@10"], samples=400)
    values = [one.values("recall@10") for one in (run("a", first), run("b", second))]
    assert (found.rows, found.users) == (300, 100)
    assert found.scores[1].interval == mean_interval(values[1], users=users), "one file tells for all"
    assert found.pairs[0].interval == difference_interval(*values, users=users)
    assert found.pairs[0].p == randomisation_test(*values, users=users, samples=400)
    seeds = [run("s", ranks(n, 0.3), display=f"s{n}", seed=n, users=users) for n in range(3)]
    found = compare_runs([*seeds, run("b", second)], metrics=["recall@10"], samples=400)
    pooled = np.stack([one.values("recall@10") for one in seeds])
    assert found.scores[0].interval == pool_seeds(pooled, users=users).interval
    assert found.pairs[0].p == pooled_difference(pooled, values[1][None], users=users).p
    assert found.to_json()["scores"][0]["interval"]["rows"] == 300
    with pytest.raises(InputError, match=r"b\.json: rows of 'b' are of other users than those of 'a' in a\.json"):
        compare_runs([run("a", first, users=users), run("b", second, users=users[::-1])])


def test_where_no_file_tells_the_users_rows_are_taken_as_independent():
    # Leave-one-out has a row a user; by time, a user may have many.
    assert compare_runs([A], metrics=["recall@10"]).users == 300
    assert compare_runs([run("a", ranks(0, 0.5), protocol="temporal")], metrics=["recall@10"]).users is None


def test_one_system_has_no_pairs():
    found = compare_runs([A], metrics=["recall@10"])
    assert (len(found.scores), found.pairs) == (1, ())


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="comparison of 0 runs under 2 metrics"):
        compare_runs([])
    with pytest.raises(InputError, match="comparison of 1 runs under 0 metrics"):
        compare_runs([A], metrics=[])
    with pytest.raises(InputError, match=r"a\.json: recall@20 of 'a' needs lists of 20 items and they had 10"):
        compare_runs([A, B], metrics=["recall@10", "recall@20"])
    with pytest.raises(InputError, match="metric 'hits'"):
        compare_runs([A, B], metrics=["hits"])
    with pytest.raises(InputError, match=r"d\.json: split 'valid' of 'd', and a\.json has 'test'"):
        compare_runs([A, run("d", ranks(1, 0.2), split="valid")])
    with pytest.raises(InputError, match="reference 'z': no such system; choose one of a, b"):
        compare_runs([A, B], reference="z")
    with pytest.raises(InputError, match="correction 'bonferroni': choose one of holm"):
        compare_runs([A, B], correction="bonferroni")
    with pytest.raises(InputError, match="system 'a': 2 runs have this name"):
        compare_runs([A, A])
    part = run("d", ranks(1, 0.2, users=100))
    part.row["rows"] = 300
    with pytest.raises(InputError, match=r"d\.json: 'd' lacks 200 of the split's 300 users"):
        compare_runs([A, part])
