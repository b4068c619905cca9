"""The page of `generate --html`: answers side by side, or a dose curve. It needs no network and no script."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..measure.answers.summary import summarise
from ..measure.report.charts import Line, RateRow, draw_lines, draw_rates
from ..measure.report.examples import Example, show_whole
from ..measure.report.page import Chart, Table
from ..measure.report.rendering import render_page, write_page
from ..measure.report.tables import Cell
from ..measure.report.words import language, percent
from .dose import RATES, DoseCurve
from .side_by_side import SideBySide, is_faulty
from .strengths import describe_strengths

EXPLANATION = (
    "Endless: the answer ends in an exact loop and was cut off in it. Switched: another script, and nothing excuses "
    "it. Right language: at least half of the letters belong to the script of the language."
)


def write_side_by_side(
    answers: SideBySide, path: str | os.PathLike[str], *, title: str, settings: Mapping[str, Any] | None = None
) -> Path:
    """
    Write all pairs of answers as one HTML file, with the rates of both columns.

    Args:
        answers ([`SideBySide`]):
            The answers.
        path (`str` or path):
            File to write.
        title (`str`):
            Heading of the page.
        settings (`Mapping`, *optional*):
            Settings to list, beside those of the sampling.

    Raises:
        ImportError: If matplotlib is missing.
    """
    columns = dict(zip(answers.titles, (answers.plain, answers.steered)))
    summaries = {name: summarise(column)["overall"] for name, column in columns.items()}
    groups = {
        heading.capitalize(): [
            RateRow(number, name, rate(overall)) for number, (name, overall) in enumerate(summaries.items())
        ]
        for heading, rate in RATES.items()
        if any(rate(overall) for overall in summaries.values())
    }
    alt = "Rates with 95 % intervals. " + "; ".join(
        f"{heading}, {row.label}: {percent(row.rate['rate'])}"
        for heading, rows in groups.items()
        for row in rows
        if row.rate
    )
    rows = [
        [Cell(name), *(_cell(rate(overall)) for rate in RATES.values()), Cell(f"{overall['mean_tokens']:.0f}")]
        for name, overall in summaries.items()
    ]
    examples = [
        Example(
            one["lang"],
            language(one["lang"]),
            one["prompt"],
            tuple(show_whole(name, each, is_faulty(each)) for name, each in zip(columns, (one, other))),
        )
        for one, other in zip(answers.plain, answers.steered)
    ]
    num = len(answers.plain)
    return _write(
        path,
        title,
        [f"{num} prompt{'s' * (num != 1)}, answered without and with steering ({answers.titles[1]})."],
        "Rates",
        [Chart("", "Dots: share of the answers. Whiskers: 95 % interval.", draw_rates(groups, name="rates", alt=alt))],
        Table(["Answers", *(name.capitalize() for name in RATES), "Mean tokens"], rows),
        examples,
        {**answers.settings, **(settings or {})},
    )


def write_dose_curve(
    curve: DoseCurve, path: str | os.PathLike[str], *, title: str, settings: Mapping[str, Any] | None = None
) -> Path:
    """
    Write a dose curve as one HTML file: rates and loss against the strength.

    Args:
        curve ([`DoseCurve`]):
            The sweep.
        path, title, settings:
            As in [`write_side_by_side`].

    Raises:
        ImportError: If matplotlib is missing.
    """
    x_label = "strength, median residual norms" if curve.settings["unit"] == "norm" else "strength, raw units"
    pictures = []
    for number, name in enumerate(RATES):
        measured = [(row.strength, rate) for row in curve.rows if (rate := row.rates[name]) is not None]
        if measured:
            steps = [strength for strength, _ in measured]
            values, low, high = ([rate[key] for _, rate in measured] for key in ("rate", "low", "high"))
            line = Line(number, name, steps, values, low, high)
            alt = f"{name}: " + "; ".join(f"strength {step:g}: {percent(value)}" for step, value in zip(steps, values))
            svg = draw_lines([line], name=f"rate-{number}", alt=alt, x_label=x_label, percent=True)
            pictures.append(Chart(name.capitalize(), "The band is the 95 % interval.", svg))
    losses = [(row.strength, row.loss) for row in curve.rows if not math.isnan(row.loss)]
    if losses:
        steps, values = [step for step, _ in losses], [loss for _, loss in losses]
        alt = "Loss: " + "; ".join(f"strength {step:g}: {loss:.3f}" for step, loss in losses)
        svg = draw_lines([Line(3, "loss", steps, values)], name="loss", alt=alt, x_label=x_label)
        pictures.append(Chart("Loss per token", f"Nats per token of the steered model on {curve.loss_of}.", svg))
    rows = [
        [
            Cell(f"{row.strength:g}"),
            *(_cell(row.rates[name]) for name in RATES),
            Cell(f"{row.mean_tokens:.0f}"),
            Cell(f"{row.loss:.3f}"),
        ]
        for row in curve.rows
    ]
    head = ["Strength", *(name.capitalize() for name in RATES), "Mean tokens", "Loss"]
    num = curve.settings["num_prompts"]
    lead = [f"{num} answer{'s' * (num != 1)} at each strength, times {describe_strengths(curve.weights)}."]
    all_settings = {**curve.settings, **(settings or {})}
    return _write(path, title, lead, "Dose curve", pictures, Table(head, rows), [], all_settings)


def _write(
    path: str | os.PathLike[str],
    title: str,
    lead: Sequence[str],
    heading: str,
    pictures: Sequence[Chart],
    results: Table,
    examples: Sequence[Example],
    settings: Mapping[str, Any],
) -> Path:
    shown = [[Cell(name.replace("_", " ")), Cell(str(value))] for name, value in settings.items() if value is not None]
    html = render_page(
        "side_by_side.html.jinja",
        title=title,
        lead=lead,
        results_heading=heading,
        pictures=pictures,
        results=results,
        explanation=EXPLANATION,
        examples=examples,
        settings=Table(["Setting", "Value"], shown),
    )
    return write_page(path, html)


def _cell(rate: Mapping[str, Any] | None) -> Cell:
    if rate is None:
        return Cell("-")
    return Cell(
        percent(rate["rate"]), f"{percent(rate['low'])} to {percent(rate['high'])}, {rate['count']} of {rate['n']}"
    )
