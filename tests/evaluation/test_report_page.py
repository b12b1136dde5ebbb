"""The whole page: all its sections, in a browser too, wide and narrow, and with hostile titles."""

import json
import re
from dataclasses import replace
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser_kit import browse

from llmrec.errors import InputError
from llmrec.evaluation.evaluator import Evaluation
from llmrec.evaluation.report import common_metrics, read_makings, report_groups, report_markdown, words_on_tests
from llmrec.evaluation.report_examples import Example, examples_section
from llmrec.evaluation.report_page import report_page
from llmrec.evaluation.results import result_row, write_results
from llmrec.evaluation.slices import Slicing, slice_metrics

USERS = 60
HOSTILE = (
    "</script><script>throw new Error('ran')</script>",
    "<img src=x onerror=\"console.error('ran')\">",
    "quotes ' \" ` and \\ back ${slash}",
    "naïve 文具 \u2028 🖊 &lt;b&gt;",
    "a lone \ud800 surrogate",
    "unbroken" * 30,
)


def results(path: Path, *, seen: bool = False, beams: int = 20, seed: int = 0) -> str:
    """A results file of a baseline and a model, with everything that a row may hold."""
    rng = np.random.default_rng(seed + beams)
    evaluations = [
        Evaluation(name, rng.integers(-1, 10, USERS), {}, USERS, 1.0, ks=(5, 10)) for name in ("knn <b>", "model")
    ]
    slicing = Slicing("history_length", ("up to 5", "over 5"), ("few", "many"), np.zeros(USERS, dtype=np.int64))
    rows = []
    for one in evaluations:
        model = one.name == "model"
        more: dict[str, Any] = {
            "beyond": {"gini@10": 0.5, "novelty@10": 7.5, "repeats@10": 0.0, "validity@10": 1.0},
            "slices": {"history_length": slice_metrics(one.ranks, slicing, metrics=["recall@10", "ndcg@10"])},
            "latency": {
                "p50": beams / 100,
                "p95": 1.0,
                "users_per_second": 90.0,
                "batch_users": 8,
                "calls": 2,
                "requests": 30,
            },
        }
        if model:
            more |= {
                "model": str(path.parent / "bundle"), "score": "full", "num_beams": beams,
                "leaks": ["the SIDs were fitted on the training part of 'temporal'"],
                "sid_level": {
                    "shared_targets": 0.1, "sid_recall@10": 0.5, "sid_ndcg@10": 0.4, "sharing_credit@10": 0.1,
                },
            }  # fmt: skip
        row = result_row(one, dataset="pens & <i>", split="test", protocol="leave_one_out", exclude_seen=seen, **more)
        found = {"recall@5": 0.1, "recall@10": 0.2, "ndcg@10": 0.1, "ndcg@5": 0.1, "coverage@10": 0.5}
        rows.append({**row, "metrics": found})
    write_results(path, rows, evaluations)
    return str(path)


