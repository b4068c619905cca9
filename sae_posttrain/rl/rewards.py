"""
Rewards in TRL's signature that see what the measures see: endless repetition, and answers in another language.

They are callable classes, as TRL's own are, because a reward may be pickled. TRL logs them under `__name__`. They work
outside TRL too: every argument is a list with one entry for each answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..measure.faults.line_language import check_suspects, line_pass, suspects_of
from ..measure.faults.loops import MIN_PERIODS, MIN_TOKENS, find_loop
from ..measure.faults.scripts import OWN_SCRIPTS, can_measure, same_language
from ..measure.faults.segments import opens_thinking, template_opens_thinking
from ..measure.faults.switching import find_switches, right_language

KINDS = ("endless", "share")

_FROM_TRL = ("trainer_state", "log_extra", "log_metric", "environments")
"""What TRL passes to rewards in addition to the columns of the dataset."""


class EndlessRepetitionReward:
    """
    −1 for an answer that repeats itself endlessly, a smaller penalty for a loop in which a little changes, else 0.

    [`find_loop`] says what loops. An exact loop up to where the answer was cut costs 1. A near loop up to there (a
    counter, a name or a number changes, lines grow) costs `inexact` times the share of its tokens that repeat: 0.9 for
    long lines with a number in front, 0.6 to 0.7 for bare counting. An answer that the model ended costs nothing, so a
    table, a calendar or a refrain that comes to its end is free. A table that was cut is not, where most of each row
    repeats the row above.

    Args:
        eos_token_id (`int` or `Sequence[int]`):
            Token ids that end an answer: `tokenizer.eos_token_id`. If the model has several, pass all of them:
            `model.generation_config.eos_token_id` too.
        kind (`str`, *optional*, defaults to `"endless"`):
            `"endless"`: −1 or 0. `"share"`: minus the share of the answer's tokens that lie in the loop at its end,
            be it endless or closed by an end token, so that an answer gains by leaving its loop early, and nothing by
            putting an end token behind it. Of a near loop, its share of the answer times the share of its tokens that
            repeat.
        inexact (`float`, *optional*, defaults to `1.0`):
            Weight of near loops, from 0 to 1. 0 counts exact loops only, as the rate of endless answers does.
        min_periods (`int`, *optional*, defaults to `4`), min_tokens (`int`, *optional*, defaults to `64`):
            What counts as a loop, as in [`find_loop`]. [`SteeredGRPOTrainer`] and [`evaluate`] use the defaults.

    Raises:
        ValueError: If no end token is given, or another setting is out of range.

    Example:

    ```python
    >>> reward = EndlessRepetitionReward(2)
    >>> counting = [token for number in range(100, 130) for token in (5, 6, 7, number)]
    >>> reward(completion_ids=[[5, 6, 7, 2], [5, 6] * 40, [5, 6] * 40 + [2], counting])
    [0.0, -1.0, 0.0, -0.725]
    ```
    """

    __name__ = "endless_repetition_reward"
    sees_repetition = True

    def __init__(
        self,
        eos_token_id: int | Sequence[int] | None = None,
        *,
        kind: str = "endless",
        inexact: float = 1.0,
        min_periods: int = MIN_PERIODS,
        min_tokens: int = MIN_TOKENS,
    ):
        if kind not in KINDS:
            raise ValueError(f"`kind` must be one of {', '.join(map(repr, KINDS))}, got {kind!r}.")
        if not 0 <= inexact <= 1:
            raise ValueError(
                f"`inexact` is the weight of loops in which something changes, from 0 to 1; got {inexact!r}. Set 0 to "
                "count exact loops only."
            )
        find_loop([], finished=True, min_periods=min_periods, min_tokens=min_tokens)  # checks the two minima
        self.eos_token_ids = _end_ids(eos_token_id)
        self.kind = kind
        self.inexact = inexact
        self.min_periods = min_periods
        self.min_tokens = min_tokens

    def __call__(self, completion_ids: Sequence[Sequence[int]], **kwargs: Any) -> list[float]:
        """
        Args:
            completion_ids (`Sequence[Sequence[int]]`):
                Token ids of each answer, with its end token if there was one, without padding.
            **kwargs:
                Whatever else TRL passes. It is not used.

        Returns:
            `list[float]`: a reward from −1 to 0 for each answer.
        """
        return [self._reward(np.asarray(ids)) for ids in completion_ids]

    def _reward(self, ids: np.ndarray) -> float:
        finished = len(ids) > 0 and int(ids[-1]) in self.eos_token_ids
        loop = find_loop(
            ids[:-1] if finished else ids,
            finished=finished,
            min_periods=self.min_periods,
            min_tokens=self.min_tokens,
        )
        if loop.near_loop:
            share = loop.near_span / loop.num_tokens if self.kind == "share" else 1.0
            return -self.inexact * loop.tail_repetition * share if self.inexact else 0.0
        if self.kind == "share":
            return -loop.share if loop.loop_tail else 0.0
        return -1.0 if loop.endless else 0.0


class LanguageConsistencyReward:
    """
    1 for an answer in the language of its row, without an unexpected switch; 0 for any other.

    Told by script, as [`find_switches`] and [`evaluate`] do: half of the answer's words or more are of the language's
    own script, names and code not counted, and no character of a foreign one stands there without a reason (code,
    addresses, paths, formulas, quoted terms, text copied from the prompt; Latin is free everywhere). So English in a
    Spanish answer is not seen, unless `lid_languages` has its lines looked at as well: then an answer with a line in
    another of them gets 0.

    `None`, which TRL leaves out of the sum, where it cannot be told: the row names no language, the answer has no
    words outside its thinking (all of it, if it was cut before `</think>`), or the answer's language is written in the
    script of `target_lang` and no line of it was looked at.

    Args:
        lang_column (`str`, *optional*, defaults to `"lang"`):
            Column of the dataset that holds the language each answer should be in, as an ISO 639 code.
        target_lang (`str`, *optional*):
            Only switches into this language count, e.g. `"zh"`. By default every foreign script does. An answer that
            is in another script altogether gets 0 in any case.
        lid_languages (`Sequence[str]`, *optional*):
            Languages that lines may slip into without their script showing it, e.g. `["en", "es"]`, as in
            [`evaluate`]. Needs the extra `lid`.
        think_opened (`bool`, *optional*):
            Whether the chat template ends prompts in `<think>`, as those of R1 and QwQ do, so that an answer begins
            with its thinking. By default it is told by the end of prompts that are text, and for messages by
            `read_template`, which [`SteeredGRPOTrainer`] calls; with another trainer, call it or set this.

    Raises:
        ValueError: If `target_lang` is unknown or shows in no other language, as English does not; if `lid_languages`
            has no two that a script does not tell apart, the answers' own included; when called, if there is no such
            column or a language in it is unknown.
        ImportError: If `lid_languages` are given and py3langid is missing.

    Example:

    ```python
    >>> reward = LanguageConsistencyReward(target_lang="zh")
    >>> reward(prompts=["열기?", "열기?"], completions=["파일을 엽니다", "파일을 打开"], lang=["ko", "ko"])
    [1.0, 0.0]
    ```
    """

    __name__ = "language_consistency_reward"

    def __init__(
        self,
        *,
        lang_column: str = "lang",
        target_lang: str | None = None,
        lid_languages: Sequence[str] | None = None,
        think_opened: bool | None = None,
    ):
        if target_lang is not None and not any(can_measure(lang, target_lang) for lang in OWN_SCRIPTS):
            raise ValueError(
                f"A switch into {target_lang!r} cannot be seen: Latin script is allowed in every language, for names "
                "and terms. Leave out `target_lang` to count every foreign script."
            )
        self.lang_column = lang_column
        if lid_languages is not None:
            check_suspects(lid_languages, lid_languages)
        self.target_lang = target_lang
        self.lid_languages = lid_languages
        self.think_opened = think_opened
        self._template_opens = False

    def read_template(self, tokenizer: Any, **template_kwargs: Any) -> None:
        """
        Learn from the chat template whether prompts of messages end in `<think>`. `think_opened`, if set, decides.

        Args:
            tokenizer (`PreTrainedTokenizerBase`):
                The tokenizer of the trainer.
            **template_kwargs:
                What the trainer renders prompts with: its `chat_template_kwargs`.
        """
        self._template_opens = template_opens_thinking(tokenizer, **template_kwargs)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **kwargs: Any) -> list[float | None]:
        """
        Args:
            prompts, completions (`Sequence[str]` or `Sequence[list[dict]]`):
                Questions and answers, as text or as messages. Of an answer in messages, only the assistant's count.
            **kwargs:
                The columns of the dataset, each a list. The column of the language must be among them.

        Returns:
            `list[float | None]`: 1, 0 or `None` for each answer.
        """
        if self.lang_column not in kwargs:
            columns = [name for name in kwargs if name not in (*_FROM_TRL, "completion_ids")]
            raise ValueError(
                f"The dataset has no column {self.lang_column!r} with the language of the answer; its other columns "
                f"are: {', '.join(columns) or 'none'}. Name the right one by `lang_column`."
            )
        return [
            self._reward(_text(prompt), _text(completion, only="assistant"), lang, self._opens_thinking(prompt))
            for prompt, completion, lang in zip(prompts, completions, kwargs[self.lang_column])
        ]

    def _opens_thinking(self, prompt: Any) -> bool:
        if self.think_opened is not None:
            return self.think_opened
        return opens_thinking(prompt) if isinstance(prompt, str) else self._template_opens

    def _reward(self, prompt: str, answer: str, lang: str | None, think_opened: bool) -> float | None:
        if lang is None:
            return None
        right = right_language(answer, lang=lang, think_opened=think_opened)
        if not right:
            return None if right is None else 0.0
        passes = self._line_pass(prompt, answer, lang, think_opened)
        if passes is False:
            return 0.0
        if not can_measure(lang, self.target_lang):
            into_own = self.target_lang is not None and same_language(lang, self.target_lang)
            return 1.0 if passes or into_own else None
        switches = find_switches(
            answer, lang=lang, prompt=prompt, target_lang=self.target_lang, think_opened=think_opened
        )
        return 0.0 if switches.unexpected else 1.0

    def _line_pass(self, prompt: str, answer: str, lang: str, think_opened: bool) -> bool | None:
        suspects = suspects_of(lang, self.lid_languages or ())
        if not suspects:
            return None
        return line_pass(answer, lang=lang, suspects=suspects, prompt=prompt, think_opened=think_opened)


def tell_template(
    reward_funcs: Sequence[Any], tokenizer: Any, chat_template: str | None, template_kwargs: Any
) -> None:
    """Tell the rewards that judge by the language what the trainer's chat template does."""
    for reward_func in reward_funcs:
        if isinstance(reward_func, LanguageConsistencyReward):
            chosen = {"chat_template": chat_template} if chat_template else {}
            reward_func.read_template(tokenizer, **chosen, **template_kwargs)


def _end_ids(given: Any) -> tuple[int, ...]:
    ids = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
    if not ids or any(isinstance(token, bool) or not isinstance(token, int) for token in ids):
        raise ValueError(
            f"`EndlessRepetitionReward` has to know which token ids end an answer, got {given!r}. Pass "
            "`tokenizer.eos_token_id`, or all of them where the model has several "
            "(`model.generation_config.eos_token_id`)."
        )
    return ids


def _text(turns: Any, only: str | None = None) -> str:
    """A text as it is, or the contents of messages: of all of them, or of one role only."""
    if isinstance(turns, str):
        return turns
    contents = [message.get("content") for message in turns if only is None or message.get("role") == only]
    return "\n".join(_content(content) for content in contents)


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts: Sequence[Mapping[str, Any]] = content or []  # a message that only calls a tool has no content
    return "\n".join(part["text"] for part in parts if part.get("type") == "text")
