"""The page of SID quality: what it holds, and that a browser draws it."""

import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser_kit import browse
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.slow_sids import slow_tree
from sklearn.decomposition import PCA

from llmrec.errors import InputError
from llmrec.sids.page import (
    EmbeddingMap,
    bucket_sizes,
    code_tree,
    embedding_map,
    page_data,
    page_html,
    write_page,
)
from llmrec.sids.quality import inspect_table
from llmrec.sids.table import SIDTable

HOSTILE = (
    "</script><script>throw new Error('ran')</script>",
    "<img src=x onerror=\"console.error('ran')\">",
    "quotes ' \" ` and \\ back ${slash}",
    "naïve 文具 \u2028 🖊 &lt;b&gt; @@DATA@@ @@TITLE@@",
    "a lone \ud800 surrogate",
)


def some_page(items: int = 60, *, sizes: tuple[int, ...] = (4, 3, 5), flat: bool = True, **settings: Any) -> dict:
    """The data of a page of random SIDs, whose first titles are hostile."""
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, size, items) for size in sizes], axis=1)
    table = SIDTable(tuple(f"i{row}" for row in range(items)), codes, sizes, "random")
    vectors = rng.normal(size=(items, 6)).astype(np.float32)
    titles = [*HOSTILE, *(f"pen {row}" for row in range(len(HOSTILE), items))][:items]
    sequences = [tuple(rng.integers(0, items, 5).tolist()) for _ in range(20)]
    report = inspect_table(table, embeddings=vectors, sequences=sequences, others={"other <b>": table})
    where = embedding_map(vectors) if flat else None
    return page_data(report, table=table, titles=titles, name="Office & <i>Co</i>", flat=where, made="x", **settings)


def embedded(page: str) -> dict:
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert text is not None
    return json.loads(text[1])


@st.composite
def some_codes(draw: st.DrawFn) -> np.ndarray:
    levels, items = draw(st.integers(1, 4)), draw(st.integers(1, 25))
    row = st.lists(st.integers(0, 3), min_size=levels, max_size=levels)
    codes = np.array(draw(st.lists(row, min_size=items, max_size=items)), dtype=np.int64)
    if draw(st.booleans()):  # SIDs of different lengths; a first code says which, so none is another's beginning
        codes[np.arange(levels) > codes[:, :1]] = -1
    return codes


@given(some_codes(), st.data())
@settings(max_examples=100, deadline=None)
def test_the_tree_equals_the_slow_one(codes: np.ndarray, data: st.DataObject):
    rows = data.draw(st.sets(st.integers(0, len(codes) - 1), min_size=1))
    shown = sorted(rows, key=lambda row: (codes[row].tolist(), row))
    tree = code_tree(codes, np.array(shown))
    prefixes: list[tuple[int, ...]] = []
    for code, parent in zip(tree["code"], tree["parent"], strict=True):
        prefixes.append((*prefixes[parent], code) if parent >= 0 else ())
    found = [
        (prefix, items, shown[start:stop])
        for prefix, items, start, stop in zip(prefixes, tree["items"], tree["start"], tree["stop"], strict=True)
    ]
    sids = [tuple(row) for row in codes.tolist()]
    if len(codes) == 1:
        assert found == [((), 1, [0])]
    else:
        assert found == slow_tree(sids, shown)
    assert json.loads(json.dumps(tree)) == tree


def test_bucket_sizes_by_hand():
    codes = np.array([[0, 0]] * 5 + [[1, 0], [1, 1], [2, -1]])
    assert bucket_sizes(codes) == [
        [
            {"low": 1, "high": 1, "prefixes": 1, "items": 1},
            {"low": 2, "high": 3, "prefixes": 1, "items": 2},
            {"low": 4, "high": 7, "prefixes": 1, "items": 5},
        ],
        [
            {"low": 1, "high": 1, "prefixes": 2, "items": 2},
            {"low": 2, "high": 3, "prefixes": 0, "items": 0},
            {"low": 4, "high": 7, "prefixes": 1, "items": 5},
        ],
    ]
    assert bucket_sizes(np.zeros((8, 1), dtype=np.int64))[0][-1] == {"low": 8, "high": 15, "prefixes": 1, "items": 8}


def test_the_map_is_the_principal_plane():
    vectors = np.random.default_rng(0).normal(size=(50, 6)) * [9, 5, 1, 1, 1, 1]
    flat = embedding_map(vectors.astype(np.float32))
    assert (flat.method, flat.rows.tolist()) == ("PCA", list(range(50)))
    expected = PCA(2, svd_solver="full").fit_transform(vectors)
    np.testing.assert_allclose(np.abs(flat.points), np.abs(expected), atol=1e-4)
    some = embedding_map(vectors, sample=20, seed=3)
    assert len(some.rows) == len(set(some.rows.tolist())) == 20
    assert np.all(np.diff(some.rows) > 0)
    np.testing.assert_array_equal(some.rows, embedding_map(vectors, sample=20, seed=3).rows)


