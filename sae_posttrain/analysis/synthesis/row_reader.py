"""Read rows with several SAEs, and keep what was read."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...features.read.loading import place_of
from ...features.read.text_options import TextOptions
from ...saes.frozen import FrozenSAE
from ..reading import read_activations
from ..text_activations import TextActivations


class RowReader:
    """Reads rows with all SAEs: those of different places in one pass, and keeps seeds and reference in files."""

    def __init__(
        self, network: Any, tokenizer: Any, saes: Sequence[FrozenSAE], positions: str, options: TextOptions, kept: Path
    ):
        self._network, self._tokenizer, self._positions = network, tokenizer, positions
        self._options, self._kept, self._saes = options, kept, saes
        self._passes: list[list[int]] = []
        for number, sae in enumerate(saes):
            for members in self._passes:
                if place_of(sae) not in [place_of(saes[i]) for i in members]:
                    members.append(number)
                    break
            else:
                self._passes.append([number])

    def read(self, rows: Sequence[Mapping[str, Any]], name: str | None) -> list[TextActivations]:
        """The activations of each SAE, in their order."""
        found: dict[int, TextActivations] = {}
        for number, members in enumerate(self._passes):
            cache = None
            if name is not None:
                self._kept.mkdir(parents=True, exist_ok=True)
                cache = self._kept / f"{name}.{number}.safetensors"
            read = read_activations(
                self._network,
                [self._saes[i] for i in members],
                [{key: value for key, value in row.items() if key != self._options.group_column} for row in rows],
                positions=self._positions,
                cache=cache,
                tokenizer=self._tokenizer,
                text_options=self._options,
            )
            for i in members:
                place = place_of(self._saes[i])
                found[i] = replace(
                    read,
                    values={place: read.values[place]},
                    feature_ids={place: read.feature_ids[place]},
                    residuals={},
                )
        return [found[i] for i in range(len(self._saes))]
