"""Figures of capability tasks: intervals, groups, paired comparison of two models, and a table of them."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ...tables import align
from ..statistics.intervals import PairedDifference, paired_difference, wilson

Item = Mapping[str, Any]
"""A line of `task_items.jsonl`."""


def add_intervals(metrics: Mapping[str, Mapping[str, Any]], items: Sequence[Item]) -> dict[str, dict[str, Any]]:
    """
    Adds to each metric of a task `n`, `low` and `high`.

    The bounds are those of the 95 % Wilson interval where the metric is the mean of 0 or 1 for each item, and `None`
    otherwise (perplexity, BLEU, weighted means).

    Args:
        metrics (`Mapping[str, Mapping]`):
            `value` and `higher_is_better` of each metric.
        items (`Sequence[Mapping]`):
            The items of the task.
    """
    result = {}
    for name, metric in metrics.items():
        values = [item["metrics"][name] for item in items if name in item["metrics"]]
        bounds: tuple[float | None, float | None] = (None, None)
        if (
            _are_flags(values)
            and metric["value"] is not None
            and abs(sum(values) / len(values) - metric["value"]) < 1e-9
        ):
            bounds = wilson(int(sum(values)), len(values))
        result[name] = {**metric, "n": len(values), "low": bounds[0], "high": bounds[1]}
    return result


def pool_group(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """
    Rates over all items of several tasks, of the metrics that are a rate in each of them.

    Every item counts the same, and items count as independent: where the tasks are translations of one another, the
    true interval is wider.

    Args:
        tasks (`Mapping[str, Mapping]`):
            The tasks, each with its `metrics` as [`add_intervals`] gives them.
    """
    pooled = {}
    first = next(iter(tasks.values()))
    for name, metric in first["metrics"].items():
        of_tasks = [task["metrics"].get(name) for task in tasks.values()]
        if any(one is None or one["low"] is None for one in of_tasks):
            continue
        if len({one["higher_is_better"] for one in of_tasks}) > 1:
            continue
        n = sum(one["n"] for one in of_tasks)
        successes = round(sum(one["value"] * one["n"] for one in of_tasks))
        low, high = wilson(successes, n)
        pooled[name] = {
            "value": successes / n,
            "higher_is_better": metric["higher_is_better"],
            "n": n,
            "low": low,
            "high": high,
        }
    return pooled


def check_same_items(name: str, hashes: Iterable[str], other: Iterable[str], folder: str) -> None:
    """
    Checks that two runs of a task asked the same documents, in any order.

    Raises:
        ValueError: If not.
    """
    here, there = Counter(hashes), Counter(other)
    if here != there:
        raise ValueError(
            f"{folder} was not asked the same documents of {name}: {(here - there).total()} are only here, "
            f"{(there - here).total()} only there. Use the same task, `limit` and version of its data for both."
        )


def compare_tasks(
    tasks: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    before: Mapping[str, Sequence[Item]],
    after: Mapping[str, Sequence[Item]],
    margin: float,
) -> dict[str, Any]:
    """
    Paired differences of two models, `after` minus `before`, with a non-inferiority statement.

    The verdict, in the words of [`non_inferiority`]: "non-inferior" if the lower bound of the 95 % interval is above
    `-margin` (where lower is better: the upper bound below `margin`), so that a loss as large as the margin is ruled
    out; "inferior" if anything smaller is; otherwise "undecided". That no difference was found would not say so.

    Args:
        tasks (`Mapping[str, Mapping]`):
            The tasks of the second model, each with its `metrics` as [`add_intervals`] gives them.
        groups (`Mapping[str, Sequence[str]]`):
            Names of the tasks in each group; their items are compared together.
        before, after (`Mapping[str, Sequence[Mapping]]`):
            Items of each task, of the same documents.
        margin (`float`):
            Largest loss that is acceptable, as a rate.

    Returns:
        `dict`: `tasks` and `groups`, by name: `num_pairs`, `num_other_prompts` (documents that the two models got in
        another wording, with other examples or another chat template) and of each rate in `metrics` the fields of
        [`PairedDifference`] and `verdict` (`None` if the task does not say which way is better).
    """
    pairs = {name: _pair(before[name], after[name]) for name in tasks}
    pooled = {name: [pair for member in members for pair in pairs[member]] for name, members in groups.items()}
    rates = {name: task["metrics"] for name, task in tasks.items()}
    of_groups = {name: pool_group({member: tasks[member] for member in groups[name]}) for name in groups}
    return {
        "margin": margin,
        "tasks": {name: _compare(pairs[name], rates[name], margin) for name in tasks},
        "groups": {name: _compare(pooled[name], of_groups[name], margin) for name in groups},
    }


def _pair(before: Sequence[Item], after: Sequence[Item]) -> list[tuple[Item, Item]]:
    before_by_key = dict(zip(_keys(before), before))
    return [(before_by_key[key], item) for key, item in zip(_keys(after), after)]


def _keys(items: Sequence[Item]) -> list[Hashable]:
    """The document, and which of several equal ones."""
    seen: Counter[str] = Counter()
    keys: list[Hashable] = []
    for item in items:
        seen[item["doc_hash"]] += 1
        keys.append((item["doc_hash"], seen[item["doc_hash"]]))
    return keys


def _compare(
    pairs: Sequence[tuple[Item, Item]], metrics: Mapping[str, Mapping[str, Any]], margin: float
) -> dict[str, Any]:
    compared: dict[str, Any] = {
        "num_pairs": len(pairs),
        "num_other_prompts": sum(before["prompt_hash"] != after["prompt_hash"] for before, after in pairs),
        "metrics": {},
    }
    for name, metric in metrics.items():
        values = [
            (b["metrics"][name], a["metrics"][name]) for b, a in pairs if name in b["metrics"] and name in a["metrics"]
        ]
        before, after = [value for value, _ in values], [value for _, value in values]
        if metric["low"] is None or not _are_flags(before) or not _are_flags(after):
            continue
        difference = paired_difference(before, after)
        compared["metrics"][name] = {
            **asdict(difference),
            "verdict": _verdict(difference, metric["higher_is_better"], margin),
        }
    return compared


def _verdict(difference: PairedDifference, higher_is_better: bool | None, margin: float) -> str | None:
    if higher_is_better is None:
        return None
    low, high = (difference.low, difference.high) if higher_is_better else (-difference.high, -difference.low)
    if low > -margin:
        return "non-inferior"
    return "inferior" if high < -margin else "undecided"


def _are_flags(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, bool | int | float) and value in (0, 1) for value in values)


def format_tasks(result: Mapping[str, Any]) -> str:
    """
    Table of capability tasks for people: values with 95 % intervals, and with a comparison the paired differences.

    Args:
        result (`Mapping[str, Any]`):
            What [`evaluate_tasks`] returned, or the content of its `tasks.json`.

    Returns:
        `str`: plain text of several lines.
    """
    table = [["task", "metric", "items", "value", "95 % interval"]]
    for name, entry in [*result["tasks"].items(), *result["groups"].items()]:
        for metric, figures in entry["metrics"].items():
            rate = figures["low"] is not None
            bounds = f"[{100 * figures['low']:.2f}, {100 * figures['high']:.2f}]" if rate else "-"
            value = "-" if figures["value"] is None else f"{figures['value']:.4g}"
            table.append(
                [name, metric, str(figures["n"]), f"{100 * figures['value']:.2f} %" if rate else value, bounds]
            )
    lines = [f"{result['settings']['model']}: capability", "", *align(table, num_left=2)]
    if result["groups"]:
        lines += ["", f"Over all items of their tasks: {', '.join(result['groups'])}."]
    if "comparison" in result:
        lines += ["", *_format_comparison(result["comparison"])]
    return "\n".join(lines) + "\n"


def _format_comparison(comparison: Mapping[str, Any]) -> list[str]:
    margin = comparison["margin"]
    table = [["task", "metric", "pairs", "difference, points", "p", "verdict"]]
    compared = [*comparison["tasks"].items(), *comparison["groups"].items()]
    for name, entry in compared:
        for metric, paired in entry["metrics"].items():
            low, high = 100 * paired["low"], 100 * paired["high"]
            table.append(
                [
                    name,
                    metric,
                    str(paired["n"]),
                    f"{100 * paired['difference']:+.2f} [{low:+.2f}, {high:+.2f}]",
                    f"{paired['p_value']:.3g}",
                    paired["verdict"] or "-",
                ]
            )
    lines = [f"Difference to {comparison['other_model']} ({comparison['other']}), paired by document:", ""]
    lines += [*align(table, num_left=2), ""]
    lines.append(f"non-inferior: the interval rules out a loss of {100 * margin:g} points. p: exact McNemar test.")
    unpaired = [name for name, entry in compared if not entry["metrics"]]
    if unpaired:
        lines.append(f"Without a metric that is 0 or 1 for each item, hence not compared: {', '.join(unpaired)}.")
    other_prompts = [name for name, entry in comparison["tasks"].items() if entry["num_other_prompts"]]
    if other_prompts:
        lines.append(f"The two models got other prompts to the same documents in {', '.join(other_prompts)}.")
    if comparison["different_settings"]:
        lines.append(f"Not the same in both: {', '.join(comparison['different_settings'])}.")
    return lines
