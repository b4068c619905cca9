"""Questions and the answers a model gives to them, plain or pushed: what the search and the calibration look at."""

import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ...hooks.blocks import unwrap
from ...hooks.steer import steer
from ...measure.answers.generate import batch_seed, generate_answers
from ...measure.answers.generation_settings import describe_unused, unused_settings
from ...measure.answers.prompt_tokens import describe_prompting, prompt_form, say_what_goes_raw, tokenize_prompts
from ...measure.answers.prompts import Prompt, read_prompts
from ..read.texts import read_rows
from ..set.feature_set import FeatureSet
from .engine_answers import EngineAnswers

logger = logging.getLogger(__name__)

Prompts = str | os.PathLike | Iterable[Mapping[str, Any] | str | Sequence[int]]
"""Prompts as users give them: a file, rows with `prompt` or `messages`, texts, or token ids ready for the model."""


_LOGITS_ELEMENTS = 1 << 26  # of one forward pass: 256 MB in float32


@dataclass(frozen=True)
class Question:
    """
    A prompt as the model reads it.

    Attributes:
        prompt (`tuple[int, ...]`):
            Token ids, with those of the chat template.
        text (`tuple[int, ...]`):
            Token ids of what is asked, without a template.
        source ([`Prompt`], *optional*):
            What it was read from; `None` if it was given as token ids.
    """

    prompt: tuple[int, ...]
    text: tuple[int, ...]
    source: Prompt | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Answer:
    """
    What a model answered.

    Attributes:
        question ([`Question`]):
            To what.
        ids (`tuple[int, ...]`):
            Token ids of the answer, without its end token.
        finished (`bool`):
            Whether it ended by itself.
    """

    question: Question
    ids: tuple[int, ...]
    finished: bool


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled: longest answer in tokens, temperature (0 is greedy), nucleus, seed, rows at once."""

    max_new_tokens: int
    temperature: float
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.batch_size < 1:
            raise ValueError(
                f"`max_new_tokens` and `batch_size` must be 1 or more, got {self.max_new_tokens}, {self.batch_size}."
            )
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise ValueError(
                f"`temperature` must be 0 or more and `top_p` in (0, 1], got {self.temperature}, {self.top_p}."
            )


def read_questions(
    prompts: Prompts,
    tokenizer: Any,
    *,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    group_column: str | None = None,
) -> list[Question]:
    """
    Tokenize prompts, in their order, as TRL does: text as it is, messages through the chat template.

    Args:
        prompts (`str`, `os.PathLike` or iterable):
            JSON or JSONL file (`.gz` or plain), `datasets` id, rows with `prompt` (text or messages) or `messages` (a
            closing answer is left out), texts, or lists of token ids, which are sent as they are.
        tokenizer (`PreTrainedTokenizerBase`):
            The model's.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*):
            Further variables of the chat template.
        group_column (`str`, *optional*):
            Column with the language of the answer, where it matters.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there are no prompts, one has nothing to answer, or its language is asked for and not known; or
            if there are variables for the chat template and no prompt goes through it.
    """
    given: list[Any] = read_rows(prompts) if isinstance(prompts, str | os.PathLike) else list(prompts)
    if not given:
        raise ValueError("There are no prompts.")
    if all(not isinstance(each, str | Mapping) for each in given):
        specials = set(tokenizer.all_special_ids)
        if not all(each for each in given):
            raise ValueError("A prompt has no tokens; a model needs at least one to begin from.")
        if chat_template_kwargs or group_column is not None:
            raise ValueError(
                "The prompts are token ids, which go to the model as they are and have no language. Give them as rows "
                "for `chat_template_kwargs`, and to look for a language."
            )
        return [Question(tuple(ids), tuple(token for token in ids if token not in specials)) for ids in given]
    if any(not isinstance(each, str | Mapping) for each in given):
        raise ValueError("Give the prompts as texts and rows, or all of them as token ids, not both.")
    rows = [{"prompt": each} if isinstance(each, str) else each for each in given]
    # An id may come again here, and often the answer's language does not matter.
    known = {} if group_column is not None else {"lang": "en"}
    read = read_prompts(
        [{**row, "id": i, **known} for i, row in enumerate(rows)],
        group_column=group_column or "lang",
        target_lang=None,
        source=f"{prompts}" if isinstance(prompts, str | os.PathLike) else "the prompts",
    )
    tokenized = tokenize_prompts(tokenizer, read, chat_template_kwargs)
    say_what_goes_raw(tokenizer, prompt_form(read))
    texts = [tokenizer(prompt.text, add_special_tokens=False)["input_ids"] for prompt in read]
    return [Question(tuple(ids), tuple(text), source) for ids, text, source in zip(tokenized, texts, read)]


def describe_questions(
    tokenizer: Any, questions: Sequence[Question], chat_template_kwargs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """How questions were put, for the records, as [`describe_prompting`] says it; the form of ids is `"tokens"`."""
    read = [question.source for question in questions if question.source is not None]
    form = prompt_form(read) if len(read) == len(questions) else "tokens"
    return describe_prompting(tokenizer, form, chat_template_kwargs)


def name_unused_settings(model: nn.Module) -> dict[str, Any]:
    """The model's own generation settings that are not used, for the records; the unusual ones are said too."""
    unused = unused_settings(model)
    if sentence := describe_unused(unused):
        logger.warning(sentence)
    return unused


