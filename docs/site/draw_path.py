"""
The picture of the README: the path from a published SAE to a table.

    python docs/site/draw_path.py

Writes docs/path.svg. It has a background of its own, so that it reads alike on light and dark pages.
"""

from html import escape
from pathlib import Path

WIDTH, HEIGHT = 640, 372
BOX = (180, 74)
DATA, STEP, RESULT = "#e3e8ee", "#c9ebe6", "#fbe7b5"
BOXES = {
    "sae": (20, 20, DATA, "published SAE", "and texts by language"),
    "find": (230, 20, STEP, "find features", "once, minutes"),
    "set": (440, 20, RESULT, "feature set", "one small file"),
    "grpo": (230, 149, STEP, "steered GRPO", "provoke, then unlearn"),
    "sasft": (440, 149, STEP, "SASFT", "fine-tune, held down"),
    "calibrate": (20, 149, STEP, "calibrate", "how hard to push"),
    "evaluate": (230, 278, STEP, "evaluate", "before and after"),
    "table": (440, 278, RESULT, "table, report", "rates with intervals"),
}
ARROWS = [
    [(200, 57), (230, 57)],
    [(410, 57), (440, 57)],
    [(530, 94), (530, 149)],
    [(500, 94), (500, 121), (110, 121), (110, 149)],
    [(200, 186), (230, 186)],
    [(320, 223), (320, 278)],
    [(530, 223), (530, 250), (340, 250), (340, 278)],
    [(410, 315), (440, 315)],
]


def main() -> None:
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="system-ui, sans-serif" role="img">',
        "<title>From a published SAE to a table</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#33414e"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="12" fill="#fff"/>',
    ]
    for points in ARROWS:
        path = "M" + "L".join(f"{x} {y}" for x, y in points)
        parts.append(f'<path d="{path}" fill="none" stroke="#33414e" stroke-width="1.6" marker-end="url(#head)"/>')
    for x, y, colour, title, note in BOXES.values():
        middle = x + BOX[0] / 2
        parts += [
            f'<rect x="{x}" y="{y}" width="{BOX[0]}" height="{BOX[1]}" rx="8" fill="{colour}"/>',
            f'<text x="{middle:g}" y="{y + 33}" text-anchor="middle" font-size="19" font-weight="600" '
            f'fill="#15212b">{escape(title)}</text>',
            f'<text x="{middle:g}" y="{y + 56}" text-anchor="middle" font-size="14.5" '
            f'fill="#33414e">{escape(note)}</text>',
        ]
    (Path(__file__).resolve().parents[1] / "path.svg").write_text("\n".join([*parts, "</svg>", ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
