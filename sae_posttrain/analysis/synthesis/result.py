"""[`Synthesis`]: the made rows, and what became of each target."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...tables import align
from .attempts import REASONS, Attempts
from .coverage_gain import CoverageGain
from .targets import Target

_MOST_SHOWN = 40


@dataclass(frozen=True)
class TargetYield:
    """
    What became of one target.

    Attributes:
        name (`str`), feature (`int`):
            The feature.
        attempts, accepted (`int`):
            Answers asked for, and rows made of them.
        reasons (`dict[str, int]`):
            Why the others were not accepted.
        words (`tuple[str, ...]`):
            What it fires on.
    """

    name: str
    feature: int
    attempts: int
    accepted: int
    reasons: dict[str, int]
    words: tuple[str, ...]

    @property
    def share(self) -> float:
        """Rows an attempt, from 0 to 1."""
        return self.accepted / self.attempts if self.attempts else 0.0


@dataclass(frozen=True)
class Synthesis:
    """
    What [`synthesise`] made. `str(synthesis)` is a table.

    Attributes:
        rows (`list[dict]`):
            The rows, in the form of the seeds, each with its `provenance`.
        targets (`tuple[TargetYield, ...]`):
            The targets, and what became of them.
        coverage (`tuple[CoverageGain, ...]`):
            Before and after, in the targets' SAE and in those that took no part.
        num_tokens (`int`):
            Tokens of all prompts and answers, as the SAE's model counts them.
        stopped (`str`):
            Why it ended.
        folder (`Path`):
            Where everything is.
    """

    rows: list[dict[str, Any]]
    targets: tuple[TargetYield, ...]
    coverage: tuple[CoverageGain, ...]
    num_tokens: int
    stopped: str
    folder: Path = field(compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the rows and the folder, as plain values."""
        attempts, accepted = (sum(getattr(each, name) for each in self.targets) for name in ("attempts", "accepted"))
        return {
            "num_rows": len(self.rows),
            "num_attempts": attempts,
            "yield": accepted / attempts if attempts else 0.0,
            "reasons": self._reasons(),
            "num_tokens": self.num_tokens,
            "stopped": self.stopped,
            "coverage": [each.as_dict() for each in self.coverage],
            "targets": [
                {
                    "name": each.name,
                    "feature": each.feature,
                    "attempts": each.attempts,
                    "accepted": each.accepted,
                    "reasons": each.reasons,
                    "words": list(each.words),
                }
                for each in self.targets
            ],
        }

    @classmethod
    def from_dict(cls, held: dict[str, Any], rows: list[dict[str, Any]], folder: Path) -> "Synthesis":
        """The inverse of `as_dict`."""
        targets = tuple(TargetYield(**{**each, "words": tuple(each["words"])}) for each in held["targets"])
        coverage = tuple(CoverageGain(**each) for each in held["coverage"])
        return cls(rows, targets, coverage, held["num_tokens"], held["stopped"], folder)

    def _reasons(self) -> dict[str, int]:
        total = {reason: sum(each.reasons.get(reason, 0) for each in self.targets) for reason in REASONS}
        return {reason: number for reason, number in total.items() if number}

    def __str__(self) -> str:
        tried = [each for each in self.targets if each.attempts]
        attempts = sum(each.attempts for each in tried)
        reached = sum(each.accepted > 0 for each in tried)
        shown = tried[:_MOST_SHOWN]
        table = [["target", "words", "rows", "attempts", "yield", "not accepted"]]
        for each in shown:
            why = ", ".join(f"{reason} {number}" for reason, number in each.reasons.items())
            words, yielded = " ".join(each.words[:4]), f"{100 * each.share:.0f} %"
            table.append([each.name, words, f"{each.accepted}", f"{each.attempts}", yielded, why or "-"])
        lines = align(table, 2)
        if len(tried) > len(shown):
            lines.append(f"… and {len(tried) - len(shown)} more targets, in report.json.")
        why = ", ".join(f"{reason} {number}" for reason, number in self._reasons().items())
        share = f"{100 * len(self.rows) / attempts:.0f} %" if attempts else "-"
        lines += [
            "",
            f"{len(self.rows):,} rows of {attempts:,} attempts ({share}), {reached} of {len(self.targets)} targets "
            f"reached, {self.num_tokens:,} tokens.",
            f"Not accepted: {why or 'none'}.",
            f"Ended: {self.stopped}",
            "",
            *self._coverage_table(),
        ]
        return "\n".join(lines)

    def _coverage_table(self) -> list[str]:
        table = [["SAE", "took part", "features before", "after", "missing", "covered", "by as many reference rows"]]
        for each in self.coverage:
            expected = "-" if each.by_reference_rows is None else f"{each.by_reference_rows:.0f}"
            table.append(
                [
                    each.place,
                    "yes" if each.took_part else "no",
                    f"{each.features_before:,}",
                    f"{each.features_after:,}",
                    "-" if each.missing is None else f"{each.missing:,}",
                    "-" if each.missing_covered is None else f"{each.missing_covered:,}",
                    expected,
                ]
            )
        lines = align(table, 2)
        if not all(each.took_part for each in self.coverage):
            return lines
        return [*lines, "Rows were accepted by this SAE, so that the gain is no surprise; give a `check_sae` too."]


def yields_of(targets: Sequence[Target], attempts: Attempts) -> tuple[TargetYield, ...]:
    """What became of each target."""
    return tuple(
        TargetYield(
            target.name,
            target.feature,
            attempts.num_tried(number),
            attempts.num_accepted(number),
            attempts.reasons(number),
            target.words[:8],
        )
        for number, target in enumerate(targets)
    )
