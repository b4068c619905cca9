"""
What else tells texts apart: words, a probe, a difference of means, the more frequent label.

Each is a function that learns on some rows, chooses its one setting on others, learns again on both, and returns what
predicts. Shape suffixes: N texts, D width of a site.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from . import scikit_learn  # noqa: F401
from .feature_rule import f1_score
from .rule_choice import fit_logistic
from .text_activations import TextActivations

_WORDS = r"(?u)[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\W\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]+"
"""A word; where a script has no spaces between words, a character."""

_C_OF_WORDS = (1.0, 10.0, 100.0)
_C_OF_PROBE = (0.001, 0.01, 0.1)


@dataclass(frozen=True, eq=False)
class LabelledTexts:
    """
    Texts with a label each, read already.

    Args:
        activations ([`TextActivations`] of N texts):
            Pooled by `"max"`; with `residuals` for the probe and the difference of means.
        labels (`Sequence` of length N):
            The labels.
        texts (`Sequence[str]` of length N, *optional*):
            The texts, for what words alone tell.

    Raises:
        ValueError: If their numbers differ.
    """

    activations: TextActivations
    labels: Sequence[Any]
    texts: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name in ("labels", "texts"):
            held = getattr(self, name)
            if held is not None and len(held) != len(self.activations):
                raise ValueError(f"There are {len(self.activations)} texts and {len(held)} `{name}`. Give one each.")

    def __len__(self) -> int:
        return len(self.activations)

    def __getitem__(self, rows: Any) -> "LabelledTexts":
        numbers = np.arange(len(self))[rows]
        return LabelledTexts(
            self.activations[numbers],
            [self.labels[i] for i in numbers],
            None if self.texts is None else [self.texts[i] for i in numbers],
        )


Predict = Callable[[LabelledTexts], np.ndarray]
"""From texts to whether each is positive, `(N,)`."""


def majority(train: LabelledTexts, positive: np.ndarray, find: np.ndarray, dev: np.ndarray) -> Predict:
    """The more frequent label, for every text; the positive one if both are as frequent."""
    answer = bool(2 * positive.sum() >= len(positive))
    return lambda texts: np.full(len(texts), answer)


def words(train: LabelledTexts, positive: np.ndarray, find: np.ndarray, dev: np.ndarray) -> Predict:
    """Logistic regression on TF-IDF of words and pairs of words; its strength is chosen."""
    texts = list(train.texts or ())

    def learn(rows: np.ndarray, C: float) -> Predict:
        vectors = TfidfVectorizer(token_pattern=_WORDS, ngram_range=(1, 2), sublinear_tf=True)
        x = vectors.fit_transform([texts[i] for i in rows])
        regression = fit_logistic(x, positive[rows], C)
        return lambda other: regression.decision_function(vectors.transform(list(other.texts or ()))) > 0

    C = _best(_C_OF_WORDS, lambda C: learn(find, C)(train[dev]), positive[dev])
    return learn(np.arange(len(train)), C)


def probe(train: LabelledTexts, positive: np.ndarray, find: np.ndarray, dev: np.ndarray) -> Predict:
    """Logistic regression on the standardised mean residual of one block; block and strength are chosen."""

    def learn(rows: np.ndarray, setting: tuple[Any, float]) -> Predict:
        place, C = setting
        scaler = StandardScaler()
        x = scaler.fit_transform(train.activations.residuals[place][rows])
        model = make_pipeline(scaler, fit_logistic(x, positive[rows], C))
        return lambda other: model.decision_function(other.activations.residuals[place]) > 0

    settings = [(place, C) for place in sorted(train.activations.residuals) for C in _C_OF_PROBE]
    setting = _best(settings, lambda setting: learn(find, setting)(train[dev]), positive[dev])
    return learn(np.arange(len(train)), setting)


def difference_of_means(train: LabelledTexts, positive: np.ndarray, find: np.ndarray, dev: np.ndarray) -> Predict:
    """
    Which mean a text's mean residual is nearer to, along the line through both means; the block is chosen.

    DiffMean of AxBench (https://huggingface.co/papers/2501.17148), cut half-way between the means.
    """

    def learn(rows: np.ndarray, place: Any) -> Predict:
        x_ND, is_positive = train.activations.residuals[place][rows].astype(np.float64), positive[rows]
        mean_pos, mean_neg = x_ND[is_positive].mean(axis=0), x_ND[~is_positive].mean(axis=0)
        direction, middle = mean_pos - mean_neg, (mean_pos + mean_neg) / 2
        return lambda other: (other.activations.residuals[place] - middle) @ direction > 0

    places = sorted(train.activations.residuals)
    place = _best(places, lambda place: learn(find, place)(train[dev]), positive[dev])
    return learn(np.arange(len(train)), place)


BASELINES: dict[str, Callable[..., Predict]] = {
    "TF-IDF + logistic regression": words,
    "logistic probe on the residual": probe,
    "difference of means": difference_of_means,
    "majority": majority,
}
"""What a classifier on features is compared with, by the name in reports."""


def baselines_for(texts: LabelledTexts) -> list[str]:
    """Names of the baselines that these texts allow."""
    missing = set() if texts.texts is not None else {"TF-IDF + logistic regression"}
    if not texts.activations.residuals:
        missing |= {"logistic probe on the residual", "difference of means"}
    return [name for name in BASELINES if name not in missing]


def _best(settings: Sequence[Any], predict: Callable[[Any], np.ndarray], positive: np.ndarray) -> Any:
    """The first of the settings with the largest F1."""
    if len(settings) == 1:
        return settings[0]
    scores = [f1_score(positive, predict(setting)) for setting in settings]
    return settings[int(np.argmax(scores))]
