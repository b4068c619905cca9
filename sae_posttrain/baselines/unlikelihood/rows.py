"""Rows to train against: what a model says by itself, and which of its tokens repeat."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...measure.answers.generate import generate_answers
from ...measure.answers.prompt_tokens import tokenize_prompts
from ...measure.answers.prompts import Prompt
from .loss import loop_mask, repeated_ngram_mask

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

UNLIKELY = "unlikely"
"""Column of a row, one number for each of its `input_ids`: 1 where the token is to become less likely."""

RULES = ("ngram", "loop")


def sample_unlikely_rows(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Sequence[Mapping[str, Any]]],
    *,
    rule: str = "ngram",
    n: int = 4,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 0.8,
    batch_size: int = 16,
    seed: int = 0,
) -> "Dataset":
    """
    Continuations of a model whose repeated tokens are marked: the `unlikely_dataset` of [`UnlikelihoodTrainer`].

    Published (https://huggingface.co/papers/1908.04319): greedy continuations of 100 tokens, each token of a repeated
    4-gram, decoded anew for every update. Here they are decoded once; sample again after a round of training to
    follow the model.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model that is to be trained.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        prompts (`Sequence[str]` or `Sequence[list[dict]]`):
            Texts are continued as they are, messages answered through the chat template, as TRL does with the column
            `prompt`.
        rule (`"ngram"` or `"loop"`, *optional*, defaults to `"ngram"`):
            `"ngram"`: [`repeated_ngram_mask`], as published. `"loop"`: [`loop_mask`], which leaves what is merely said
            twice alone, but needs 64 tokens of loop.
        n (`int`, *optional*, defaults to `4`):
            Tokens of an n-gram.
        max_new_tokens (`int`, *optional*, defaults to `128`):
            Longest continuation, in tokens.
        temperature, top_p (`float`, *optional*, defaults to `0.0` and `0.8`):
            As in [`evaluate`]; 0 is greedy.
        batch_size (`int`, *optional*, defaults to `16`):
            Continuations sampled at once.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the first batch; each later one has the next.

    Returns:
        `datasets.Dataset`: `input_ids` (prompt and continuation) and `unlikely` of the continuations that repeat.

    Raises:
        ValueError: If there are no prompts, a setting is unknown, or no continuation repeats.
    """
    from datasets import Dataset

    if rule not in RULES:
        raise ValueError(f"`rule` must be one of {', '.join(map(repr, RULES))}, got {rule!r}.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` is 1 or more, got {batch_size}.")
    if isinstance(prompts, str) or len(prompts) == 0:
        raise ValueError("`prompts` is a list of texts or of conversations, with at least one.")
    prompt_ids = [_tokenize(tokenizer, index, prompt) for index, prompt in enumerate(prompts)]
    rows, num_tokens, num_marked = [], 0, 0
    for start in range(0, len(prompt_ids), batch_size):
        batch = prompt_ids[start : start + batch_size]
        answers, finished = generate_answers(
            model,
            tokenizer,
            batch,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed + start // batch_size,
        )
        for asked, answer, ended in zip(batch, answers, finished):
            mask = repeated_ngram_mask(answer, n) if rule == "ngram" else loop_mask(answer, finished=ended)
            num_tokens, num_marked = num_tokens + len(answer), num_marked + sum(mask)
            if any(mask):
                rows.append({"input_ids": [*asked, *answer], UNLIKELY: [0] * len(asked) + [int(bit) for bit in mask]})
    what = f"a repeated {n}-gram" if rule == "ngram" else "a loop"
    if not rows:
        raise ValueError(
            f"None of {len(prompts)} continuations of up to {max_new_tokens} tokens holds {what}: there is nothing to "
            "unlearn. Sample more or longer ones, or with `temperature=0`."
        )
    logger.info(
        "%d of %d continuations hold %s; %d of %d tokens are marked.",
        *(len(rows), len(prompts), what, num_marked, num_tokens),
    )
    return Dataset.from_list(rows)


def _tokenize(tokenizer: Any, index: int, prompt: str | Sequence[Mapping[str, Any]]) -> list[int]:
    if isinstance(prompt, str):
        return tokenize_prompts(tokenizer, [Prompt(index, "", prompt, None, None)])[0]
    messages = [dict(message) for message in prompt]
    return tokenize_prompts(tokenizer, [Prompt(index, "", "", messages, None)], rows=[index + 1])[0]
