"""Plans of steps: what they hold, what must be run, what is kept, and results beside published ones."""

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from llmrec.errors import InputError
from llmrec.evaluation.rebuild import (
    Plan,
    bundle_name,
    check_sources,
    compare_results,
    format_comparison,
    format_times,
    read_plan,
    run_step,
    steps_to_run,
)

# A stand-in for a script: argument 1 is the results file that it writes, the others are what it reads.
WRITER = """
import json, pathlib, sys
import pyarrow, pyarrow.parquet
out = pathlib.Path(sys.argv[1])
read = [pathlib.Path(name).read_text() for name in sys.argv[2:]]
if (out.parent / "fail").exists():
    sys.exit(3)
out.write_text(json.dumps({"results": [], "read": read}))
pyarrow.parquet.write_table(pyarrow.table({"row": [0]}), out.with_suffix(".ranks.parquet"))
with (out.parent / "log").open("a") as log:
    log.write(out.stem)
"""


@pytest.fixture
def steps(tmp_path: Path) -> dict:
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    run = f"python {script} {{work}}"
    return {
        "sources": {"base": {"path": "{source}/base.txt", "remedy": "put base.txt into {source}"}},
        "steps": {
            "a": {"kind": "results", "makes": "{work}/a.json", "run": f"{run}/a.json {{source}}/base.txt",
                  "needs": ["base"], "seconds": 2},
            "b": {"kind": "results", "makes": "{work}/b.json", "run": f"{run}/b.json {{work}}/a.json"},
            "c": {"kind": "results", "makes": "{work}/c.json", "run": f"WORD=1 {run}/c.json"},
        },
        "bundles": {"x/y": ["a", "b", "c"]},
    }  # fmt: skip


def plan_of(tmp_path: Path, steps: dict, name: str = "x/y") -> Plan:
    path = tmp_path / "bundles.yaml"
    path.write_text(yaml.safe_dump(steps))
    (tmp_path / "source").mkdir(exist_ok=True)
    places = {"work": str(tmp_path / "work"), "source": str(tmp_path / "source"), "weights": "weights"}
    return read_plan(path, name, places=places)


def make(plan: Plan) -> list[str]:
    """Run what must be run, as the recipe does; the names of the steps that ran."""
    todo = steps_to_run(plan)
    check_sources(plan, todo)
    for step in plan.steps:
        if step.name in todo:
            run_step(step)
    return list(todo)


def test_names_of_configs():
    assert bundle_name("recipes/configs/office/sft_small-qwen3_full.yaml") == "office/sft_small-qwen3_full"
    assert bundle_name("office/sft_small-qwen3_full") == "office/sft_small-qwen3_full"


def test_a_plan_by_hand(tmp_path: Path, steps: dict):
    a, b, c = plan_of(tmp_path, steps).steps
    assert (a.makes, a.needs, a.seconds, a.inputs) == (tmp_path / "work/a.json", ("base",), 2, ())
    assert b.inputs == (a.makes,)
    assert b.seconds is None
    assert c.environ == {"WORD": "1"}
    assert c.run[0] == "python"
    assert c.command == f"WORD=1 python {tmp_path}/writer.py {tmp_path}/work/c.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("sources"), "must hold sources, steps and bundles"),
        (lambda d: d["bundles"].update({"x/y": ["a", "z"]}), "bundle x/y: no step 'z'; it has a, b, c"),
        (lambda d: d["steps"]["a"].update({"second": 3}), "step a: second is missing or unknown; a step has"),
        (lambda d: d["steps"]["a"].update({"kind": "cake"}), "step a: kind 'cake'; choose from dataset"),
        (lambda d: d["steps"]["a"].update({"makes": "{work}/d.json"}), "does not name .*/d.json, which it makes"),
        (lambda d: d["steps"]["a"].update({"run": "python {home}/a.json"}), "another place than {work}, {source}"),
        (lambda d: d["bundles"].update({"x/y": ["b", "a"]}), "step b reads .*a.json, which no step before it in x/y"),
        (lambda d: d["steps"]["a"].update({"needs": ["cake"]}), "step a needs 'cake'; sources are base"),
    ],
)
def test_a_plan_that_is_none(tmp_path: Path, steps: dict, change, message: str):
    change(steps)
    with pytest.raises(InputError, match=message):
        plan_of(tmp_path, steps)


def test_an_unknown_bundle(tmp_path: Path, steps: dict):
    with pytest.raises(InputError, match="no bundle 'x/z'; it has x/y; add its steps there"):
        plan_of(tmp_path, steps, "x/z")
    with pytest.raises(InputError, match="not a readable YAML of bundles"):
        read_plan(tmp_path / "missing.yaml", "x/y", places={"work": "w"})


def test_missing_sources_are_one_message_and_only_where_a_step_must_run(tmp_path: Path, steps: dict):
    plan = plan_of(tmp_path, steps)
    with pytest.raises(InputError, match=r"source/base.txt: no such file; put base.txt into .*/source$"):
        check_sources(plan, {"a": "", "b": ""})
    check_sources(plan, {"b": ""})


