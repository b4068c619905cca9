"""
The report's pictures: narrow SVG in the page's colours, so one picture works in light, dark, phone and print views.

Sizes are in the SVG's units, which are pixels on a wide screen.
"""

import io
import math
import unicodedata
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

WIDTH = 380
"""Width of every picture. A phone shrinks it only a little, so its text stays readable."""

NUM_COLORS = 6
"""Number of colours for arms. Further arms use the same colours with other markers and dashes."""

_FONT_SIZE = 11
_ROW = 19
_LINE_LABEL = 13
_MAX_LABEL = 24
_SMOOTHED = 5
_MANY_STEPS = 20
_CHARACTER = 6.1

# Placeholders for the page's colours. They are replaced by its CSS variables after matplotlib has drawn.
_TEXT, _MUTED, _GRID = "#010203", "#010204", "#010205"
_ARM_COLORS = [f"#0102{16 + index:02x}" for index in range(NUM_COLORS)]
_CSS = {
    _TEXT: "currentColor",
    _MUTED: "var(--muted)",
    _GRID: "var(--line)",
    **{color: f"var(--arm-{index})" for index, color in enumerate(_ARM_COLORS)},
}
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)), (0, (9, 2)))

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class RateRow:
    """A dot with whiskers: the arm, and its rate (`rate`, `low`, `high`); `None` if it was not measured."""

    arm: int
    label: str
    rate: Mapping[str, Any] | None


@dataclass(frozen=True)
class Line:
    """A line over steps: its arm, label, steps and values, and optionally the bounds of a band around it."""

    arm: int
    label: str
    steps: Sequence[float]
    values: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def draw_rates(groups: Mapping[str, Sequence[RateRow]], *, name: str, alt: str) -> str:
    """
    Rates in percent with intervals, as an `<svg>` element: a block of rows for each group, such as a language. `name`
    is unique in the page, and ids in the picture begin with it; `alt` describes it to readers who cannot see it.
    """
    num_rows = sum(1 + len(rows) for rows in groups.values())
    height = num_rows * _ROW + 44
    left = min(150, 14 + max(_width_of(_short(row.label)) for rows in groups.values() for row in rows))
    with _figure(height) as figure:
        axes = _axes(figure, left, 50, 6, height - 38)
        place = 0
        highest = 0.0
        for heading, rows in groups.items():
            y = place + 0.1
            axes.text(
                -left / (WIDTH - left - 50),
                y,
                _short(heading, 40),
                transform=_across(axes),
                weight="bold",
                va="center",
            )
            place += 1
            for row in rows:
                color = _ARM_COLORS[row.arm % NUM_COLORS]
                axes.text(
                    -8 / (WIDTH - left - 50),
                    place,
                    _short(row.label),
                    transform=_across(axes),
                    ha="right",
                    va="center",
                )
                shown = "not measured"
                if row.rate is not None:
                    rate, low, high = (100 * row.rate[key] for key in ("rate", "low", "high"))
                    axes.plot([low, high], [place, place], color=color, linewidth=2, solid_capstyle="butt")
                    for bound in (low, high):
                        axes.plot([bound, bound], [place - 0.2, place + 0.2], color=color, linewidth=2)
                    axes.plot([rate], [place], _MARKERS[row.arm % len(_MARKERS)], color=color, markersize=7)
                    highest = max(highest, high)
                    shown = f"{rate:.1f} %"
                axes.text(1 + 48 / (WIDTH - left - 50), place, shown, transform=_across(axes), ha="right", va="center")
                place += 1
        axes.set_ylim(place - 0.4, -0.5)
        axes.set_xlim(-0.02 * max(highest, 1), 1.04 * max(highest, 1))
        axes.set_yticks([])
        axes.grid(axis="x", color=_GRID, linewidth=1)
        axes.set_xlabel("% of the answers, with 95 % interval", color=_MUTED)
        return _to_svg(figure, height, name, alt)


