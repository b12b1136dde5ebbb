"""The pieces of a page that needs nothing else: escaped elements, tables that can be sorted, and the frame."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmrec.artifacts import whole_file

NOTHING = "\u2013"
"""Stands in a cell that has no value."""
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1100px; padding: 1rem; }
h1 { font-size: 1.5rem; margin: 0.5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.3rem; }
h3 { font-size: 1.05rem; margin: 1.4rem 0 0.3rem; }
h4 { font-size: 0.95rem; margin: 0.6rem 0 0.1rem; overflow-wrap: anywhere; }
p, li { margin: 0.3rem 0; max-width: 46rem; overflow-wrap: anywhere; }
figure { margin: 0.8rem 0; }
figcaption { font-size: 0.9em; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; list-style: none; padding: 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0.5rem 0; }
caption { text-align: left; font-size: 0.9em; padding-bottom: 0.3rem; }
th, td { padding: 0.2rem 0.7rem; text-align: right; border-bottom: 1px solid #8884; font-weight: normal; }
thead th { opacity: 0.85; vertical-align: bottom; }
td:first-child, th:first-child { text-align: left; padding-left: 0; }
td.text, th.text { text-align: left; }
td { white-space: nowrap; }
td.text, td.list { white-space: normal; }
tbody th { overflow-wrap: break-word; min-width: 6rem; max-width: 18rem; }
thead button { all: unset; cursor: pointer; text-decoration: underline dotted; }
thead button:focus-visible { outline: 2px solid; }
[aria-sort="ascending"] button::after { content: " \\2191"; }
[aria-sort="descending"] button::after { content: " \\2193"; }
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid; }
.best { font-weight: 600; }
.small { opacity: 0.8; font-size: 0.9em; }
.bar { background: linear-gradient(90deg, #3b7dd844 var(--share), transparent var(--share)); }
.note { border-left: 3px solid #d8793b; padding-left: 0.6rem; }
.hit { outline: 2px solid #3b9b6d; font-weight: 600; }
.lists { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); gap: 0 1.5rem; }
.lists ol, .lists ul { margin: 0.2rem 0; padding-left: 1.6rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
.key { display: flex; flex-wrap: wrap; gap: 0 1rem; list-style: none; padding: 0; font-size: 0.9em; }
.key span { display: inline-block; width: 0.8em; height: 0.8em; margin-right: 0.4em; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: currentColor; font-size: 12px; }
svg .axis { stroke: currentColor; opacity: 0.5; }
svg .grid { stroke: currentColor; opacity: 0.15; }
svg .line { fill: none; stroke-width: 2; }
"""
SORTING = """
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0], key = row => row.cells[place].dataset.value;
      const rows = [...body.rows].map(row => [key(row), row.cells[place].textContent, row]);
      rows.sort(([a, text, _], [b, other, __]) => {
        if (a === undefined && b === undefined) return (down ? 1 : -1) * text.localeCompare(other);
        if (a === undefined || b === undefined) return a === undefined ? 1 : -1;  // what has no value comes last
        return down ? b - a : a - b;
      });
      for (const [, , row] of rows) body.append(row);
    });
  });
}
document.documentElement.dataset.ready = "yes";
"""
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"


class Markup(str):
    """Text that is HTML already; any other text is escaped when it comes into an element."""

    __slots__ = ()


