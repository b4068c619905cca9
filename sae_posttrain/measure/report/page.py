"""
Write the report: one HTML file with the comparison, its result, and the evidence for it.

The page needs no network and no script. All text from answers, logs or settings is escaped.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .charts import Line, RateRow, draw_lines, draw_rates, draw_readings
from .data import MEASURES, Arm, Section
from .examples import Example, choose_examples
from .rendering import render_page, write_page
from .tables import Cell, difference_table, language_table, summary_table
from .words import Verdict, compare, language, lead, percent, verdicts

__all__ = ["Arm", "Section", "write_report"]

_MAX_FEATURES_DRAWN = 6

# NaN, infinities and larger numbers are not drawn, because a picture's axes cannot show them.
_HUGE = 1e30

_CURVES: dict[str, tuple[str, str, bool]] = {
    "loss": ("Training loss", "The loss that was minimised, with the penalty where there is one.", False),
    "sae/penalty": (
        "Penalty",
        "How far the chosen features rise above their ceiling, per response token, before the weight.",
        False,
    ),
    "sae/excess_rate": ("Tokens above the ceiling", "Share of the penalised tokens, over the features.", True),
    "eval_loss": ("Held-out loss", "Loss per token on the evaluation split.", False),
    "reward": ("Reward", "Mean of the rollouts, steered ones included.", False),
    "steer/hit_rate": ("Hit rate", "Share of the rollouts steered into the fault that show it.", True),
    "steer/hit_rate_plain": ("Faulty rollouts", "Share of the rollouts without steering that show the fault.", True),
    "steer/strength": ("Steering strength", "In median residual norms.", False),
}
"""Metrics drawn over steps, with a line for each arm: heading, description, and whether it is a rate."""


@dataclass(frozen=True)
class Chart:
    """A picture with its heading and its caption."""

    heading: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Table:
    """Header and rows of a table; the first column names the row."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Part:
    """The contents of the page for a [`Section`]."""

    section: Section
    lead: str
    verdicts: Sequence[Verdict]
    explanation: str
    summary: Table | None
    differences: Table | None
    by_language: Table | None
    rates: Sequence[Chart]
    training: Sequence[Chart]
    readings: Sequence[Chart]
    counts: str
    examples: Sequence[Example]

    @property
    def paragraphs(self) -> list[str]:
        """The section's own text."""
        return _paragraphs(self.section.text)


def write_report(
    path: str | os.PathLike[str],
    sections: Sequence[Section],
    *,
    title: str,
    notice: str = "",
    settings: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    seed: int | None = None,
) -> Path:
    """
    Write the report of one or several comparisons as one HTML file.

    With the same version of matplotlib, the same input gives the same bytes.

    Args:
        path (`str` or path):
            File to write; its folder is made if missing.
        sections (`Sequence[Section]`):
            The comparisons, in the order in which they are shown.
        title (`str`):
            Title of the page.
        notice (`str`, *optional*):
            Text that a reader must know before the first result, for example that a fault was planted. It is shown
            above all results. Paragraphs are separated by an empty line.
        settings (`Mapping[str, Any]`, *optional*):
            Settings to list at the end, in addition to those of the evaluations. If a value is a mapping, its keys are
            listed.
        versions (`Mapping[str, str]`, *optional*):
            Versions of packages; by default those that the evaluations recorded.
        seed (`int`, *optional*):
            Seed of the whole run to list; by default only the seeds of the evaluations are listed.

    Returns:
        `Path`: the file.

    Raises:
        ValueError: If there are no sections.
        ImportError: If matplotlib is missing.
    """
    if not sections:
        raise ValueError("A report needs at least one section, got none.")
    html = render_page(
        "page.html.jinja",
        title=title,
        notices=_paragraphs(notice),
        parts=[_part(section, f"s{number}") for number, section in enumerate(sections, 1)],
        settings=_settings_table(sections, settings or {}, seed),
        versions=_versions_table(sections, versions),
    )
    return write_page(path, html)


def _paragraphs(text: str) -> list[str]:
    return [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]