def bundle(folder: Path) -> None:
    history = [{"step": step, "loss": 3 / step, "eval_loss": 4 / step, "eval_ndcg@10": step / 9} for step in (1, 2, 3)]
    (folder / "checkpoint-3").mkdir(parents=True)
    (folder / "checkpoint-3" / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    (folder / "run.json").write_text(json.dumps({"model": "tiny </td>", "learning_rate": 0.1}))
    level = {"codebook_size": 4, "used_share": 1.0, "perplexity": 3.5, "entropy_bits": 1.5}
    quality = {"items": 10, "before": {"distinct": 9}, "after": {"collision_rate": 0.0}, "levels": [level]}
    (folder / "sid_config.json").write_text(json.dumps({"method": "rq", "codebook_sizes": [4], "quality": quality}))


def whole_page(tmp_path: Path, *, reference: str | None = None) -> str:
    """A page of everything: two models' numbers of beams, seen items kept and left out, curves, SIDs, examples."""
    bundle(tmp_path / "bundle")
    files = [
        results(tmp_path / "a.json"),
        results(tmp_path / "b.json", beams=50),
        results(tmp_path / "c.json", seen=True),
    ]
    groups = report_groups(files, reference=reference, samples=200)
    lists = {"model": np.array([0, 1, 2, 3, 4, 5]), "knn <b>": np.array([-1, -1])}
    example = Example(7, "at random", (0, 1, 2), 3, lists, {"model": 3, "knn <b>": -1})
    examples = examples_section([example], HOSTILE, seed=0, metric="ndcg@10")
    return report_page(groups, makings=read_makings(groups), examples=examples, made="made by `x <y>`")


def test_all_sections_stand_there_and_titles_are_text(tmp_path: Path):
    page = whole_page(tmp_path)
    assert page.isascii()
    ids = re.findall(r'<section id="([^"]*)"', page)
    kept, left = "seen-items-kept", "seen-items-left-out"
    parts = ("scores", "differences", "slices", "lists", "sid-level", "latency")
    assert ids == [f"{part}-{seen}" for seen in (kept, left) for part in parts] + ["training", "sids", "examples"]
    assert re.findall(r'href="#([^"]*)"', page) == ids
    assert page.count("<script") == page.count("</script>") == 1
    assert "<img" not in page
    assert "<i>" not in page
    text = unescape(page)
    for title in (*HOSTILE[:4], "a lone \ufffd surrogate"):
        assert title in text
        assert escape(title).encode("ascii", "xmlcharrefreplace").decode() in page
    assert "LEAK: the SIDs were fitted" in page
    assert "recall@10 against the number of beams" in page
    assert not re.search(r"https?:|//[a-z]+\.|\burl\(|\bfetch\(|XMLHttpRequest|@import|<link rel=.style", page)


def test_what_is_left_out_is_said(tmp_path: Path):
    path = results(tmp_path / "a.json")
    rows = json.loads(Path(path).read_text())
    keep = ("name", "dataset", "split", "protocol", "exclude_seen", "metrics", "users")
    rows["results"] = [{key: row[key] for key in keep} for row in rows["results"][:1]]
    Path(path).write_text(json.dumps(rows))
    groups = report_groups([path])
    page = report_page(groups, made="x")
    assert 'section id="differences"' not in page
    for line in ("Differences: there is one system only", "Training: no bundle&#x27;s folder", "Worked examples: no"):
        assert line in page
    assert "Differences" not in report_markdown(groups, made="x")


def test_the_reference_is_the_one_of_its_table(tmp_path: Path):
    files = [results(tmp_path / "a.json"), results(tmp_path / "c.json", seen=True)]
    groups = report_groups(files, reference="knn <b>", samples=200)
    assert [group.comparison.reference for group in groups] == ["knn <b>", "knn <b>"]
    page = report_page(groups, made="x")
    assert page.count("knn &lt;b&gt; (reference)") == 2
    with pytest.raises(InputError, match="--reference 'other': no such system; choose one of knn <b>"):
        report_groups(files, reference="other")


def test_what_the_figures_cannot_say_stands_on_the_page_and_in_the_markdown(tmp_path: Path):
    def said(*files: str, **settings: Any) -> tuple[str, Any]:
        groups = report_groups(files, **settings)
        page = unescape(re.sub("<[^>]*>", "", report_page(groups, made="x")))
        markdown = report_markdown(groups, made="x")
        words = words_on_tests(groups[0].comparison)
        assert all(word in markdown and word in page for word in words)
        return " ".join(words), groups[0]

    def file(name: str, *, users: list[int] | None = None, protocol: str = "temporal", **row: Any) -> str:
        one = Evaluation("m", np.resize([0, -1, 3], 60), {"recall@10": 0.1}, 60, 1.0, ks=(10,))
        found = [replace(one, name=f"m{number}") for number in range(4)] if name == "many" else [one]
        origin = {"dataset": "pens", "split": "test", "protocol": protocol, "exclude_seen": False}
        write_results(tmp_path / name, [result_row(each, **origin, **row) for each in found], found, users=users)
        return str(tmp_path / name)

    alone = "Rows are taken as independent, for no file tells whose they are"
    words, group = said(file("unknown"))
    assert alone in words
    assert group.said.endswith("test rows of temporal, seen items kept, 60 rows")
    words, group = said(file("known", users=[row // 6 for row in range(60)]))
    assert alone not in words
    assert "All rows of a user are drawn and exchanged together" in words
    assert group.said.endswith("60 rows of 10 users")
    assert (group.to_json()["rows"], group.to_json()["users"]) == (60, 10)
    words, group = said(file("whole", protocol="leave_one_out"))
    assert alone not in words
    assert group.said.endswith("60 users")
    # Six pairs, and the least p of 100 samples is 1/101: six times that is above .05.
    words, _ = said(file("many", protocol="leave_one_out"), samples=100)
    assert "TOO FEW SAMPLES: no p that is drawn can earn a mark among so many pairs; 120 are the least" in words
    words, _ = said(file("many", protocol="leave_one_out"))
    assert "TOO FEW SAMPLES" not in words
    two = [file(f"seed{seed}", protocol="leave_one_out", seed=seed) for seed in range(3)]
    assert "Two seeds are too few" in said(*two[:2])[0]
    assert "Two seeds are too few" not in said(*two)[0]


def test_default_metrics_are_those_of_all_files(tmp_path: Path):
    (group,) = report_groups([results(tmp_path / "a.json")], samples=200)
    assert common_metrics(group.runs) == ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
    bare = [replace(run, row={"name": run.name}) for run in group.runs]
    assert common_metrics(bare) == ("recall@10", "ndcg@10")


# ---- In a browser.

MEASURE = """
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => {
  const page = frame.contentDocument, root = page.documentElement;
  const said = {
    ready: root.dataset.ready, wide: root.scrollWidth, buttons: page.querySelectorAll("thead button").length,
    heads: page.querySelectorAll("table.sortable thead th").length,
    scopes: page.querySelectorAll("th:not([scope])").length,
    captions: page.querySelectorAll("table").length - page.querySelectorAll("caption").length,
    pictures: page.querySelectorAll("svg").length, hits: page.querySelectorAll("li.hit").length,
    strange: page.querySelectorAll("img, i, b").length,
  };
  const order = () => [...page.querySelectorAll("#scores-seen-items-kept tbody tr")].map(
    row => Number(row.cells[1].dataset.value));
  page.querySelectorAll("#scores-seen-items-kept thead button")[1].click();
  said.down = order();
  page.querySelectorAll("#scores-seen-items-kept thead button")[1].click();
  said.up = order();
  document.querySelector("#said").textContent = JSON.stringify(said);
});
frame.srcdoc = SOURCE;
"""


def measured(page: str, folder: Path, *, width: int) -> tuple[dict[str, Any], list[str]]:
    """Open a page in a frame of a width, and return what it measures and what stands on the console."""
    source = json.dumps(page).replace("<", "\\u003c")
    frame = f'<iframe style="width: {width}px; height: 900px; border: 0"></iframe><pre id="said"></pre>'
    host = f"<!doctype html><body>{frame}</body>"
    drawn, console = browse(host, folder, then=MEASURE.replace("SOURCE", source), timeout=240)
    said = re.search(r'<pre id="said">(.*?)</pre>', drawn, re.DOTALL)
    assert said is not None
    assert said[1], console
    return json.loads(unescape(said[1])), console


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_shows_it_without_a_word_and_within_its_width(tmp_path: Path, width: int):
    page = whole_page(tmp_path)
    said, console = measured(page, tmp_path, width=width)
    assert console == []
    assert said["ready"] == "yes"
    assert said["wide"] <= width
    assert said["buttons"] == said["heads"] > 20
    assert (said["scopes"], said["captions"], said["strange"]) == (0, 0, 0)
    assert said["pictures"] == page.count("<svg")
    assert said["hits"] == 1
    assert said["down"] == sorted(said["up"], reverse=True)
    assert said["up"] == sorted(said["up"])


@pytest.mark.browser
def test_the_checks_of_the_browser_can_fail(tmp_path: Path):
    page = whole_page(tmp_path).replace("</main>", "<div style='width: 900px'>x</div></main>")
    said, console = measured(page.replace('ready = "yes";', 'ready = "yes"; undefined.x;'), tmp_path, width=400)
    assert said["wide"] > 400
    assert any("TypeError" in line for line in console)
