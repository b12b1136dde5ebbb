"""Sections of a report: each figure where it belongs, an empty slice as empty, leaks and part of the rows said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmrec.errors import InputError
from llmrec.evaluation.intervals import Interval
from llmrec.evaluation.report_sections import (
    EMPTY_SLICE,
    beam_ladders,
    beyond_section,
    latency_section,
    notes_list,
    run_notes,
    sid_level_section,
    slices_section,
)
from llmrec.evaluation.report_training import (
    logged,
    read_making,
    sid_quality_section,
    training_section,
    validation_metrics,
)
from llmrec.evaluation.runs import Run


def a_run(name: str = "m", users: int = 4, origin: dict[str, str] | None = None, **row: Any) -> Run:
    whole = {"name": name, "metrics": {"recall@10": 0.5}, **row}
    return Run(
        name, whole, np.zeros(users, dtype=np.int64), 10, Path("x.json"), whole.pop("made_by", {}), origin or {}
    )


def test_notes_say_what_a_reader_must_know():
    assert run_notes(a_run()) == []
    full = a_run(
        users=3, origin={"rows": "4"}, leaks=["the SIDs saw it"], train="recovered", score="full", num_beams=20,
        fused={"method": "rrf", "parts": ["a", "b"], "weights": [1, 0.5], "chosen_on": "valid"},
        tuned={"split": "valid", "by": "ndcg@10", "trials": [{}, {}]}, unknown_items="skip",
        beyond={"duplicates": 0, "illegal": 1200}, later_than_test=0.125, made_by={"commit": "abc-dirty"},
    )  # fmt: skip
    assert run_notes(full) == [
        "LEAK: the SIDs saw it",
        "scored on 3 of the split's 4 rows only",
        "its training data is incomplete: rows were recovered from what the source publishes",
        "12.5% of the training interactions are later than the median test target",
        "score full, 20 beams",
        "fused (rrf) of a, b, weights [1, 0.5], chosen on valid",
        "settings chosen on valid rows by ndcg@10, 2 tried",
        "items that it does not know were left out of histories, and count as misses",
        "1,200 places held no item, and count as empty",
        "made by code with changes that no commit holds",
    ]
    assert run_notes(a_run(metrics={})) == ["only its ranks are on file"]
    drawn = notes_list([a_run("quiet"), full])
    assert drawn is not None
    assert drawn.count("<li>") == drawn.count('class="note"') == 1
    assert notes_list([a_run()]) is None


def test_lists_beside_accuracy():
    first = a_run("a", metrics={"coverage@10": 0.5}, beyond={"gini@10": 0.25, "novelty@10": None, "duplicates": 3})
    drawn = beyond_section([first, a_run("b", metrics={})])
    assert drawn is not None
    head = drawn[drawn.index("<thead>") : drawn.index("</thead>")]
    assert [head.index(word) for word in ("coverage@10", "gini@10", "novelty@10")] == sorted(
        head.index(word) for word in ("coverage@10", "gini@10", "novelty@10")
    )
    assert "50.00%" in drawn
    assert ">0.250<" in drawn
    assert ">\u2013<" in drawn  # novelty of nothing
    assert 'row">b<' not in drawn
    assert beyond_section([a_run()]) is None


def slice_row(label: str, rows: int, value: float | None, error: float | None) -> dict[str, Any]:
    metrics, errors = {"recall@10": value}, {"recall@10": error}
    return {"slice": label, "means": f"so <{label}>", "rows": rows, "metrics": metrics, "standard_errors": errors}


def test_an_empty_slice_is_empty_and_not_zero():
    parts = [slice_row("few", 1200, 0.5, 0.1), slice_row("many", 0, None, None), slice_row("one", 1, 0.0, None)]
    parts.append(slice_row("none hit", 1500, 0.0, 0.0))
    drawn = slices_section([a_run(slices={"history_length": parts})], metrics=["recall@10", "ndcg@10"])
    assert drawn is not None
    assert "recall@10 by length of the history" in drawn
    assert "ndcg@10" not in drawn  # the rows do not hold it
    assert '<td class="bar" data-value="0.5" style="--share: 100.0%">0.5000 ±0.1960</td>' in drawn
    assert f'<td class="small">{EMPTY_SLICE}</td>' in drawn
    assert '<td class="bar" data-value="0.0" style="--share: 0.0%">0.0000 of 1</td>' in drawn
    assert ">0.0000 of 1,500<" in drawn  # not one hit, and so no spread
    assert 'title="so &lt;few&gt;"' in drawn
    assert "1,200" in drawn
    assert slices_section([a_run()], metrics=["recall@10"]) is None


def test_slices_of_systems_that_were_cut_otherwise():
    both = [slice_row("a", 2, 0.2, 0.1)]
    runs = [a_run("x", slices={"category": both}), a_run("y", slices={"category": [slice_row("b", 2, 0.4, 0.1)]})]
    drawn = slices_section(runs, metrics=["recall@10"])
    assert drawn is not None
    assert drawn.count("\u2013") == 2


def test_scores_by_item_and_by_sid():
    found = {"shared_targets": 0.25, "sid_recall@10": 0.6, "sid_ndcg@10": 0.4, "sharing_credit@10": 0.1}
    drawn = sid_level_section([a_run("shared", sid_level=found, metrics={"recall@10": 0.5, "ndcg@10": 0.3}), a_run()])
    assert drawn is not None
    cells = [part.split("<")[0] for part in drawn.split("<td data-value=")[1:]]
    assert [cell.split(">")[1] for cell in cells] == ["25.00%", "0.5000", "0.6000", "+0.1000", "0.3000", "0.4000"]
    assert sid_level_section([a_run()]) is None


def test_beams_and_latency():
    def timed(name: str, beams: int | None, p50: float, **row: Any) -> Run:
        latency = {"p50": p50, "p95": 2 * p50, "users_per_second": 1000.0, "batch_users": 64, "calls": 2}
        latency["requests"] = 100
        return a_run(name, num_beams=beams, latency=latency, **row)

    runs = [timed("m (50)", 50, 0.5, model="runs/m"), timed("m (5)", 5, 0.1, model="runs/m"), timed("knn", None, 0.01)]
    runs.append(timed("other", 20, 0.2, model="runs/other"))
    assert {name: [run.name for run in ladder] for name, ladder in beam_ladders(runs).items()} == {
        "m (5)": ["m (5)", "m (50)"]
    }
    intervals = {run.name: Interval(0.3, 0.2, 0.4, 0.95, 4) for run in runs}
    drawn = latency_section(runs, intervals=intervals, metric="recall@10")
    assert drawn is not None
    assert "recall@10 against the number of beams" in drawn
    assert "recall@10 against latency" in drawn
    assert drawn.count("<circle") == 2 + 4
    assert "50 beams, 500: 0.3" in drawn
    assert latency_section([a_run()], intervals={}, metric="recall@10") is None
    # Files that timed calls with many users alone say nothing of what a visitor waits, and few requests have no p95.
    old = a_run("old", latency={"p50": 201.0, "p95": 201.0, "users_per_second": 20.0, "batch_users": 4096, "calls": 1})
    few = a_run(
        "few", latency={"p50": 0.7, "p95": None, "users_per_second": 5.0, "batch_users": 9, "calls": 1, "requests": 9}
    )
    both = latency_section([old, few], intervals=intervals, metric="recall@10")
    assert both is not None
    assert "201" not in both
    assert ">700.0<" in both
    assert "<svg" not in both
    alone = latency_section([timed("knn", None, 0.01)], intervals=intervals, metric="recall@10")
    assert alone is not None
    assert "<svg" not in alone


# ---- What a bundle's folder says.


def a_bundle(folder: Path, **quality: Any) -> Path:
    for step, last in ((5, 10), (10, 10)):
        history = [
            {"step": 5, "loss": 3.0, "learning_rate": 0.1},
            {"step": 5, "eval_loss": 2.5, "eval_ndcg@10": 0.1, "eval_recall@10": float("inf")},
            {"step": last, "loss": 2.0},
        ]
        state = folder / f"checkpoint-{step}" / "trainer_state.json"
        state.parent.mkdir(parents=True)
        state.write_text(json.dumps({"log_history": history[: step // 5 + 1], "best_global_step": 5}))
    (folder / "run.json").write_text(json.dumps({"model": "tiny", "learning_rate": 0.002, "max_steps": -1}))
    (folder / "sid_config.json").write_text(json.dumps({"method": "rq", "codebook_sizes": [4, 4], "quality": quality}))
    return folder


def test_training_curves_come_from_the_last_checkpoint(tmp_path: Path):
    making = read_making("mine", a_bundle(tmp_path / "b"))
    assert logged(making, "loss") == ((5.0, 3.0), (10.0, 2.0))
    assert logged(making, "eval_recall@10") == ()
    assert making.best_step == 5
    assert validation_metrics([making]) == ["ndcg@10", "recall@10"]
    drawn = training_section([making], metrics=["ndcg@10"])
    assert drawn is not None
    assert drawn.count("<circle") == 2 + 1 + 1
    assert "mine, training" in drawn
    assert "Best on validation rows: mine: step 5." in drawn
    assert "0.002" in drawn
    assert "max_steps" not in drawn  # -1 says that it is not set


def test_quality_of_sids(tmp_path: Path):
    level = {"codebook_size": 4, "used_share": 1.0, "perplexity": 3.5, "entropy_bits": 1.5}
    quality = {
        "items": 1200, "before": {"distinct": 1000, "collision_rate": 1 / 6},
        "after": {"collision_rate": 0.0, "items_sharing": 0.0, "largest_bucket": 1}, "levels": [level, level],
    }  # fmt: skip
    drawn = sid_quality_section([read_making("mine", a_bundle(tmp_path / "b", **quality))])
    assert drawn is not None
    for text in ("1,200", "16.67%", "4 \u00d7 4", "mine, level 2", ">3.5<"):
        assert text in drawn


def test_a_folder_that_says_nothing(tmp_path: Path):
    making = read_making("bare", tmp_path)
    assert training_section([making], metrics=["ndcg@10"]) is None
    assert sid_quality_section([making]) is None
    with pytest.raises(InputError, match=r"bundle 'x': .*none is no folder"):
        read_making("x", tmp_path / "none")
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text('{"log_history": [{"loss": 1}]}')
    with pytest.raises(InputError, match="no list 'log_history' of entries with a 'step'"):
        read_making("x", tmp_path)
