"""A [`FeatureClassifier`] as a [`FeatureSet`]: its features with their rows, and the rule in the notes."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..features.read.loading import place_of
from ..features.set.feature_set import FeatureSet
from ..hooks.sites import describe_place
from ..saes.frozen import COMPARING, FrozenSAE
from ..saes.stored.source import SAESource
from ..shown import printable
from .feature_rule import KINDS, FeatureRule

if TYPE_CHECKING:
    from .classifier import FeatureClassifier

NOTE = "classifier"
_ORIGIN = ("model", "saes", "texts", "settings", "base_model", "fingerprint")


def to_feature_set(classifier: "FeatureClassifier", saes: list[FrozenSAE]) -> FeatureSet:
    """
    The rule's features, in its order, with the rule in the notes.

    Raises:
        ValueError: If there is no SAE for one of its places.
    """
    rule, by_place = classifier.rule_, {place_of(sae): sae for sae in saes}
    parts = []
    for place, feature in zip(rule.places, rule.feature_ids):
        if place not in by_place:
            raise ValueError(f"There is no SAE of {describe_place(place)}, which the classifier reads. Give it too.")
        parts.append(FeatureSet.from_sae(by_place[place], [feature]))
    merged = parts[0].merge(*parts[1:]) if len(parts) > 1 else parts[0]
    origin = classifier.origin_
    positive = classifier.pos_label_
    note = {
        "rule": classifier.rule,
        "kind": rule.kind,
        "labels": [_plain(label) for label in classifier.classes_],
        "pos_label": _plain(positive),
        "epsilon": float(rule.epsilon),
        "bias": float(rule.bias),
        "positions": classifier.positions,
        "max_length": classifier.options.max_length,
        "activations": [by_place[place].activation for place in rule.places],
        "choices": [
            {
                "places": [list(place) for place in each.candidate.places],
                "num_features": each.candidate.num_features,
                "f1": each.f1,
                "top1_difference": each.top1_difference,
            }
            for each in classifier.choices_
        ],
        "origin": {name: origin.get(name) for name in _ORIGIN},
    }
    return replace(
        merged,
        scores={
            "firing_difference": torch.tensor(rule.differences, dtype=torch.float32),
            "weight": torch.tensor(rule.weights, dtype=torch.float32),
        },
        target_groups=(str(positive),),
        base_model=origin.get("base_model", ""),
        fingerprint=origin.get("fingerprint", {}),
        notes={NOTE: note},
    )


def read_classifier(
    kind: type["FeatureClassifier"],
    feature_set: FeatureSet,
    path: str | os.PathLike,
    model: Any,
    saes: Any,
    settings: dict[str, Any],
) -> "FeatureClassifier":
    """The work of [`FeatureClassifier.load`]."""
    from .rule_choice import Candidate, Choice

    note = feature_set.notes.get(NOTE)
    if note is None:
        raise ValueError(
            f"{path} is a feature set without a classifier. `FeatureClassifier.save` or `sae-posttrain classify fit` "
            "writes one."
        )
    try:
        if note["kind"] not in KINDS:
            raise ValueError(f"unknown kind of rule {note['kind']!r}")
        rule = FeatureRule(
            kind=note["kind"],
            places=tuple(zip(feature_set.blocks, feature_set.sites)),
            feature_ids=feature_set.feature_ids,
            differences=feature_set.scores["firing_difference"].double().numpy(),
            weights=feature_set.scores["weight"].double().numpy(),
            bias=float(note["bias"]),
            epsilon=float(note["epsilon"]),
        )
        if len(note["labels"]) != 2 or note["pos_label"] not in note["labels"]:
            raise ValueError("two labels are needed, one of them positive")
        choices = tuple(
            Choice(
                Candidate(tuple((int(block), str(site)) for block, site in each["places"]), each["num_features"]),
                each["f1"],
                each["top1_difference"],
            )
            for each in note["choices"]
        )
        if "text_options" not in settings:
            from ..features.read.text_options import TextOptions

            settings["text_options"] = TextOptions(max_length=note["max_length"])
        classifier = kind(
            model,
            saes,
            rule=note["rule"],
            epsilon=rule.epsilon,
            pos_label=note["pos_label"],
            positions=note["positions"],
            **settings,
        )
        classifier.origin_ = dict(note["origin"])
        _ = note["activations"]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, TypeError) and "unexpected keyword" in str(error):
            raise
        raise ValueError(f"The classifier in {path} is damaged: {printable(error)}. Fit it again.") from error
    classifier.classes_ = np.array(note["labels"])
    classifier.pos_label_ = note["pos_label"]
    classifier.rule_, classifier.choices_, classifier.feature_set_ = rule, choices, feature_set
    return classifier


def saes_of_set(feature_set: FeatureSet) -> list[FrozenSAE]:
    """
    SAEs that hold the set's features only, for activations in which features do not compete.

    Raises:
        ValueError: If features compete, as in TopK SAEs: then the whole SAE is needed.
    """
    kinds = dict(zip(zip(feature_set.blocks, feature_set.sites), feature_set.notes[NOTE]["activations"]))
    saes = []
    for place in feature_set.places:
        kind = kinds[place]
        if kind in COMPARING or kind not in ("relu", "jumprelu"):
            raise ValueError(
                f"The classifier reads a {kind} SAE at {describe_place(place)}, whose activations cannot be computed "
                f"from {len(feature_set)} features alone. Give `saes` (on the command line --sae)."
            )
        part = feature_set.at(place)
        source = part.sources[0]
        saes.append(
            FrozenSAE(
                W_enc=part.encoder_rows.T.contiguous(),
                b_enc=part.encoder_bias,
                W_dec=part.directions,
                b_dec=torch.zeros(part.d_model),
                activation=kind,
                threshold=part.thresholds if kind == "jumprelu" else None,
                block=place[0],
                site=place[1],
                source=SAESource(source.repository, source.revision, source.file, source.format, Path(source.file)),
                features=tuple(part.feature_ids),
            )
        )
    return saes


def require_same_rows(feature_set: FeatureSet, saes: list[FrozenSAE]) -> None:
    """Raises a `ValueError` if SAEs are not those from which the features of a set were taken."""
    for sae in saes:
        part = feature_set.at(place_of(sae))
        if sae.d_model != part.d_model or any(
            (number := _column(sae, feature)) is None
            or not torch.allclose(sae.W_enc[:, number].float().cpu(), row, rtol=1e-3, atol=1e-6)
            for feature, row in zip(part.feature_ids, part.encoder_rows)
        ):
            raise ValueError(
                f"The SAE of {describe_place(place_of(sae))} is not the one with which the classifier was made: the "
                "rows of its features differ. Give that SAE, or fit the classifier again."
            )


def _column(sae: FrozenSAE, feature: int) -> int | None:
    if sae.features is not None:
        return sae.features.index(feature) if feature in sae.features else None
    return feature if feature < sae.num_features else None


def _plain(label: Any) -> Any:
    return label.item() if isinstance(label, np.generic) else label
