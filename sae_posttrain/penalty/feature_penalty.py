"""The penalty on SAE features: how far they rise above the level that a token's group allows."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..features.set.feature_set import FeatureSet
from ..hooks.record import SiteRecorder
from ..hooks.sites import Place
from .adaptive_weight import AdaptiveWeight
from .arguments import FeaturePenaltyArguments
from .groups import GroupTable
from .loss import excess, excess_sum, pre_activations
from .term import PenalisedBatch, PenaltyTerm, TermReading, summable

_MIN_STD = 1e-6
_MAX_FEATURES_LOGGED_BY_NAME = 32


@dataclass(frozen=True)
class PenaltyReading:
    """
    What [`FeaturePenalty`] measured on one micro-batch.

    Attributes:
        excess_sum (`()`): Sum over penalised tokens of the mean excess over features, summed over sites; attached to
            the graph.
        num_penalised (`()`): Number of tokens that were penalised.
        num_above (`(F,)`): Number of penalised tokens on which each feature was above its level and margin.
        pre_activation_sum (`(F,)`): Sum of each feature's pre-activation over the penalised tokens, in raw units.
    """

    excess_sum: Tensor
    num_penalised: Tensor
    num_above: Tensor
    pre_activation_sum: Tensor


class FeaturePenalty(PenaltyTerm):
    """
    The penalty on one set of features: `relu(pre − mean[group] − margin)`, averaged over the features of a site,
    summed over sites and over the tokens of every group but the target.

    Args:
        groups: Numbers of the groups in the batches.
        weight: Weight of the penalty in a trainer.
        penalty (`"sasft"` or `"zero"`): Level a feature may reach for free: the mean of the token's group, or 0 (the
            published variant).
        unit (`"std"` or `"raw"`): Unit of excess and margin: standard deviations of that feature on that group, or raw
            units of its site.
        margin: Height above the level that costs nothing, in that unit.
        hold: `"down"` or `"up"`, for all features or by name (`"down"` for names left out).
        positions (`"response"` or `"predicting"`): Whether the residuals at the answer's tokens are penalised, or
            those one to the left, which predict them.
    """

    def __init__(
        self,
        feature_set: FeatureSet,
        groups: GroupTable,
        *,
        weight: float | AdaptiveWeight = 1.0,
        penalty: str = "sasft",
        unit: str = "std",
        margin: float = 0.0,
        hold: str | Mapping[str, str] = "down",
        positions: str = "response",
    ):
        self.adaptive_weight = weight if isinstance(weight, AdaptiveWeight) else None
        self._fixed_weight = weight.weight if isinstance(weight, AdaptiveWeight) else float(weight)
        self.positions = positions
        self.groups = groups
        self.margin = margin
        self.places: tuple[Place, ...] = feature_set.places
        self.names: tuple[str, ...] = ()
        needs_statistics = penalty == "sasft" or unit == "std"
        missing = [name for name in groups.penalised if name not in feature_set.groups]
        if needs_statistics and not feature_set.groups:
            raise ValueError(
                "The feature set has no statistics of any group. Find the features with `find_features`, or set "
                "`penalty='zero'` and `penalty_unit='raw'`, which need none."
            )
        if needs_statistics and missing:
            raise ValueError(groups.missing_statistics(missing[0]))
        not_measured = feature_set.mean.isnan().any(dim=1).nonzero().flatten().tolist()
        if needs_statistics and not_measured:
            raise ValueError(
                f"The feature {feature_set.names[not_measured[0]]!r} has no statistics of the groups. Fill them in "
                "with `measure_groups`, leave it out, or set `penalty='zero'` and `penalty_unit='raw'`, which need "
                "none."
            )
        signs = _signs(feature_set.names, hold)
        self._tables: list[_SiteTables] = []
        for place in self.places:
            features = feature_set.at(place)
            self.names += feature_set.labels_at(place)
            level_GF = groups.table(features, features.mean) if penalty == "sasft" else groups.zeros(len(features))
            scale_GF = groups.table(features, features.std) if unit == "std" else groups.zeros(len(features)) + 1
            flat = (scale_GF[groups.penalised_ids] < _MIN_STD).any(dim=0).nonzero()
            if len(flat):
                raise ValueError(
                    f"Feature {features.names[int(flat[0])]!r} has the same pre-activation on every token of a group, "
                    "so its excess cannot be measured in standard deviations. Leave it out, or set "
                    "`penalty_unit='raw'`."
                )
            sign_F = torch.tensor([signs[name] for name in features.names])
            self._tables.append(
                _SiteTables(place, features.encoder_rows, features.encoder_bias, level_GF, scale_GF, sign_F)
            )

    @classmethod
    def from_settings(
        cls, feature_set: FeatureSet, groups: GroupTable, settings: FeaturePenaltyArguments
    ) -> "FeaturePenalty":
        """The penalty that a trainer's settings describe."""
        weight: float | AdaptiveWeight = float(settings.penalty_weight)
        if settings.penalty_target is not None:
            weight = AdaptiveWeight(
                settings.penalty_weight,
                target=settings.penalty_target,
                max_loss_increase=settings.penalty_max_loss_increase,
            )
        return cls(
            feature_set,
            groups,
            weight=weight,
            penalty=settings.penalty,
            unit=settings.penalty_unit,
            margin=settings.margin,
            hold=settings.hold or "down",
            positions=settings.penalty_positions,
        )

    def __call__(self, values: Mapping[Place, Tensor], group_ids: Tensor, mask: Tensor) -> PenaltyReading:
        """
        Measure one micro-batch, given what passes at each block and site, `(B, T, D)`.

        `group_ids` `(B, T)` are numbers of the group table, −1 on padding. `mask` `(B, T)` marks tokens of the
        answers; those of the target groups are removed here.
        """
        mask_BT = mask & self.groups.is_penalised(group_ids)
        sums, above, pre_sums = [], [], []
        for tables in self._tables:
            value_BTD = values[tables.place]
            device = value_BTD.device  # each block's own: a model may be spread over several
            pre_BTF = pre_activations(value_BTD, *tables.encoder(device))
            level_GF, scale_GF, sign_F = tables.levels(device)
            ids, counted_BT = group_ids.clamp(min=0).to(device), mask_BT.to(device)
            excess_BTF = excess(pre_BTF, level_GF[ids], scale_GF[ids], sign_F, self.margin)
            sums.append(excess_sum(excess_BTF, counted_BT))
            counted = counted_BT.unsqueeze(-1)
            above.append(((excess_BTF.detach() > 0) & counted).sum(dim=(0, 1)))
            pre_sums.append((pre_BTF.detach() * counted).sum(dim=(0, 1)))
        sums, above, pre_sums = ([part.to(device) for part in parts] for parts in (sums, above, pre_sums))
        return PenaltyReading(torch.stack(sums).sum(), mask_BT.sum(), torch.cat(above), torch.cat(pre_sums))

    # As a term of a trainer's loss

    @property
    def weight(self) -> float:  # type: ignore[override]
        """Weight of the penalty in the next step."""
        return self._fixed_weight if self.adaptive_weight is None else self.adaptive_weight.weight

    @weight.setter
    def weight(self, weight: float) -> None:
        self.adaptive_weight, self._fixed_weight = None, weight

    def attach(self, model: nn.Module) -> None:
        self._recorder = SiteRecorder(model, self.places)

    def arm(self) -> AbstractContextManager[dict[Place, list[Tensor]]]:
        return self._recorder.armed()

    def measure(self, captured: Mapping[Place, list[Tensor]], batch: PenalisedBatch) -> TermReading:
        values = {place: batch.value_at(captured, place) for place in self.places}
        mask = batch.mask
        if self.positions == "predicting":
            mask = mask.roll(-1, dims=1) & batch.behind_the_first  # the first position, an attention sink, stays out
        reading = self(values, batch.group_ids, mask)
        counts = (batch.num_tokens, reading.num_penalised, reading.num_above)
        return TermReading(reading.excess_sum, summable(reading.excess_sum, *counts, reading.pre_activation_sum))

    def above_and_possible(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Numerator and denominator of the excess rate, from the sums of a reading."""
        num_features = len(self.names)
        return sums[3 : 3 + num_features].sum(), sums[2] * num_features

    def metrics(self, sums: Tensor) -> dict[str, float]:
        excess_sum, num_tokens, num_penalised = sums[:3].tolist()
        above, possible = (figure.item() for figure in self.above_and_possible(sums))
        mean_pre = (sums[3 + len(self.names) :] / max(num_penalised, 1)).tolist()
        metrics = {"sae/penalty": excess_sum / max(num_tokens, 1), "sae/excess_rate": above / max(possible, 1)}
        if num_penalised and len(self.names) <= _MAX_FEATURES_LOGGED_BY_NAME:
            metrics |= {f"sae/pre_activation/{name}": value for name, value in zip(self.names, mean_pre)}
        elif num_penalised:
            metrics["sae/pre_activation"] = sum(mean_pre) / len(mean_pre)
        if self.adaptive_weight is not None:
            metrics["sae/penalty_weight"] = self.weight
        return metrics


@dataclass
class _SiteTables:
    """Plain tensors, moved to their block's device on first use. On the model they would be sharded and saved."""

    place: Place
    encoder_rows: Tensor
    encoder_bias: Tensor
    level_GF: Tensor
    scale_GF: Tensor
    sign_F: Tensor

    def encoder(self, device: torch.device) -> tuple[Tensor, Tensor]:
        self.encoder_rows, self.encoder_bias = self.encoder_rows.to(device), self.encoder_bias.to(device)
        return self.encoder_rows, self.encoder_bias

    def levels(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        self.level_GF, self.scale_GF = self.level_GF.to(device), self.scale_GF.to(device)
        self.sign_F = self.sign_F.to(device)
        return self.level_GF, self.scale_GF, self.sign_F


def _signs(names: Sequence[str], hold: str | Mapping[str, str]) -> dict[str, float]:
    by_name = dict.fromkeys(names, hold) if isinstance(hold, str) else {**dict.fromkeys(names, "down"), **hold}
    unknown = sorted(set(by_name) - set(names))
    if unknown:
        raise ValueError(f"`hold` names the feature {unknown[0]!r}. Known: {', '.join(names)}.")
    wrong = sorted({str(value) for value in by_name.values()} - {"down", "up"})
    if wrong:
        raise ValueError(f"A feature is held 'down' or 'up', got {wrong[0]!r}.")
    return {name: math.copysign(1.0, -1.0 if value == "up" else 1.0) for name, value in by_name.items()}
