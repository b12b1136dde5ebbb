"""What a scaling study found, as markdown with its tables, and as a picture of both laws."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llmrec.evaluation.grid_tables import markdown_table
from llmrec.evaluation.report_chart import colour, log_ticks
from llmrec.evaluation.report_html import Markup, element
from llmrec.evaluation.scaling import AXES, PowerLaw

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 18, 30, 44
STYLE = """
svg { background: white; font: 12px system-ui, sans-serif; } text { fill: #222; }
.axis { stroke: #888; } .grid { stroke: #ddd; } .line { fill: none; stroke-width: 2; }
"""
X = {"parameters": "parameters outside the tables", "data": "supervised targets"}
Placing = Callable[[float], float]


def law_of(fit: Mapping[str, Any], name: str) -> PowerLaw | None:
    """Return a fitted law of an axis, ``pure`` or ``floored``; None where it was not fitted."""
    if fit.get(name) is None:
        return None
    found = fit[name]
    exponent, coefficient, floor = (found[key]["value"] for key in ("exponent", "coefficient", "floor"))
    return PowerLaw(exponent, coefficient, floor, found["error"])


def scaling_svg(fits: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a picture: one panel an axis, both scales logarithmic, points with their intervals, and the laws.

    Args:
        fits: by axis, as `llmrec.evaluation.scaling.fit_laws` returns them.
    """
    shown = [axis for axis in AXES if axis in fits]
    panels = []
    for number, axis in enumerate(shown):
        moved = element("g", *_panel(axis, fits[axis]), transform=f"translate({number * WIDTH} 0)")
        panels.append(moved)
    size = f"0 0 {WIDTH * max(1, len(shown))} {HEIGHT}"
    picture = element(
        "svg", element("style", Markup(STYLE)), *panels, xmlns="http://www.w3.org/2000/svg", viewBox=size, role="img",
        aria_label="Held-out loss of a SID by parameters and by data",
    )  # fmt: skip
    return f"{picture}\n"


def _panel(axis: str, fit: Mapping[str, Any]) -> list[Markup]:
    points = fit["points"]
    xs, ys = [point["x"] for point in points], [end for point in points for end in point["interval"]]
    left, right = min(xs) / 1.3, max(xs) * 1.3
    low, high = min(ys) / 1.01, max(ys) * 1.01

    def across(value: float) -> float:
        return LEFT + math.log(value / left) / math.log(right / left) * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - math.log(value / low) / math.log(high / low) * (HEIGHT - TOP - BOTTOM)

    drawn = _scales(axis, (left, right), (low, high), across, up)
    place = TOP - 16
    for number, (name, dashes) in enumerate((("pure", None), ("floored", "6 4"))):
        law = law_of(fit, name)
        if law is None:
            continue
        at = np.geomspace(left, right, 60)
        path = " ".join(
            f"{across(x):.1f},{up(y):.1f}" for x, y in zip(at, law.at(at), strict=True) if low <= y <= high
        )
        drawn.append(element("polyline", points=path, class_="line", stroke=colour(number), stroke_dasharray=dashes))
        said = f"{'with' if law.floor else 'no'} floor: exponent {law.exponent:.3f}"
        x = LEFT + 4 + number * (WIDTH - LEFT - RIGHT) / 2
        drawn.append(element("text", said, x=f"{x:.0f}", y=place + 8, style=f"fill: {colour(number)}"))
    for point in points:
        at, (bottom, top) = f"{across(point['x']):.1f}", (f"{up(end):.1f}" for end in point["interval"])
        drawn.append(element("line", x1=at, x2=at, y1=bottom, y2=top, stroke="#222"))
        said = f"{point['x']:,.0f}: {point['loss']:.4f}"
        drawn.append(element("circle", element("title", said), cx=at, cy=f"{up(point['loss']):.1f}", r=4, fill="#222"))
    return drawn


def _scales(axis: str, x: tuple[float, float], y: tuple[float, float], across: Placing, up: Placing) -> list[Markup]:
    floor, drawn = HEIGHT - BOTTOM, []
    for tick in loss_ticks(*y):
        at = f"{up(tick):.1f}"
        drawn.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="grid"))
        drawn.append(element("text", f"{tick:.4g}", x=LEFT - 6, y=f"{up(tick) + 4:.1f}", text_anchor="end"))
    for tick in log_ticks(*x):
        at = f"{across(tick):.1f}"
        drawn.append(element("line", x1=at, x2=at, y1=floor, y2=floor + 5, class_="axis"))
        drawn.append(element("text", short(tick), x=at, y=floor + 19, text_anchor="middle"))
    drawn.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=floor, y2=floor, class_="axis"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    drawn.append(element("text", X[axis], x=f"{middle:.0f}", y=HEIGHT - 8, text_anchor="middle"))
    turned = f"rotate(-90 12 {(HEIGHT - BOTTOM) / 2:.0f})"
    height = f"{(HEIGHT - BOTTOM) / 2:.0f}"
    drawn.append(element("text", "nats a SID", x=12, y=height, text_anchor="middle", transform=turned))
    return drawn


