"""What a sweep over the strength found: the table, the choice, and what is to be known of it."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from ...tables import align
from ..set.calibrated_for import calibrated_features
from ..set.feature_set import FeatureSet

FAR = 3.0
"""
Nats per token above the unsteered answers from which on steered ones are called unlike the model's own. Each token is
then on average e³ ≈ 20 times less probable than what the model samples, which leaves it outside a nucleus of 0.95: the
model would hardly ever write it, and training on it teaches nothing about answers that occur.
"""

FINE = 0.125
"""Steps below the chosen strength of more median residual norms than this leave room for a smaller strength."""


@dataclass(frozen=True)
class CalibrationRow:
    """
    What one strength does.

    Attributes:
        strength (`float`):
            In median residual norms.
        num_answers, num_hits (`int`):
            Answers, and those that show the fault.
        hit_rate, low, high (`float`):
            Their share, with its 95 % Wilson interval.
        mean_length (`float`):
            Tokens of an answer.
        loss (`float`):
            Mean loss per token (nats) of the steered answers under the model as it is, not steered and without
            temperature; NaN if all answers are empty.
        period (`float` or `None`):
            Median number of tokens after which the faulty answers repeat themselves, for the fault `"repetition"`;
            `None` for other faults, or without faulty answers.
    """

    strength: float
    num_answers: int
    num_hits: int
    hit_rate: float
    low: float
    high: float
    mean_length: float
    loss: float
    period: float | None = None

    @property
    def repeats_one_token(self) -> bool:
        """Whether more than half of the loops repeat a single token."""
        return self.period is not None and self.period < 2


@dataclass(frozen=True)
class Calibration:
    """
    A sweep over the strength.

    Attributes:
        strength (`float` or `None`):
            The smallest that reaches the target; `None` if none does.
        target (`float`):
            Share of steered answers wanted to show the fault.
        rows (`tuple[CalibrationRow, ...]`):
            What was measured, by rising strength, from 0.
        settings (`dict`):
            How the answers were sampled.
        feature_set ([`FeatureSet`]):
            The features, with all this in `notes["calibration"]`.
    """

    strength: float | None
    target: float
    rows: tuple[CalibrationRow, ...]
    settings: dict[str, Any]
    feature_set: FeatureSet

    @property
    def best(self) -> CalibrationRow:
        """The row of the highest rate; of equal ones that of the smallest strength."""
        return max(self.rows, key=lambda row: (row.hit_rate, -row.strength))

    @property
    def chosen(self) -> CalibrationRow | None:
        """The row of the strength; `None` if there is none."""
        return next((row for row in self.rows if row.strength == self.strength), None)

    @property
    def remark(self) -> str:
        """What is to be known of the chosen strength if its answers are not like the model's own; else empty."""
        row = self.chosen
        if row is None:
            return ""
        if not is_far(row, self.rows[0]):
            return self._remark_on_loops(row)
        missed = [other for other in self.rows if other.strength < row.strength]
        below = missed[-1]
        text = (
            f"At strength {row.strength:g} the answers have {row.loss:.2f} nats a token under the model as it is, "
            f"{self.rows[0].loss:.2f} without steering: text that it would hardly write, and little to learn from."
        )
        steps = [below.strength + (row.strength - below.strength) * step / 4 for step in (1, 2, 3)]
        near = [other for other in missed if not is_far(other, self.rows[0]) and other.num_hits > 0]
        if row.strength - below.strength > FINE:
            text += (
                f" The smallest strength that reaches {100 * self.target:g} % lies above {below.strength:g} "
                f"({100 * below.hit_rate:.0f} %): try {', '.join(f'{step:g}' for step in steps)}."
            )
        if near:
            best = max(near, key=lambda other: (other.hit_rate, -other.strength))
            text += f" At {best.strength:g}, {100 * best.hit_rate:.0f} % are faulty with {best.loss:.2f} nats a token."
        elif row.strength - below.strength <= FINE:
            text += " It is the smallest that reaches the target; another feature may do it with likelier text."
        return text

    def _remark_on_loops(self, row: CalibrationRow) -> str:
        """A push that is stronger than needed makes one token again and again, which is not how models loop."""
        if not row.repeats_one_token:
            return ""
        text = (
            f"At strength {row.strength:g} most loops repeat a single token. A model's own loops are mostly phrases, "
            "and unlearning the one need not help against the other."
        )
        phrases = [other for other in self.rows if other.strength < row.strength and (other.period or 0) >= 2]
        if phrases:
            best = max(phrases, key=lambda other: (other.hit_rate, -other.strength))
            return (
                f"{text} At {best.strength:g}, {100 * best.hit_rate:.0f} % are faulty, and half of their loops have "
                f"{best.period:g} tokens or more: train with that strength, or try another feature."
            )
        return f"{text} Try a lower temperature, at which less strength is needed, or another feature."

    def as_dict(self) -> dict[str, Any]:
        """Everything but the feature set, for JSON; a loss that was not measured is `None`."""
        rows = [
            {
                key: None if isinstance(value, float) and math.isnan(value) else value
                for key, value in asdict(row).items()
            }
            for row in self.rows
        ]
        return {
            "strength": self.strength,
            "target": self.target,
            "settings": self.settings,
            "features": calibrated_features(self.feature_set),
            "rows": rows,
            "remark": self.remark,
        }

    def __str__(self) -> str:
        has_periods = any(row.period is not None for row in self.rows)
        header = ["strength", "answers", "faulty %", "tokens", "loss per token", *(["period"] if has_periods else [])]
        table = [header]
        for row in self.rows:
            cells = [
                f"{row.strength:.3f}",
                str(row.num_answers),
                f"{100 * row.hit_rate:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]",
                f"{row.mean_length:.0f}",
                f"{row.loss:.2f}",
            ]
            if has_periods:
                cells.append("-" if row.period is None else f"{row.period:g}")
            table.append(cells)
        lines = align(table)
        verdict = (
            f"Strength {self.strength:g} is the smallest measured at which {100 * self.target:g} % are faulty."
            if self.strength is not None
            else f"No strength reaches {100 * self.target:g} %. {nearest(self.best)}"
        )
        names = ", ".join(self.feature_set.names)
        return "\n".join(
            [
                f"Pushing along {names}, in median residual norms:",
                "",
                *lines,
                "",
                "loss per token: of the steered answers, under the model as it is.",
                *(["period: tokens after which a loop repeats itself, median."] if has_periods else []),
                verdict,
                *([self.remark] if self.remark else []),
            ]
        )


def is_far(row: CalibrationRow, unsteered: CalibrationRow) -> bool:
    return row.loss - unsteered.loss > FAR  # not where one of them was not measured: NaN compares as false


def nearest(best: CalibrationRow) -> str:
    if best.num_hits == 0:
        return "No answer was faulty at any strength."
    return f"The best is {100 * best.hit_rate:.1f} %, at {best.strength:g}."
