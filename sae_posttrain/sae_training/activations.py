"""
Activations at sites of a model on many texts: recorded in one pass for all sites, shuffled, and returned in batches.

Shape suffixes: N tokens, D width of the site.
"""

import random
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..features.read.texts import Text, batches
from ..hooks.sites import Place, describe_place
from ..hooks.truncated import read_sites

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


def activation_batches(
    model: nn.Module,
    texts: Sequence[Text],
    places: Sequence[Place],
    *,
    batch_size: int,
    buffer_tokens: int,
    texts_per_pass: int,
    seed: int,
) -> Iterator[dict[Place, Tensor]]:
    """
    Endless batches of activations of tokens, drawn from a buffer with the tokens of many texts.

    The texts are read repeatedly, each time in a new order. Whenever half of the buffer has been used, the model fills
    that half again. If all texts fit into the buffer, they are read once. Their tokens stay in the buffer and are
    drawn in a new order each time.

    Memory: `buffer_tokens` times the widths of all sites, in the model's dtype, on its device.

    Args:
        model (`torch.nn.Module`):
            A causal language model.
        texts (`Sequence[Text]`):
            The texts.
        places (`Sequence[Place]`):
            Blocks and sites to record.
        batch_size (`int`):
            Tokens in a batch.
        buffer_tokens (`int`):
            Tokens in the buffer.
        texts_per_pass (`int`):
            Texts in one forward pass.
        seed (`int`):
            Seed of the random orders.

    Yields:
        `dict[Place, torch.Tensor]`: `(batch_size, D)` for each place, float32, on the model's device; a row is the
        same token at all places.

    Raises:
        ValueError: If the texts hold fewer tokens than a batch, or the buffer fewer than two batches.
    """
    num_tokens = num_counted(texts)
    if num_tokens < batch_size:
        raise ValueError(
            f"The texts to train on hold {num_tokens} tokens that count, fewer than a batch of {batch_size}. Give "
            "more texts or a smaller `batch_size`."
        )
    if buffer_tokens < 2 * batch_size:
        raise ValueError(f"`buffer_tokens` must hold two batches of {batch_size} or more, got {buffer_tokens}.")
    capacity = min(buffer_tokens, num_tokens)
    all_fit = capacity == num_tokens
    handed_out = capacity if all_fit else capacity // 2
    handed_out -= handed_out % batch_size
    return _mixed(
        _over_and_over(model, texts, places, texts_per_pass, seed),
        capacity,
        handed_out,
        batch_size,
        refill=not all_fit,
        generator=torch.Generator().manual_seed(seed),
    )


def _over_and_over(
    model: nn.Module, texts: Sequence[Text], places: Sequence[Place], texts_per_pass: int, seed: int
) -> Iterator[dict[Place, Tensor]]:
    draw = random.Random(seed)
    while True:
        shuffled = draw.sample(texts, len(texts))
        yield from _record(model, shuffled, places, texts_per_pass)


def _mixed(
    passes: Iterator[dict[Place, Tensor]],
    capacity: int,
    handed_out: int,
    batch_size: int,
    *,
    refill: bool,
    generator: torch.Generator,
) -> Iterator[dict[Place, Tensor]]:
    """Batches from a buffer of `capacity` tokens. With `refill`, it is filled again after `handed_out` tokens."""
    unread = next(passes)
    buffer = {place: values.new_empty(capacity, values.shape[1]) for place, values in unread.items()}
    device = next(iter(buffer.values())).device
    free_N = torch.arange(capacity, device=device)
    filling = tqdm(total=capacity, unit="tok", unit_scale=True, desc="Filling the buffer")
    while True:
        while len(free_N):
            num_new = min(len(free_N), len(next(iter(unread.values()))))
            for place, values in unread.items():
                buffer[place][free_N[:num_new]] = values[:num_new]
            free_N = free_N[num_new:]
            filling.update(num_new)
            unread = {place: values[num_new:] for place, values in unread.items()}
            if len(free_N):
                unread = next(passes)
        filling.close()  # shown only the first time; later refills are part of the training
        order_N = torch.randperm(capacity, generator=generator).to(device)
        for chosen in order_N[:handed_out].split(batch_size):
            yield {place: values[chosen].float() for place, values in buffer.items()}
        if refill:
            free_N = order_N[:handed_out]


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
