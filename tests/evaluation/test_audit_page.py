"""The page of an audit shows every figure, takes titles as text, and draws without a word on the console."""

import re
from pathlib import Path
from typing import Any

import pytest
from audit_kit import make_audit
from browser_kit import browse

from llmrec.evaluation.audit_page import audit_html, write_audit_page
from llmrec.evaluation.audit_words import BOUNDS, WARNINGS

HOSTILE = "</script><script>throw new Error('ran')</script>"
IDS = (
    "words", "shortcuts", "systems", "order", "branching", "reach", "examples", "smoothness", "near", "history-table",
    "by-length", "history-chart", "skew", "target-popularity", "repeats", "leaks", "counts", "bounds",
)  # fmt: skip


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    return make_audit(tmp_path_factory.mktemp("audit"), "cycle")


def test_every_part_stands_on_the_page(audited):
    audit, titles = audited
    page = audit_html({**audit, "made_by": {"command": "audit.py", "commit": "abc"}}, examples=titles)
    assert page.isascii()
    for name in IDS:
        assert page.count(f'id="{name}"') == 1, name
    assert "command: audit.py. commit: abc" in page
    for name, bound in (*BOUNDS.items(), *WARNINGS.items()):
        assert name in page
        assert f">{bound.value:g}<" in page
    assert f"{audit['counts']['interactions']:,}" in page
    assert "pen &lt;" in page  # titles
    assert "pen &lt;" not in audit_html(audit)


def test_the_json_holds_no_title_and_no_id(audited):
    text = repr(audited[0])
    assert "pen <" not in text
    assert not re.search(r"\bi\d\d\d\b|\bu\d\d\d\b", text)


def test_titles_are_text_and_never_markup(audited):
    audit, _ = audited
    page = audit_html(audit, examples={"transitions": [(HOSTILE, "b & <i>", 3, 0.5)], "titles": [(HOSTILE, 2)]})
    assert page.count("<script") == page.count("</script>") == audit_html(audit).count("<script")
    assert "b &amp; &lt;i&gt;" in page
    assert not re.search(r"https?:|\burl\(|\bfetch\(|@import", page)


def test_a_page_without_embeddings_or_times(audited, tmp_path: Path):
    audit, _ = audited
    write_audit_page(tmp_path / "page.html", {**audit, "features": None})
    page = (tmp_path / "page.html").read_text()
    assert "Not measured: there are no embeddings." in page
    assert 'id="near"' not in page
    assert audit["tied_times"] is None


@pytest.mark.browser
def test_a_browser_draws_the_page(audited, tmp_path: Path):
    audit, titles = audited
    drawn, console = browse(audit_html(audit, examples=titles), tmp_path)
    assert console == []
    assert 'data-ready="yes"' in drawn
    assert drawn.count('class="dot"') >= 4  # all users, at 1, 2, 5 and all items
    for name in IDS:
        assert f'id="{name}"' in drawn
    assert "shortcut-solvable" in drawn
