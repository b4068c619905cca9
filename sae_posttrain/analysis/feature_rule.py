"""
[`FeatureRule`]: what a classifier on features decides, as a function of the activations of a few features.

Shape suffixes: N texts, F features of an SAE, K features of the rule.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..hooks.sites import Place, describe_place
from .text_activations import TextActivations

if TYPE_CHECKING:
    from scipy.sparse import csr_array

KINDS = ("any", "logistic")


@dataclass(frozen=True, eq=False)
class FeatureRule:
    """
    A decision about a text from the pooled activations of a few features.

    `"any"`: positive if one of the features is above `epsilon`, the rule of Qwen-Scope, section 5
    (https://huggingface.co/papers/2605.11887). `"logistic"`: positive if the weighted sum of activations plus the bias
    is above 0.

    Args:
        kind (`str`):
            `"any"` or `"logistic"`.
        places (`tuple[Place, ...]` of length K), feature_ids (`tuple[int, ...]` of length K):
            Block and site of each feature, and its index in that SAE.
        differences (`numpy.ndarray` of shape `(K,)`):
            Firing difference of each feature where the rule was made, see [`firing_differences`].
        weights (`numpy.ndarray` of shape `(K,)`), bias (`float`):
            Coefficients of the logistic rule, in units of raw activations.
        epsilon (`float`):
            Activation above which a feature fires.
    """

    kind: str
    places: tuple[Place, ...]
    feature_ids: tuple[int, ...]
    differences: np.ndarray
    weights: np.ndarray
    bias: float = 0.0
    epsilon: float = 0.0

    def __len__(self) -> int:
        return len(self.feature_ids)

    def activations(self, read: TextActivations) -> np.ndarray:
        """
        The rule's features in activations of texts, `(N, K)`, float32.

        Raises:
            ValueError: If a block, or a feature of it, was not read.
        """
        columns = np.zeros((len(read), len(self)), dtype=np.float32)
        for k, (place, feature) in enumerate(zip(self.places, self.feature_ids)):
            if place not in read.values:
                held = ", ".join(map(describe_place, read.places))
                raise ValueError(
                    f"The classifier reads {describe_place(place)}; these activations are of {held}. Read the texts "
                    "with the classifier's SAEs."
                )
            found = np.flatnonzero(read.feature_ids[place] == feature)
            if not len(found):
                raise ValueError(
                    f"These activations are without feature {feature} of {describe_place(place)}. Read the texts with "
                    "the whole SAE."
                )
            columns[:, k] = read.values[place][:, [int(found[0])]].toarray()[:, 0]
        return columns

    def scores(self, activations_NK: np.ndarray) -> np.ndarray:
        """
        How far each text is on the positive side, `(N,)`: above 0 it is positive.

        For `"any"` the largest activation minus `epsilon`; for `"logistic"` the logit.
        """
        if self.kind == "any":
            return activations_NK.max(axis=1) - self.epsilon
        return activations_NK @ self.weights + self.bias


def firing_differences(rows: "csr_array", positive: np.ndarray, epsilon: float = 0.0) -> np.ndarray:
    """
    `P(fires | positive) − P(fires | negative)` of every feature (Qwen-Scope, section 5).

    Args:
        rows (`scipy.sparse.csr_array` of shape `(N, F)`):
            Activations, pooled by their maximum, so that a text fires a feature if one of its tokens does.
        positive (`numpy.ndarray` of shape `(N,)`, bool):
            Which texts are positive; both kinds occur.
        epsilon (`float`, *optional*, defaults to `0.0`):
            Activation above which a feature fires.

    Returns:
        `numpy.ndarray` of shape `(F,)`, from −1 to 1.
    """
    fired = (rows > epsilon).astype(np.float64)
    weight_N = np.where(positive, 1.0 / positive.sum(), -1.0 / (~positive).sum())
    return np.asarray(weight_N @ fired).ravel()


def largest(values: np.ndarray, number: int) -> np.ndarray:
    """Positions of the largest values, the largest first; equal ones in their order."""
    return np.argsort(-values, kind="stable")[:number]


def f1_score(positive: np.ndarray, predicted: np.ndarray) -> float:
    """`2 TP / (2 TP + FP + FN)`; 0 if nothing is positive and nothing is predicted to be."""
    both = int((positive & predicted).sum())
    total = int(positive.sum()) + int(predicted.sum())
    return 2 * both / total if total else 0.0


def split_rows(keys: Sequence[str], positive: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Numbers of the rows to find features on, and of those to choose by. Copies of a text are on one side.

    Args:
        keys (`Sequence[str]` of length N):
            The same for copies of one text.
        positive (`numpy.ndarray` of shape `(N,)`, bool):
            Each side gets this share of both kinds, as far as copies allow.
        share (`float`):
            Share of the rows to choose by.
        seed (`int`):
            Seed of the random draw.
    """
    sizes: dict[str, Counter[bool]] = {}
    for key, kind in zip(keys, positive.tolist()):
        sizes.setdefault(key, Counter())[kind] += 1
    held: dict[str, bool] = {}
    num_held = Counter[bool]()
    wanted = {kind: share * int((positive == kind).sum()) for kind in (True, False)}
    for i in np.random.default_rng(seed).permutation(len(keys)):
        if keys[i] not in held:
            copies = sizes[keys[i]]
            held[keys[i]] = all(num_held[kind] + size <= wanted[kind] + 0.5 for kind, size in copies.items())
            num_held += copies if held[keys[i]] else Counter()
    is_held = np.array([held[key] for key in keys])
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)
