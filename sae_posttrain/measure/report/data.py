"""The data of a report: sections (comparisons), each with arms (the results of one model)."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Measure:
    """
    A fault that a report shows.

    Attributes:
        name: Name of the fault in the report, with a capital.
        of_group: Key of its rate in a group of `evaluation.json`; for a rule with thresholds, the rate at one
            character.
        explanation: Which answers count, in a sentence.
    """

    name: str
    of_group: str
    explanation: str

    def rate(self, group: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The rate of a group (`count`, `n`, `rate`, `low`, `high`); `None` if no answer can show the fault."""
        rates = group.get(self.of_group)
        return rates["1"] if rates is not None and self.of_group == "any" else rates

    def shows(self, answer: Mapping[str, Any]) -> bool:
        """Whether a judged answer has the fault."""
        judged = answer if self.of_group == "any" else answer.get("loop") or {}
        return bool(judged.get(self.of_group))


MEASURES: dict[str, Measure] = {
    "switching": Measure(
        "Language switching",
        "any",
        "An answer counts if it has one character of the other script anywhere (the published rule of SASFT). "
        "“Not excused” leaves out quotations, code, links, and what the prompt or the reference says too.",
    ),
    "loops": Measure(
        "Endless repetition",
        "endless",
        "An answer counts if it ends in an exact loop, at least 4 rounds and 64 tokens long, and was cut off at the "
        "length limit while it looped.",
    ),
}
"""The faults, by the name that [`Section`] takes."""


MANY_ARMS = 3
"""With more arms than this (not counting the reference), outcomes are counted instead of listed one by one."""


@dataclass(frozen=True)
class Arm:
    """
    One model of a comparison, with everything that is known about it.

    Parameters:
        name: Name of the arm, unique in its section.
        label: Name of the arm in the report; by default `name`.
        evaluation: What [`evaluate`] returned, or the content of its `evaluation.json`.
        answers: Lines of its `answers.jsonl`, needed for paired differences and for examples.
        log: `trainer.state.log_history`.
        readings: Mean and standard deviation of the pre-activation, by feature and group.
        capability: Number of right answers to checkable questions, and number of these questions; by default counted
            from `checked`.
        checked: Whether the answer to each checkable question is right, by question: `(id, sample, language)`, as
            [`answer_key`] gives it, or any other key that is the same for all arms. Two arms with the same questions
            are compared question by question. Tuples with the same first part, such as one question in several
            languages, are not treated as independent.
    """

    name: str
    label: str = ""
    evaluation: Mapping[str, Any] | None = None
    answers: Sequence[Mapping[str, Any]] = ()
    log: Sequence[Mapping[str, Any]] = ()
    readings: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    capability: tuple[int, int] | None = None
    checked: Mapping[Hashable, bool] = field(default_factory=dict)

    def __post_init__(self):
        if self.checked:
            counted = sum(map(bool, self.checked.values())), len(self.checked)
            if self.capability not in (None, counted):
                raise ValueError(
                    f"`capability` of {self.name!r} is {self.capability}, but {counted[0]} of {counted[1]} of its "
                    "`checked` questions are right. Leave out one of the two."
                )
            object.__setattr__(self, "capability", counted)
        if self.capability is not None and not 0 <= self.capability[0] <= self.capability[1] > 0:
            raise ValueError(
                f"`capability` of {self.name!r} is the number of right answers and the number of questions; got "
                f"{self.capability}."
            )

    @property
    def title(self) -> str:
        """The label, or the name if there is none."""
        return self.label or self.name


@dataclass(frozen=True)
class Section:
    """
    Arms that are compared with each other.

    Parameters:
        arms: The arms, in the order in which they are shown. Examples are chosen for the baseline and the last arm.
        measure: The fault that is compared, one of `MEASURES`; `None` if no arm was evaluated.
        baseline: Name of the arm that each other arm is compared with; by default the first evaluated arm. With up to
            four arms, the last arm is also compared with each of the others.
        text: Description of what was done; paragraphs are separated by an empty line.
        calibrations: Sweeps over the steering strength to draw, by label: `Calibration.as_dict()`.
    """

    title: str
    arms: Sequence[Arm]
    measure: str | None = None
    baseline: str | None = None
    text: str = ""
    calibrations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self):
        names = [arm.name for arm in self.arms]
        if not names:
            raise ValueError(f"The section {self.title!r} has no arms to show.")
        if len(set(names)) < len(names):
            raise ValueError(f"Arms of a section need names of their own, {self.title!r} has {', '.join(names)}.")
        if self.measure is not None and self.measure not in MEASURES:
            raise ValueError(f"Unknown measure {self.measure!r}; known: {', '.join(MEASURES)}.")
        for arm in self.arms:
            if arm.evaluation is None and not (arm.log or arm.readings or arm.capability):
                raise ValueError(
                    f"The arm {arm.name!r} has nothing to show: give its `evaluation`, `log`, `readings` or "
                    "`capability`."
                )
        if self.measure is None and self.evaluated:
            raise ValueError(
                f"Arms of {self.title!r} were evaluated: say which `measure` to show, {' or '.join(MEASURES)}."
            )
        if self.measure is not None and not self.evaluated:
            raise ValueError(f"No arm of {self.title!r} has an `evaluation` to take the {self.measure} from.")
        if self.baseline is not None and self.baseline not in [arm.name for arm in self.evaluated]:
            known = ", ".join(arm.name for arm in self.evaluated) or "none"
            raise ValueError(
                f"The baseline {self.baseline!r} is no evaluated arm of {self.title!r}; there are: {known}."
            )

    @property
    def evaluated(self) -> list[Arm]:
        """The arms that have an evaluation."""
        return [arm for arm in self.arms if arm.evaluation is not None]

    @property
    def reference(self) -> Arm | None:
        """The arm to compare with; `None` if there is nothing to compare."""
        evaluated = self.evaluated
        if len(evaluated) < 2:
            return None
        return next((arm for arm in evaluated if arm.name == self.baseline), evaluated[0])

    @property
    def pairs(self) -> list[tuple[Arm, Arm]]:
        """
        The comparisons, as pairs (arm, arm to compare it with).

        The report is about the last arm, so it comes first: against the reference and then, unless there are many
        arms, against each of the others.
        """
        reference = self.reference
        if reference is None:
            return []
        *others, last = [arm for arm in self.evaluated if arm is not reference]
        with_last = others[::-1] if len(others) < MANY_ARMS else []
        return [(last, reference), *((last, arm) for arm in with_last), *((arm, reference) for arm in others)]