def _part(section: Section, name: str) -> Part:
    comparisons = compare(section)
    differences = difference_table(section, comparisons) if comparisons else None
    counts, examples = choose_examples(section)
    measured = section.measure is not None
    return Part(
        section=section,
        lead=lead(section),
        verdicts=verdicts(section, comparisons),
        explanation=MEASURES[section.measure].explanation if section.measure is not None else "",
        summary=Table(*summary_table(section)) if measured else None,
        differences=Table(*differences) if differences is not None else None,
        by_language=Table(*language_table(section)) if measured else None,
        rates=[_rate_chart(section, f"{name}-rates")] if measured else [],
        training=_training_charts(section, f"{name}-training"),
        readings=_reading_charts(section, f"{name}-readings"),
        counts=counts,
        examples=examples,
    )


def _rate_chart(section: Section, name: str) -> Chart:
    measure = MEASURES[section.measure or ""]
    arms = [
        (number, arm.title, arm.evaluation) for number, arm in enumerate(section.arms) if arm.evaluation is not None
    ]
    langs = sorted({lang for _, _, evaluation in arms for lang in evaluation["groups"]})
    blocks = {"All languages": [RateRow(n, label, measure.rate(each["overall"])) for n, label, each in arms]}
    for lang in langs:
        rows = [
            RateRow(n, label, measure.rate(each["groups"][lang])) for n, label, each in arms if lang in each["groups"]
        ]
        if any(row.rate is not None for row in rows):
            blocks[language(lang)] = rows
    if len(langs) == 1:
        del blocks["All languages"]
    alt = "Rates with 95 % intervals. " + "; ".join(
        f"{row.label}: {percent(row.rate['rate'])} ({percent(row.rate['low'])} to {percent(row.rate['high'])})"
        for row in next(iter(blocks.values()))
        if row.rate is not None
    )
    caption = "Dots: share of the answers. Whiskers: 95 % interval, within which the true rate plausibly lies."
    return Chart("", caption, draw_rates(blocks, name=name, alt=alt))


def _training_charts(section: Section, name: str) -> list[Chart]:
    charts = []
    for number, (key, (heading, caption, is_rate)) in enumerate(_CURVES.items()):
        lines = [line for arm, each in enumerate(section.arms) if (line := _line(arm, each.title, each.log, key))]
        if key == "steer/strength":
            lines = [line for line in lines if any(line.values)]
        if lines:
            charts.append(_line_chart(heading, caption, lines, f"{name}-{number}", percent=is_rate))
    for number, arm in enumerate(section.arms):
        prefix = "sae/pre_activation/"
        keys = sorted({key for entry in arm.log for key in entry if str(key).startswith(prefix)})
        lines = [
            line
            for place, key in enumerate(keys[:_MAX_FEATURES_DRAWN])
            if (line := _line(place, key.removeprefix(prefix), arm.log, key))
        ]
        if lines:
            caption = f"Mean over the penalised tokens while {arm.title} trained, a line for each feature."
            if len(keys) > len(lines):
                caption += f" {len(lines)} of {len(keys)} are shown."
            charts.append(_line_chart(f"Pre-activations: {arm.title}", caption, lines, f"{name}-features-{number}"))
    for number, (label, sweep) in enumerate(section.calibrations.items()):
        charts.append(_calibration_chart(label, sweep, f"{name}-calibration-{number}"))
    return charts


def _line_chart(heading: str, caption: str, lines: Sequence[Line], name: str, *, percent: bool = False) -> Chart:
    scale, unit = (100, " %") if percent else (1, "")
    alt = f"{heading} over steps. " + "; ".join(
        f"{line.label}: from {scale * line.values[0]:.3g}{unit} to {scale * line.values[-1]:.3g}{unit}"
        for line in lines
    )
    return Chart(heading, caption, draw_lines(lines, name=name, alt=alt, percent=percent))


def _line(arm: int, label: str, log: Sequence[Mapping[str, Any]], key: str) -> Line | None:
    """A metric over steps, without values that are not finite numbers; `None` if nothing is left."""
    points = [
        (entry["step"], float(entry[key]))
        for entry in log
        if _is_number(entry.get(key)) and _is_number(entry.get("step"))
    ]
    return Line(arm, label, [step for step, _ in points], [value for _, value in points]) if points else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_HUGE < value < _HUGE


