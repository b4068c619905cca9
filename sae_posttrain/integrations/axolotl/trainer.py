"""axolotl's own trainers with ours in front. Everything that axolotl adds still works."""

from functools import partial
from typing import Any

from axolotl.core.trainers.base import AxolotlTrainer
from axolotl.core.trainers.grpo.trainer import AxolotlGRPOTrainer
from datasets import Dataset

from ...checkpoints import CompleteCheckpoints
from ...features.set.feature_set import FeatureSet
from ...penalty.arguments import FeaturePenaltyArguments
from ...penalty.groups import (
    GROUP_IDS,
    GroupCollator,
    add_group_ids,
    find_group_column,
    require_penalised_tokens,
)
from ...penalty.mixin import FeaturePenaltyMixin
from ...rl.trainer import SteeredGRPOTrainer


class AxolotlSASFTTrainer(FeaturePenaltyMixin, CompleteCheckpoints, AxolotlTrainer):  # type: ignore[misc]
    """
    axolotl's trainer plus the penalty of [`SASFTTrainer`]. Its settings derive from [`FeaturePenaltyArguments`].

    Its datasets are already tokenized. axolotl drops every other column when it tokenizes, so the group of an example
    is derived from the script of its answer. Data that were tokenized before axolotl keep the group column. Packed
    rows keep the group of each token.
    """

    def _build_penalty(self, settings: FeaturePenaltyArguments, features: FeatureSet | None) -> None:
        if settings.penalty_rows != "chosen":
            raise ValueError(
                f"`penalty_rows: {settings.penalty_rows}` penalises rejected answers too, and the data of SFT holds "
                "none. Leave it out."
            )
        super()._build_penalty(settings, features)
        self._kept_column = GROUP_IDS

    def _prepare_groups(self, settings: FeaturePenaltyArguments) -> None:
        self.train_dataset = self._with_groups(self.train_dataset, settings, "train")
        if self.eval_dataset is not None:
            self.eval_dataset = self._with_groups(self.eval_dataset, settings, "eval")
        if self._charges:
            assert self._groups is not None
            require_penalised_tokens(self.train_dataset, self._groups, self._charged_tokens())
        self.data_collator = self.train_data_collator = GroupCollator(self.data_collator)
        self.eval_data_collator: Any = GroupCollator(self.eval_data_collator) if self.eval_data_collator else None

    def _with_groups(self, dataset: Any, settings: FeaturePenaltyArguments, name: str) -> Dataset:
        if not isinstance(dataset, Dataset):
            raise ValueError(
                f"The {name} dataset is a {type(dataset).__name__}; the plugin needs one that is tokenized before "
                "training. Set `streaming: false`."
            )
        groups = self._groups_for(settings, dataset)
        column = find_group_column(dataset[0], settings.group_column, groups, name)
        decode = None if column else self.processing_class.decode
        if column is None:
            self._log_group_share()
        return dataset.map(
            partial(add_group_ids, groups=groups, column=column, decode=decode),
            remove_columns=[column] if column else None,  # a collator that packs cannot join texts
            desc=f"Adding groups to {name} dataset",
        )


class AxolotlSteeredGRPOTrainer(SteeredGRPOTrainer, AxolotlGRPOTrainer):  # type: ignore[misc]
    """axolotl's GRPO trainer with the steered rollouts of [`SteeredGRPOTrainer`], and with its arguments."""