def test_tsne_keeps_clusters_apart():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(3), 20)
    vectors = 20 * rng.normal(size=(3, 60))[clusters] + rng.normal(size=(60, 60))
    flat = embedding_map(vectors, method="tsne")
    assert flat.method == "t-SNE"
    np.testing.assert_array_equal(flat.points, embedding_map(vectors, method="tsne").points)
    near = np.linalg.norm(flat.points[:, None] - flat.points, axis=2) + np.diag(np.full(60, np.inf))
    assert (clusters[near.argmin(axis=1)] == clusters).all()


@pytest.mark.parametrize("method", ["pca", "tsne"])
@pytest.mark.parametrize("shape", [(1, 4), (2, 4), (12, 1), (3, 1)])
def test_maps_of_next_to_nothing(method: str, shape: tuple[int, int]):
    flat = embedding_map(np.random.default_rng(0).normal(size=shape), method=method)
    assert flat.points.shape == (shape[0], 2)
    assert np.isfinite(flat.points).all()


def test_bad_input_is_one_clear_error():
    with pytest.raises(InputError, match="map 'umap': choose one of pca, tsne"):
        embedding_map(np.ones((3, 3)), method="umap")
    with pytest.raises(InputError, match="a sample of 0 items; at least 1"):
        embedding_map(np.ones((3, 3)), sample=0)
    table = SIDTable(("a", "b"), np.array([[0], [1]]), (2,))
    with pytest.raises(InputError, match="1 titles for 2 SIDs; both must be of one catalogue"):
        page_data(inspect_table(table), table=table, titles=["a"], name="x")
    with pytest.raises(InputError, match="max_items 0; at least 1"):
        page_data(inspect_table(table), table=table, titles=["a", "b"], name="x", max_items=0)


def test_titles_are_data_and_never_markup():
    data = some_page()
    page = page_html(data)
    assert page.isascii()
    assert embedded(page) == data
    assert {*HOSTILE[:4], "a lone \ufffd surrogate"} <= set(data["titles"])
    assert page.count("<script") == page.count("</script>") == 2  # the data and the code
    assert "<img" not in page
    assert "<title>Semantic IDs of Office &amp; &lt;i&gt;Co&lt;/i&gt;</title>" in page
    assert "@@" not in page.replace("@@DATA@@ @@TITLE@@", "")


def test_the_page_needs_no_network():
    page = page_html(some_page())
    assert not re.search(
        r"https?:|//[a-z]+\.|\burl\(|\bfetch\(|XMLHttpRequest|@import|\bimport\b|<link rel=.style", page
    )
    assert "default-src 'none'" in page
    assert "innerHTML" not in page.replace('box.innerHTML = "<svg></svg>"', "")


