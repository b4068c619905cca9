"""[`find_untouched`]: what the features that no set fires stand for, shown on texts in which they do fire."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from ..eval_mode import eval_mode
from ..features.read.loading import load_model_and_tokenizer, place_of
from ..features.read.text_options import ALL_TEXTS, TextOptions
from ..features.read.texts import check_texts, tokenize
from ..features.set.feature_set import FeatureSet
from ..saes.frozen import FrozenSAE
from .covered import Coverage
from .feature_page import FeatureView, Group, view_features
from .reading import read_activations
from .token_readings import read_along_texts

_NUM_STRONGEST = 8  # texts of each feature that are read again, token by token


@dataclass(frozen=True)
class Untouched:
    """
    Features that fire in reference texts and in no set.

    Attributes:
        num_texts, num_fire (`int`):
            Reference texts, and how many of the features that no set fires do fire in them.
        features (`tuple[int, ...]`), num_firing_texts (`tuple[int, ...]`):
            Those that fire in most reference texts, by their number in the SAE, and in how many; most first.
        views (`tuple[FeatureView, ...]`):
            What the page shows of each.
    """

    num_texts: int
    num_fire: int
    features: tuple[int, ...]
    num_firing_texts: tuple[int, ...]
    views: tuple[FeatureView, ...]


def find_untouched(
    measured: Coverage,
    model: nn.Module | str,
    sae: FrozenSAE,
    texts: str | os.PathLike | Iterable[Mapping[str, Any]],
    *,
    num_features: int = 8,
    tokenizer: Any = None,
    text_options: TextOptions = ALL_TEXTS,
) -> Untouched:
    """
    Find the features that no set fires and that fire in most of some reference texts, with their snippets.

    What data leave out cannot be seen in the data. The reference texts are what a model should handle too: a broader
    corpus, or questions of real users. Two passes are made over them.

    ```python
    measured = coverage(read_activations(model, sae, "train.jsonl"))
    print(find_untouched(measured, model, sae, "questions.jsonl").features)
    ```

    Args:
        measured ([`Coverage`]):
            What the sets cover of this SAE.
        model (`torch.nn.Module` or `str`):
            A causal language model, or its path or Hub id.
        sae ([`FrozenSAE`]):
            The SAE whose features were read.
        texts (`str`, `os.PathLike` or iterable of rows):
            Reference texts, as [`read_activations`] takes them; all tokens of each count.
        num_features (`int`, *optional*, defaults to `8`):
            Features to show.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The model's, loaded from its folder if left out.
        text_options ([`TextOptions`], *optional*):
            How the texts are read.

    Returns:
        [`Untouched`]: without features if none of them fires in the reference texts.

    Raises:
        ValueError: If there are no texts, or the sets were read with another SAE.
    """
    if measured.num_features != sae.num_features:
        raise ValueError(
            f"The sets were read with {measured.num_features} features, this SAE has {sae.num_features}. Give the SAE "
            "whose coverage was measured."
        )
    rows = check_texts(texts, text_options.split, group_column=None, text_column=text_options.text_column)
    network, tokenizer = load_model_and_tokenizer(model, tokenizer)
    options = replace(text_options, group_column="", max_texts=None)
    rows = [{**row, "": ""} for row in rows[: text_options.max_texts]]
    read = read_activations(network, sae, rows, positions="all", tokenizer=tokenizer, text_options=options)
    place = place_of(sae)
    column_of = {int(feature): column for column, feature in enumerate(read.feature_ids[place])}
    num_texts_F = np.asarray(read.fires(place).sum(axis=0)).ravel()
    firing = [feature for feature in measured.untouched if num_texts_F[column_of[feature]]]
    firing.sort(key=lambda feature: -num_texts_F[column_of[feature]])
    shown = tuple(firing[:num_features])
    counts = tuple(int(num_texts_F[column_of[feature]]) for feature in shown)
    if not shown:
        return Untouched(len(rows), 0, (), (), ())
    features = FeatureSet.from_sae(sae, shown)
    acts_NF = read.at(place)[:, [column_of[each] for each in shown]].toarray()
    strongest_FM = np.argsort(-acts_NF, axis=0)[:_NUM_STRONGEST].T
    members = sorted({int(i) for column, best in enumerate(strongest_FM) for i in best if acts_NF[i, column] > 0})
    read_texts = tokenize([rows[i] for i in members], tokenizer, options, positions="all")
    with eval_mode(network):
        values = read_along_texts(network, features, read_texts, [sae], batch_size=options.batch_size).activations
    views = view_features(network, tokenizer, features, read_texts, values, [Group("", range(len(read_texts)))])
    return Untouched(len(rows), len(firing), shown, counts, tuple(views))