def markup(value: object) -> Markup:
    """Return text as HTML: escaped, unless it is `Markup`; halves of signs, which no file holds, are replaced."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(re.sub("[\\x00\ud800-\udfff]", "\ufffd", str(value)), quote=True))


def element(name: str, *children: object, **attributes: object) -> Markup:
    """Return an element.

    Args:
        name: of the tag.
        children: `Markup`, or anything that is text; None is left out.
        attributes: underscores become hyphens and an underscore at the end goes, so ``class_``; None is left out.
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{markup(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = "".join(markup(child) for child in children if child is not None)
    return Markup(f"<{name}{said}>{inside}</{name}>")


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Args:
        text: what it shows.
        value: by which the column is sorted; None comes last.
        kind: a CSS class, such as ``best`` or ``text``.
        share: 0 to 1, a bar behind the text; None draws none.
    """

    text: object
    value: float | None = None
    kind: str | None = None
    share: float | None = None

    def html(self) -> Markup:
        """Return the ``td``."""
        kinds = " ".join(filter(None, [self.kind, None if self.share is None else "bar"])) or None
        style = None if self.share is None else f"--share: {100 * self.share:.1f}%"
        return element("td", self.text, class_=kinds, data_value=self.value, style=style)


def number_cell(value: float | None, form: str = ".4f", **settings: object) -> Cell:
    """Return a cell with a number, or with `NOTHING` where there is none."""
    return Cell(NOTHING if value is None else format(value, form), value, **settings)  # pyright: ignore[reportArgumentType]


def table(
    caption: object,
    head: Sequence[object],
    rows: Sequence[Sequence[object]],
    *,
    sortable: bool = True,
    id_: str | None = None,
) -> Markup:
    """Return a table that scrolls by itself when it is wider than the page.

    Args:
        caption: what the table says; text or `Markup`.
        head: one a column.
        rows: one a line; the first of each names the line, the others are `Cell` or text.
        sortable: whether a click on a head sorts by that column.
        id_: of the table.
    """
    heads = element("tr", *(element("th", cell, scope="col") for cell in head))
    lines = []
    for first, *others in rows:
        name = element(
            "th", first.text if isinstance(first, Cell) else first, scope="row",
            data_value=first.value if isinstance(first, Cell) else None,
        )  # fmt: skip
        lines.append(
            element("tr", name, *(cell.html() if isinstance(cell, Cell) else element("td", cell) for cell in others))
        )
    inside = element(
        "table", element("caption", caption), element("thead", heads), element("tbody", *lines),
        class_="sortable" if sortable else None, id=id_,
    )  # fmt: skip
    # A box that scrolls can be reached by the keyboard, and says what it is.
    said = re.sub("<[^>]*>", "", caption) if isinstance(caption, Markup) else caption
    label = html.unescape(str(said)) if isinstance(caption, Markup) else said
    return element("div", inside, class_="scroll", role="region", tabindex="0", aria_label=label)


def section(title: str, *children: object, id_: str) -> Markup:
    """Return a section with its heading, which the list of contents finds by ``id_``."""
    return element("section", element("h2", title), *children, id=id_)


def bullets(lines: Sequence[object], **attributes: object) -> Markup | None:
    """Return a list, or None when there is nothing to list."""
    return element("ul", *(element("li", line) for line in lines), **attributes) if lines else None


def page(title: str, sections: Mapping[str, Markup], *, lead: Sequence[object] = (), foot: object = None) -> str:
    """Return a whole page in ASCII, which fetches nothing and reads as well without its script.

    Args:
        title: heading and title.
        sections: what `section` made, by the words that the list of contents has for it.
        lead: paragraphs below the heading.
        foot: a last line, on how the page was made.
    """
    anchors = {name: re.search(r'id="([^"]*)"', part) for name, part in sections.items()}
    contents = [element("a", name, href=f"#{found[1]}") for name, found in anchors.items() if found is not None]
    body = element(
        "main",
        element("h1", title),
        *(line if isinstance(line, Markup) else element("p", line) for line in lead),
        element("nav", bullets(contents), aria_label="contents") if len(contents) > 1 else None,
        *sections.values(),
        None if foot is None else element("p", foot, class_="small"),
    )
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"{element('title', title)}\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n<script>{SORTING}</script>\n"
        "</body>\n</html>\n"
    )
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")


def write_html(path: str | Path, text: str) -> None:
    """Write a page, whole or not at all."""
    with whole_file(path) as part:
        part.write_text(text, encoding="ascii")