def answer_in_batches(
    model: nn.Module | EngineAnswers,
    tokenizer: Any,
    questions: Sequence[Question],
    sampling: Sampling,
    *,
    feature_set: FeatureSet | None = None,
    strength: Tensor | None = None,
    positions: str = "generated",
    description: str = "answers",
) -> Iterator[list[Answer]]:
    """
    Answers to the questions in their order, a batch at a time; stop reading to stop generating.

    Args:
        model (`torch.nn.Module` or [`EngineAnswers`]), tokenizer (`PreTrainedTokenizerBase`):
            A causal language model, or an engine that answers for it, and its tokenizer.
        questions (`Sequence[Question]`), sampling ([`Sampling`]):
            What to answer, and how. The same batch number and seed draw the same random numbers.
        feature_set ([`FeatureSet`], *optional*):
            Directions to push along while generating.
        strength (`torch.Tensor` of shape `(N, F)`, *optional*):
            How far, for each question and feature, in median residual norms.
        positions (`str`, *optional*, defaults to `"generated"`):
            Which positions are pushed: `"generated"`, or `"all"` for the prompt too.
        description (`str`, *optional*, defaults to `"answers"`):
            Label of the progress bar.
    """
    if isinstance(model, EngineAnswers) and questions:
        model.open_for(max(len(question.prompt) for question in questions), sampling.max_new_tokens)
    with tqdm(total=len(questions), unit="answer", desc=description, leave=False) as bar:
        for start in range(0, len(questions), sampling.batch_size):
            batch = questions[start : start + sampling.batch_size]
            how: dict[str, Any] = {
                "max_new_tokens": sampling.max_new_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "seed": batch_seed(sampling.seed, start // sampling.batch_size),
            }
            prompts = [question.prompt for question in batch]
            push: dict[str, Any] = {}
            if feature_set is not None:
                assert strength is not None
                push = {"strength": strength[start : start + len(batch)], "positions": positions}
            if isinstance(model, EngineAnswers):
                answers, finished = model.answer(prompts, **how, feature_set=feature_set, **push)
            else:
                with nullcontext() if feature_set is None else steer(model, feature_set, **push):
                    answers, finished = generate_answers(model, tokenizer, prompts, **how)
            bar.update(len(batch))
            yield [Answer(question, tuple(ids), ended) for question, ids, ended in zip(batch, answers, finished)]


def answer_all(
    model: nn.Module | EngineAnswers,
    tokenizer: Any,
    questions: Sequence[Question],
    sampling: Sampling,
    **options: Any,
):
    """All of [`answer_in_batches`] in one list."""
    return [
        answer for batch in answer_in_batches(model, tokenizer, questions, sampling, **options) for answer in batch
    ]


def mean_answer_loss(model: nn.Module, answers: Sequence[Answer]) -> float:
    """
    Mean loss per token of answers, in nats, teacher-forced behind their prompts; all tokens weigh the same.

    Args:
        model (`torch.nn.Module`):
            A causal language model, as it stands.
        answers (`Sequence[Answer]`):
            Answers of any lengths; end tokens do not count.

    Returns:
        `float`: NaN if all answers are empty.
    """
    device = next(model.parameters()).device
    ordered = sorted((answer for answer in answers if answer.ids), key=lambda each: -_num_tokens(each))
    vocabulary = unwrap(model).get_output_embeddings().weight.shape[0]
    total, num_tokens, start = 0.0, 0, 0
    with torch.inference_mode():
        while start < len(ordered):
            longest = _num_tokens(ordered[start])
            batch = ordered[start : start + max(1, _LOGITS_ELEMENTS // (longest * vocabulary))]
            ids = torch.zeros(len(batch), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            labels = torch.full_like(ids, -100)
            for row, answer in enumerate(batch):
                num_prompt, num_all = len(answer.question.prompt), _num_tokens(answer)
                ids[row, :num_all] = torch.tensor((*answer.question.prompt, *answer.ids))
                mask[row, :num_all] = 1
                labels[row, num_prompt:num_all] = ids[row, num_prompt:num_all]
            logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits[:, :-1]
            losses = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), labels[:, 1:].flatten().to(device), ignore_index=-100, reduction="sum"
            )
            total += float(losses)
            num_tokens += sum(len(answer.ids) for answer in batch)
            start += len(batch)
    return total / num_tokens if num_tokens else math.nan


def _num_tokens(answer: Answer) -> int:
    return len(answer.question.prompt) + len(answer.ids)