def _calibration_chart(label: str, sweep: Mapping[str, Any], name: str) -> Chart:
    columns = {key: [row[key] for row in sweep["rows"]] for key in ("strength", "hit_rate", "low", "high")}
    line = Line(0, label, columns["strength"], columns["hit_rate"], columns["low"], columns["high"])
    reached = sweep["strength"]
    caption = (
        f"Faulty answers at rising strength; the band is the 95 % interval. The dashed line is the target, "
        f"{percent(sweep['target'])}, "
        + (f"first reached at strength {reached:g}." if reached is not None else "which no strength reached.")
    )
    alt = f"Calibration of {label}. " + "; ".join(
        f"strength {row['strength']:g}: {percent(row['hit_rate'])}" for row in sweep["rows"]
    )
    svg = draw_lines(
        [line], name=name, alt=alt, x_label="strength, median residual norms", percent=True, target=sweep["target"]
    )
    return Chart(f"Calibration: {label}", caption, svg)


def _reading_charts(section: Section, name: str) -> list[Chart]:
    with_readings = [(number, arm) for number, arm in enumerate(section.arms) if arm.readings]
    features = list(dict.fromkeys(feature for _, arm in with_readings for feature in arm.readings))
    charts = []
    for place, feature in enumerate(features[:_MAX_FEATURES_DRAWN]):
        shown = [(number, arm) for number, arm in with_readings if feature in arm.readings]
        groups = list(dict.fromkeys(group for _, arm in shown for group in arm.readings[feature]))
        by_label = {arm.title: arm.readings[feature] for _, arm in shown}
        alt = f"Mean pre-activation of feature {feature}. " + "; ".join(
            f"{label}: " + ", ".join(f"{group} {mean:.2f}" for group, (mean, _) in of_group.items())
            for label, of_group in by_label.items()
        )
        numbers = [number for number, _ in shown]
        svg = draw_readings(
            [language(group) for group in groups], _renamed(by_label), numbers, name=f"{name}-{place}", alt=alt
        )
        charts.append(Chart(f"Feature {feature}", "", svg))
    return charts


def _renamed(by_label: Mapping[str, Mapping[str, tuple[float, float]]]) -> dict[str, dict[str, tuple[float, float]]]:
    return {
        label: {language(group): reading for group, reading in of_group.items()}
        for label, of_group in by_label.items()
    }


def _settings_table(sections: Sequence[Section], settings: Mapping[str, Any], seed: int | None) -> Table:
    rows = [["seed", str(seed)]] if seed is not None else []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows += [[f"{name}: {key}", _text(each)] for key, each in value.items()]
        else:
            rows.append([str(name), _text(value)])
    recorded = {arm.title: (arm.evaluation or {}).get("settings", {}) for arm in _evaluated(sections)}
    rows += [[f"evaluation: {name}", value] for name, value in _joined(recorded)]
    return _plain_table(["Setting", "Value"], rows)


def _versions_table(sections: Sequence[Section], versions: Mapping[str, str] | None) -> Table:
    if versions is not None:
        return _plain_table(["Package", "Version"], [[name, str(version)] for name, version in versions.items()])
    recorded = {arm.title: (arm.evaluation or {}).get("versions", {}) for arm in _evaluated(sections)}
    return _plain_table(["Package", "Version"], _joined(recorded))


def _plain_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    return Table(head, [[Cell(text) for text in row] for row in rows])


def _evaluated(sections: Sequence[Section]) -> list[Arm]:
    return [arm for section in sections for arm in section.evaluated]


def _joined(recorded: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Each name with its value; if arms differ, with the value of each arm."""
    names = dict.fromkeys(name for values in recorded.values() for name in values)
    joined = []
    for name in names:
        of_arm = {label: _text(values[name]) for label, values in recorded.items() if name in values}
        same = len(set(of_arm.values())) == 1 and len(of_arm) == len(recorded)
        text = next(iter(of_arm.values())) if same else "; ".join(f"{label}: {text}" for label, text in of_arm.items())
        joined.append((str(name), text))
    return joined


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
