"""[`show_features`]: a page to look at the features of a set, and names for them."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..eval_mode import eval_mode
from ..features.read.loading import load_model_and_tokenizer, load_saes, require_fit
from ..features.read.text_options import ALL_TEXTS, TextOptions
from ..features.read.texts import Text, check_texts, tokenize
from ..features.set.feature_set import FeatureSet
from ..hooks.sites import place_name
from ..saes.frozen import FrozenSAE
from .feature_page import Group, view_features, write_feature_page
from .token_readings import read_along_texts

_MOST_GROUPS = 4
_NOTE = (
    "Without the SAE, a feature is shown to fire wherever its pre-activation is above 0 (or above its threshold). "
    "In a TopK SAE it fires more rarely, since only the strongest features of a token do. Give the SAE to see that."
)


def show_features(
    model: nn.Module | str,
    features: FeatureSet | str | os.PathLike,
    texts: str | os.PathLike | Iterable[Mapping[str, Any]],
    path: str | os.PathLike,
    *,
    sae: str | os.PathLike | FrozenSAE | Sequence[str | os.PathLike | FrozenSAE] | None = None,
    tokenizer: Any = None,
    text_options: TextOptions = ALL_TEXTS,
    allow_base_model: str | None = None,
    k: int | None = None,
    format: str | None = None,
    revision: str | None = None,
) -> Path:
    """
    Write a page on which a person can look at features: for each the tokens that it promotes and suppresses, the
    snippets where it fires most with tokens shaded by activation, a histogram, and where in a text it starts.

    Args:
        model (`torch.nn.Module` or `str`):
            A causal language model, or its path or Hub id.
        features ([`FeatureSet`], `str` or `os.PathLike`):
            A set, its file or its Hub repository.
        texts (`str`, `os.PathLike` or iterable of rows):
            Texts as in [`find_features`]; the group column may be missing. The groups stand side by side, the four
            with the most texts.
        path (`str` or `os.PathLike`):
            HTML file to write.
        sae (*optional*):
            SAEs that the features are from, as [`find_features`] takes them: then the page shows what fires in them.
            Otherwise it shows pre-activations above 0.
        tokenizer, text_options (*optional*):
            As in [`find_features`].
        allow_base_model (`str`, *optional*):
            Name of another model on which the features may be read.
        k, format, revision (*optional*):
            As in [`load_sae`].

    Returns:
        `Path`: the page.

    Raises:
        ValueError: If there are no texts, or the features or SAEs do not fit the model.
    """
    feature_set = features if isinstance(features, FeatureSet) else FeatureSet.from_pretrained(features)
    rows = check_texts(texts, text_options.split, group_column=None, text_column=text_options.text_column)
    if not rows:
        raise ValueError("There are no texts. Give rows, or a data file that holds some.")
    column = text_options.group_column
    rows = [{**row, column: str(row.get(column) or "")} for row in rows]
    saes: list[FrozenSAE] = []
    if sae is not None:
        blocks = sorted(set(feature_set.blocks))
        sites = set(feature_set.sites)
        site = next(iter(sites)) if len(sites) == 1 else None
        saes = load_saes(sae, blocks, site, k=k, format=format, revision=revision)
    network, tokenizer = load_model_and_tokenizer(model, tokenizer)
    feature_set.check_model(network, allow_base_model=allow_base_model, tokenizer=tokenizer)
    for each in saes:
        require_fit(each, network)
    read = of_each_group(tokenize(rows, tokenizer, text_options), text_options.max_texts)
    groups = _groups(read)
    with eval_mode(network):
        values = read_along_texts(network, feature_set, read, saes, batch_size=text_options.batch_size).activations
    views = view_features(network, tokenizer, feature_set, read, values, groups)
    num_tokens = sum(sum(text.counted) for text in read)
    return write_feature_page(
        path,
        views,
        title="Features",
        lead=f"{len(feature_set)} features on {len(read)} texts with {num_tokens:,} tokens.",
        note="" if saes else _NOTE,
    )


def of_each_group(texts: Sequence[Text], most: int | None) -> list[Text]:
    """At most so many texts of each group, the first ones."""
    seen: dict[str, int] = {}
    kept = []
    for text in texts:
        seen[text.group] = seen.get(text.group, 0) + 1
        if most is None or seen[text.group] <= most:
            kept.append(text)
    return kept


def _groups(texts: Sequence[Text]) -> list[Group]:
    members: dict[str, list[int]] = {}
    for number, text in enumerate(texts):
        members.setdefault(text.group, []).append(number)
    largest = sorted(members, key=lambda group: -len(members[group]))[:_MOST_GROUPS]
    return [Group(group or "Texts", members[group]) for group in largest]


def name_features(feature_set: FeatureSet, names: Mapping[str, str]) -> FeatureSet:
    """
    The set with new names for some of its features.

    Args:
        feature_set ([`FeatureSet`]):
            The features.
        names (`Mapping[str, str]`):
            New name of each, by place and number: `{"3:1377": "loop"}`, or `"3.mlp_out:1377"` for another site.

    Raises:
        ValueError: If there is no such feature in the set, or a name is empty.
    """
    held = [
        f"{place_name((block, site))}:{number}"
        for block, site, number in zip(feature_set.blocks, feature_set.sites, feature_set.feature_ids)
    ]
    for which, name in names.items():
        if which not in held:
            raise ValueError(f"The set has no feature {which!r}. It has {', '.join(held)}, as block:number.")
        if not name.strip():
            raise ValueError(f"The name of feature {which} is empty.")
    return replace(feature_set, names=tuple(names.get(which, old) for which, old in zip(held, feature_set.names)))
