"""The benchmark of GRPO steps runs at small sizes, and its sides score the same candidates alike."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import bench_rl as bench

from llmrec.errors import InputError

TINY = [
    "--hidden", "16", "--layers", "2", "--heads", "2", "--kv_heads", "1", "--head_dim", "8", "--intermediate", "24",
    "--prompt", "6", "--group", "4", "--levels", "3", "--codes", "8", "--items", "60", "--repeats", "1",
    "--threads", "1", "--vocab_sizes", "50",
]  # fmt: skip


def test_each_side_is_timed_and_they_agree(tmp_path: Path) -> None:
    out = tmp_path / "figure_1.json"
    bench.main(["--figure", "1", *TINY, "--prompts", "2", "--out", str(out)])
    found = json.loads(out.read_text())
    assert {"command", "commit", "versions", "hardware", "date"} <= set(found["made_by"])
    assert (found["figure"], found["threads"], found["device"]) == (1, 1, "cpu")
    assert "every position" in found["note"]
    sides = [("groups", kind) for kind in ("full", "sids", "allowed")] + [("rows", "full"), ("rows", "sids")]
    assert [(row["part"], row["side"], row["softmax"]) for row in found["rows"]] == [
        (part, *side) for part in ("step", "log_probs") for side in [*sides, ("trl", "full")]
    ]
    rows = {(row["part"], row["side"], row["softmax"]): row for row in found["rows"]}
    assert all(row["log_prob_difference"] < 1e-5 for row in found["rows"])
    ours, twin = rows["log_probs", "groups", "sids"], rows["log_probs", "rows", "sids"]
    assert ours["faster_than_rows_sids"] == pytest.approx(twin["seconds"] / ours["seconds"])
    assert ours["prompts_per_second"] == pytest.approx(2 / ours["seconds"])
    assert ours["distinct_tokens_per_second"] == pytest.approx(2 * (6 + 4 * 3) / ours["seconds"])
    assert "faster_than_rows_allowed" not in rows["step", "groups", "allowed"], "the twin has no such softmax"


def test_trl_scores_as_the_other_sides_do() -> None:
    args = bench.parse(["--figure", "5", *TINY, "--dtype", "float32", "--prompts", "2"])
    setting = bench.make_setting(args, 50, 4)
    sides = [bench.Groups(setting, "full"), bench.Rows(setting, "full"), bench.TRL(setting, "full")]
    completions = sides[0].rollout(4, sample=True)
    assert len({tuple(sid) for sid in completions[0].tolist()}) == 4, "drawn without replacement"
    catalogue = {tuple(sid) for sid in setting.token_ids.tolist()}
    for side in sides:
        for sample in (True, False):
            drawn = side.rollout(4, sample=sample)
            assert {tuple(sid) for sid in drawn.flatten(0, 1).tolist()} <= catalogue
        found, entropies = side.log_probs(completions, entropy=True)
        wanted, spread = sides[1].log_probs(completions, entropy=True)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
        torch.testing.assert_close(entropies, spread, atol=1e-5, rtol=0)
        assert side.log_probs(completions, entropy=False)[1] is None


@pytest.mark.slow
def test_memory_is_taken_in_a_process_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "figure_2.json"
    bench.main(["--figure", "2", *TINY, "--prompt", "64", "--groups", "4", "32", "--out", str(out)])
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
    assert [(row["side"], row["group"]) for row in rows] == [
        ("groups", 4), ("rows", 4), ("groups", 32), ("rows", 32),
    ]  # fmt: skip
    peaks = {(row["side"], row["group"]): row["peak_mib"] for row in rows}
    assert peaks["rows", 32] > peaks["groups", 32]


def test_a_vocabulary_that_is_too_small_is_refused() -> None:
    with pytest.raises(InputError, match="--vocab_sizes 50: there are 2048 SID tokens; give more rows"):
        bench.main([*TINY, "--codes", "1024", "--levels", "2"])
