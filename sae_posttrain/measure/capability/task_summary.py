"""Figures of capability tasks: intervals, groups, paired comparison of two models, and a table of them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...tables import align
from ..statistics.intervals import paired_difference, wilson

Item = Mapping[str, Any]
"""A line of `task_items.jsonl`."""


def add_intervals(metrics: Mapping[str, Mapping[str, Any]], items: Sequence[Item]) -> dict[str, dict[str, Any]]:
    """
    Add `n`, `low` and `high` to each metric of a task, given its items.

    The bounds are those of the 95 % Wilson interval if the metric is the mean of 0 or 1 for each item. Otherwise
    (perplexity, BLEU, weighted means) they are `None`.
    """
    result = {}
    for name, metric in metrics.items():
        values = [item["metrics"][name] for item in items if name in item["metrics"]]
        low, high = None, None
        if _are_flags(values) and metric["value"] is not None:
            if abs(sum(values) / len(values) - metric["value"]) < 1e-9:
                low, high = wilson(int(sum(values)), len(values))
        result[name] = {**metric, "n": len(values), "low": low, "high": high}
    return result


def pool_group(tasks: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """
    Rates over all items of several tasks, given the metrics of each, for those that [`add_intervals`] found to be a
    rate in each of them.

    Every item counts the same, and items count as independent. If the tasks are translations of one another, the true
    interval is wider.
    """
    pooled = {}
    for name, metric in tasks[0].items():
        each = [metrics[name] for metrics in tasks if metrics.get(name, {"low": None})["low"] is not None]
        if len(each) == len(tasks) and len({one["higher_is_better"] for one in each}) == 1:
            n = sum(one["n"] for one in each)
            low, high = wilson(successes := round(sum(one["value"] * one["n"] for one in each)), n)
            pooled[name] = {**metric, "value": successes / n, "n": n, "low": low, "high": high}
    return pooled


def check_same_items(name: str, hashes: Iterable[str], items: Iterable[Item], folder: Path) -> None:
    """Refuse (`ValueError`) the items of a task in a folder, unless their documents have these hashes in any order."""
    here, there = Counter(hashes), Counter(item["doc_hash"] for item in items)
    if here != there:
        raise ValueError(
            f"{folder} was not asked the same documents of {name}: {(here - there).total()} are only here, "
            f"{(there - here).total()} only there. Use the same task, `limit` and version of its data for both, or "
            "another folder."
        )


def compare_tasks(
    result: Mapping[str, Any],
    before: Mapping[str, Sequence[Item]],
    after: Mapping[str, Sequence[Item]],
    margin: float,
) -> dict[str, Any]:
    """
    Paired differences of two models, `after` minus `before`, on items of the same documents, for the `tasks` and
    `groups` of a result; equal documents are paired in their order, and the items of a group's tasks are compared
    together.

    Returns `tasks` and `groups`, by name: `num_pairs`; `num_other_prompts` (documents with another prompt: other
    examples or another chat template); and of each rate in `metrics` the fields of [`PairedDifference`] and `verdict`:
    whether a loss of `margin` is ruled out (`None` if the task does not say which way is better).
    """

    def compared(names: Sequence[str], metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        pairs = [pair for name in names for pair in zip(_sorted(before[name]), _sorted(after[name]), strict=True)]
        num_other = sum(one["prompt_hash"] != other["prompt_hash"] for one, other in pairs)
        differences = {name: _difference(pairs, name, metric, margin) for name, metric in metrics.items()}
        found = {name: difference for name, difference in differences.items() if difference is not None}
        return {"num_pairs": len(pairs), "num_other_prompts": num_other, "metrics": found}

    return {
        "margin": margin,
        "tasks": {name: compared([name], task["metrics"]) for name, task in result["tasks"].items()},
        "groups": {name: compared(group["tasks"], group["metrics"]) for name, group in result["groups"].items()},
    }


def _sorted(items: Sequence[Item]) -> list[Item]:
    return sorted(items, key=lambda item: item["doc_hash"])


def _difference(
    pairs: Sequence[tuple[Item, Item]], name: str, metric: Mapping[str, Any], margin: float
) -> dict[str, Any] | None:
    both = [[item["metrics"][name] for item in pair] for pair in pairs if all(name in i["metrics"] for i in pair)]
    if metric["low"] is None or not _are_flags([value for values in both for value in values]):
        return None
    difference = paired_difference(*zip(*both))
    low, high = difference.low, difference.high
    if metric["higher_is_better"] is False:
        low, high = -high, -low
    verdict = "non-inferior" if low > -margin else "inferior" if high < -margin else "undecided"
    return {**asdict(difference), "verdict": None if metric["higher_is_better"] is None else verdict}


def _are_flags(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, bool | int | float) and value in (0, 1) for value in values)


def format_tasks(result: Mapping[str, Any]) -> str:
    """
    Table of capability tasks for people, from what [`evaluate_tasks`] returned or its `tasks.json`: values with 95 %
    intervals, and with a comparison the paired differences.
    """
    table = [["task", "metric", "items", "value", "95 % interval"]]
    for name, metric, figures in _rows(result):
        value, bounds = "-" if figures["value"] is None else f"{figures['value']:.4g}", "-"
        if figures["low"] is not None:
            value = f"{100 * figures['value']:.2f} %"
            bounds = f"[{100 * figures['low']:.2f}, {100 * figures['high']:.2f}]"
        table.append([name, metric, str(figures["n"]), value, bounds])
    lines = [f"{result['settings']['model']}: capability", "", *align(table, num_left=2)]
    if result["groups"]:
        lines += ["", f"Over all items of their tasks: {', '.join(result['groups'])}."]
    if "comparison" in result:
        lines += ["", *_format_comparison(result["comparison"])]
    return "\n".join(lines) + "\n"


def _rows(result: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    entries = [*result["tasks"].items(), *result["groups"].items()]
    return [(name, metric, figures) for name, entry in entries for metric, figures in entry["metrics"].items()]


def _format_comparison(comparison: Mapping[str, Any]) -> list[str]:
    table = [["task", "metric", "pairs", "difference, points", "p", "verdict"]]
    for name, metric, paired in _rows(comparison):
        middle, low, high = (f"{100 * paired[key]:+.2f}" for key in ("difference", "low", "high"))
        p_value, verdict = f"{paired['p_value']:.3g}", paired["verdict"] or "-"
        table.append([name, metric, str(paired["n"]), f"{middle} [{low}, {high}]", p_value, verdict])
    tasks, groups = comparison["tasks"], comparison["groups"]
    remarks = {
        "Without a metric that is 0 or 1 for each item, hence not compared: ": [
            name for name, entry in [*tasks.items(), *groups.items()] if not entry["metrics"]
        ],
        "The two models got other prompts to the same documents in ": [
            name for name, entry in tasks.items() if entry["num_other_prompts"]
        ],
        "Not the same in both: ": comparison["different_settings"],
    }
    return [
        f"Difference to {comparison['other_model']} ({comparison['other']}), paired by document:",
        "",
        *align(table, num_left=2),
        "",
        f"non-inferior: the interval rules out a loss of {100 * comparison['margin']:g} points. "
        "p: exact McNemar test.",
        *(f"{remark}{', '.join(names)}." for remark, names in remarks.items() if names),
    ]
