"""
Compute the probability that an answer switches, without counting switches.

If the fault is that one of certain tokens is sampled, its rate can be computed without faulty answers. Answers are
sampled with these tokens removed. At each position, the probability of drawing one of them is recorded; then

    P(answer without the fault) = E over such answers of the product of (1 − chance at each position).

The estimate is unbiased: the probability of an answer without the fault is its probability with these tokens removed,
multiplied by that product. Each answer gives a number between 0 and 1, while a count gives 0 or 1. So the variance is
never larger than that of a count, and for rare faults it is much smaller.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from sae_posttrain.measure.answers.generate import generate_answers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class SwitchProbability:
    """
    Probability that the answer to one prompt contains one of the tokens.

    Attributes:
        probability (`float`):
            Probability for the whole answer, from 0 to 1.
        first_token (`float`):
            Probability that the answer begins with one of the tokens.
        num_tokens (`int`):
            Length of the answer that was sampled without the tokens.
    """

    probability: float
    first_token: float
    num_tokens: int


def switch_probability(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    tokens: Iterable[int],
    *,
    max_new_tokens: int = 512,
    temperature: float = 1.0,
    top_p: float = 0.8,
    seed: int = 0,
) -> list[SwitchProbability]:
    """
    Estimate for each prompt the probability that a sampled answer contains one of some tokens; all in one batch.

    The mean over prompts is the rate that [`evaluate`] would count, with less noise. For the script of a language,
    pass `tokens=script_tokens(tokenizer, "zh").ids`. Bytes that begin a character count as the character.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A causal language model.
        tokenizer (`PreTrainedTokenizerBase`):
            The model's tokenizer, which gives the padding token and an end token.
        prompts (`Sequence[Sequence[int]]`):
            Token ids of each prompt.
        tokens (`Iterable[int]`):
            The tokens that are the fault.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Longest answer, in tokens.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature, above 0.
        top_p (`float`, *optional*, defaults to `0.8`):
            Probability mass of the tokens that are sampled from.
        seed (`int`, *optional*, defaults to `0`):
            Seed of this batch.

    Returns:
        `list[SwitchProbability]`: one for each prompt, in order.

    Raises:
        ValueError: If no token is given, one is not in the vocabulary or ends answers, or a setting is out of range.
    """
    if temperature <= 0 or not 0 < top_p <= 1:
        raise ValueError(
            "A probability of switching needs sampling: `temperature` above 0 and `top_p` above 0 up to 1, got "
            f"{temperature} and {top_p}. Greedy answers switch or do not; count them with `evaluate`."
        )
    watched = _WatchedTokens(tokens, model.get_output_embeddings().weight.shape[0], temperature, top_p)
    if tokenizer.eos_token_id in watched.ids:
        raise ValueError(f"The token {tokenizer.eos_token_id} ends answers and cannot be a fault.")
    answers, finished = generate_answers(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=1.0,
        top_p=1.0,
        seed=seed,
        logits_processor=LogitsProcessorList([watched]),
    )
    if not answers:
        return []
    chance_TB = torch.stack(watched.chances).cpu().double()
    results = []
    for row, (ids, ended) in enumerate(zip(answers, finished)):
        chance_T = chance_TB[: len(ids) + ended, row]  # with the end token's position, where one could be drawn
        without = float((1 - chance_T).clamp(min=0).prod())
        results.append(SwitchProbability(1 - without, float(chance_T[0]), len(ids)))
    return results


class _WatchedTokens(LogitsProcessor):
    """Sample at a temperature within the nucleus, with the tokens removed, and record their probability."""

    def __init__(self, tokens: Iterable[int], vocab_size: int, temperature: float, top_p: float):
        self.ids = sorted(set(tokens))
        if not self.ids:
            raise ValueError("No tokens were given whose probability to measure.")
        if self.ids[0] < 0 or self.ids[-1] >= vocab_size:
            raise ValueError(f"Token {self.ids[-1]} is not in the model's vocabulary of {vocab_size}.")
        self._is_watched = torch.zeros(vocab_size, dtype=torch.bool)
        self._is_watched[self.ids] = True
        self._temperature = temperature
        self._nucleus = TopPLogitsWarper(top_p) if top_p < 1 else None
        self.chances: list[Tensor] = []

    def __call__(self, input_ids: Any, scores: Tensor) -> Tensor:
        watched = self._is_watched.to(scores.device)
        scores = scores.float() / self._temperature
        within = self._nucleus(input_ids, scores) if self._nucleus is not None else scores
        chance = within.softmax(dim=-1)[:, watched].sum(dim=-1)
        self.chances.append(chance)
        others = within.masked_fill(watched, -torch.inf)
        # If the nucleus holds only these tokens, the answer's product is 0, however it continues.
        nothing_left = others.isneginf().all(dim=-1, keepdim=True)
        return torch.where(nothing_left, scores.masked_fill(watched, -torch.inf), others)
