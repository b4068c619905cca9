"""Put the numbers of a section into words. The words are also correct if the result is bad or undecided."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ...languages import ENGLISH_NAMES
from ..answers.summary import answer_key, compare_answers, different_settings
from ..statistics.intervals import paired_difference, unpaired_difference
from .data import MANY_ARMS, MEASURES, Arm, Section

# Arms that differ in these are still comparable: the answers show whether the prompts are the same.
_OF_ONE_ARM = ("prompts_sha256", "num_prompts")


class Verdict(NamedTuple):
    """Result of a comparison: the outcome in a few words, and the numbers behind it."""

    outcome: str
    numbers: str


@dataclass(frozen=True)
class Comparison:
    """
    An arm compared with another arm, usually the baseline; differences are arm minus reference.

    `differences` are those by measure, as in `overall` of [`compare_answers`]; `None` if the arms cannot be paired,
    and `why_not` says why. `right` is the difference of the shares of checked questions that were answered right
    (`difference`, `low`, `high`, and whether it is `paired` by question); `None` if one of the two was not checked.
    `other_settings` differ in the two evaluations and should not.
    """

    arm: Arm
    reference: Arm
    differences: Mapping[str, Any] | None
    right: Mapping[str, Any] | None
    why_not: str
    other_settings: Sequence[str]


def compare(section: Section) -> list[Comparison]:
    """The comparisons of a section, the most important one first: see [`Section.pairs`]."""
    return [compare_arms(arm, reference) for arm, reference in section.pairs]


def compare_arms(arm: Arm, reference: Arm) -> Comparison:
    """Compare two evaluated arms: answers by prompt and right answers by question, if that is possible."""
    own, other = (_settings(each) for each in (arm, reference))
    other_settings = [name for name in different_settings(own, other) if name not in _OF_ONE_ARM]
    differences, why_not = None, ""
    if not arm.answers or not reference.answers:
        why_not = "there are no single answers to compare"
    elif _asked(arm) != _asked(reference):
        why_not = "they did not answer the same prompts"
    elif own.get("target_lang") != other.get("target_lang"):
        why_not = "switches into different languages were counted"
    else:
        differences = compare_answers(reference.answers, arm.answers)["overall"]
    return Comparison(arm, reference, differences, _compare_right(arm, reference), why_not, other_settings)


def _compare_right(arm: Arm, reference: Arm) -> dict[str, Any] | None:
    if arm.capability is None or reference.capability is None:
        return None
    if arm.checked and arm.checked.keys() == reference.checked.keys():
        keys = list(arm.checked)
        questions = [key[0] if isinstance(key, tuple) else key for key in keys]
        paired = paired_difference(
            [reference.checked[key] for key in keys],
            [arm.checked[key] for key in keys],
            questions if len(set(questions)) < len(questions) else None,
        )
        return {**asdict(paired), "paired": True}
    low, high = unpaired_difference(reference.capability, arm.capability)
    (right, n), (right_before, n_before) = arm.capability, reference.capability
    return {"difference": right / n - right_before / n_before, "low": low, "high": high, "paired": False}


def _settings(arm: Arm) -> Mapping[str, Any]:
    return (arm.evaluation or {}).get("settings", {})


def _asked(arm: Arm) -> dict[Any, str]:
    return {answer_key(answer): answer["prompt"] for answer in arm.answers}


def lead(section: Section) -> str:
    """A sentence or two that say what was compared."""
    if section.measure is None:
        return (
            f"{_count(len(section.arms), 'training run')}, step by step. This says nothing about the models' answers."
        )
    evaluated = section.evaluated
    overall = (evaluated[0].evaluation or {})["overall"]
    langs = sorted({lang for arm in evaluated for lang in (arm.evaluation or {})["groups"]})
    where = f"in {_join([language(lang) for lang in langs])}"
    if len(evaluated) == 1:
        return f"One model gave {overall['num_answers']:,} answers {where}. How often does it {_fault(section)}?"
    question = f"How often do they {_fault(section)}?"
    if _same_prompts(evaluated):
        num_samples = _settings(evaluated[0]).get("num_samples", 1)
        times = f", {num_samples} answers to each," if num_samples > 1 else ""
        num = overall["num_answers"] // num_samples
        return f"{_count(len(evaluated), 'model')} answered the same {num:,} prompts{times} {where}. {question}"
    return f"{_count(len(evaluated), 'model')} answered prompts {where}, not all the same ones. {question}"


def _same_prompts(arms: Sequence[Arm]) -> bool:
    if all(arm.answers for arm in arms):
        return all(_asked(arm) == _asked(arms[0]) for arm in arms)
    hashes = {_settings(arm).get("prompts_sha256") for arm in arms}
    return len(hashes) == 1 and hashes != {None}


def _fault(section: Section, ending: str = "") -> str:
    """The fault as a verb with the given `ending`."""
    if section.measure == "loops":
        it = "itself" if ending else "themselves"
        return f"repeat{ending} {it} endlessly"
    targets = {_settings(arm).get("target_lang") for arm in section.evaluated}
    target = targets.pop() if len(targets) == 1 else None
    into = language(target) if target in ENGLISH_NAMES else f"the script of {target or 'another language'}"
    return f"slip{ending} into {into}"


def verdicts(section: Section, comparisons: Sequence[Comparison]) -> list[Verdict]:
    """The result of each comparison. With many arms there is one verdict, which counts the outcomes."""
    if section.measure is None:
        return []
    if not comparisons:
        return [_alone(section.evaluated[0], section.measure)]
    if len(section.evaluated) > MANY_ARMS + 1:
        return [_counted(section, comparisons)]
    return [_verdict(section, each) for each in comparisons]


def _alone(arm: Arm, measure: str) -> Verdict:
    rate = MEASURES[measure].rate((arm.evaluation or {})["overall"])
    if rate is None:
        return Verdict(f"{arm.title} was not measured", "The fault does not show in the languages of its answers.")
    return Verdict(
        f"{arm.title}: {percent(rate['rate'])} of the answers",
        f"{rate['count']:,} of {rate['n']:,}, 95 % interval {number(rate['low'])} to {percent(rate['high'])}. There "
        "is no other model to compare with.",
    )


def _counted(section: Section, comparisons: Sequence[Comparison]) -> Verdict:
    measure = MEASURES[section.measure or ""].of_group
    kinds = [direction((each.differences or {}).get(measure)) for each in comparisons]
    reference = comparisons[0].reference.title
    parts = [
        f"{kinds.count(kind)} {text}"
        for kind, text in (
            (-1, "less often"),
            (1, "more often"),
            (0, "without a clear difference"),
            (None, "not compared answer by answer"),
        )
        if kind in kinds
    ]
    numbers = "Even if nothing had changed, about one interval in twenty would exclude 0."
    if other := list(dict.fromkeys(name for each in comparisons for name in each.other_settings)):
        numbers += f" Not all measured alike: {', '.join(other)}."
    return Verdict(f"Of {len(kinds)} models against {reference}: {_join(parts)}", numbers)


def _verdict(section: Section, comparison: Comparison) -> Verdict:
    measure = MEASURES[section.measure or ""]
    arm, reference = comparison.arm.title, comparison.reference.title
    now = measure.rate((comparison.arm.evaluation or {})["overall"])
    before = measure.rate((comparison.reference.evaluation or {})["overall"])
    if now is None or before is None:
        return Verdict(f"{arm} and {reference} cannot be compared", "The fault of one of them was not measured.")
    rates = f"{percent(now['rate'])} of the answers against {percent(before['rate'])}"
    paired = (comparison.differences or {}).get(measure.of_group)
    if paired is None:
        why = comparison.why_not or "no answer can show the fault"
        return Verdict(f"{arm} and {reference} were not compared answer by answer", f"{rates}; {why}.")
    kind = direction(paired)
    if kind == 0 and now["count"] == before["count"] == 0:
        outcome = f"Neither {arm} nor {reference} ever {_fault(section, 's')}"
        numbers = f"None of {now['n']:,} answers of each; the true rate may be up to {percent(now['high'])}."
    elif kind == 0:
        outcome = f"No clear difference between {arm} and {reference}"
        numbers = (
            f"{rates}; the 95 % interval of the difference, {points(paired['low'])} to {points(paired['high'])} "
            "points, includes 0."
        )
    else:
        low, high = sorted((abs(paired["low"]), abs(paired["high"])))
        relative = f": {share_change(paired['difference'], before['rate'])}" if before["rate"] else ""
        outcome = f"{arm} {_fault(section, 's')} {'less' if kind == -1 else 'more'} often than {reference}{relative}"
        numbers = (
            f"{rates}: {number(abs(paired['difference']))} points {'lower' if kind == -1 else 'higher'} (95 % "
            f"interval {number(low)} to {number(high)})."
        )
    return Verdict(outcome, numbers + _side_effects(comparison))


def share_change(difference: float, before: float) -> str:
    """A difference relative to the rate before, in words."""
    return f"{100 * abs(difference) / before:.0f}\u00a0% {'fewer' if difference < 0 else 'more'}"


def _side_effects(comparison: Comparison) -> str:
    text = ""
    paired = (comparison.differences or {}).get("right_language")
    if paired is not None and direction(paired) == -1:
        text += (
            f" But fewer of its answers are in the right language: {points(paired['difference'])} points "
            f"({points(paired['low'])} to {points(paired['high'])})."
        )
    if comparison.right is not None:
        text += _right_answers(comparison, " Also, fewer" if text else " But fewer")
    if comparison.other_settings:
        text += f" Not measured alike: {', '.join(comparison.other_settings)}."
    return text


def _right_answers(comparison: Comparison, fewer: str) -> str:
    (right, n), (other_right, other_n) = comparison.arm.capability or (0, 1), comparison.reference.capability or (0, 1)
    difference = comparison.right or {}
    kind = direction(difference)
    low, high = points(difference["low"]), points(difference["high"])
    shares = (
        f"{percent(right / n)} against {percent(other_right / other_n)}, {points(difference['difference'])} points"
    )
    interval = f"95 % interval {low} to {high}" + ("" if difference["paired"] else ", not paired")
    start = {-1: f"{fewer} checked questions are answered right", 1: " More checked questions are answered right"}
    end = ", which includes 0" if kind == 0 else ""
    return f"{start.get(kind or 0, ' Checked questions answered right')}: {shares} ({interval}{end})."


def direction(paired: Mapping[str, Any] | None) -> int | None:
    """-1 or 1 if the whole interval is below or above 0, 0 if it includes 0, `None` without one."""
    if paired is None:
        return None
    return -1 if paired["high"] < 0 else 1 if paired["low"] > 0 else 0


def language(code: str) -> str:
    """English name of a language, or its code if the name is not listed here."""
    return ENGLISH_NAMES.get(code, code)


def percent(rate: float) -> str:
    """A rate in percent with one decimal; a no-break space keeps number and % on one line."""
    return f"{number(rate)}\u00a0%"


def number(rate: float) -> str:
    """A rate in percent, without the sign."""
    return f"{100 * rate:.1f}"


def points(difference: float) -> str:
    """A difference of rates in points, with its sign."""
    text = f"{100 * difference:+.1f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def _count(num: int, noun: str) -> str:
    words = ("No", "One", "Two", "Three", "Four", "Five", "Six")
    return f"{words[num] if num < len(words) else num} {noun}{'' if num == 1 else 's'}"


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
