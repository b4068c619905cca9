"""Which features are the targets: those that were named, or those that are missing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...features.read.loading import place_of
from ...features.read.text_options import TextOptions
from ...features.set.feature_set import FeatureSet
from ...hooks.sites import Place, describe_place
from ...measure.answers.folder import read_json, write_json
from ...saes.frozen import FrozenSAE
from ..text_activations import TextActivations
from .attempts import TARGETS_FILE
from .row_forms import RowForm
from .targets import Target, as_feature_set, describe_targets, missing_features, with_norm


def choose_targets(
    targets: Any,
    network: Any,
    tokenizer: Any,
    sae: FrozenSAE,
    known: Mapping[str, Sequence[Mapping[str, Any]]],
    read: Mapping[str, TextActivations],
    form: RowForm,
    folder: Path,
    *,
    positions: str,
    options: TextOptions,
    only_missing: bool,
    max_seed_rate: float,
    max_targets: int,
) -> tuple[list[Target], FeatureSet]:
    """The targets with their passages, read from the folder if they were found before, and their feature set."""
    place, origin = place_of(sae), read["seeds"].origin
    stored = read_json(folder / TARGETS_FILE)
    if stored is not None:
        found = [Target.from_dict(each) for each in stored["targets"]]
        features = as_feature_set(sae, [each.feature for each in found], origin)
        return found, with_norm(features, stored["residual_norm"])
    source = "reference" if "reference" in read else "seeds"
    labels = [form.label(row) for row in known[source]]
    ids = read["seeds"].feature_ids[place]
    if isinstance(targets, str):
        missing = missing_features(read["seeds"], read["reference"], place, labels=labels, max_seed_rate=max_seed_rate)
        chosen = missing[:max_targets].tolist()
    else:
        chosen = _given_features(targets, sae, network, tokenizer, origin)
    column_of = {int(feature): column for column, feature in enumerate(ids)}
    unknown = [feature for feature in chosen if feature not in column_of]
    if unknown:
        raise ValueError(f"The SAE has no feature {unknown[0]}: it has {len(ids):,}, numbered from 0.")
    columns = [column_of[feature] for feature in chosen]
    rates = {name: _rates(each, place)[columns] for name, each in read.items()}
    if not isinstance(targets, str) and only_missing:
        kept = np.flatnonzero(rates["seeds"] <= max_seed_rate)
        if not len(kept):
            raise ValueError(
                f"There are no targets left: all {len(chosen)} fire on the seeds already. Raise `max_seed_rate`, name "
                "others, or set `only_missing` to False to make rows for these too."
            )
        chosen = [chosen[i] for i in kept]
        rates = {name: rate[kept] for name, rate in rates.items()}
    features = as_feature_set(sae, chosen, origin)
    described, norm = describe_targets(
        network,
        tokenizer,
        features,
        sae,
        known[source],
        read[source],
        source=source,
        labels=labels,
        positions=positions,
        options=options,
        rates=rates,
    )
    usable = [each for each in described if each.words]
    if not usable:
        raise ValueError(
            "There are no targets left: nothing is known of any of them, neither a passage where it fires nor a word "
            "that it promotes. Give `reference` texts on which they fire."
        )
    content = {"residual_norm": norm, "targets": [each.as_dict() for each in usable]}
    write_json(folder / TARGETS_FILE, content)
    features = as_feature_set(sae, [each.feature for each in usable], origin)
    return usable, with_norm(features, norm)


def _given_features(
    targets: FeatureSet | Sequence[int], sae: FrozenSAE, network: Any, tokenizer: Any, origin: Mapping[str, Any]
) -> list[int]:
    if not isinstance(targets, FeatureSet):
        chosen = list(dict.fromkeys(int(each) for each in targets))
        if not chosen:
            raise ValueError("There are no targets. Give numbers of features, a feature set, or 'missing'.")
        return chosen
    targets.check_model(network, tokenizer=tokenizer)
    if targets.places != (place_of(sae),):
        held = ", ".join(describe_place(place) for place in targets.places)
        raise ValueError(f"The targets are of {held}, the SAE reads {describe_place(place_of(sae))}. Give their SAE.")
    own = as_feature_set(sae, targets.feature_ids, origin)
    if not torch.allclose(own.encoder_rows, targets.encoder_rows, rtol=1e-2, atol=1e-3):
        raise ValueError("The targets are features of another SAE of the same block. Give the SAE they were found in.")
    return list(dict.fromkeys(targets.feature_ids))


def _rates(read: TextActivations, place: Place) -> np.ndarray:
    return np.asarray(read.fires(place).mean(axis=0)).ravel()