def loss_ticks(low: float, high: float, *, most: int = 6) -> list[float]:
    """Return round numbers within two losses that lie close together: steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def short(value: float) -> str:
    """Return a count as a scale shows it: 20k, 1M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


WORDS = """\
Held-out loss is minus the log-probability of a validation row's target SID, the sum over its tokens under the full
softmax, in nats; the mean over {rows:,} rows, with seen items as they come. Each run keeps its weights of the lowest
validation loss. *Parameters* are those outside the input and output tables; *targets* are the supervised items of the
training sequences. Intervals are at 95 % by bootstrap over held-out rows, the same rows drawn for all points: they say
nothing of another training, {seeds}. Both laws are fitted by least squares on logarithms:
`loss = A x^-a`, and `loss = E + A x^-a`.
"""


def scaling_markdown(
    runs: Sequence[Mapping[str, Any]], fits: Mapping[str, Mapping[str, Any]], *, title: str, command: str, picture: str
) -> str:
    """Return what was found as markdown.

    Args:
        runs: one row a training: ``name``, ``axes``, ``parameters``, ``targets``, ``loss``, ``best_step``, ``steps``,
            ``seconds`` and ``seed``.
        fits: by axis, as `llmrec.evaluation.scaling.fit_laws` returns them.
        title: of the page.
        command: that makes it again.
        picture: file of the picture, beside the page.
    """
    seeds = len({run["seed"] for run in runs})
    said = "and one seed was trained" if seeds == 1 else f"and a point is the mean of {seeds} seeds"
    rows = next(iter(fits.values()))["rows"] if fits else 0
    text = [f"# {title}\n", f"Written by `{command}`.\n", WORDS.format(rows=rows, seeds=said)]
    text.append(f"![Held-out loss by parameters and by data]({picture})\n")
    for axis in AXES:
        if axis in fits:
            text.append(f"## By {axis}\n\n{_laws(axis, fits[axis])}\n")
    head = ["run", "law of", "parameters", "targets", "nats a SID", "best step", "of", "minutes"]
    lines = [
        [
            run["name"], " and ".join(run["axes"]), f"{run['parameters']:,}", f"{run['targets']:,}",
            f"{run['loss']:.4f}", str(run["best_step"] or "-"), str(run["steps"] or "-"),
            f"{run['seconds'] / 60:.1f}",
        ]
        for run in runs
    ]  # fmt: skip
    text.append(f"## Runs\n\n{markdown_table(head, lines)}\n")
    return "\n".join(text)


def _laws(axis: str, fit: Mapping[str, Any]) -> str:
    lines = []
    for name, said in (("pure", "A x^-a"), ("floored", "E + A x^-a")):
        if fit.get(name) is not None:
            law = fit[name]
            values = [_with_interval(law[key]) for key in ("exponent", "coefficient", "floor")]
            lines.append(
                [f"`{said}`", *(values[:2] + (values[2:] if name == "floored" else ["-"])), f"{law['error']:.5f}"]
            )
    text = markdown_table(["law", "a", "A", "E", "error of the logarithms"], lines)
    known = (
        f"The floor's interval is narrow, as far as held-out rows go; {len(fit['points'])} points leave "
        f"{len(fit['points']) - 3} to spare for three parameters."
    ) if fit["floor_is_known"] else (
        f"{len(fit['points'])} points do not fix the floor E: its interval is wide, or touches 0. "
        "Read the pure power law as the slope within the range measured, and neither as what lies beyond it."
    )  # fmt: skip
    return f"{text}\n\nx: {X[axis]}. {known}"


def _with_interval(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['value']:.4g} ({low:.4g} to {high:.4g})"
