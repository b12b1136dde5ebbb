"""docs/papers.md: every file that names a paper stands in it, and its numbers are those of the results files."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
RESULTS = ROOT / "recipes" / "results"
SECTIONS = [re.split(r"\n", section, maxsplit=1) for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]]


def named_files() -> set[str]:
    """Paths that the page names: the rooms of a heading, and the files of its tables."""
    found = set()
    for heading, text in SECTIONS:
        files = re.findall(r"`(\w+\.py)`", text)
        for room in re.findall(r"`(llmrec/\w+(?:/\w+)*)/`", heading):
            found |= {f"{room}/{file}" for file in files if (ROOT / room / file).is_file()}
    return found


def test_every_file_with_a_paper_is_named():
    with_paper = {
        str(path.relative_to(ROOT)) for path in (ROOT / "llmrec").rglob("*.py")
        if re.search(r"^\s*Paper: ", path.read_text(encoding="utf-8"), re.MULTILINE)
    }  # fmt: skip
    assert len(with_paper) > 40
    assert sorted(with_paper - named_files()) == []


def test_every_named_file_exists():
    for heading, text in SECTIONS:
        rooms = re.findall(r"`(llmrec/\w+(?:/\w+)*)/`", heading)
        for file in re.findall(r"^\|[^|]*\|([^|]*)\|", text, re.MULTILINE) if rooms else ():
            for name in re.findall(r"`(\w+\.py)`", file):
                assert any((ROOT / room / name).is_file() for room in rooms), f"{heading}: {name}"
    for name in re.findall(r"`((?:recipes|data_prep|llmrec)/[\w./{},*-]+)`", PAGE):
        for path in re.sub(r"\{.*\}", "*", name).split(","):
            assert list(ROOT.glob(path)), name


def measured(file: str, system: str) -> tuple[float, float]:
    """Test recall@10 and ndcg@10 of a system: the mean over its seeds where a grid has several."""
    found = json.loads((RESULTS / file).read_text(encoding="utf-8"))
    if "rows" in found:
        rows = [row["metrics"]["test"] for row in found["rows"] if row["name"] == system and "metrics" in row]
    else:
        rows = [row["metrics"] for row in found["results"] if row["name"] == system]
    assert rows, f"{file}: no {system}"
    means = [sum(row[metric] for row in rows) / len(rows) for metric in ("recall@10", "ndcg@10")]
    return means[0], means[1]


def test_our_numbers_are_those_of_the_files():
    rows = re.findall(r"^\|[^|]+\| \.(\d{4}) / \.(\d{4}) \| `([\w./-]+\.json)`, ([^|]+?) \|", PAGE, re.MULTILINE)
    assert len(rows) >= 14
    for recall, ndcg, file, system in rows:
        assert [f"{value:.4f}" for value in measured(file, system)] == [f"0.{recall}", f"0.{ndcg}"], f"{file} {system}"
