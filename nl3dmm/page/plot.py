"""Curves as inline SVG: log scale, one line per term, readable in both themes and without colours."""

import math
from collections.abc import Mapping, Sequence

from nl3dmm.page.markup import Element, element

_WIDTH, _HEIGHT = 440, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 436, 10, 208  # of the plotted area
_MAX_POINTS = 150  # per line
_COLOURS = 8  # that the style sheet has


def curve_plot(curves: Mapping[str, Sequence[float]]) -> Element | None:
    """Figure with the curves and a legend with their first and last values; None without any value.

    A curve that is shorter than others ends with them: its term joined later. Values that have no logarithm (0,
    negative, not finite) are gaps.
    """
    curves = {name: [float(value) for value in values] for name, values in curves.items() if len(values)}
    if not curves:
        return None
    steps = max(len(values) for values in curves.values())
    drawn = [value for values in curves.values() for value in values if _has_logarithm(value)]
    low, high = _range(drawn)
    lines = [
        element("path", element("title", name), d=_path(_points(values, steps, low, high)), class_=_line(index))
        for index, (name, values) in enumerate(curves.items())
    ]
    summary = "; ".join(f"{name} {_from_to(values)}" for name, values in curves.items())
    label = f"Loss terms over {steps} steps, log scale: {summary}."
    svg = element(
        "svg", _frame(low, high, steps), *lines, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=label
    )
    rows = [_legend_row(index, name, values) for index, (name, values) in enumerate(curves.items())]
    return element("figure", element("figcaption", "Loss terms by step"), svg, element("ul", *rows, class_="legend"))


def _has_logarithm(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _range(values: list[float]) -> tuple[float, float]:
    """Common logarithms of both ends of the value axis, with room around the curves."""
    if not values:
        return -1.0, 0.0
    low, high = math.log10(min(values)), math.log10(max(values))
    room = max(0.06 * (high - low), 0.05)
    return low - room, high + room


def _points(values: list[float], steps: int, low: float, high: float) -> list[tuple[float, float] | None]:
    stride = max(1, math.ceil(len(values) / _MAX_POINTS))
    kept = [index for index in range(len(values)) if (len(values) - 1 - index) % stride == 0]
    first = steps - len(values)
    columns = [_LEFT + (first + index) / max(steps - 1, 1) * (_RIGHT - _LEFT) for index in kept]
    return [
        (column, _row(math.log10(values[index]), low, high)) if _has_logarithm(values[index]) else None
        for column, index in zip(columns, kept, strict=True)
    ]


def _row(logarithm: float, low: float, high: float) -> float:
    return _BOTTOM - (logarithm - low) / (high - low) * (_BOTTOM - _TOP)


def _path(points: list[tuple[float, float] | None]) -> str:
    """A point without neighbours becomes a dot, by the round caps of the style sheet."""
    parts, joined = [], False
    for index, point in enumerate(points):
        if point is not None:
            parts.append(f"{'L' if joined else 'M'}{point[0]:.1f} {point[1]:.1f}")
            alone = not joined and (index + 1 == len(points) or points[index + 1] is None)
            parts += ["h.01"] if alone else []
        joined = point is not None
    return "".join(parts)


def _frame(low: float, high: float, steps: int) -> Element:
    parts = []
    for value in _ticks(low, high):
        y = f"{_row(math.log10(value), low, high):.1f}"
        parts.append(element("line", x1=str(_LEFT), x2=str(_RIGHT), y1=y, y2=y))
        parts.append(element("text", f"{value:g}", x=str(_LEFT - 6), y=y, dy=".32em", text_anchor="end"))
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        step = round(1 + share * (steps - 1))
        x = f"{_LEFT + share * (_RIGHT - _LEFT):.1f}"
        text = f"step {step}" if share == 0 else str(step)
        if steps > 2 or share in (0, steps - 1):
            parts.append(element("text", text, x=x, y=str(_BOTTOM + 20), text_anchor=anchor))
    return element("g", *parts, class_="frame", aria_hidden="true")


def _ticks(low: float, high: float) -> list[float]:
    """Powers of ten, and 2 and 5 between them where these would be few."""
    factors = (1,) if high - low > 2.5 else (1, 2, 5)
    spacing = max(1, math.ceil((high - low) / 6))
    powers = [power for power in range(math.floor(low), math.ceil(high) + 1) if power % spacing == 0]
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    return [value for value in ticks if low <= math.log10(value) <= high]


def _legend_row(index: int, name: str, values: list[float]) -> Element:
    line = element("line", x1="1", x2="23", y1="5", y2="5", class_=_line(index))
    swatch = element("svg", line, viewBox="0 0 24 10", class_="swatch", aria_hidden="true")
    return element("li", swatch, element("span", name), element("span", _from_to(values), class_="figures"))


def _line(index: int) -> str:
    return f"line c{index % _COLOURS}"


def _from_to(values: list[float]) -> str:
    return f"{values[0]:.3g} → {values[-1]:.3g}"
