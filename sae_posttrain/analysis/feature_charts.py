"""Small pictures of the page, as SVG in the page's colours: bars by group."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

_WIDTH, _HEIGHT = 380, 150
_LEFT, _BOTTOM, _TOP = 34, 34, 22
_NUM_BINS = 12
_COLORS = ("var(--arm-2)", "var(--arm-1)", "var(--arm-3)", "var(--arm-4)")


def draw_histogram(values: Mapping[str, Sequence[float]], *, name: str, alt: str) -> str:
    """
    Share of each group's texts by their strongest activation.

    Args:
        values (`Mapping[str, Sequence[float]]`):
            Strongest activation of each text, by title of the group.
        name, alt (`str`):
            Id of the picture in the page, and its description for readers who cannot see it.

    Returns:
        `str`: an `<svg>` element.
    """
    top = max((max(each, default=0.0) for each in values.values()), default=0.0) or 1.0
    edges = np.linspace(0, top, _NUM_BINS)
    # what does not fire at all has a bar of its own, at the left
    bins = np.concatenate([[-edges[1]], edges[:-1] + 1e-9 * top, [top * (1 + 1e-9)]])
    return _bars(values, bins, name, alt, ("never", f"{top:.3g}"), "strongest activation in a text")


def draw_starts(values: Mapping[str, Sequence[int]], *, name: str, alt: str, zero: str) -> str:
    """Share of each group's texts by where the feature fires first, in tokens; `zero` names position 0."""
    every = [number for each in values.values() for number in each]
    if not every:
        return ""
    low, high = np.quantile(every, [0.02, 0.98])
    low, high = min(float(low), 0.0), max(float(high), 1.0)
    bins = np.linspace(low, high + 1, _NUM_BINS + 1)
    clipped = {title: np.clip(each, low, high) for title, each in values.items()}
    return _bars(clipped, bins, name, alt, (f"{low:+.0f}", f"{high:+.0f}"), "tokens", (0.0, zero) if zero else None)


def _bars(
    values: Mapping[str, Sequence[float] | np.ndarray],
    bins: np.ndarray,
    name: str,
    alt: str,
    ends: tuple[str, str],
    label: str,
    mark: tuple[float, str] | None = None,
) -> str:
    shares = {
        title: np.histogram(np.asarray(each, dtype=float), bins)[0] / max(1, len(each))
        for title, each in values.items()
    }
    tallest = max((float(each.max()) for each in shares.values()), default=0.0) or 1.0
    width = (_WIDTH - _LEFT) / (len(bins) - 1)
    height = _HEIGHT - _TOP - _BOTTOM
    base = _HEIGHT - _BOTTOM
    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" id="{escape(name)}" font-size="11" '
        f'aria-label="{escape(alt)}"><title>{escape(alt)}</title>'
    ]
    for number, (title, each) in enumerate(shares.items()):
        color = _COLORS[number % len(_COLORS)]
        at = _LEFT + number * (_WIDTH - _LEFT) / max(1, len(shares))
        parts.append(f'<rect x="{at:.0f}" y="3" width="9" height="9" fill="{color}"/>')
        parts.append(f'<text x="{at + 13:.0f}" y="12" fill="currentColor">{escape(title)}</text>')
        bar = 0.84 * width / len(shares)
        for place, share in enumerate(each):
            if share:
                x = _LEFT + place * width + 0.08 * width + number * bar
                tall = height * float(share) / tallest
                parts.append(
                    f'<rect x="{x:.1f}" y="{base - tall:.1f}" width="{bar:.1f}" height="{tall:.1f}" fill="{color}"/>'
                )
    parts.append(f'<line x1="{_LEFT}" y1="{base}" x2="{_WIDTH}" y2="{base}" stroke="var(--line)"/>')
    parts.append(
        f'<text x="{_LEFT - 4}" y="{_TOP + 8}" text-anchor="end" fill="var(--muted)">{100 * tallest:.0f} %</text>'
    )
    parts.append(f'<text x="{_LEFT}" y="{base + 14}" fill="var(--muted)">{escape(ends[0])}</text>')
    parts.append(f'<text x="{_WIDTH}" y="{base + 14}" text-anchor="end" fill="var(--muted)">{escape(ends[1])}</text>')
    middle = (_LEFT + _WIDTH) / 2
    parts.append(f'<text x="{middle}" y="{base + 28}" text-anchor="middle" fill="var(--muted)">{escape(label)}</text>')
    if mark is not None:
        x = _LEFT + (mark[0] - bins[0]) / (bins[-1] - bins[0]) * (_WIDTH - _LEFT)
        anchor = "end" if x > middle else "start"
        side = -4 if x > middle else 4
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{base}" stroke="var(--accent)"/>')
        parts.append(
            f'<text x="{x + side:.1f}" y="{_TOP + 8}" text-anchor="{anchor}" fill="var(--accent)">'
            f"{escape(mark[1])}</text>"
        )
    return "".join(parts) + "</svg>"
