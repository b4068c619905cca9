"""Texts in which something repeats, endlessly or rightly, and normal answers of the same model beside them."""

import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ...measure.faults.loops import find_loop
from ..read.text_options import TextOptions
from ..read.texts import Text, read_rows, tokenize
from .answers import Answer, Question, Sampling, answer_all, answer_in_batches
from .engine_answers import EngineAnswers

MIN_TEXTS = 8
"""Fewest loops, and fewest normal texts, that a search makes do with."""

_PASSAGE = 24  # tokens of a refrain
_VERSE = 16  # tokens between two refrains
_FRAME = 3  # tokens that the rows of a list share
_ITEM = 3  # tokens in which they differ
_NUM_ROWS = 6


@dataclass(frozen=True)
class RepeatedText:
    """
    A text part of which repeats.

    Attributes:
        ids (`tuple[int, ...]`):
            Token ids of the whole text, with its prompt.
        start, end (`int`):
            The part that repeats is `ids[start:end]`. Of a loop it begins with the first time round, of benign
            repetition with the second.
        question ([`Question`]):
            What was asked, or the beginning that the text was cut to: a prompt after which the model may loop.
        period (`int`):
            Tokens of one time round; 0 for benign repetition.
    """

    ids: tuple[int, ...]
    start: int
    end: int
    question: Question
    period: int = 0

    def as_text(self, group: str, *, skip: int = 0, specials: frozenset[int] = frozenset()) -> Text:
        """The text with the tokens of the repeated part counted, the first `skip` of them left out."""
        first = max(1, self.start + skip)
        counted = (first <= i < self.end and token not in specials for i, token in enumerate(self.ids))
        return Text(group, self.ids, tuple(counted))


@dataclass(frozen=True)
class LoopSamples:
    """
    Loops, and normal answers beside them.

    Attributes:
        loops (`list[RepeatedText]`):
            Texts that end in a loop.
        normal (`list[Answer]`):
            Answers without a loop.
        normal_questions (`list[Question]`):
            What the normal answers, and those among them that looped, were asked; not selected by their answers.
        specials (`frozenset[int]`):
            Special tokens, which never count.
        notes (`dict`):
            How many answers were looked through.
    """

    loops: list[RepeatedText]
    normal: list[Answer]
    normal_questions: list[Question]
    specials: frozenset[int]
    notes: dict[str, Any]

    def loop_texts(self, *, skip_first_round: bool = False) -> list[Text]:
        """The loops, their tokens counted from the onset on, or from the second time round on."""
        return [
            loop.as_text("loop", skip=loop.period if skip_first_round else 0, specials=self.specials)
            for loop in self.loops
        ]

    def normal_texts(self) -> list[Text]:
        """The normal answers, with the tokens of the answer counted."""
        return [
            RepeatedText(
                (*answer.question.prompt, *answer.ids),
                len(answer.question.prompt),
                len(answer.question.prompt) + len(answer.ids),
                answer.question,
            ).as_text("normal", specials=self.specials)
            for answer in self.normal
        ]