def draw_lines(
    lines: Sequence[Line],
    *,
    name: str,
    alt: str,
    x_label: str = "step",
    percent: bool = False,
    target: float | None = None,
) -> str:
    """
    Lines with their labels at their ends, in the colour of their arm, as an `<svg>` element; rates in percent from 0.

    If a line has more than 20 points, the points are drawn faintly and the line is their running mean over 5. `target`
    is the height of a dashed line.
    """
    height = max(200, _LINE_LABEL * len(lines) + 60)
    right = min(130, 14 + max(_width_of(_short(line.label, 18)) for line in lines))
    scale = 100 if percent else 1
    with _figure(height) as figure:
        axes = _axes(figure, 44, right, 8, height - 40)
        ends = []
        for line in lines:
            color = _ARM_COLORS[line.arm % NUM_COLORS]
            values = [scale * value for value in line.values]
            if len(values) > _MANY_STEPS:
                axes.plot(line.steps, values, ".", color=color, markersize=3, alpha=0.35)
                values = running_mean(values)
            marker = _MARKERS[line.arm % len(_MARKERS)] if len(values) <= _MANY_STEPS else None
            dashes = _DASHES[line.arm % len(_DASHES)]
            axes.plot(line.steps, values, color=color, linewidth=2, marker=marker, markersize=4, linestyle=dashes)
            if line.low is not None and line.high is not None:
                band = [[scale * value for value in bound] for bound in (line.low, line.high)]
                axes.fill_between(line.steps, *band, color=color, alpha=0.15, linewidth=0)
            ends.append(values[-1])
        if percent:
            drawn = [value for line in lines for value in (*line.values, *(line.high or ()), target or 0)]
            top = min(100, 115 * max(drawn) + 1)
            axes.set_ylim(-0.03 * top, 1.03 * top)
            axes.yaxis.set_major_formatter("{x:.0f} %")
        if target is not None:
            axes.axhline(scale * target, color=_MUTED, linewidth=1, linestyle="--")
        low, high = axes.get_ylim()
        constant = len({value for line in lines for value in line.values}) == 1
        if not percent and (0 <= low < 0.5 * high or (constant and low > 0)):
            low = 0
            axes.set_ylim(low, high)
        axes.grid(axis="y", color=_GRID, linewidth=1)
        axes.set_xlabel(x_label, color=_MUTED)
        axes.locator_params(axis="x", nbins=5, integer=x_label == "step")
        axes.locator_params(axis="y", nbins=5)
        unit = (high - low) / (height - 48)
        for line, y in zip(lines, spread_labels(ends, _LINE_LABEL * unit, low, high)):
            axes.annotate(
                _short(line.label, 18),
                (1, y),
                xycoords=_across(axes),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color=_ARM_COLORS[line.arm % NUM_COLORS],
                annotation_clip=False,
            )
        return _to_svg(figure, height, name, alt)


def draw_readings(
    groups: Sequence[str],
    arms: Mapping[str, Mapping[str, tuple[float, float]]],
    colors: Sequence[int],
    *,
    name: str,
    alt: str,
) -> str:
    """
    Mean pre-activation of one feature with its standard deviation, as an `<svg>` element: a block of rows for each
    group, a row for each arm.
    """
    step = 12
    height = int(len(groups) * (len(arms) * step + 10)) + 46 + 16 * len(arms)
    left = min(120, 14 + max(_width_of(_short(group)) for group in groups))
    top = 16 * len(arms) + 8
    with _figure(height) as figure:
        axes = _axes(figure, left, 12, top, height - 40)
        place = 0.0
        for group in groups:
            middle = place + step * (len(arms) - 1) / 2
            axes.text(
                -8 / (WIDTH - left - 12), middle, _short(group), transform=_across(axes), ha="right", va="center"
            )
            for color, of_group in zip(colors, arms.values()):
                if group in of_group:
                    mean, std = of_group[group]
                    style = {"color": _ARM_COLORS[color % NUM_COLORS]}
                    axes.plot([mean - std, mean + std], [place, place], linewidth=2, **style)
                    axes.plot([mean], [place], _MARKERS[color % len(_MARKERS)], markersize=6, **style)
                place += step
            place += 10
        axes.set_ylim(place - 4, -8)
        axes.set_yticks([])
        axes.axvline(0, color=_MUTED, linewidth=1)
        axes.grid(axis="x", color=_GRID, linewidth=1)
        axes.set_xlabel("pre-activation: mean ± standard deviation", color=_MUTED)
        axes.locator_params(axis="x", nbins=5)
        legend = figure.add_axes((0, 1 - top / height, 1, top / height))
        legend.set(xlim=(0, WIDTH), ylim=(top, 0))
        legend.axis("off")
        for row, (color, label) in enumerate(zip(colors, arms)):
            style = {"color": _ARM_COLORS[color % NUM_COLORS]}
            legend.plot([10], [16 * row + 10], _MARKERS[color % len(_MARKERS)], markersize=6, **style)
            legend.text(20, 16 * row + 10, _short(label, 48), va="center", **style)
        return _to_svg(figure, height, name, alt)


