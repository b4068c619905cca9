"""
What sites hold at the tokens that count: batch by batch, or at a bounded sample of each group's tokens.

Shape suffixes: N tokens, D width of the site.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from ...hooks.sites import Place
from ...hooks.truncated import read_sites
from .texts import Text, TextBatch


@dataclass(frozen=True)
class Tokens:
    """
    The tokens of one batch that count.

    Attributes:
        values (`dict[Place, torch.Tensor]`, each of shape `(N, D)`, float32):
            What each site holds.
        groups (`torch.Tensor` of shape `(N,)`):
            Number of each token's group.
        texts (`torch.Tensor` of shape `(N,)`):
            Number of each token's text, counted over all batches.
    """

    values: dict[Place, Tensor]
    groups: Tensor
    texts: Tensor


def read_tokens(model: nn.Module, batches: Iterable[TextBatch], places: Sequence[Place]) -> Iterator[Tokens]:
    """
    What some sites hold at the tokens that count, from one forward pass per batch, which stops after the deepest.

    Args:
        model (`torch.nn.Module`):
            A causal language model.
        batches (`Iterable[TextBatch]`):
            The texts.
        places (`Sequence[Place]`):
            Block and site of each.

    Yields:
        [`Tokens`]: of each batch, on the model's device.

    Raises:
        ValueError: If the model has no such block or site.
    """
    device = next(model.parameters()).device
    num_texts = 0
    for batch in batches:
        batch = batch.to(device)
        values = read_sites(model, places, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        row_N = batch.counted.nonzero()[:, 0]
        yield Tokens(
            {place: values[place][batch.counted].float() for place in places},
            batch.groups[row_N],
            row_N + num_texts,
        )
        num_texts += len(batch.groups)


def sample_tokens(texts: Sequence[Text], most: Mapping[str, int], seed: int) -> list[Text]:
    """
    The texts with only some of their tokens still counting: of each group so many, drawn uniformly from all it has.

    Texts without a drawn token are left out, so that they cost no forward pass.

    Args:
        texts (`Sequence[Text]`):
            The texts.
        most (`Mapping[str, int]`):
            Tokens to draw of each group; a group that has fewer gives all.
        seed (`int`):
            Draws the tokens.
    """
    drawn = random.Random(seed)
    chosen = {}
    for group in sorted(most):
        num_counted = sum(sum(text.counted) for text in texts if text.group == group)
        chosen[group] = set(drawn.sample(range(num_counted), min(most[group], num_counted)))
    number = dict.fromkeys(most, 0)  # of the next token of each group
    sampled = []
    for text in texts:
        counted = []
        for counts in text.counted:
            counted.append(counts and number[text.group] in chosen[text.group])
            number[text.group] += counts
        if any(counted):
            sampled.append(replace(text, counted=tuple(counted)))
    return sampled
