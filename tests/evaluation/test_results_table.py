"""The README's table comes from the results files: made by hand here, and refused where it could mislead."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmrec.errors import InputError
from llmrec.evaluation.evaluator import Evaluation
from llmrec.evaluation.results import result_row, write_results
from llmrec.evaluation.results_table import (
    END,
    START,
    TableGroup,
    TableRow,
    figure,
    read_groups,
    replace_section,
    results_markdown,
    section_diff,
)

ROOT = Path(__file__).parents[2]
MAIN = runpy.run_path(str(ROOT / "recipes" / "results_table.py"))["main"]
METRICS = ["recall@10", "ndcg@10"]


def results(path, systems, *, seen=False, seed=None, dataset="pens", protocol="leave_one_out", users=None):
    """Results of systems whose ranks of 100 users repeat what is given."""
    found = [Evaluation(name, np.resize(ranks, 100), {}, 100, 1.0, ks=(10,)) for name, ranks in systems.items()]
    origin = {"dataset": dataset, "split": "test", "protocol": protocol}
    rows = [result_row(one, **origin, exclude_seen=seen, seed=seed) for one in found]
    write_results(path, rows, found, users=users)


def spec(folder, *rows, **more):
    file = folder / "table.json"
    file.write_text(json.dumps({"metrics": METRICS, "groups": [{"rows": list(rows)}], **more}))
    return file


def test_figures_by_hand(tmp_path):
    # Every other target at rank 0: recall .5, standard error .05, so that 1.96 of it is .098; NDCG is the same.
    results(tmp_path / "a.json", {"half": [0, -1], "all": [1]})
    groups, metrics, level = read_groups(spec(tmp_path, {"runs": ["a.json"]}, level=0.95))
    assert (metrics, level) == (METRICS, 0.95)
    assert (groups[0].name, groups[0].seen, groups[0].users) == ("pens", "kept", 100)
    half, everything = groups[0].rows
    assert half.means == {"recall@10": 0.5, "ndcg@10": 0.5}
    assert half.intervals["recall@10"] == pytest.approx((0.402, 0.598), abs=0.01)
    # Rank 1 always: 1 / log2(3) = .6309.
    assert everything.means["ndcg@10"] == pytest.approx(0.63093, abs=1e-5)


def test_the_markdown_by_hand():
    ends = {"recall@10": (0.0001, 0.0591), "ndcg@10": (0.89, 1.0)}
    ours = TableRow("a|b", {"recall@10": 0.05284, "ndcg@10": 0.9}, ends, seeds=3)
    theirs = TableRow("TIGER", {"recall@10": 0.0648}, {}, "Rajput et al. 2023")
    group = TableGroup("beauty", "left out", "test", "leave_one_out", 22363, (ours, theirs), 22363)
    text = results_markdown([group], METRICS, 0.95)
    lead, table = text.split("\n\n", 1)
    assert max(map(len, text.splitlines())) <= 119
    assert " ".join(lead.split("\n")) == (
        "Test rows of leave_one_out, ranked over the whole catalogue: beauty 22,363 users. In brackets: the 95 % "
        "interval over users (and seeds, where there are several). *Seen*: whether items of the history may come out."
    )
    assert table.splitlines() == [
        "| set | seen | system | Recall@10 | NDCG@10 |",
        "| --- | --- | --- | ---: | ---: |",
        "| beauty | left out | a\\|b (3 seeds) | .0528 [.0001, .0591] | .9000 [.8900, 1.0000] |",
        "| beauty | - | *TIGER* [1] | .0648 | - |",
        "",
        "In italics: as published, not measured here. [1] Rajput et al. 2023.",
    ]
    assert figure(1.0) == "1.0000"
    two = replace(group, users=166, rows=(replace(ours, seeds=2),))
    lead = " ".join(results_markdown([two], METRICS, 0.95).split("\n\n")[0].split("\n"))
    assert "whole catalogue: beauty 22,363 rows of 166 users. In brackets" in lead
    assert "Two seeds are too few: how much trainings differ is hardly known from two" in lead
    lead = " ".join(results_markdown([replace(group, users=None)], METRICS, 0.95).split("\n\n")[0].split("\n"))
    assert "whole catalogue: beauty 22,363 rows. In" in lead
    assert lead.endswith("no file tells whose they are, which makes intervals too narrow (beauty).")


def test_users_that_one_file_tells_are_those_of_all_rows(tmp_path):
    results(tmp_path / "a.json", {"m": [0, -1]}, protocol="temporal")
    alone = read_groups(spec(tmp_path, {"runs": ["a.json"]}))[0][0]
    assert (alone.users, alone.scored) == (None, 100)
    results(tmp_path / "b.json", {"n": [0, -1]}, protocol="temporal", users=[row // 50 for row in range(100)])
    known = read_groups(spec(tmp_path, {"runs": ["a.json"]}, {"runs": ["b.json"]}))[0][0]
    assert (known.users, known.scored) == (2, 100)
    low, high = known.rows[0].intervals["recall@10"]
    assert low < alone.rows[0].intervals["recall@10"][0] or high > alone.rows[0].intervals["recall@10"][1]
    assert known.rows[0].intervals == known.rows[1].intervals


def test_seeds_are_pooled_and_rows_ordered(tmp_path):
    results(tmp_path / "a.json", {"m": [0]}, seed=0)
    results(tmp_path / "b.json", {"m": [-1]}, seed=1)
    results(tmp_path / "c.json", {"best": [0]})
    rows = [{"label": "model", "runs": ["a.json", "b.json"]}, {"runs": ["c.json:best"]}]
    groups, _, _ = read_groups(spec(tmp_path, *rows, order_by="ndcg@10"))
    assert [(row.label, row.seeds, row.means["recall@10"]) for row in groups[0].rows] == [
        ("best", 1, 1.0), ("model", 2, 0.5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([{"runs": ["a.json"], "name": "x"}], {}, "row 0: unknown key 'name'"),
        ([{"runs": ["a.json"]}], {"metric": "x"}, "unknown key 'metric'"),
        ([{"label": "x"}], {}, "row 0: give it either 'runs' or 'published'"),
        ([{"label": "x", "published": {"recall@10": 0.1}}], {}, "row 0: a published row has a 'label', a 'source'"),
        (
            [{"label": "x", "published": {"hit@3": 0.1}, "source": "y"}], {},
            "figures of hit@3, and the table has recall@10",
        ),
        ([{"label": "x", "published": {"recall@10": 0.1}, "source": "y"}], {}, "no row of our own"),
        ([{"label": "x", "runs": ["a.json"]}], {}, "'m' and 'n' are no seeds of one configuration"),
        ([{"runs": ["a.json"]}, {"runs": ["seen.json"]}], {}, "seen.json: exclude_seen 'true' of 'm'"),
        ([{"runs": ["a.json"]}], {"metrics": []}, "no 'metrics' or no 'groups'"),
        ([{"runs": ["a.json"]}], {"metrics": ["recall@20"]}, "recall@20 of 'm' needs lists of 20 items"),
    ],
)  # fmt: skip
def test_what_could_mislead_is_refused(tmp_path, rows, more, message):
    results(tmp_path / "a.json", {"m": [0], "n": [1]})
    results(tmp_path / "seen.json", {"m": [0]}, seen=True)
    with pytest.raises(InputError) as raised:
        read_groups(spec(tmp_path, *rows, **more))
    assert message in str(raised.value)


def test_markers():
    assert replace_section(f"a\n{START}\nold\n{END}\nb\n", "new", where="x") == f"a\n{START}\n\nnew\n\n{END}\nb\n"
    for text in ("none", f"{START}", f"{START}{START}{END}"):
        with pytest.raises(InputError, match=r"x: \d lines <!-- /?results -->; put"):
            replace_section(text, "new", where="x")
    with pytest.raises(InputError, match="stands before"):
        replace_section(f"{END}{START}", "new", where="x")


def test_the_command_fails_when_they_differ_and_mends_it(tmp_path, capsys):
    results(tmp_path / "a.json", {"m": [0, -1]})
    table, document = spec(tmp_path, {"runs": ["a.json"]}), tmp_path / "README.md"
    document.write_text(f"before\n{START}\n{END}\nbehind\n")
    arguments = ["--table", str(table), "--document", str(document)]
    for check in (["--check"], []):  # to check leaves it as it is, so that it differs the second time too
        with pytest.raises(SystemExit) as ended:
            MAIN([*arguments, *check])
        assert ended.value.code == 1
        assert "+| pens | kept | m | .5000" in capsys.readouterr().out
    MAIN([*arguments, "--check"])
    assert "its table is the one" in capsys.readouterr().out
    # A figure changed by hand is found.
    document.write_text(document.read_text().replace(".5000", ".6000"))
    with pytest.raises(SystemExit):
        MAIN([*arguments, "--check"])
    assert "-| pens | kept | m | .6000" in capsys.readouterr().out
    # Results that changed are found.
    assert section_diff(document, table, write=True)
    results(tmp_path / "a.json", {"m": [0]})
    assert "+| pens | kept | m | 1.0000" in section_diff(document, table, write=False)
    with pytest.raises(InputError, match="no such file; it holds the table"):
        section_diff(tmp_path / "none.md", table, write=False)


def test_the_tables_of_the_documents_are_those_that_the_files_make(capsys):
    MAIN(["--check"])  # ends with status 1 where `make results` has something to write
    said = capsys.readouterr().out
    assert f"{ROOT / 'README.md'}: its table is the one" in said
    assert f"{ROOT / 'docs' / 'results.md'}: its table is the one" in said
    with pytest.raises(InputError, match="--table and --document: give both"):
        MAIN(["--document", "README.md"])
