"""
Activations at sites of a model on many texts, recorded one forward pass after the other, for all sites at once.

Shape suffixes: N tokens, D width of the site.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice

import torch
from torch import Tensor, nn

from ..features.read.texts import Text, batches
from ..hooks.sites import Place, describe_place
from ..hooks.truncated import read_sites
from .processes import Processes

_PASSES_SORTED = 8  # texts of this many forward passes are sorted by length, to reduce padding


def split_texts(texts: Sequence[Text], share: float, at_most: int, seed: int) -> tuple[list[int], list[int]]:
    """
    Divide texts into those to train on and those to measure on. Copies of a text stay together and are measured once.

    Args:
        texts (`Sequence[Text]`):
            All texts; texts without a token that counts are left out.
        share (`float`):
            Share of the different texts to measure on; at least one text.
        at_most (`int`):
            Largest number of texts to measure on.
        seed (`int`):
            Seed of the random choice.

    Returns:
        `tuple[list[int], list[int]]`: numbers of the texts to train on, and of the texts to measure on.

    Raises:
        ValueError: If fewer than two different texts have a token that counts.
    """
    first_of = {text.ids: number for number, text in reversed(list(enumerate(texts))) if any(text.counted)}
    if len(first_of) < 2:
        raise ValueError(
            f"{len(first_of)} of the {len(texts)} texts is different from the others and has a token that counts (not "
            "the first, not special, not in a prompt). Some are held out to measure the SAE on: give two or more."
        )
    num_held_out = min(max(1, round(share * len(first_of))), at_most, len(first_of) - 1)
    held_out = random.Random(seed).sample(sorted(first_of.values()), num_held_out)
    left_out = {texts[number].ids for number in held_out}
    kept = [number for number, text in enumerate(texts) if any(text.counted) and text.ids not in left_out]
    return kept, held_out


def num_counted(texts: Sequence[Text]) -> int:
    """Tokens that count."""
    return sum(sum(text.counted) for text in texts)


def _record(
    model: nn.Module, texts: Sequence[Text], places: Sequence[Place], texts_per_pass: int
) -> Iterator[dict[Place, Tensor]]:
    """Activations at some sites on the tokens that count, `(N, D)` each; one forward pass serves all sites."""
    device = next(model.parameters()).device
    groups = sorted({text.group for text in texts})
    window = _PASSES_SORTED * texts_per_pass
    for start in range(0, len(texts), window):
        for batch in batches(texts[start : start + window], groups, texts_per_pass):
            batch = batch.to(device)
            values = read_sites(model, places, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            yield {place: values[place][batch.counted] for place in places}


def texts_of_passes(texts: Sequence[Text], texts_per_pass: int, seed: int, first: int = 0) -> Iterator[list[Text]]:
    """
    The texts of each forward pass, without end: all texts are read repeatedly, each time in a new order.

    Args:
        texts (`Sequence[Text]`):
            The texts.
        texts_per_pass (`int`):
            Texts in one forward pass.
        seed (`int`):
            Seed of the random orders.
        first (`int`, *optional*, defaults to `0`):
            Number of the forward pass to begin with.

    Yields:
        `list[Text]`: texts of about one length, the longest first.
    """
    draw = random.Random(seed)
    first_round, num_skipped = divmod(first, math.ceil(len(texts) / texts_per_pass))
    for number in count():
        shuffled = draw.sample(texts, len(texts))
        if number >= first_round:
            yield from islice(_in_passes(shuffled, texts_per_pass), num_skipped if number == first_round else 0, None)


def _in_passes(texts: Sequence[Text], texts_per_pass: int) -> Iterator[list[Text]]:
    window = _PASSES_SORTED * texts_per_pass
    for start in range(0, len(texts), window):
        ordered = sorted(texts[start : start + window], key=lambda text: -len(text.ids))
        for begin in range(0, len(ordered), texts_per_pass):
            yield ordered[begin : begin + texts_per_pass]


def recorded_passes(
    model: nn.Module, passes: Iterator[list[Text]], owners: Mapping[Place, int], processes: Processes
) -> Iterator[tuple[int, dict[Place, Tensor]]]:
    """
    Activations of one forward pass after the other. Several processes do them in turn, at the same time.

    The result does not depend on the number of processes.

    Args:
        model (`torch.nn.Module`):
            A causal language model; every process has it as a whole.
        passes (`Iterator[list[Text]]`):
            Texts of each forward pass, the same in every process.
        owners (`Mapping[Place, int]`):
            Blocks and sites to record, and the process that needs the activations of each.
        processes ([`Processes`]):
            This process and the others.

    Yields:
        `tuple[int, dict[Place, torch.Tensor]]`: number of tokens N, and `(N, D)` for each place of this process.
    """
    while True:
        together = list(islice(passes, processes.count))
        members = together[processes.index]
        [mine] = _record(model, members, list(owners), len(members))
        for producer, texts in enumerate(together):
            num_tokens = num_counted(texts)
            yield num_tokens, processes.deliver(mine, num_tokens, producer, owners)


def mean_and_scale(batches: Sequence[Mapping[Place, Tensor]], place: Place) -> tuple[Tensor, float]:
    """
    Mean of a site's activations `(D,)`, and the factor that scales their root-mean-square distance from it to `√D`.

    With this factor, the variance of a dimension is 1 on average.

    Raises:
        ValueError: If a value is not finite, or all tokens are the same.
    """
    x_ND = torch.cat([batch[place] for batch in batches])
    mean_D = x_ND.mean(dim=0)
    spread = (x_ND - mean_D).square().mean().sqrt().item()
    if not 0 < spread < float("inf"):
        raise ValueError(
            f"No SAE can be trained on {describe_place(place)}: the standard deviation of what passes there is "
            f"{spread}. Does the model compute finite numbers in its dtype?"
        )
    return mean_D, 1 / spread
