"""The page of `sae-posttrain coverage`: sets that repeat each other, coverage curves, features that no set touches."""

from collections.abc import Sequence
from html import escape

import numpy as np

from .covered import Coverage
from .feature_page import render
from .overlapping import Overlap
from .selection import Selection
from .untouched import Untouched

_CELL, _TREE = 14, 70
_LETTER, _MOST_LETTERS = 6, 44  # width of a letter of a name, and how many are shown
_WIDTH, _HEIGHT = 680, 300
_MOST_IDS = 200


def coverage_page(
    measured: Coverage,
    overlapping: Overlap | None = None,
    selection: Selection | None = None,
    untouched: Untouched | None = None,
    *,
    title: str = "Coverage and redundancy",
    subtitle: str = "",
    num_pairs: int = 15,
) -> str:
    """
    One HTML file without scripts and without requests, for light and dark screens and for phones.

    Args:
        measured ([`Coverage`]), overlapping ([`Overlap`], *optional*), selection ([`Selection`], *optional*),
        untouched ([`Untouched`], *optional*):
            What is shown; sets that are only one have no overlap.
        title, subtitle (`str`, *optional*):
            Heading, and the line below it.
        num_pairs (`int`, *optional*, defaults to `15`):
            Pairs in the table.

    Returns:
        `str`: the page.
    """
    rows = sorted(measured.sets.items(), key=lambda item: -item[1].redundancy_at_equal_size)
    ids = measured.untouched
    more = "" if len(ids) <= _MOST_IDS else f" and {len(ids) - _MOST_IDS:,} more"
    return render(
        "coverage_page.html.jinja",
        title=title,
        subtitle=subtitle,
        matrix="" if overlapping is None else _matrix(overlapping),
        pairs=[] if overlapping is None else _pairs(overlapping, num_pairs),
        curves=_curves(measured, [rows[0][0], rows[-1][0]]),
        marked=""
        if len(rows) < 3
        else f"In red: {rows[0][0]}, the most redundant set at equal size, and {rows[-1][0]}, the least.",
        sets=[[name, *each.cells] for name, each in rows],
        selection="" if selection is None else str(selection),
        untouched=f"{len(ids):,} of {measured.num_features:,} features fire on no example of any set.",
        reference=_reference(untouched),
        features=[] if untouched is None else list(zip(untouched.views, untouched.num_firing_texts)),
        untouched_ids=("Their numbers: " + ", ".join(map(str, ids[:_MOST_IDS])) + more) if ids else "",
    )


def _reference(untouched: Untouched | None) -> str:
    if untouched is None:
        return ""
    most = f" Those that fire in most of them, {len(untouched.features)}, are below." if untouched.features else ""
    return f"{untouched.num_fire:,} of them fire in the {untouched.num_texts:,} reference texts.{most}"


def _pairs(overlapping: Overlap, number: int) -> list[list[str]]:
    rows = []
    for one, two in overlapping.pairs(number):
        i, j = overlapping.names.index(one), overlapping.names.index(two)
        interval = f"[{overlapping.minimum_low[i, j]:.2f}, {overlapping.minimum_high[i, j]:.2f}]"
        rows.append(
            [
                one,
                two,
                f"{overlapping.similarity[i, j]:.2f}",
                f"{overlapping.directed[i, j]:.2f}",
                f"{overlapping.directed[j, i]:.2f}",
                f"{overlapping.minimum[i, j]:.2f} {interval}",
            ]
        )
    return rows


def _matrix(overlapping: Overlap) -> str:
    """Dendrogram, names and cells, each set one row and one column."""
    order, num = overlapping.order, len(overlapping.order)
    names = [_shortened(overlapping.names[i]) for i in order]
    left = _TREE + 12 + _LETTER * max(map(len, names))
    width, height = left + num * _CELL + 4, num * _CELL + 4
    parts = [
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Similarity of {num} sets, ordered by clustering">'
    ]
    parts += _tree(overlapping)
    for row, (i, shown) in enumerate(zip(order, names)):
        name = escape(overlapping.names[i])
        parts.append(f'<text x="{_TREE + 6}" y="{row * _CELL + 11}">{escape(shown)}</text>')
        for column, j in enumerate(order):
            value = float(overlapping.similarity[i, j])
            parts.append(
                f'<rect class="cell" x="{left + column * _CELL}" y="{row * _CELL}" width="{_CELL - 1}" '
                f'height="{_CELL - 1}" fill-opacity="{max(0.03, value):.2f}"><title>{name}, '
                f"{escape(overlapping.names[j])}: {value:.2f}</title></rect>"
            )
    return "".join([*parts, "</svg>"])


def _shortened(name: str) -> str:
    """A long name without its middle: sets of one family differ at the end."""
    half = _MOST_LETTERS // 2
    return name if len(name) <= _MOST_LETTERS else f"{name[:half]}…{name[-half:]}"


def _tree(overlapping: Overlap) -> list[str]:
    num = len(overlapping.names)
    most = max(float(overlapping.tree[:, 2].max()), 1e-9)
    places: dict[int, tuple[float, float]] = {
        i: (float(_TREE), row * _CELL + _CELL / 2) for row, i in enumerate(overlapping.order)
    }
    paths = []
    for number, (first, second, distance, _) in enumerate(overlapping.tree):
        (x1, y1), (x2, y2) = places[int(first)], places[int(second)]
        x = _TREE - 4 - (_TREE - 10) * float(distance) / most
        paths.append(f'<path class="tree" d="M{x1:.1f} {y1:.1f}H{x:.1f}V{y2:.1f}H{x2:.1f}"/>')
        places[num + number] = (x, (y1 + y2) / 2)
    return paths


def _curves(measured: Coverage, marked: Sequence[str]) -> str:
    left, bottom, pad = 40, 44, 8
    width, height = _WIDTH - left - pad, _HEIGHT - bottom - pad
    largest = max(each.num_examples for each in measured.sets.values())
    parts = [
        f'<svg class="curves" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        'aria-label="Expected coverage by number of examples">',
        f'<path class="axis" d="M{left} {pad}V{pad + height}H{left + width}"/>',
    ]
    for share in (0.0, 0.5, 1.0):
        parts.append(f'<text x="{left - 6}" y="{pad + height * (1 - share) + 3}" text-anchor="end">{share:.0%}</text>')
    for part in (0.25, 0.5, 0.75, 1.0):
        x = left + width * part
        parts.append(f'<text x="{x:.0f}" y="{_HEIGHT - 26}" text-anchor="middle">{largest * part:,.0f}</text>')
    parts.append(f'<text x="{left + width / 2:.0f}" y="{_HEIGHT - 5}" text-anchor="middle">examples</text>')
    for name, each in sorted(measured.sets.items(), key=lambda item: item[0] in marked):
        points = " ".join(
            f"{left + width * size / largest:.1f},{pad + height * (1 - share):.1f}"
            for size, share in zip(np.r_[0, each.sizes], np.r_[0.0, each.shares])
        )
        kind = "curve marked" if name in marked else "curve"
        parts.append(f'<polyline class="{kind}" points="{points}"><title>{escape(name)}</title></polyline>')
    return "".join([*parts, "</svg>"])
