"""
How much features rise in repetition, and what they do to it: the two scores of a repetition feature.

Legend of the shapes: P pairs of positions, F features, D width.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...hooks.sites import Place
from ...hooks.truncated import read_sites
from ...measure.faults.loops import find_loop
from ...precision import widest_float
from ...saes.frozen import FrozenSAE
from ..read.loading import place_of
from ..read.texts import batches
from ..set.feature_set import FeatureSet
from .answers import Question, Sampling, answer_all
from .engine_answers import EngineAnswers
from .loop_texts import RepeatedText

_TILE_ELEMENTS = 1 << 24  # positions × features of one dense tile: 64 MB


def repeated_tokens(text: RepeatedText, specials: Collection[int] = ()) -> list[tuple[int, int]]:
    """
    First and last position of each token that repeats.

    A token of the repeated part `[start, end)` has its first position in the whole text, prompt and all, and its last
    position before `end`. Tokens that stand there once only are left out, as are special tokens
    and the text's first position, whose residual is an outlier in most models.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for position in range(1, text.end):
        token = text.ids[position]
        first.setdefault(token, position)
        if position >= text.start:
            last[token] = position
    return [
        (first[token], position)
        for token, position in last.items()
        if token not in specials and first[token] < position
    ]


def mean_increase(
    model: nn.Module,
    texts: Sequence[RepeatedText],
    saes: Sequence[FrozenSAE],
    *,
    specials: Collection[int] = (),
    batch_size: int = 16,
) -> dict[Place, Tensor]:
    """
    Activation at a token's last occurrence minus that at its first, the same token compared with itself.

    Mean over the tokens that repeat, then over texts: the score of Qwen-Scope
    (https://huggingface.co/papers/2605.11887, section 8.1), which leaves the aggregation open. One forward pass a
    batch serves all SAEs, and only the values of their sites at these positions are encoded.

    Args:
        texts: Texts and where they repeat. Those in which no token repeats are left out of the mean.

    Returns for each block and site `(F,)`, in units of activation.
    """
    device = next(model.parameters()).device
    saes = [sae.to(device) for sae in saes]
    pairs_of = [repeated_tokens(text, specials) for text in texts]
    kept = sorted(((text, pairs) for text, pairs in zip(texts, pairs_of) if pairs), key=lambda each: -len(each[0].ids))
    if not kept:
        raise ValueError("No token of these texts repeats.")
    wide = widest_float(device)
    sums = {place_of(sae): torch.zeros(sae.num_features, dtype=wide, device=device) for sae in saes}
    plain = [text.as_text("repeated") for text, _ in kept]
    with torch.inference_mode():
        for number, batch in enumerate(batches(plain, ["repeated"], batch_size)):
            batch = batch.to(device)
            members = [pairs for _, pairs in kept[number * batch_size : (number + 1) * batch_size]]
            values = read_sites(model, list(sums), input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            rows = torch.tensor([row for row, pairs in enumerate(members) for _ in pairs], device=device)
            first, last = torch.tensor([pair for pairs in members for pair in pairs], device=device).T
            weights = torch.tensor([1 / len(pairs) for pairs in members for _ in pairs], device=device)
            for sae in saes:
                value = values[place_of(sae)]
                sums[place_of(sae)] += increase(value[rows, first], value[rows, last], weights, sae)
    return {place: (total / len(kept)).float().cpu() for place, total in sums.items()}


def increase(first_PD: Tensor, last_PD: Tensor, weights: Tensor, sae: FrozenSAE) -> Tensor:
    """
    Weighted sum over pairs of positions of the activation at the last minus that at the first, a tile at a time.

    Args:
        first_PD, last_PD (`(P, D)`): What the SAE's site holds.
        weights (`(P,)`): Weight of each pair.

    Returns `(F,)`, float64, or float32 on a device that has no other.
    """
    total_F = torch.zeros(sae.num_features, dtype=widest_float(first_PD.device), device=first_PD.device)
    per_tile = max(1, _TILE_ELEMENTS // sae.num_features)
    for first, last, weight in zip(first_PD.split(per_tile), last_PD.split(per_tile), weights.split(per_tile)):
        total_F += weight.float() @ (sae.encode(last) - sae.encode(first))
    return total_F


@dataclass(frozen=True)
class LoopRates:
    """
    How much a model loops when pushed along each of some features.

    Attributes:
        endless (`(F,)`): Share of answers that loop endlessly.
        share (`(F,)`): Mean share of an answer that is in a loop: it tells features apart whose rates are equal.
    """

    endless: Tensor
    share: Tensor
    num_answers: int

    def __sub__(self, other: "LoopRates") -> "LoopRates":
        return replace(self, endless=self.endless - other.endless, share=self.share - other.share)


def loop_rates(
    model: nn.Module | EngineAnswers,
    tokenizer: Any,
    questions: Sequence[Question],
    sampling: Sampling,
    feature_set: FeatureSet | None = None,
    strength: float = 0.0,
    *,
    description: str = "answers",
) -> LoopRates:
    """
    Answer the questions once for each feature, pushed along that one alone; or once, not pushed.

    One batch serves many features: each row has its own.

    Args:
        strength: How far, in median residual norms; below 0 against the direction.

    Returns the rates of each feature, or of one that stands for none if there is no feature set.
    """
    num_features = 1 if feature_set is None else len(feature_set)
    asked = [question for question in questions for _ in range(num_features)]
    strength_NF = None if feature_set is None else strength * torch.eye(num_features).repeat(len(questions), 1)
    answers = answer_all(
        model, tokenizer, asked, sampling, feature_set=feature_set, strength=strength_NF, description=description
    )
    found = [find_loop(answer.ids, finished=answer.finished) for answer in answers]
    endless = torch.tensor([float(loop.endless) for loop in found]).view(-1, num_features)
    share = torch.tensor([loop.share for loop in found]).view(-1, num_features)
    return LoopRates(endless.mean(dim=0), share.mean(dim=0), len(questions))


def ranking(scores: dict[str, Tensor], rank_by: str) -> list[int]:
    """
    Features in order, best first.

    `"causal"`: by how much the endless rate rises when pushed up on normal prompts plus how much it falls when pushed
    down on looping ones; equal ones by the same sum of loop shares, then by increase. `"increase"`: by that alone.
    """
    keys = ("causal", "causal_share", "increase") if rank_by == "causal" else ("increase",)
    columns = [scores[key].tolist() for key in keys]
    order = list(zip(*columns))
    return sorted(range(len(order)), key=lambda i: order[i], reverse=True)
