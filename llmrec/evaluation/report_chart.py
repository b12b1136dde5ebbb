"""Line charts as SVG inside a page, with their numbers as a table below."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmrec.errors import InputError
from llmrec.evaluation.report_html import NOTHING, Cell, Markup, element, number_cell, table

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 34, 12, 44
# RIGHT is half of the widest tick's text, for the last tick can stand at the very end
TICKS = 5
Placing = Callable[[float], float]
"""From a number on an axis to its place in the picture."""


@dataclass(frozen=True)
class Line:
    """A line, or a single point, of a chart.

    Args:
        name: in the key.
        points: ``(x, y)`` or ``(x, y, low, high)`` with the ends of an interval; in any order.
        labels: what each point says when one points at it, beside its numbers; empty for none.

    Raises:
        InputError: no points, another number of labels, or a number that is not finite.
    """

    name: str
    points: tuple[tuple[float, ...], ...]
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.points or (self.labels and len(self.labels) != len(self.points)):
            raise InputError(
                f"line {self.name!r}: {len(self.points)} points and {len(self.labels)} labels; give points, and a "
                "label for each or none"
            )
        if not all(math.isfinite(number) for point in self.points for number in point):
            raise InputError(f"line {self.name!r}: a point that is NaN or infinite; leave it out")


def nice_ticks(low: float, high: float, *, most: int = TICKS) -> list[float]:
    """Return round numbers within ``low`` and ``high``: steps of 1, 2 or 5 times a power of ten.

    Args:
        low: lower end.
        high: upper end, above it.
        most: steps at most; at least 1.
    """
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten within ``low`` and ``high``, both above zero; both ends when none is."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    inside = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
    return inside if len(inside) >= 2 else [low, high]


def colour(place: int) -> str:
    """Return the colour of the line at a place: hues far apart, readable on dark and on light."""
    return f"hsl({(210 + place * 137.508) % 360:.0f} 65% 50%)"


def _short(value: float) -> str:
    return f"{value:.4g}"


def chart(
    caption: str, lines: Sequence[Line], *, x: str, y: str, log_x: bool = False, id_: str | None = None
) -> Markup:
    """Return a figure: the lines, a key, and all numbers in a table that opens.

    Args:
        caption: what is to be seen.
        lines: at least one.
        x: name of the horizontal axis, with its unit.
        y: name of the vertical axis.
        log_x: whether equal steps to the right are equal factors; all x must then be above zero.
        id_: of the figure.

    Raises:
        InputError: no lines, or an x that is not above zero under ``log_x``.
    """
    if not lines:
        raise InputError(f"chart {caption!r}: no lines; leave the chart out")
    xs = [point[0] for line in lines for point in line.points]
    ys = [number for line in lines for point in line.points for number in point[1:]]
    if log_x and min(xs) <= 0:
        raise InputError(f"chart {caption!r}: {x} {min(xs)} on an axis of factors; it must be above zero")
    low, high = _widened(min(0.0, *ys), max(ys))
    left, right = (min(xs), max(xs)) if max(xs) > min(xs) else _around(xs[0], log_x)

    def across(value: float) -> float:
        span = math.log(value / left) / math.log(right / left) if log_x else (value - left) / (right - left)
        return LEFT + span * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    drawn = _axes(nice_ticks(low, high), log_ticks(left, right) if log_x else nice_ticks(left, right), across, up)
    for place, line in enumerate(lines):
        drawn += _drawn(line, colour(place), across, up)
    middle = (LEFT + WIDTH - RIGHT) / 2
    drawn.append(element("text", x, x=f"{middle:.0f}", y=HEIGHT - 8, text_anchor="middle"))
    turned = f"rotate(-90 12 {(HEIGHT - BOTTOM) / 2:.0f})"
    drawn.append(element("text", y, x=12, y=f"{(HEIGHT - BOTTOM) / 2:.0f}", text_anchor="middle", transform=turned))
    picture = element("svg", *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=caption)
    key = element(
        "ul",
        *(
            element("li", element("span", style=f"background: {colour(place)}", aria_hidden="true"), line.name)
            for place, line in enumerate(lines)
        ),
        class_="key",
    )
    numbers = element("details", element("summary", "The numbers"), _numbers(caption, lines, x, y))
    return element("figure", element("figcaption", caption), picture, key, numbers, id=id_)


def _widened(low: float, high: float) -> tuple[float, float]:
    return (low, high + 0.05 * (high - low)) if high > low else (low, low + 1.0)


def _around(value: float, log: bool) -> tuple[float, float]:
    return (value / 2, value * 2) if log else (value - 1, value + 1)


def _axes(ys: Sequence[float], xs: Sequence[float], across: Placing, up: Placing) -> list[Markup]:
    floor, drawn = HEIGHT - BOTTOM, []
    for tick in ys:
        place = f"{up(tick):.1f}"
        drawn.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=place, y2=place, class_="grid"))
        drawn.append(element("text", _short(tick), x=LEFT - 6, y=f"{up(tick) + 4:.1f}", text_anchor="end"))
    for tick in xs:
        place = f"{across(tick):.1f}"
        drawn.append(element("line", x1=place, x2=place, y1=floor, y2=floor + 5, class_="axis"))
        drawn.append(element("text", _short(tick), x=place, y=floor + 19, text_anchor="middle"))
    drawn.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=floor, y2=floor, class_="axis"))
    return drawn


def _drawn(line: Line, shade: str, across: Placing, up: Placing) -> list[Markup]:
    order = sorted(range(len(line.points)), key=lambda place: line.points[place][0])
    points = [line.points[place] for place in order]
    labels = [line.labels[place] for place in order] if line.labels else [""] * len(points)
    path = " ".join(f"{across(point[0]):.1f},{up(point[1]):.1f}" for point in points)
    drawn = [element("polyline", points=path, stroke=shade, class_="line")] if len(points) > 1 else []
    for point, label in zip(points, labels, strict=True):
        at, (value, *interval) = f"{across(point[0]):.1f}", point[1:]
        if interval:
            ends = [f"{up(end):.1f}" for end in interval]
            drawn.append(element("line", x1=at, x2=at, y1=ends[0], y2=ends[1], stroke=shade))
        said = ", ".join(filter(None, [line.name, label, f"{_short(point[0])}: {_short(value)}"]))
        # Long lines of training need no dots; what is pointed at is the same.
        radius = 4 if len(points) <= 30 else 1.5
        drawn.append(
            element("circle", element("title", said), cx=at, cy=f"{up(value):.1f}", r=radius, fill=shade, class_="dot")
        )
    return drawn


def _numbers(caption: str, lines: Sequence[Line], x: str, y: str) -> Markup:
    with_interval = any(len(point) > 2 for line in lines for point in line.points)
    with_label = any(line.labels for line in lines)
    head = ["line", *(["point"] if with_label else []), x, y, *(["from", "to"] if with_interval else [])]
    rows = []
    for line in lines:
        for place, point in enumerate(line.points):
            label = [Cell(line.labels[place] if line.labels else NOTHING, kind="text")] if with_label else []
            ends = [*point[2:], None, None][:2] if with_interval else []
            rows.append([line.name, *label, *(number_cell(value, ".6g") for value in (*point[:2], *ends))])
    return table(caption, head, rows)