def running_mean(values: Sequence[float]) -> list[float]:
    """Mean of each value and its neighbours, 5 together; fewer at the ends."""
    reach = _SMOOTHED // 2
    windows = [values[max(0, index - reach) : index + reach + 1] for index in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def spread_labels(heights: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """Heights for labels: close to the given heights, at least `distance` apart, and between `low` and `high`."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    places = [0.0] * len(heights)
    below = -math.inf
    for index in order:
        below = places[index] = max(min(max(heights[index], low), high), below + distance)
    above = math.inf
    for index in reversed(order):
        above = places[index] = min(places[index], high if above is math.inf else above - distance)
    return places


def _short(text: str, most: int = _MAX_LABEL) -> str:
    text = "".join(" " if unicodedata.category(char) in ("Cc", "Cs") else char for char in text)
    if _width_of(text) <= most * _CHARACTER:
        return text
    while _width_of(text) > (most - 1) * _CHARACTER:  # names with the same beginning differ at the end
        middle = len(text) // 2 + 1
        text = text[: middle - 1] + text[middle:]
    middle = len(text) // 2
    return f"{text[:middle].rstrip()}…{text[middle:].lstrip()}"


def _width_of(text: str) -> float:
    return sum(11.0 if unicodedata.east_asian_width(char) in "WF" else _CHARACTER for char in text)


@contextmanager
def _figure(height: float) -> Iterator[Any]:
    """A transparent figure of this height in the page's colours and fonts, without the user's matplotlib settings."""
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("The report's pictures need matplotlib: pip install 'sae_posttrain[plots]'.") from error
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "sae_posttrain",
        "font.size": _FONT_SIZE,
        "text.parse_math": False,  # a dollar sign in a label is a dollar sign
        "text.color": _TEXT,
        "axes.labelcolor": _TEXT,
        "xtick.color": _MUTED,
        "ytick.color": _MUTED,
        "axes.edgecolor": _GRID,
    }
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        # The browser's fonts draw the text, including characters that matplotlib's font does not have.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        yield figure


def _axes(figure: Any, left: float, right: float, top: float, bottom: float) -> Any:
    """Axes at the given distances from the figure's left, right and top (both `top` and `bottom`)."""
    height = 72 * figure.get_figheight()
    axes = figure.add_axes(
        (left / WIDTH, 1 - bottom / height, (WIDTH - left - right) / WIDTH, (bottom - top) / height)
    )
    axes.patch.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_axisbelow(True)
    return axes


def _across(axes: Any) -> Any:
    """Transform with x as a share of the axes' width and y in data units."""
    return axes.get_yaxis_transform()


def _to_svg(figure: Any, height: float, name: str, alt: str) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    ET.register_namespace("", _SVG)
    root = ET.fromstring(file.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            # matplotlib's style would apply to the whole document, which is the page here.
            if child.tag in (f"{{{_SVG}}}style", f"{{{_SVG}}}metadata"):
                parent.remove(child)
    for element in root.iter():
        _adopt(element, name)
    root.attrib.clear()
    root.attrib.update(
        {"viewBox": f"0 0 {WIDTH} {height:g}", "role": "img", "aria-labelledby": f"{name}-alt", "class": "chart"}
    )
    title = ET.Element(f"{{{_SVG}}}title", {"id": f"{name}-alt"})
    title.text = _short(alt, 10_000)
    root.insert(0, title)
    return ET.tostring(root, encoding="unicode")


def _adopt(element: ET.Element, name: str) -> None:
    """Make ids unique in the page, and use the colours and fonts of the page."""
    if element.tag == f"{{{_SVG}}}g":
        element.attrib.pop("id", None)  # unused
    if "id" in element.attrib:
        element.attrib["id"] = f"{name}-{element.attrib['id']}"
    if _XLINK in element.attrib:
        element.attrib["href"] = f"#{name}-{element.attrib.pop(_XLINK)[1:]}"
    for key, value in element.attrib.items():
        if value.startswith("url(#"):
            element.attrib[key] = f"url(#{name}-{value[5:]}"
    if "style" in element.attrib:
        style = dict(part.split(": ", 1) for part in element.attrib["style"].split("; ") if ": " in part)
        style.pop("font-family", None)
        if "font" in style:  # in older matplotlib: [weight] size family
            style["font-weight"] = "700" if style["font"].startswith(("bold", "700")) else "400"
            style["font-size"] = f"{_FONT_SIZE}px"
            del style["font"]
        element.attrib["style"] = "; ".join(f"{key}: {_CSS.get(value, value)}" for key, value in style.items())
