"""The tables of a section of the report: rates of each arm, differences between arms, and rates by language."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..answers.summary import LINE_MEASURE
from ..statistics.intervals import wilson
from .data import MEASURES, Section
from .words import Comparison, direction, language, number, percent, points


class Cell(NamedTuple):
    """Content of a table cell: a number, and details in small print."""

    text: str
    detail: str = ""


def summary_table(section: Section) -> tuple[list[str], list[list[Cell]]]:
    """Head and rows of the rates of an evaluated section, a row for each arm; empty columns are left out."""
    measure = MEASURES[section.measure or ""]
    head = ["Model", "Answers with the fault", _beside(section), "Right language", "No foreign line", "Mean tokens"]
    head.append("Checked questions right")
    rows = []
    for arm in section.arms:
        row = [Cell(arm.title)] + [Cell("")] * 5
        if arm.evaluation is not None:
            overall = arm.evaluation["overall"]
            unexcused = overall["unexpected"] and overall["unexpected"]["1"]
            row[1:] = [
                _rate_cell(measure.rate(overall)),
                _rate_cell(unexcused if section.measure == "switching" else overall.get("near_loop"), short=True),
                _rate_cell(overall["right_language"], short=True),
                _rate_cell(overall.get(LINE_MEASURE), short=True),
                Cell(f"{overall['mean_tokens']:.0f}"),
            ]
        row.append(_capability_cell(arm.capability))
        rows.append(row)
    return _without_empty_columns(head, rows)


def difference_table(section: Section, comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[Cell]]] | None:
    """Head and rows of the differences in points, a row for each comparison; `None` if there is nothing to show."""
    measure = MEASURES[section.measure or ""]
    head = ["Difference, in points", "Answers with the fault", _beside(section), "Right language", "No foreign line"]
    head.append("Checked questions right")
    measures = (
        measure.of_group,
        "unexpected" if section.measure == "switching" else "near_loop",
        "right_language",
        LINE_MEASURE,
    )
    rows = [
        [
            Cell(f"{each.arm.title} minus {each.reference.title}"),
            *(_difference_cell((each.differences or {}).get(name)) for name in measures),
            _difference_cell(each.right),
        ]
        for each in comparisons
    ]
    head, rows = _without_empty_columns(head, rows)
    return (head, rows) if len(head) > 1 else None


def _beside(section: Section) -> str:
    """Heading of the measure that is shown beside the fault."""
    return "Not excused" if section.measure == "switching" else "Near loops"


def _without_empty_columns(head: list[str], rows: list[list[Cell]]) -> tuple[list[str], list[list[Cell]]]:
    filled = [column for column in range(len(head)) if any(row[column].text for row in rows)]
    return [head[column] for column in filled], [[_or_dash(row[column]) for column in filled] for row in rows]


def language_table(section: Section) -> tuple[list[str], list[list[Cell]]]:
    """Head and rows of the rates by language, a row for each language."""
    measure = MEASURES[section.measure or ""]
    langs = sorted({lang for arm in section.evaluated for lang in (arm.evaluation or {})["groups"]})
    rows = []
    for lang in langs:
        groups = [(arm.evaluation or {})["groups"].get(lang) for arm in section.evaluated]
        cells = [_rate_cell(measure.rate(group)) if group else Cell("") for group in groups]
        rows.append([Cell(language(lang)), *map(_or_dash, cells)])
    return ["Language", *(arm.title for arm in section.evaluated)], rows


def _or_dash(cell: Cell) -> Cell:
    return cell if cell.text else Cell("–")


def _rate_cell(rate: Mapping[str, Any] | None, short: bool = False) -> Cell:
    if rate is None:
        return Cell("")
    detail = f"{number(rate['low'])} to {number(rate['high'])}; {rate['count']} of {rate['n']}"
    return Cell(percent(rate["rate"]), "" if short else detail)


def _difference_cell(difference: Mapping[str, Any] | None) -> Cell:
    if difference is None:
        return Cell("")
    detail = f"{points(difference['low'])} to {points(difference['high'])}"
    if not difference.get("paired", True):
        detail += "; not paired"
    if direction(difference) == 0:
        detail += "; not clear"
    return Cell(points(difference["difference"]), detail)


def _capability_cell(capability: tuple[int, int] | None) -> Cell:
    if capability is None:
        return Cell("")
    right, n = capability
    low, high = wilson(right, n)
    return Cell(percent(right / n), f"{number(low)} to {number(high)}; {right} of {n}")
