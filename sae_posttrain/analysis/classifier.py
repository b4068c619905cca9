"""[`FeatureClassifier`]: tell texts apart by the few SAE features that fire on one kind of them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from ..features.read.loading import load_saes
from ..features.read.text_options import ALL_TEXTS, TextOptions
from ..features.set.feature_set import FeatureSet
from ..features.set.model_identity import COMPARED
from . import scikit_learn  # noqa: F401
from .classifier_file import read_classifier, require_same_rows, saes_of_set, to_feature_set
from .reading import Texts, read_activations
from .rule_choice import choose_rule
from .text_activations import TextActivations

RULES = ("any", "logistic", "top1_diff")
NUM_FEATURES = {"any": (1, 2, 5, 10), "logistic": (10, 30, 100), "top1_diff": (1,)}
"""Numbers of features that are tried, for each rule; those of `any` are the published ones."""


def _is_logistic(classifier: "FeatureClassifier") -> bool:
    if classifier.rule == "logistic":
        return True
    raise AttributeError(f"The rule {classifier.rule!r} has no probabilities; `rule='logistic'` has.")


class FeatureClassifier(ClassifierMixin, BaseEstimator):
    """
    Tells two kinds of texts apart by SAE features that fire on one of them. scikit-learn's interface.

    The published rule (Qwen-Scope, section 5, https://huggingface.co/papers/2605.11887) needs no training: rank the
    features of a block by how much more often they fire on positive texts, take the top K, and call a text positive
    if one of them fires on one of its tokens. Block and K are chosen on a part of the rows that is held out for it.
    The features are then ranked again on all rows.

    ```python
    classifier = FeatureClassifier(model, saes, blocks=[9, 14], pos_label="negative").fit(texts, labels)
    classifier.predict(["The room was dirty."])
    classifier.save("negative.safetensors")
    ```

    Args:
        model, saes, blocks, site, tokenizer, text_options (*optional*):
            As in [`read_activations`], for texts that are not read yet. A classifier that gets [`TextActivations`]
            only does not need them.
        rule (`str`, *optional*, defaults to `"any"`):
            `"any"`: the published rule. `"logistic"`: logistic regression on the activations of the features whose
            firing differs most. `"top1_diff"`: the published rule in the block whose best feature has the largest
            firing difference, without choosing on held-out rows.
        num_features (`int` or `Sequence[int]`, *optional*):
            Values of K to choose from: 1, 2, 5 and 10 for `"any"`, 10, 30 and 100 for `"logistic"`. `"top1_diff"`
            takes the first, 1.
        num_blocks (`int` or `Sequence[int]`, *optional*):
            Numbers of blocks to choose from: with m above 1 the rule takes the best feature of each of the m blocks
            whose best feature differs most. All numbers by default. `1`: one block only.
        epsilon (`float`, *optional*, defaults to `0.0`):
            Activation above which a feature fires.
        dev_share (`float`, *optional*, defaults to `0.25`):
            Share of the rows to choose block and K by. If it holds fewer than five rows of a label, they are chosen
            by all rows.
        pos_label (*optional*):
            The label that the features stand for; by default the larger of the two (1 of 0 and 1).
        positions (`str`, *optional*, defaults to `"response"`):
            Tokens that are read, as in [`read_activations`].
        seed (`int`, *optional*, defaults to `0`):
            Seed of the division into rows to rank and rows to choose by.

    Attributes:
        classes_ (`numpy.ndarray` of shape `(2,)`):
            The labels, sorted.
        rule_ ([`FeatureRule`]):
            The features and what is made of them.
        choices_ (`tuple[Choice, ...]`):
            What was tried, the one that was taken first.
        origin_ (`dict[str, Any]`):
            Model, SAEs and settings of the activations.
    """

    def __init__(
        self,
        model: Any = None,
        saes: Any = None,
        *,
        blocks: Sequence[int] | None = None,
        site: str | None = None,
        rule: str = "any",
        num_features: int | Sequence[int] | None = None,
        num_blocks: int | Sequence[int] | None = None,
        epsilon: float = 0.0,
        dev_share: float = 0.25,
        pos_label: Any = None,
        positions: str = "response",
        tokenizer: Any = None,
        text_options: TextOptions | None = None,
        seed: int = 0,
    ):
        self.model = model
        self.saes = saes
        self.blocks = blocks
        self.site = site
        self.rule = rule
        self.num_features = num_features
        self.num_blocks = num_blocks
        self.epsilon = epsilon
        self.dev_share = dev_share
        self.pos_label = pos_label
        self.positions = positions
        self.tokenizer = tokenizer
        self.text_options = text_options
        self.seed = seed

    # Learning

    def fit(self, X: Any, y: Any) -> "FeatureClassifier":
        """
        Choose the features.

        Args:
            X ([`TextActivations`], `Sequence[str]`, rows, or a data file):
                The texts, read already (pooled by `"max"`) or to be read.
            y (`Sequence` of length N):
                The label of each text; two different labels.

        Returns:
            [`FeatureClassifier`]: this classifier.

        Raises:
            ValueError: If the labels are not two, or not one a text; if a setting is out of range; if there are fewer
                texts of a label than features; or if no feature tells them apart.
        """
        num_features = self._checked()
        labels, classes = _two_labels(y)
        read = self.read(X)
        if len(labels) != len(read):
            raise ValueError(f"{len(read)} texts have {len(labels)} labels. Give one label a text.")
        if self.pos_label is not None and self.pos_label not in classes.tolist():
            raise ValueError(
                f"`pos_label` is {self.pos_label!r}; the labels are {' and '.join(map(repr, classes.tolist()))}. Give "
                "one of these."
            )
        positive = labels == (classes[1] if self.pos_label is None else self.pos_label)
        fewest = int(min(positive.sum(), (~positive).sum()))
        most = max(num_features)
        if self.rule != "logistic" and most > fewest:
            usable = tuple(k for k in num_features if k <= fewest)
            if not usable or self.num_features is not None:
                raise ValueError(
                    f"{most} features are asked for, and there are {fewest} texts of one label. Give more texts, or a "
                    f"smaller `num_features`."
                )
            num_features = usable
        num_places = range(2, len(read.places) + 1) if self.num_blocks is None else _numbers(self.num_blocks)
        rule, choices = choose_rule(
            read,
            positive,
            rule=self.rule,
            num_features=num_features,
            num_blocks=tuple(num_places),
            epsilon=self.epsilon,
            dev_share=self.dev_share,
            seed=self.seed,
        )
        self.classes_, self.rule_, self.choices_ = classes, rule, choices
        self.pos_label_ = classes[1] if self.pos_label is None else self.pos_label
        self.origin_ = read.origin
        return self

    @property
    def options(self) -> TextOptions:
        """How texts are read."""
        return ALL_TEXTS if self.text_options is None else self.text_options

    def _checked(self) -> tuple[int, ...]:
        """The values of K; a setting out of range raises."""
        if self.rule not in RULES:
            raise ValueError(f"`rule` must be one of {', '.join(map(repr, RULES))}, got {self.rule!r}.")
        if not 0 < self.dev_share < 1:
            raise ValueError(f"`dev_share` must be between 0 and 1, got {self.dev_share}.")
        if self.epsilon < 0:
            raise ValueError(f"`epsilon` must be 0 or more: activations are. Got {self.epsilon}.")
        numbers = NUM_FEATURES[self.rule] if self.num_features is None else _numbers(self.num_features)
        blocks = () if self.num_blocks is None else _numbers(self.num_blocks)
        for name, values in (("num_features", numbers), ("num_blocks", blocks)):
            if any(value < 1 for value in values):
                raise ValueError(f"`{name}` must be 1 or more, got {values}.")
        return numbers

    # Deciding

    def predict(self, X: Any) -> np.ndarray:
        """
        The label of each text, `(N,)`.

        Args:
            X: As [`FeatureClassifier.fit`] takes it.

        Raises:
            ValueError: If the texts were read without the classifier's blocks or features, or with another model.
        """
        positive = self.decision_function(X) > 0
        return np.where(positive, self._label(True), self._label(False))

    def decision_function(self, X: Any) -> np.ndarray:
        """How far each text is on the side of `pos_label`, `(N,)`: above 0 it has that label. See [`FeatureRule`]."""
        check_is_fitted(self, "rule_")
        read = self.read(X)
        self._require_same(read)
        return self.rule_.scores(self.rule_.activations(read))

    @available_if(_is_logistic)
    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of each of `classes_`, `(N, 2)`; only the rule `"logistic"` has one."""
        positive = 1 / (1 + np.exp(-self.decision_function(X)))
        columns = [positive if label == self.pos_label_ else 1 - positive for label in self.classes_]
        return np.stack(columns, axis=1)

    def read(self, X: Any) -> TextActivations:
        """
        The activations that the classifier works on, of texts that are not read yet.

        Raises:
            ValueError: If a model or SAEs are missing, or activations were pooled otherwise.
        """
        if not isinstance(X, TextActivations):
            rows = self._rows(X)
            if self.model is None:
                raise ValueError(
                    "Texts have to be read by the model: give `model` (and `saes`), or give `TextActivations`."
                )
            return read_activations(
                self.model,
                self.loaded_saes(),
                rows,
                positions=self.positions,
                tokenizer=self.tokenizer,
                text_options=self.options,
            )
        if X.pool != "max":
            raise ValueError(f"The rules need activations pooled by 'max', these are pooled by {X.pool!r}.")
        return X

    def loaded_saes(self) -> list[Any]:
        """
        The SAEs as [`FrozenSAE`], loaded once: those of the rule's places after `fit`.

        Raises:
            ValueError: If there are none, or they are not those with which the classifier was made.
        """
        if self.saes is None and getattr(self, "feature_set_", None) is not None:
            return saes_of_set(self.feature_set_)
        if self.saes is None:
            raise ValueError("Give `saes`: the SAEs that read the texts.")
        blocks = self.blocks
        if hasattr(self, "rule_"):
            blocks = sorted({block for block, _ in self.rule_.places})
        elif blocks is None and isinstance(self.saes, str | os.PathLike):
            raise ValueError("Say which `blocks` to look at: a list of decoder blocks, counted from 0.")
        saes = self.saes
        if (
            blocks is not None
            and self.blocks is not None
            and isinstance(saes, Sequence)
            and not isinstance(saes, str)
            and len(saes) == len(self.blocks)
        ):
            saes = [sae for sae, block in zip(saes, self.blocks) if block in blocks]
        loaded = load_saes(saes, blocks, self.site)
        if getattr(self, "feature_set_", None) is not None:
            require_same_rows(self.feature_set_, loaded)
        return loaded

    def _rows(self, X: Any) -> Texts:
        if isinstance(X, str | os.PathLike):
            return X
        return [each if isinstance(each, Mapping) else {self.options.text_column: each} for each in X]

    def _label(self, positive: bool) -> Any:
        return next(label for label in self.classes_ if (label == self.pos_label_) == positive)

    def _require_same(self, read: TextActivations) -> None:
        """Raises a `ValueError` if texts were read with another model or SAE than the rule's."""
        model, other = (each.get("fingerprint") or {} for each in (self.origin_, read.origin))
        differing = [COMPARED[key] for key in COMPARED if key in model and key in other and model[key] != other[key]]
        if differing:
            raise ValueError(
                f"The classifier was made with {self.origin_.get('base_model') or 'another model'}, and these texts "
                f"were read with {read.origin.get('base_model') or 'another'}: {', '.join(differing)} differ. Read "
                "them with the classifier's model, or fit it again."
            )
        ours = {(each["block"], each["site"]): each["sha256"] for each in self.origin_.get("saes", ())}
        theirs = {(each["block"], each["site"]): each["sha256"] for each in read.origin.get("saes", ())}
        for place in dict.fromkeys(self.rule_.places):
            if place in ours and place in theirs and len(read.feature_ids[place]) > len(self.rule_):
                if ours[place] != theirs[place]:
                    raise ValueError(
                        f"The classifier was made with another SAE of block {place[0]} than these activations. Read "
                        "the texts with the SAE that it was made with."
                    )

    # Files

    def feature_set(self) -> FeatureSet:
        """
        The rule's features as a [`FeatureSet`], ready for [`steer`] or a penalty; the rule is in its notes.

        Raises:
            ValueError: If the classifier has no SAEs to take the rows from.
        """
        check_is_fitted(self, "rule_")
        if getattr(self, "feature_set_", None) is not None:
            return self.feature_set_
        return to_feature_set(self, self.loaded_saes())

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """
        Write the classifier as one feature set (safetensors, no pickle), which [`FeatureClassifier.load`] reads.

        Args:
            path, overwrite:
                As in [`FeatureSet.save`].

        Raises:
            FileExistsError: If the file exists and `overwrite` is not set.
        """
        return self.feature_set().save(path, overwrite=overwrite)

    @classmethod
    def load(
        cls, path: str | os.PathLike, *, model: Any = None, saes: Any = None, **settings: Any
    ) -> "FeatureClassifier":
        """
        Read a classifier that `save` wrote.

        Args:
            path (`str` or `os.PathLike`):
                The file, or the Hub repository of its feature set.
            model, saes (*optional*):
                Needed for texts that are not read yet. The SAEs may be left out where features do not compete (ReLU,
                JumpReLU): the file holds their rows then. In TopK SAEs they compete.
            settings (*optional*):
                `blocks` (of `saes`, if they are one a block), `tokenizer`, `text_options` as in the class.

        Raises:
            ValueError: If the file is a feature set that holds no classifier, or is damaged.
        """
        return read_classifier(cls, FeatureSet.from_pretrained(path), path, model, saes, settings)


def _numbers(value: int | Sequence[int]) -> tuple[int, ...]:
    numbers = (value,) if isinstance(value, int) else tuple(value)
    if not numbers:
        raise ValueError("`num_features` and `num_blocks` must name at least one number.")
    return numbers


def _two_labels(y: Any) -> tuple[np.ndarray, np.ndarray]:
    """The labels as an array, and the two that occur, sorted."""
    labels = np.asarray(list(y))
    if labels.ndim != 1 or not len(labels):
        raise ValueError(f"Labels are a list with one label a text, got shape {labels.shape}.")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ValueError("A label is missing (NaN). Leave those texts out.")
    if labels.dtype.kind == "O":
        raise ValueError(f"Labels must be all texts, all numbers or all true and false, got {labels[:5].tolist()}.")
    classes = np.unique(labels)
    if len(classes) != 2:
        shown = ", ".join(map(repr, classes[:5].tolist()))
        raise ValueError(
            f"A classifier tells two labels apart, got {len(classes)}: {shown}. Leave out the texts of other labels, "
            "or join labels."
        )
    return labels, classes
