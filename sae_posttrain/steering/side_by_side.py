"""Answers of a model, plain and steered, to the same prompts with the same random numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..eval_mode import eval_mode
from ..features.find.answers import Answer, Question, Sampling, answer_all
from ..features.set.feature_set import FeatureSet
from ..measure.answers.judge import judge_answer
from ..measure.answers.positions import check_length
from ..measure.answers.summary import summarise
from ..measure.faults.segments import prompt_opens_thinking
from .pushing import chosen_features
from .strengths import describe_strengths

Judged = Mapping[str, Any]
"""An answer with its spans and its loop: a line of `answers.jsonl`."""


@dataclass(frozen=True)
class SideBySide:
    """
    Judged answers to the same prompts.

    Attributes:
        strengths (`dict[str, float]`):
            Strength by name of the feature.
        plain, steered (`tuple[Mapping, ...]`):
            The answers, in the order of the prompts.
        settings (`dict`):
            How they were generated.
    """

    strengths: dict[str, float]
    plain: tuple[Judged, ...]
    steered: tuple[Judged, ...]
    settings: dict[str, Any]

    @property
    def titles(self) -> tuple[str, str]:
        """What the two columns are called."""
        return "plain", describe_strengths(self.strengths)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON: the answers in pairs, and their rates with intervals."""
        pairs = [
            {"prompt": one["prompt"], "lang": one["lang"], "plain": _record(one), "steered": _record(other)}
            for one, other in zip(self.plain, self.steered)
        ]
        rates = {"plain": summarise(self.plain)["overall"], "steered": summarise(self.steered)["overall"]}
        return {"strength": self.strengths, "settings": self.settings, "answers": pairs, "rates": rates}


def answer_side_by_side(
    model: nn.Module,
    tokenizer: Any,
    feature_set: FeatureSet,
    strengths: Mapping[str, float],
    questions: Sequence[Question],
    sampling: Sampling,
    *,
    unit: str = "norm",
    positions: str = "generated",
    target_lang: str | None = None,
    allow_base_model: str | None = None,
) -> SideBySide:
    """
    Answer each question twice, without and with steering.

    Args:
        model (`torch.nn.Module`), tokenizer (`PreTrainedTokenizerBase`):
            A causal language model and its tokenizer.
        feature_set ([`FeatureSet`]):
            The features.
        strengths (`Mapping[str, float]`):
            Strength by name; features that are not named are left alone.
        questions (`Sequence[Question]`):
            What to answer, each with a language ([`read_asked`]).
        sampling ([`Sampling`]):
            How the answers are sampled; both draw the same random numbers.
        unit, positions, allow_base_model:
            As in [`steer`].
        target_lang (`str`, *optional*):
            Switches into this language count; by default into any other script.

    Raises:
        ValueError: If the features do not belong to the model, a strength is not usable, or a prompt and its answer do
            not fit the model.
    """
    chosen, strength = chosen_features(feature_set, strengths, unit)
    feature_set.check_model(model, allow_base_model=allow_base_model, tokenizer=tokenizer)
    check_length(model, max(len(question.prompt) for question in questions), sampling.max_new_tokens)
    with eval_mode(model):
        plain = answer_all(model, tokenizer, questions, sampling, description="plain")
        steered = answer_all(
            model,
            tokenizer,
            questions,
            sampling,
            feature_set=chosen,
            strength=strength.expand(len(questions), -1),
            positions=positions,
            description=describe_strengths(dict(strengths)),
        )
    settings = answer_settings(questions, sampling, unit=unit, positions=positions, target_lang=target_lang)
    return SideBySide(
        dict(strengths),
        judge_all(plain, tokenizer, target_lang),
        judge_all(steered, tokenizer, target_lang),
        settings,
    )


def answer_settings(
    questions: Sequence[Question], sampling: Sampling, *, unit: str, positions: str, target_lang: str | None
) -> dict[str, Any]:
    """How answers came about, for JSON."""
    return {
        "num_prompts": len(questions),
        "max_new_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "unit": unit,
        "positions": positions,
        "target_lang": target_lang,
    }


def judge_all(answers: Sequence[Answer], tokenizer: Any, target_lang: str | None) -> tuple[Judged, ...]:
    """The answers with their spans and loops, in the form of lines of `answers.jsonl`."""
    judged = []
    for answer in answers:
        source = answer.question.source
        assert source is not None
        judged.append(
            judge_answer(
                source,
                tokenizer.decode(list(answer.ids), skip_special_tokens=True),
                answer.ids,
                answer.finished,
                target_lang=target_lang,
                think_opened=prompt_opens_thinking(tokenizer, list(answer.question.prompt)),
            )
        )
    return tuple(judged)


def is_faulty(answer: Judged) -> bool:
    """Whether an answer loops endlessly, or switches into another script and nothing excuses it."""
    return bool(answer["loop"]["endless"] or answer["unexpected"])


def _record(answer: Judged) -> dict[str, Any]:
    names = ("answer", "num_tokens", "finished", "right_language", "any", "unexpected", "spans", "loop")
    return {name: answer[name] for name in names} | {"faulty": is_faulty(answer)}
