"""Put in front of a trainer, the mixin adds penalties to its loss: on features, on tokens, or of a user's own."""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from ..conversations import datasets_with_messages
from ..features.set.feature_set import FeatureSet
from ..gguf_models import with_trainable_model
from ..precision import widest_float
from ..unsloth import refuse_unsloth
from .adaptive_weight import AdaptiveWeight, KeepWeightInCheckpoints
from .arguments import FeaturePenaltyArguments
from .batches import RowGroupCollator, answer_tokens, split_groups, without_groups
from .datasets import charged_language, groups_without_features, prepare_row_groups
from .division import divide, trainer_divides
from .feature_penalty import FeaturePenalty
from .groups import GROUP_IDS, GroupTable, RowGroups
from .output_head import OutputHead
from .refusals import (
    load_features,
    refuse_environment_without_rows,
    refuse_old_method,
    refuse_what_cannot_work,
    refuse_wrong_model,
    warn_of_plain_training,
)
from .term import GroupShare, PenalisedBatch, PenaltyTerm
from .token_penalty import TokenPenalty, read_token_ids


class FeaturePenaltyMixin:
    """
    Adds penalties to the loss of the trainer behind it: a [`FeaturePenalty`] on what passes at the features' sites at
    the answers' tokens, a [`TokenPenalty`] on the probability of a set of tokens where the answers' tokens are
    predicted, and any [`PenaltyTerm`] of your own. Everything else is the trainer's.

    ```python
    class HeldDPOTrainer(FeaturePenaltyMixin, DPOTrainer):
        pass


    @dataclass
    class HeldDPOConfig(FeaturePenaltyArguments, DPOConfig):
        pass


    HeldDPOTrainer(model, args=HeldDPOConfig(features="zh.safetensors"), train_dataset=data).train()
    ```

    It works with TRL's `SFTTrainer` (use [`SASFTTrainer`], which knows packing), `DPOTrainer`, `KTOTrainer`,
    `RewardTrainer`, `GRPOTrainer`, `RLOOTrainer` and `DistillationTrainer`, with [`SteeredGRPOTrainer`] and with
    transformers' `Trainer`. For a trainer whose batches look different, override `penalised_positions`. The config
    must derive from [`FeaturePenaltyArguments`]. With any other config the trainer trains plainly and warns. Reward
    models give tokens no probability, so they take no penalty on tokens.

    Each penalty is a mean over tokens, divided as the trainer divides its loss ([`divide`]), so that a weight means
    the same at any batch size. In RL the penalty reads the answers that the model wrote in this step, also those that
    were steered: it acts on how the model reads given tokens, whoever chose them.

    Args:
        *args, **kwargs:
            Arguments of the trainer.
        feature_set ([`FeatureSet`], *optional*):
            The features, in place of `args.features`. A trainer behind the mixin that takes a `feature_set` too
            ([`SteeredGRPOTrainer`]) gets the same one.
        terms (`Sequence` of [`PenaltyTerm`], *optional*):
            Penalties of your own, in addition to those that the settings name.

    Raises:
        ValueError: If there is nothing to penalise, the features belong to another model, a group in the data has no
            statistics, no token would be penalised, or a setting leaves the penalty without its tokens.
        TypeError: If the class overrides the method of an earlier version, `penalised_tokens`.
        RuntimeError: If Unsloth has been imported.
    """

    # Attributes of the trainer, declared for the type checker.
    model: Any
    args: Any
    accelerator: Any
    data_collator: Any
    train_dataset: Any
    eval_dataset: Any
    processing_class: Any

    feature_penalty: FeaturePenalty | None = None
    """The penalty on features, if there is one."""
    token_penalty: TokenPenalty | None = None
    """The penalty on a set of tokens, if there is one."""

    _holds: bool = False  # whether there is any penalty
    _charges: bool = False  # whether the weight of one is above 0
    _groups: GroupTable | None = None
    _kept_column: str | None = None  # column that must reach the collator
    _pairs: bool = False
    _row_groups: RowGroups | None = None

    def __init__(
        self,
        *args: Any,
        feature_set: FeatureSet | None = None,
        terms: Sequence[PenaltyTerm] = (),
        **kwargs: Any,
    ):
        refuse_unsloth(type(self))
        refuse_old_method(type(self))
        self._terms: list[PenaltyTerm] = []
        self._sums: dict[str, list[Tensor]] = {}  # by mode, one of each term, since the last logging step
        given = [*args, *kwargs.values()]
        settings = next((value for value in given if isinstance(value, FeaturePenaltyArguments)), None)
        features = None
        if settings is None:
            warn_of_plain_training(type(self), FeaturePenaltyMixin, given, feature_set, terms)
        else:
            features = load_features(settings, feature_set, terms)
            if features is not None or settings.penalised_tokens is not None or terms:
                refuse_wrong_model(features, settings, kwargs.get("model", args[0] if args else None))
                refuse_environment_without_rows(super().__init__, args, kwargs)
                self._build_penalty(settings, features)
                self._charges = self._charges or any(term.weight > 0 for term in terms)
        if "feature_set" in inspect.signature(super().__init__).parameters:
            kwargs["feature_set"] = feature_set
        if settings is not None and kwargs.get("formatting_func") is None:
            kwargs = datasets_with_messages(kwargs)
        args, kwargs = with_trainable_model(args, kwargs)
        super().__init__(*args, **kwargs)
        if settings is not None and self._holds:
            refuse_wrong_model(features, settings, self.model, self.processing_class)
            self._refuse_what_cannot_work(settings)
            self._build_terms(settings, terms)
            self._prepare_groups(settings)
            # Hooks are registered when nothing can be refused any more, and before the first forward.
            for term in self._terms:
                term.attach(self.model)
            if self.adaptive_weight is not None:
                self.add_callback(KeepWeightInCheckpoints(self.adaptive_weight))  # type: ignore[attr-defined]

    def _build_penalty(self, settings: FeaturePenaltyArguments, features: FeatureSet | None) -> None:
        """Build what needs neither the model nor the data."""
        self._holds = True
        self._kept_column = settings.group_column
        charges_tokens = settings.penalised_tokens is not None and settings.token_penalty_weight > 0
        self._charges = charges_tokens or (features is not None and settings.penalty_weight > 0)
        if features is not None:
            targets = settings.target_group or features.target_groups
            language = charged_language(settings)
            self._groups = GroupTable.for_features(features, targets, settings.unknown_group, language)
            self.feature_penalty = FeaturePenalty.from_settings(features, self._groups, settings)

    def _build_terms(self, settings: FeaturePenaltyArguments, terms: Sequence[PenaltyTerm]) -> None:
        given = (dataset for dataset in self._datasets().values() if dataset is not None)
        groups = self._groups_for(settings, next(given, None))
        if settings.penalised_tokens is not None:
            head = OutputHead(self.model)
            ids = read_token_ids(settings.penalised_tokens, self.processing_class, head.vocab_size)
            self.token_penalty = TokenPenalty(ids, groups, weight=settings.token_penalty_weight, head=head)
        own = [term for term in (self.feature_penalty, self.token_penalty) if term is not None]
        self._terms = [*own, *terms, *self._terms]

    def _log_group_share(self) -> None:
        """Log how many answers have no group: groups are told from the script, and some may have no letters."""
        if not any(isinstance(term, GroupShare) for term in self._terms):
            self._terms.append(GroupShare())

    def _datasets(self) -> dict[str, Any]:
        evaluated = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        return {"train": self.train_dataset, **evaluated}

    def _groups_for(self, settings: FeaturePenaltyArguments, dataset: Any) -> GroupTable:
        """The groups of the features, or without features those of the data."""
        if self._groups is None:
            self._groups = groups_without_features(settings, dataset)
        return self._groups

    @property
    def adaptive_weight(self) -> AdaptiveWeight | None:
        """What adapts the weight of the penalty on features; `None` where the weight is fixed."""
        return self.feature_penalty.adaptive_weight if self.feature_penalty is not None else None

    @property
    def penalty_weight(self) -> float:
        """Weight of the penalty on features in the next step; 0 where there is none."""
        return self.feature_penalty.weight if self.feature_penalty is not None else 0.0

    def _charged_tokens(self) -> frozenset[int]:
        """The set of tokens whose probability is penalised; empty if there is none, or its weight is 0."""
        tokens = self.token_penalty
        return tokens.ids if tokens is not None and tokens.weight > 0 else frozenset()

    def penalised_positions(self, inputs: Mapping[str, Any]) -> Tensor:
        """
        The positions of a batch that the loss is on, `(B, T)`, bool. Those of the target groups are removed later.

        Override it for a trainer whose batches are of a kind that [`answer_tokens`] does not know. `inputs` is what
        `compute_loss` gets, without the groups.
        """
        return answer_tokens(inputs, pairs=self._pairs)

    def _refuse_what_cannot_work(self, settings: FeaturePenaltyArguments) -> None:
        refuse_what_cannot_work(self, settings)

    # Data: the group of each row, or of each token

    def _prepare_groups(self, settings: FeaturePenaltyArguments) -> None:
        """Make the batches hold [`GROUP_IDS`]: here one number per row."""
        assert self._groups is not None
        if getattr(self.args, "packing", False) or getattr(self, "padding_free", False):
            raise ValueError(
                "Packed and padding-free batches put several examples into a row, and their groups are lost. Use "
                "`SASFTTrainer`, which keeps them by token."
            )
        generates = hasattr(super(), "_generate_and_score_completions")
        self._row_groups, self._pairs = prepare_row_groups(
            self._datasets(),
            self._groups,
            settings,
            decode=getattr(self.processing_class, "decode", None),
            generates=generates,
            charges=self._charges,
            penalised_tokens=self._charged_tokens(),
        )
        if self._row_groups.by_script:
            self._log_group_share()
        if not generates:
            self.data_collator = RowGroupCollator(self.data_collator, self._row_groups, settings.penalty_rows)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        self._signature_columns: Any
        if self._kept_column is not None and self._kept_column not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, self._kept_column]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        # Dynamic sampling replaces and reorders rows: `inputs` holds those that were scored.
        if self._row_groups is not None:  # a tensor of one number per row is shuffled and split with the rest
            numbers = [self._row_groups(row) for row in inputs]
            batch[GROUP_IDS] = torch.tensor(numbers, device=self.accelerator.device)
        return batch

    def compute_ref_log_probs(self, model: Any, inputs: Any):
        return super().compute_ref_log_probs(model, without_groups(inputs))  # type: ignore[misc]

    # The loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not self._holds:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        assert self._groups is not None
        inputs, group_ids = split_groups(inputs)  # the model must not see them
        batch = PenalisedBatch.of(inputs, self.penalised_positions(inputs), group_ids, self._groups)
        with ExitStack() as armed:
            captured = [armed.enter_context(term.arm()) for term in self._terms]
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        training = self.model.training
        own_loss = loss = result[0] if return_outputs else result
        sums = []
        for term, values in zip(self._terms, captured):
            weight = term.weight if training else 0.0
            with torch.set_grad_enabled(weight > 0):
                reading = term.measure(values, batch)
                if weight > 0:
                    loss = loss + weight * self._divide(reading.total, batch, num_items_in_batch).to(loss.device)
            sums.append(reading.sums)
        mode = "train" if training else "eval"
        self._sums[mode] = [a + b for a, b in zip(self._sums[mode], sums)] if mode in self._sums else sums
        if training and self.feature_penalty is not None and self.adaptive_weight is not None:
            above, possible = self.feature_penalty.above_and_possible(sums[0])
            mean_of_batches = trainer_divides(self, num_items_in_batch)
            self.adaptive_weight.add(above, possible, own_loss, self.accelerator, mean_of_batches=mean_of_batches)
        return (loss, result[1]) if return_outputs else loss

    def _divide(self, total: Tensor, batch: PenalisedBatch, num_items_in_batch: Any) -> Tensor:
        """A term's sum over tokens, divided as the trainer divides its token loss."""
        return divide(self, total, batch.num_tokens, num_items_in_batch, batch.inputs.get("num_items_in_batch"))

    # Metrics stay tensors on the device until the logging step, where they are reduced once.

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode, prefix = ("train", "") if self.model.training else ("eval", "eval_")
        sums = self._sums.pop(mode, None)
        if sums is not None:
            device = self.accelerator.device
            flat = torch.cat([each.to(device, widest_float(device)) for each in sums])
            parts = self.accelerator.reduce(flat, reduction="sum").split([len(each) for each in sums])
            for term, part in zip(self._terms, parts):
                logs.update({f"{prefix}{name}": value for name, value in term.metrics(part).items()})
        super().log(logs, start_time)  # type: ignore[misc]
