"""Rows that say almost the same: told by how many short runs of characters they share."""

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

_CHARACTERS = 5
_PERMUTATIONS = 128
_LARGEST_INDEXED = 0.9  # datasketch makes no index for thresholds near 1


class NearDuplicates:
    """
    Texts that were kept, and whether another one says almost the same as one of them.

    Texts are compared by their runs of five characters, in lower case and with single spaces. The share of runs in
    common (Jaccard) is estimated by MinHash with 128 permutations, and candidates come from locality-sensitive hashing
    ([`datasketch`](https://ekzhu.com/datasketch/lsh.html)), so that a comparison takes about the same time however
    many texts there are.

    Args:
        threshold (`float`):
            Estimated share of runs in common from which two texts are near-duplicates, above 0 and up to 1.

    Raises:
        ImportError: If datasketch is not installed.
        ValueError: If the threshold is out of range.
    """

    def __init__(self, threshold: float):
        if not 0 < threshold <= 1:
            raise ValueError(f"`duplicate_threshold` must be above 0 and up to 1, got {threshold}.")
        self._datasketch = _datasketch()
        self._threshold = threshold
        in_reach = min(threshold, _LARGEST_INDEXED)  # the candidates; `find` compares them with the threshold itself
        self._index = self._datasketch.MinHashLSH(threshold=in_reach, num_perm=_PERMUTATIONS)
        self._sketches: dict[str, Any] = {}

    def find(self, text: str) -> str | None:
        """Name of a kept text that this one repeats; `None` if there is none."""
        sketch = self._sketch(text)
        found = [name for name in self._index.query(sketch) if self._similarity(sketch, name) >= self._threshold]
        return min(found, key=lambda name: (-self._similarity(sketch, name), name), default=None)

    def add(self, name: str, text: str) -> None:
        """Keep a text under a name of its own."""
        self._sketches[name] = self._sketch(text)
        self._index.insert(name, self._sketches[name])

    def _similarity(self, sketch: Any, name: str) -> float:
        return float(sketch.jaccard(self._sketches[name]))

    def _sketch(self, text: str) -> Any:
        sketch = self._datasketch.MinHash(num_perm=_PERMUTATIONS)
        sketch.update_batch([run.encode("utf-8", "surrogatepass") for run in sorted(runs(text))])
        return sketch


def runs(text: str) -> set[str]:
    """Runs of five characters of a text, up to case, spaces and the form of its characters (Unicode NFKC)."""
    normal = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return {normal[i : i + _CHARACTERS] for i in range(max(1, len(normal) - _CHARACTERS + 1))}


def copied_share(text: str, shown: Sequence[str]) -> float:
    """Share of a text's runs of characters that one of the texts that were shown holds: 1 for a part of one."""
    own = runs(text)
    return float(np.max([len(own & runs(other)) / len(own) for other in shown], initial=0.0))


def _datasketch() -> Any:
    try:
        import datasketch
    except ImportError as error:
        raise ImportError(
            "Near-duplicates are found with datasketch: pip install 'sae_posttrain[synthesis]'."
        ) from error
    return datasketch