def test_what_is_whole_is_kept_and_what_changed_is_made_with_all_behind_it(tmp_path: Path, steps: dict):
    plan = plan_of(tmp_path, steps)
    base, work = tmp_path / "source" / "base.txt", tmp_path / "work"
    base.write_text("1")
    assert make(plan) == ["a", "b", "c"]
    assert make(plan) == []
    assert list(steps_to_run(plan, again=True)) == ["a", "b", "c"]

    # A file of another content: made again, and what reads it
    (work / "a.json").write_text("{}")
    assert steps_to_run(plan) == {"a": "changed since it was made", "b": f"{work}/a.json is made anew"}
    assert make(plan) == ["a", "b"]
    (work / "b.ranks.parquet").unlink()
    assert list(steps_to_run(plan)) == ["b"]
    assert "no such file" in steps_to_run(plan)["b"]
    make(plan)

    # Another command, in this plan only
    steps["steps"]["c"]["run"] += " {source}/base.txt"
    changed = plan_of(tmp_path, steps)
    assert list(steps_to_run(changed)) == ["c"]
    assert steps_to_run(changed)["c"].startswith("made by another command: WORD=1 python")
    assert (work / "log").read_text() == "abcabb"


def test_an_input_that_another_plan_made_anew(tmp_path: Path, steps: dict):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "base.txt").write_text("1")
    steps["bundles"]["x/short"] = ["a"]
    whole = plan_of(tmp_path, steps)
    make(whole)
    (tmp_path / "source" / "base.txt").write_text("2")
    short = plan_of(tmp_path, steps, "x/short")
    run_step(short.steps[0])
    assert steps_to_run(short) == {}
    assert steps_to_run(whole) == {"b": f"made from another {tmp_path}/work/a.json"}


def test_a_step_that_fails_keeps_those_before_it(tmp_path: Path, steps: dict):
    plan = plan_of(tmp_path, steps)
    (tmp_path / "source" / "base.txt").write_text("1")
    run_step(plan.steps[0])
    (tmp_path / "work" / "fail").touch()
    with pytest.raises(InputError, match=r"step b ended with status 3 .*the steps before it are kept"):
        make(plan)
    (tmp_path / "work" / "fail").unlink()
    assert make(plan) == ["b", "c"]


def test_what_has_no_record_is_not_deleted(tmp_path: Path, steps: dict):
    plan = plan_of(tmp_path, steps)
    work = tmp_path / "work"
    work.mkdir()
    (work / "c.json").write_text("mine")
    (work / "fail").touch()
    with pytest.raises(InputError, match="step c ended"):
        run_step(plan.steps[2])
    assert (work / "c.json").read_text() == "mine"


def results(path: Path, metrics: dict[str, dict[str, float]], ranks: dict[str, list[int]]) -> Path:
    rows = [{"name": name, "metrics": values} for name, values in metrics.items()]
    path.write_text(json.dumps({"results": rows}))
    pq.write_table(pa.table({"row": [0, 1, 2, 3], **ranks}), path.with_suffix(".ranks.parquet"))
    return path


def test_metrics_beside_published_ones(tmp_path: Path):
    before = results(tmp_path / "a.json", {"m": {"recall@5": 0.5, "mrr@5": 0.1}}, {"m": [0, 1, -1, 2]})
    now = results(
        tmp_path / "b.json", {"other": {"recall@5": 0.1}, "m": {"recall@5": 0.25, "map@5": 0.1}},
        {"other": [0, 0, 0, 0], "m": [0, 1, -1, 7]},
    )  # fmt: skip
    rows = compare_results(now, before)
    assert rows == [
        {"name": "m", "metric": "recall@5", "published": 0.5, "rebuilt": 0.25},
        {"name": "m", "metric": "equal ranks", "published": 1.0, "rebuilt": 0.75},  # three of four users
    ]
    assert format_comparison(rows).splitlines()[1].split() == ["m", "recall@5", "0.5000", "0.2500", "-0.2500"]
    (tmp_path / "a.ranks.parquet").unlink()
    assert [row["metric"] for row in compare_results(now, before)] == ["recall@5"]
    stranger = results(tmp_path / "c.json", {"n": {"recall@5": 0.5}}, {"n": [0, 1, 2, 3]})
    with pytest.raises(InputError, match=r"c.json: shares no system with .*a.json \(m\); give it that --name"):
        compare_results(stranger, before)


def test_times_stated_and_measured(tmp_path: Path, steps: dict):
    plan = plan_of(tmp_path, steps)
    (tmp_path / "source" / "base.txt").write_text("1")
    make(plan)
    record = tmp_path / "work" / "b.json.made.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "seconds": 7}))
    lines = [line.split() for line in format_times(plan.steps, {"a": 1.2, "c": 30.0}).splitlines()]
    assert lines == [
        ["step", "stated", "measured"],
        ["a", "2", "s", "1", "s"],
        ["b", "-", "7", "s", "kept"],
        ["c", "-", "30", "s"],
        ["all", "-", "38", "s"],
    ]
    assert format_times(plan.steps[:1], {"a": 1.2}).splitlines()[-1].split() == ["all", "2", "s", "1", "s"]


def test_scripts_are_run_by_this_python(tmp_path: Path, steps: dict):
    steps["steps"]["c"]["run"] = f"python {tmp_path}/who.py {{work}}/c.json"
    (tmp_path / "who.py").write_text(WRITER + "\nout.write_text(json.dumps(sys.executable))")
    run_step(plan_of(tmp_path, steps).steps[2])
    assert json.loads((tmp_path / "work" / "c.json").read_text()) == sys.executable
