"""The pieces of a page: what is text stays text, tables are tables, and numbers are found where they belong."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.errors import InputError
from llmrec.evaluation.report_chart import HEIGHT, Line, chart, log_ticks, nice_ticks
from llmrec.evaluation.report_html import (
    NOTHING,
    Cell,
    Markup,
    bullets,
    element,
    markup,
    number_cell,
    page,
    section,
    table,
    write_html,
)


class Tags(HTMLParser):
    """Tags with their attributes, and all text, of a piece of HTML; elements must close in order."""

    VOID = ("meta", "link")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@given(st.text())
@settings(deadline=None)
def test_any_text_comes_back_as_text(text: str):
    tags = Tags(element("p", text, title=text))
    kept = text.replace("\x00", "\ufffd")
    assert [tag for tag, _ in tags.found] == ["p"]
    # A parser takes carriage returns in the source as they are here; browsers make line feeds of them.
    assert tags.text == kept
    assert tags.of("p")[0]["title"] == kept


def test_markup_is_not_escaped_twice():
    inside = element("b", "a & b")
    assert element("p", inside, " < ") == "<p><b>a &amp; b</b> &lt; </p>"
    assert markup("\ud800 & \x00") == "\ufffd &amp; \ufffd"
    assert element("p", None, class_="x", aria_label=None) == '<p class="x"></p>'


def test_a_table_by_hand():
    rows = [
        ["a", Cell("x", kind="text"), number_cell(0.5, share=0.25)],
        [Cell("b", 2.0), "<", number_cell(None)],
    ]
    tags = Tags(table('what "it" says', ["name", "second", "third"], rows, id_="t"))
    assert tags.of("table") == [{"class": "sortable", "id": "t"}]
    assert [cell["scope"] for cell in tags.of("th")] == ["col"] * 3 + ["row"] * 2
    assert tags.of("td") == [
        {"class": "text"},
        {"class": "bar", "data-value": "0.5", "style": "--share: 25.0%"},
        {},
        {},
    ]
    assert tags.of("div")[0] == {
        "class": "scroll", "role": "region", "tabindex": "0", "aria-label": 'what "it" says',
    }  # fmt: skip
    assert tags.text == f'what "it" saysnamesecondthirdax0.5000b<{NOTHING}'


def test_a_page_names_its_sections_and_fetches_nothing():
    parts = {"One": section("First one", element("p", "naïve 文具"), id_="one"), "Two": section("Two", id_="two")}
    text = page("A & <b>", parts, lead=["lead"], foot="made")
    assert text.isascii()
    assert not re.search(r"https?:|//[a-z]+\.|\burl\(|\bfetch\(|XMLHttpRequest|@import|<link rel=.style", text)
    tags = Tags(text)
    assert [link["href"] for link in tags.of("a")] == ["#one", "#two"]
    assert "naïve 文具" in tags.text
    assert "<title>A &amp; &lt;b&gt;</title>" in text
    assert "default-src 'none'" in (tags.of("meta")[1]["content"] or "")
    assert bullets([]) is None


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    write_html(tmp_path / "a.html", "x")
    with pytest.raises(UnicodeEncodeError):
        write_html(tmp_path / "b.html", "é")
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


# ---- Charts.


def test_ticks_by_hand():
    assert nice_ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert nice_ticks(0, 0.0713) == pytest.approx([0, 0.02, 0.04, 0.06])
    assert nice_ticks(-3, 8) == pytest.approx([0, 5])
    assert log_ticks(1, 60) == pytest.approx([1, 2, 5, 10, 20, 50])
    assert log_ticks(3, 4) == [3, 4]


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
@settings(deadline=None)
def test_ticks_lie_within_and_are_few(low: float, width: float):
    if low + width == low:
        return
    found = nice_ticks(low, low + width)
    assert 0 <= len(found) <= 6
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in found)


def test_a_chart_by_hand():
    lines = [Line("up", ((1, 0.0), (100, 1.0, 0.9, 1.0), (10, 0.5))), Line("<one>", ((10, 0.25),), ("lone",))]
    tags = Tags(chart("seen & said", lines, x="beams", y="recall@10", log_x=True))
    dots = tags.of("circle")
    assert len(dots) == 4
    # 1, 10 and 100 stand at equal distances, in their order though they came in another, and 0 lies on the floor.
    across = [float(dot["cx"] or "") for dot in dots]
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.2)
    assert across[3] == across[1]
    heights = [HEIGHT - float(dot["cy"] or "") for dot in dots]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)
    assert heights[3] - heights[0] == pytest.approx((heights[1] - heights[0]) / 2, abs=0.2)
    assert len(tags.of("polyline")) == 1
    assert tags.of("svg")[0]["aria-label"] == "seen & said"
    assert "<one>, lone, 10: 0.25" in tags.text
    assert len(tags.of("td")) == 4 * 5  # point, x, y, from and to of every point


def test_charts_of_next_to_nothing():
    for points in (((3.0, 0.0),), ((1.0, 0.5), (1.0, 0.5)), ((0.0, -1.0), (1.0, -2.0))):
        tags = Tags(chart("c", [Line("a", points)], x="x", y="y"))
        assert "nan" not in str(tags.found)
        assert all(0 <= float(dot["cy"] or "") <= HEIGHT for dot in tags.of("circle"))
    assert Tags(chart("c", [Line("a", ((5.0, 1.0),))], x="x", y="y", log_x=True)).of("circle")


def test_bad_charts_are_one_clear_error():
    with pytest.raises(InputError, match="chart 'c': no lines; leave the chart out"):
        chart("c", [], x="x", y="y")
    with pytest.raises(InputError, match=r"beams 0\.0 on an axis of factors"):
        chart("c", [Line("a", ((0.0, 1.0), (1.0, 1.0)))], x="beams", y="y", log_x=True)
    with pytest.raises(InputError, match="line 'a': 0 points and 0 labels"):
        Line("a", ())
    with pytest.raises(InputError, match="line 'a': a point that is NaN or infinite"):
        Line("a", ((1.0, float("nan")),))
    assert isinstance(chart("c", [Line("a", ((1.0, 1.0),))], x="x", y="y"), Markup)
