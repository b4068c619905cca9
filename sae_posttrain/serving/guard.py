"""
Whether an engine pushed what it was asked to push.

A hook that a compiled graph does not contain changes nothing and raises nothing. The op that pushes therefore counts,
on the device, the positions that it pushes, and its count is compared with the answers of the steered rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .row_settings import RowSettings

Counted = Mapping[tuple[int, str], int]
"""Pushed positions by block and name."""


@dataclass(frozen=True)
class Report:
    """
    What the workers of an engine say of one feature set.

    Attributes:
        counts (`dict[tuple[int, str], int]`):
            Positions pushed since the engine started, by block and name; the smallest count of all workers.
        errors (`tuple[str, ...]`):
            What was wrong with requests, oldest first; the newest ones are kept.
        num_errors (`int`):
            Number of errors since the engine started.
    """

    counts: dict[tuple[int, str], int]
    errors: tuple[str, ...]
    num_errors: int


NOTHING = Report({}, (), 0)
"""What an engine says that is not asked to steer."""


def read_reports(reports: Sequence[Any], fingerprint: str, how: str) -> Report:
    """
    One report from those of all workers (`SteeringWorker.steering_report`).

    Args:
        reports (`Sequence[dict]`):
            One for each worker.
        fingerprint (`str`):
            The feature set that the rows are pushed along.
        how (`str`):
            What to do if the engine does not know these features; the end of the message.

    Raises:
        ValueError: If the engine does not know the feature set.
    """
    counts: dict[tuple[int, str], int] = {}
    for report in reports:
        rows = [row for row in report["counts"] if row["features"] == fingerprint]
        if not rows:
            known = sorted({row["features"] for row in report["counts"]})
            raise ValueError(f"The engine steers along the feature sets {known}, not along {fingerprint!r}. {how}")
        for row in rows:
            place = (row["block"], row["name"])
            counts[place] = min(counts.get(place, row["count"]), row["count"])
    errors: list[str] = max((report["errors"] for report in reports), key=len, default=[])
    return Report(counts, tuple(errors), max((report["num_errors"] for report in reports), default=0))


def require_pushed(before: Report, after: Report, rows: Sequence[RowSettings], num_tokens: Sequence[int]) -> None:
    """
    Raise unless each name of the rows was pushed at each of its blocks as often as the answers have tokens.

    The token after which an answer ends is not computed, and the last of the prompt is: so an answer of n tokens has
    n pushed positions, more if a request was preempted or a step ran ahead.

    Args:
        before, after ([`Report`]):
            The engine's reports around the generation.
        rows (`Sequence[RowSettings]`):
            The rows that were generated.
        num_tokens (`Sequence[int]`):
            Tokens of each row's answers.

    Raises:
        ValueError: If a request could not be steered as it asked, or fewer positions were pushed.
    """
    num_new = after.num_errors - before.num_errors
    if num_new:
        newest = after.errors[-num_new:] or ("(no longer kept)",)
        raise ValueError(f"{num_new} requests were not steered as they asked. The first: {newest[0]}")
    for (block, name), count in after.counts.items():
        pushed = count - before.counts[block, name]
        wanted = sum(n for row, n in zip(rows, num_tokens) if _pushes(row, name))
        if pushed < wanted:
            raise ValueError(
                f"The steered answers have {wanted} tokens, but only {pushed} positions were pushed along {name!r} at "
                f"block {block}: the engine generated without (all of) the push. The worker's hooks do not run in "
                "the engine's graph; start it with `enforce_eager=True` (`--enforce-eager`), and report this with "
                "the version of vLLM."
            )


def _pushes(row: RowSettings, name: str) -> bool:
    if isinstance(row.strength, Mapping):
        return bool(row.strength.get(name, 0.0))
    return row.is_steered
