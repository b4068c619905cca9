"""Which features fire on a text that somebody typed: read with the model, and added to the pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...features.read.loading import place_of
from ...features.read.text_options import TextOptions
from ...features.read.texts import batches, tokenize
from ...features.read.tokens import read_tokens
from ...saes.frozen import FrozenSAE
from ...tables import align
from ..token_readings import token_pieces
from .folder import read_data, write_data
from .pages import joined_pieces, levels_of
from .reading import active_entries, tokens_per_tile

_MOST_FEATURES = 100
_MOST_PRINTED = 15
QUERIES = "queries"


@dataclass(frozen=True)
class FiredFeature:
    """A feature that fires on a text: its row and its number in the SAE, its activations, their share of the most."""

    row: int
    number: int
    positions: np.ndarray
    values: np.ndarray
    share: float

    @property
    def peak(self) -> int:
        """Position of the strongest activation."""
        return int(self.positions[self.values.argmax()])


@dataclass(frozen=True)
class Query:
    """A text, its tokens, and the features that fire on it, the nearest to their strongest activation first."""

    text: str
    ids: tuple[int, ...]
    features: tuple[FiredFeature, ...]

    def table(self, tokenizer: Any) -> str:
        """The first features, for a terminal."""
        pieces = token_pieces(self.ids, tokenizer)
        rows: list[tuple[str, ...]] = [("feature", "activation", "of its strongest", "on")]
        for each in self.features[:_MOST_PRINTED]:
            share = f"{100 * each.share:.0f} %" if np.isfinite(each.share) else "new"
            rows.append((str(each.number), f"{each.values.max():.3g}", share, repr(pieces[each.peak])))
        head = f"{self.text!r}: {len(self.features)} features fire" + (", the first ones:" if self.features else ".")
        return "\n".join([head, *(align(rows, num_left=1) if self.features else ())])


def read_queries(
    model: nn.Module, sae: FrozenSAE, tokenizer: Any, texts: Sequence[str], strongest_F: np.ndarray
) -> list[Query]:
    """
    Read texts with the model.

    Args:
        model (`torch.nn.Module`), sae ([`FrozenSAE`]), tokenizer (`PreTrainedTokenizerBase`):
            What reads them.
        texts (`Sequence[str]`):
            Texts, each of two tokens or more: the first position is never read.
        strongest_F (`numpy.ndarray` of shape `(F,)`):
            Strongest activation of each feature in the texts of the pages. Features are ranked by their share of it.

    Raises:
        ValueError: If no token of a text can be read.
    """
    device = next(model.parameters()).device
    sae = sae.to(device)
    found = []
    for written in texts:
        text = tokenize([{"text": written, "lang": ""}], tokenizer, TextOptions())[0]
        if not any(text.counted):
            raise ValueError(
                f"The text {written!r} has no token that can be read: the first position and special tokens are not. "
                "Give a longer one, or put a word before it."
            )
        counted = np.flatnonzero(text.counted)
        with torch.inference_mode():
            tokens = next(read_tokens(model, batches([text], [""], 1), [place_of(sae)]))
            residual_ND = tokens.values[place_of(sae)]
            parts, size = [], tokens_per_tile(sae, device)
            for begin in range(0, len(residual_ND), size):
                token_E, *rest = active_entries(sae, sae.pre_activations(residual_ND[begin : begin + size]))
                parts.append([each.cpu().numpy() for each in (token_E + begin, *rest)])
        tokens_E, features_E, values_E = (np.concatenate(each) for each in zip(*parts))
        found.append(Query(written, text.ids, _ranked(sae, counted[tokens_E], features_E, values_E, strongest_F)))
    return found


def _ranked(
    sae: FrozenSAE, positions: np.ndarray, features: np.ndarray, values: np.ndarray, strongest_F: np.ndarray
) -> tuple[FiredFeature, ...]:
    fired = []
    for row in np.unique(features).tolist():
        own = features == row
        top = float(strongest_F[row])
        share = float(values[own].max()) / top if top > 0 else float("inf")
        number = row if sae.features is None else sae.features[row]
        fired.append(FiredFeature(row, number, positions[own], values[own], share))
    return tuple(sorted(fired, key=lambda each: -each.share))


def add_queries(folder: Path, queries: Sequence[Query], tokenizer: Any, strongest_F: np.ndarray) -> None:
    """Add queries to the pages of a folder; one that is there already is read anew."""
    texts = {query.text for query in queries}
    kept = [record for record in read_data(folder, QUERIES, []) if record["query"] not in texts]
    write_data(folder, QUERIES, kept + [_record(query, tokenizer, strongest_F) for query in queries])


def _record(query: Query, tokenizer: Any, strongest_F: np.ndarray) -> dict[str, Any]:
    joined, lengths = joined_pieces(query.ids, tokenizer)
    fired = []
    for each in query.features[:_MOST_FEATURES]:
        top = max(float(strongest_F[each.row]), float(each.values.max()) if not np.isfinite(each.share) else 0.0)
        levels = levels_of(each.values, top)
        share = round(each.share, 3) if np.isfinite(each.share) else None
        flat = [number for pair in zip(each.positions.tolist(), levels) for number in pair]
        fired.append([each.row, share, float(f"{each.values.max():.3g}"), flat])
    return {"query": query.text, "text": joined, "lengths": lengths, "features": fired}