def test_a_page_of_a_sample_still_counts_all_items():
    flat = EmbeddingMap(np.array([0, 5]), np.zeros((2, 2)), "PCA")
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, size=(300, 2))
    table = SIDTable(tuple(map(str, range(300))), codes, (4, 4))
    titles = [f"t{row}" for row in range(299)] + ["long " * 100]
    whole = page_data(inspect_table(table), table=table, titles=titles, name="x", flat=flat, max_items=300)
    some = page_data(inspect_table(table), table=table, titles=titles, name="x", flat=flat, max_items=40)
    assert (len(whole["titles"]), len(whole["tree"]["code"])) == (300, 1 + 4 + 16)
    assert 40 <= len(some["titles"]) <= 42
    assert some["tree"]["items"][:5] == whole["tree"]["items"][:5] == [300, *np.bincount(codes[:, 0]).tolist()]
    assert some["tree"]["stop"][0] == len(some["titles"])
    assert some["use"] == whole["use"] == [np.bincount(column).tolist() for column in codes.T]
    assert [some["titles"][place] for place in some["map"]["item"]] == ["t0", "t5"]
    assert [some["sids"][place] for place in some["map"]["item"]] == codes[[0, 5]].tolist()
    assert max(map(len, whole["titles"])) == 200
    assert len(whole["sids"]) == 300
    assert some["sids"] == sorted(some["sids"])


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path):
    data = some_page(8)
    write_page(tmp_path / "page.html", data)
    assert embedded((tmp_path / "page.html").read_text()) == data
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_page(tmp_path / "other.html", {**data, "name": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


# ---- In a browser.


class Elements(HTMLParser):
    """What a page holds: elements of each class and tag, the text of each element with an id, attributes of <html>."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.classes: Counter[str] = Counter()
        self.tags: Counter[str] = Counter()
        self.root: dict[str, str | None] = {}
        self.text: dict[str, str] = {}
        self._open: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags[tag] += 1
        self.classes.update((values.get("class") or "").split())
        if tag == "html":
            self.root = values
        if tag not in ("meta", "link", "input", "img", "br"):
            self._open.append((tag, values.get("id")))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for name in {name for _, name in self._open if name}:
            self.text[name] = self.text.get(name, "") + data


def drawn_by_a_browser(page: str, folder: Path, **more: str) -> tuple[Elements, list[str]]:
    """What headless Chromium draws of a page, and what it says on the console."""
    drawn, console = browse(page, folder, **more)
    return Elements(drawn), console


@pytest.mark.browser
def test_a_browser_draws_every_figure(tmp_path: Path):
    data = some_page()
    drawn, console = drawn_by_a_browser(page_html(data), tmp_path)
    assert console == []
    assert drawn.root["data-ready"] == "yes"
    assert drawn.classes["arc"] == len(data["tree"]["code"]) - 1
    assert drawn.classes["bar"] == 4 + 3 + 5
    assert drawn.classes["bin"] == sum(map(len, data["buckets"]))
    assert (drawn.classes["dot"], drawn.classes["off"]) == (60, 0)
    assert {"tree", "use", "buckets", "map", "collisions", "levels", "agreement", "stability"} <= set(drawn.text)
    assert "60 items, their embeddings laid flat by PCA" in drawn.text["map"]
    assert "other <b>" in drawn.text["stability"]
    for title in (*HOSTILE[:4], "a lone \ufffd surrogate"):
        assert title in drawn.text["map"]
    assert (drawn.tags["img"], drawn.tags["b"], drawn.tags["script"]) == (0, 0, 3)  # two of the page, one of the test
    left_out = "reconstruction: no quantizer fitted on these embeddings"
    assert drawn.text["left_out"] == left_out
    assert drawn.tags["th"] == 5 + 10 + 6 + 4  # of the four tables
    rows = [*data["report"]["neighbours"]["prefixes"], *data["report"]["co_purchase"]["prefixes"]]
    for row in rows:
        assert f"{100 * row['share']:.2f} %{100 * row['chance']:.2f} %" in drawn.text["agreement"]


@pytest.mark.browser
def test_an_address_leads_into_the_tree_and_clicks_and_search_do_too(tmp_path: Path):
    data = some_page()
    tree = data["tree"]
    # The first child of the first code: its arc, panel and dots.
    first = tree["parent"].index(0)
    second = tree["parent"].index(first)
    steps = f"{tree['code'][first]}-{tree['code'][second]}"
    drawn, console = drawn_by_a_browser(page_html(data), tmp_path, at=f"#{steps}")
    assert console == []
    assert drawn.classes["arc"] == tree["parent"].count(second)
    assert drawn.classes["title"] == tree["items"][second] == 60 - drawn.classes["off"]
    for place in range(tree["start"][second], tree["stop"][second]):
        assert (
            "".join(f"<{'abc'[level]}_{code}>" for level, code in enumerate(data["sids"][place]))
            in drawn.text["titles"]
        )

    press = "document.querySelector('.arc').dispatchEvent(new Event('click'))"
    drawn, console = drawn_by_a_browser(page_html(data), tmp_path, then=press)
    assert console == []
    assert drawn.classes["title"] == tree["items"][first]

    seek = "const box = document.querySelector('input'); box.value = ' PEN 1'; box.dispatchEvent(new Event('input'))"
    drawn, console = drawn_by_a_browser(page_html(data), tmp_path, then=seek)
    assert console == []
    assert drawn.text["found"].count("pen 1") == 10  # 10 to 19


@pytest.mark.browser
@pytest.mark.parametrize(
    ("items", "sizes", "flat"), [(1, (2, 2), True), (3, (2,), False), (30, (600, 2), True), (40, (2,) * 7, False)]
)
def test_a_browser_draws_odd_catalogues(tmp_path: Path, items: int, sizes: tuple[int, ...], flat: bool):
    data = some_page(items, sizes=sizes, flat=flat)
    drawn, console = drawn_by_a_browser(page_html(data), tmp_path)
    assert console == []
    assert drawn.root["data-ready"] == "yes"
    assert drawn.classes["bar"] == sum(size if size <= 512 else size // 2 for size in sizes)
    assert drawn.classes["dot"] == (items if flat else 0)
    assert ("map: no embeddings were given" in drawn.text["left_out"]) != flat
    assert drawn.text["tree"].count(" items") + drawn.text["tree"].count(" item") > 0


@pytest.mark.browser
def test_the_console_check_can_fail(tmp_path: Path):
    data = some_page(8)
    broken = {**data, "use": None}
    drawn, console = drawn_by_a_browser(page_html(broken), tmp_path)
    assert "data-ready" not in drawn.root
    assert len(console) == 1
    assert "Uncaught TypeError" in console[0]


def test_reports_without_a_part_make_a_page():
    data = some_page(8, flat=False)
    assert data["map"] is None
    bare = replace(SIDTable(("a",), np.array([[0]]), (2,)), quality={"fit": {"seconds": 1.5, "device": "cpu"}})
    assert embedded(page_html(page_data(inspect_table(bare), table=bare, titles=["t"], name="n")))["tree"]["code"] == [
        -1
    ]