def collect_samples(
    model: nn.Module | EngineAnswers,
    tokenizer: Any,
    *,
    questions: Sequence[Question] | None = None,
    loops: str | os.PathLike | Iterable[Any] | None = None,
    num_loops: int = 50,
    sampling: Sampling,
    normal_temperature: float,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> LoopSamples:
    """
    Loops and normal answers.

    Loops are those given, or those the model falls into: it answers questions, in an order drawn by the seed, until
    enough answers are endless. Normal answers are sampled at `normal_temperature` from the other end of that order.
    With loops and no questions, what stands before each loop is the normal text.

    Args:
        model (`torch.nn.Module` or [`EngineAnswers`]), tokenizer (`PreTrainedTokenizerBase`):
            A causal language model, or an engine that answers for it, and its tokenizer.
        questions (`Sequence[Question]`, *optional*):
            What the model answers.
        loops (`str`, `os.PathLike` or iterable, *optional*):
            Texts that loop: rows with `text`, `prompt` and `completion`, or `messages`; texts; or lists of token ids.
        num_loops (`int`, *optional*, defaults to `50`):
            Loops wanted, and normal answers.
        sampling ([`Sampling`]):
            How the loops are sampled.
        normal_temperature (`float`):
            Temperature of the normal answers.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*):
            Further variables of the chat template, for loops that are messages.

    Raises:
        ValueError: If neither is given, or too few loops or normal texts are found.
    """
    if num_loops < 1:
        raise ValueError(f"`num_loops` must be 1 or more, got {num_loops}.")
    if questions is None and loops is None:
        raise ValueError("Give `prompts`, which the model answers until it loops, or `loops`, texts that loop.")
    notes: dict[str, Any] = {}
    shuffled = list(questions or ())
    random.Random(sampling.seed).shuffle(shuffled)
    if loops is not None:
        found = _read_loops(loops, tokenizer, chat_template_kwargs)[:num_loops]
    else:
        found = _generate_loops(model, tokenizer, shuffled, num_loops, sampling, notes)
    asked = shuffled[::-1][:num_loops]
    if asked:
        normal_sampling = replace(sampling, temperature=normal_temperature)
        answers = answer_all(model, tokenizer, asked, normal_sampling, description="Normal answers")
        normal = [answer for answer in answers if answer.ids and not _repeats(answer)]
        notes["num_normal_answers"] = len(answers)
    else:
        normal = [
            Answer(Question((), ()), loop.ids[: loop.start], finished=True) for loop in found if loop.start >= _PASSAGE
        ]
    if len(normal) < min(MIN_TEXTS, num_loops):
        raise ValueError(
            f"{len(normal)} of {len(asked)} answers at temperature {normal_temperature} are without a loop, at least "
            f"{min(MIN_TEXTS, num_loops)} are needed. Raise `normal_temperature`, or give more prompts."
            if asked
            else f"Before their loops, {len(normal)} texts hold {_PASSAGE} normal tokens or more; at least "
            f"{min(MIN_TEXTS, num_loops)} are needed. Give `prompts` too: their answers are the normal texts."
        )
    notes |= {"num_loops": len(found), "num_normal": len(normal)}
    return LoopSamples(found, normal, asked, frozenset(tokenizer.all_special_ids), notes)


def _repeats(answer: Answer) -> bool:
    loop = find_loop(answer.ids, finished=answer.finished)
    return loop.loop_any or loop.near_loop


def _generate_loops(
    model: nn.Module | EngineAnswers,
    tokenizer: Any,
    questions: Sequence[Question],
    num_loops: int,
    sampling: Sampling,
    notes: dict[str, Any],
) -> list[RepeatedText]:
    found: list[RepeatedText] = []
    num_answers = 0
    for batch in answer_in_batches(model, tokenizer, questions, sampling, description="Looking for loops"):
        num_answers += len(batch)
        for answer in batch:
            loop = find_loop(answer.ids, finished=answer.finished)
            if loop.endless and loop.onset is not None and loop.period is not None:
                num_prompt = len(answer.question.prompt)
                ids = (*answer.question.prompt, *answer.ids)
                found.append(RepeatedText(ids, num_prompt + loop.onset, len(ids), answer.question, loop.period))
        if len(found) >= num_loops:
            break
    notes |= {"num_answers": num_answers, "num_endless": len(found)}
    if len(found) < min(MIN_TEXTS, num_loops):
        raise ValueError(
            f"{len(found)} of {num_answers} answers loop endlessly, at least {min(MIN_TEXTS, num_loops)} are needed. "
            "Set `temperature` to 0, give more prompts, allow longer answers (`max_new_tokens`), or give texts that "
            "loop as `loops`."
        )
    return found[:num_loops]


def _read_loops(
    loops: str | os.PathLike | Iterable[Any], tokenizer: Any, chat_template_kwargs: Mapping[str, Any] | None
) -> list[RepeatedText]:
    rows = read_rows(loops) if isinstance(loops, str | os.PathLike) else list(loops)
    found = []
    for row in rows:
        if isinstance(row, str):
            row = {"text": row}
        if isinstance(row, Mapping):
            options = TextOptions(max_length=1 << 30, chat_template_kwargs=chat_template_kwargs)
            text = tokenize([{**row, "lang": "loop"}], tokenizer, options)[0]
            ids, num_prompt = text.ids, next((i for i, counts in enumerate(text.counted) if counts), 0)
        else:
            ids, num_prompt = tuple(row), 0
        num_prompt = 0 if num_prompt == 1 else num_prompt  # a text's first position never counts, prompt or not
        loop = find_loop(ids[num_prompt:], finished=False)
        if loop.onset is None or loop.period is None:
            continue
        start = num_prompt + loop.onset
        inside = ids[: start + 2 * loop.period]  # with no prompt known: go on from two times round
        prompt = ids[:num_prompt] or inside
        found.append(RepeatedText(ids, start, start + loop.span, Question(prompt, prompt), loop.period))
    if len(found) < MIN_TEXTS:
        raise ValueError(
            f"{len(found)} of {len(rows)} texts loop (four periods or more, over 64 tokens or more), at least "
            f"{MIN_TEXTS} are needed. Give more, or give `prompts` and let the model loop."
        )
    return found


def benign_texts(answers: Sequence[Answer], tokenizer: Any) -> list[RepeatedText]:
    """
    Texts in which repetition is right, built from normal answers in any language.

    Each answer gives up to three: the question copied at the head of the answer; a list whose rows share their first
    words; a passage that comes back twice, with other text between, as a refrain does. All words are the answer's.

    Args:
        answers (`Sequence[Answer]`):
            Normal answers.
        tokenizer (`PreTrainedTokenizerBase`):
            Gives line break and dash.

    Raises:
        ValueError: If the answers are too short for any.
    """
    line = tuple(tokenizer("\n", add_special_tokens=False)["input_ids"])
    dash = tuple(tokenizer("- ", add_special_tokens=False)["input_ids"])
    texts = []
    for answer in answers:
        prompt, words = answer.question.prompt, answer.ids
        if answer.question.text and prompt:
            copied = (*prompt, *answer.question.text)
            texts.append(RepeatedText(copied + words, len(prompt), len(copied), answer.question))
        if len(words) >= _FRAME + _NUM_ROWS * _ITEM:
            frame, items = words[:_FRAME], words[_FRAME:]
            rows = [(*dash, *frame, *items[i * _ITEM : (i + 1) * _ITEM], *line) for i in range(_NUM_ROWS)]
            ids = prompt + tuple(token for row in rows for token in row)
            texts.append(RepeatedText(ids, len(prompt) + len(rows[0]), len(ids), answer.question))
        if len(words) >= _PASSAGE + 2 * _VERSE:
            refrain, rest = (*words[:_PASSAGE], *line), words[_PASSAGE:]
            verses = [(*rest[:_VERSE], *line), (*rest[_VERSE : 2 * _VERSE], *line)]
            ids = (*prompt, *refrain, *verses[0], *refrain, *verses[1], *refrain)
            second = len(prompt) + len(refrain) + len(verses[0])
            texts.append(RepeatedText(ids, second, len(ids), answer.question))
    if not texts:
        raise ValueError("The normal answers are too short to build benign repetition from. Allow longer answers.")
    return texts
