"""Adds the feature penalty, the token penalty or both to the loss of a trainer."""

import inspect
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..conversations import datasets_with_messages
from ..features.set.feature_set import FeatureSet
from ..hooks.record import SiteRecorder, training_capture
from ..hooks.sites import Place
from ..precision import widest_float
from ..rewritten import refuse_rewritten
from .adaptive_weight import AdaptiveWeight, KeepWeightInCheckpoints
from .arguments import FeaturePenaltyArguments
from .batches import RowGroupCollator, answer_tokens, behind_the_first, earlier_forwards, token_ids
from .datasets import groups_without_features, prepare_row_groups
from .feature_penalty import FeaturePenalty, PenaltyReading
from .groups import GROUP_IDS, NO_GROUP, PADDING, GroupTable, RowGroups
from .metrics import group_metrics, group_sums, penalty_metrics, reading_sums, token_metrics, token_sums
from .output_head import OutputHead
from .refusals import (
    load_features,
    refuse_environment_without_rows,
    refuse_what_cannot_work,
    require_nothing_to_hold,
)
from .token_penalty import TokenPenalty, TokenReading, read_token_ids


class FeaturePenaltyMixin:
    """
    Put before a trainer in the bases of a class, it adds one term to the loss, or two: a [`FeaturePenalty`] on what
    passes at the features' sites at the answers' tokens, a [`TokenPenalty`] on the probability of a set of tokens
    where the answers' tokens are predicted. Everything else is the trainer's.

    ```python
    class HeldDPOTrainer(FeaturePenaltyMixin, DPOTrainer):
        pass


    @dataclass
    class HeldDPOConfig(FeaturePenaltyArguments, DPOConfig):
        pass


    HeldDPOTrainer(model, args=HeldDPOConfig(features="zh.safetensors"), train_dataset=data).train()
    ```

    Serves TRL's `SFTTrainer` (use [`SASFTTrainer`], which knows packing), `DPOTrainer`, `KTOTrainer`, `RewardTrainer`,
    `GRPOTrainer`, `RLOOTrainer`, `DistillationTrainer`, [`SteeredGRPOTrainer`] and transformers' `Trainer`. For one
    whose batches look otherwise, override [`penalised_tokens`]. The config must derive from
    [`FeaturePenaltyArguments`]; a plain one trains plainly, with a warning. Reward models give tokens no probability:
    features only.

    The term is a mean over tokens, divided as the trainer divides. Where the trainer counts the tokens of the whole
    accumulation window over all processes (SFT, `Trainer`, GRPO, distillation), that count is the divisor, for every
    `loss_type`: a weight means the same at any batch size, accumulation and number of processes. Where `Trainer`
    divides a micro-batch's loss by the accumulation (DPO, KTO, reward models, RLOO), it is the mean of the
    micro-batch. In RL the penalty reads the answers that the model wrote in this step, steered ones included: it acts
    on how the model reads given tokens, whoever chose them.

    Args:
        *args, **kwargs:
            What the trainer takes.
        feature_set ([`FeatureSet`], *optional*):
            The features, in place of `args.features`. A trainer behind this one that takes a `feature_set` too
            ([`SteeredGRPOTrainer`]) gets the same.

    Raises:
        ValueError: If there are neither features nor penalised tokens, the features belong to another model, a group
            in the data has no statistics, no token would be penalised, or a setting leaves the penalty without its
            tokens.
        RuntimeError: If Unsloth has been imported.
    """

    # The trainer's own; declared for the type checker.
    model: Any
    args: Any
    accelerator: Any
    data_collator: Any
    train_dataset: Any
    eval_dataset: Any
    processing_class: Any

    feature_penalty: FeaturePenalty | None = None
    """The penalty on features in use, if any. Without it and a penalty on tokens the trainer trains plainly."""
    token_penalty: TokenPenalty | None = None
    """The penalty on a set of tokens in use, if any."""
    adaptive_weight: AdaptiveWeight | None = None
    """What adapts the weight; `None` with a fixed one."""

    _holds: bool = False  # features, tokens or both
    _token_weight: float = 0.0
    _groups: GroupTable | None = None
    _recorder: SiteRecorder | None = None
    _head: OutputHead | None = None
    _kept_column: str | None = None  # column that must reach the collator
    _pairs: bool = False
    _row_groups: RowGroups | None = None
    _told_by_script: bool = False  # groups are told from answers, of which some may have no letters

    def __init__(self, *args: Any, feature_set: FeatureSet | None = None, **kwargs: Any):
        refuse_rewritten(type(self))
        given = [*args, *kwargs.values()]
        settings = next((value for value in given if isinstance(value, FeaturePenaltyArguments)), None)
        features = None
        if settings is None:
            behind = type(self).__mro__[type(self).__mro__.index(FeaturePenaltyMixin) + 1 :]
            require_nothing_to_hold(type(self), behind, given, feature_set)
        else:
            features = load_features(settings, feature_set)
        if settings is not None and (features is not None or settings.penalised_tokens is not None):
            model = kwargs.get("model", args[0] if args else None)
            if features is not None and isinstance(model, nn.Module):  # before any work; a name once it is loaded
                features.check_model(model, allow_base_model=settings.allow_base_model)
            refuse_environment_without_rows(super().__init__, args, kwargs)
            self._build_penalty(settings, features)
        if "feature_set" in inspect.signature(super().__init__).parameters:
            kwargs["feature_set"] = feature_set
        if settings is not None and kwargs.get("formatting_func") is None:
            kwargs = datasets_with_messages(kwargs)
        super().__init__(*args, **kwargs)
        if settings is not None and self._holds:
            if features is not None:
                features.check_model(
                    self.model, allow_base_model=settings.allow_base_model, tokenizer=self.processing_class
                )
            self._refuse_what_cannot_work(settings)
            if settings.penalised_tokens is not None:
                self._build_token_penalty(settings)
            self._prepare_groups(settings)
            # Hooks are registered when nothing can be refused any more, and before the first forward.
            if self.feature_penalty is not None:
                self._recorder = SiteRecorder(self.model, self.feature_penalty.places)
            if self._head is not None:
                self._head.listen()
            if self.adaptive_weight is not None:
                self.add_callback(KeepWeightInCheckpoints(self.adaptive_weight))  # type: ignore[attr-defined]

    def _build_penalty(self, settings: FeaturePenaltyArguments, features: FeatureSet | None) -> None:
        self._holds = True
        self._fixed_weight = float(settings.penalty_weight) if features is not None else 0.0
        self._token_weight = float(settings.token_penalty_weight) if settings.penalised_tokens is not None else 0.0
        if features is not None:
            self._groups = GroupTable.for_features(
                features, settings.target_group or features.target_groups, settings.unknown_group
            )
            self.feature_penalty = FeaturePenalty(
                features,
                self._groups,
                penalty=settings.penalty,
                unit=settings.penalty_unit,
                margin=settings.margin,
                hold=settings.hold or "down",
            )
        if settings.penalty_target is not None:
            self.adaptive_weight = AdaptiveWeight(
                self._fixed_weight,
                target=settings.penalty_target,
                max_loss_increase=settings.penalty_max_loss_increase,
            )
        self._positions = settings.penalty_positions
        self._kept_column = settings.group_column
        self._penalty_sums: dict[str, Tensor] = {}
        self._token_sums: dict[str, Tensor] = {}
        self._group_sums: dict[str, Tensor] = {}
        self._window: Tensor | None = None

    def _build_token_penalty(self, settings: FeaturePenaltyArguments) -> None:
        assert settings.penalised_tokens is not None
        self._head = OutputHead(self.model)
        ids = read_token_ids(settings.penalised_tokens, self.processing_class, self._head.vocab_size)
        evaluated = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        datasets = [self.train_dataset, *evaluated.values()]
        dataset = next((dataset for dataset in datasets if dataset is not None), None)
        self.token_penalty = TokenPenalty(ids, self._groups_for(settings, dataset))

    def _groups_for(self, settings: FeaturePenaltyArguments, dataset: Any) -> GroupTable:
        """The groups: the features' own, or without features those of the data."""
        if self._groups is None:
            self._groups = groups_without_features(settings, dataset)
        return self._groups

    @property
    def penalty_weight(self) -> float:
        """Weight of the penalty on features in the next step."""
        return self.adaptive_weight.weight if self.adaptive_weight is not None else self._fixed_weight

    def _charged_tokens(self) -> frozenset[int]:
        """The set of tokens that must be able to cost something; empty if there is none, or its weight is 0."""
        charged = self.token_penalty is not None and self._token_weight > 0
        return self.token_penalty.ids if charged and self.token_penalty is not None else frozenset()

    def penalised_tokens(self, inputs: Mapping[str, Any]) -> Tensor:
        """
        Which tokens of a batch the loss is on, `(B, T)`, bool. Those of the target groups are taken out later.

        Override it for a trainer whose batches are of another kind than [`answer_tokens`] knows. `inputs` is what
        `compute_loss` gets, without the groups.
        """
        return answer_tokens(inputs, pairs=self._pairs)

    def _refuse_what_cannot_work(self, settings: FeaturePenaltyArguments) -> None:
        refuse_what_cannot_work(self, settings)

    # Data: the group of each row, or of each token

    def _prepare_groups(self, settings: FeaturePenaltyArguments) -> None:
        """See to it that the batches hold [`GROUP_IDS`]: here one number per row."""
        assert self._groups is not None
        if getattr(self.args, "packing", False) or getattr(self, "padding_free", False):
            raise ValueError(
                "Packed and padding-free batches put several examples into a row, and their groups are lost. Use "
                "`SASFTTrainer`, which keeps them by token."
            )
        generates = hasattr(super(), "_generate_and_score_completions")
        evaluated = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        self._row_groups, self._pairs = prepare_row_groups(
            {"train": self.train_dataset, **evaluated},
            self._groups,
            settings,
            decode=getattr(self.processing_class, "decode", None),
            generates=generates,
            charges=self._fixed_weight > 0 or self._token_weight > 0,
            penalised_tokens=self._charged_tokens(),
        )
        self._told_by_script = self._row_groups.by_script
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
        return super().compute_ref_log_probs(model, _without_groups(inputs))  # type: ignore[misc]

    # The loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not self._holds:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        group_ids = inputs.get(GROUP_IDS)
        if group_ids is None:
            raise ValueError(
                f"The batch has no `{GROUP_IDS}`, so the penalty cannot tell whose tokens it may touch. "
                "Was the trainer's data collator replaced?"
            )
        inputs = _without_groups(inputs)  # ours: the model must not see it. A copy, since GRPO reads a batch again
        tokens = self.penalised_tokens(inputs)
        behind = behind_the_first(inputs, tokens.shape).to(tokens.device)
        mask, group_ids = _counted(tokens, group_ids, behind)
        num_tokens = mask.sum()
        # Taken now: a trainer may change its inputs.
        skip, generated = earlier_forwards(inputs), inputs.get("num_items_in_batch")
        ids = token_ids(inputs) if self.token_penalty is not None else None
        with ExitStack() as armed:
            captures = armed.enter_context(self._recorder.armed()) if self._recorder is not None else {}
            head_inputs = armed.enter_context(self._head.armed()) if self._head is not None else []
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        training, weight = self.model.training, self.penalty_weight
        mode = "train" if training else "eval"
        own_loss = loss = result[0] if return_outputs else result
        if self.feature_penalty is not None:
            with torch.set_grad_enabled(training and weight > 0):
                values = {place: values[skip:] for place, values in captures.items()}
                reading = self._read_penalty(values, group_ids, mask, behind)
                if training and weight > 0:
                    term = self._divide(reading.excess_sum, num_tokens, num_items_in_batch, generated)
                    loss = loss + weight * term.to(loss.device)
            self._penalty_sums[mode] = self._penalty_sums.get(mode, 0) + reading_sums(reading, num_tokens)
            if training and self.adaptive_weight is not None:
                self._adapt_weight(self.adaptive_weight, reading, own_loss.detach(), num_items_in_batch)
        if ids is not None:
            charged = training and self._token_weight > 0
            with torch.set_grad_enabled(charged):
                mass = self._read_token_mass(head_inputs[skip:], ids, group_ids, mask)
                if charged:
                    term = self._divide(mass.mass_sum, num_tokens, num_items_in_batch, generated)
                    loss = loss + self._token_weight * term.to(loss.device)
            self._token_sums[mode] = self._token_sums.get(mode, 0) + token_sums(mass)
        if self._told_by_script:
            without_group = (mask & (group_ids == NO_GROUP)).sum()
            self._group_sums[mode] = self._group_sums.get(mode, 0) + group_sums(without_group, num_tokens)
        return (loss, result[1]) if return_outputs else loss

    def _read_token_mass(
        self, head_inputs: list[Tensor], ids: Tensor, group_ids: Tensor, mask: Tensor
    ) -> TokenReading:
        assert self.token_penalty is not None and self._head is not None
        hidden = self._head.training_input(head_inputs)
        return self.token_penalty(hidden[:, -mask.shape[1] :], self._head, ids, group_ids, mask)

    def _read_penalty(
        self, captures: dict[Place, list[Tensor]], group_ids: Tensor, mask: Tensor, behind: Tensor
    ) -> PenaltyReading:
        assert self.feature_penalty is not None
        values = {}
        for place in self.feature_penalty.places:
            value = training_capture(captures, place)
            values[place] = value[:, -mask.shape[1] :]  # prompt tuning puts virtual tokens in front
        if self._positions == "predicting":
            mask = mask.roll(-1, dims=1) & behind  # each one to the left; the attention sink stays out
        return self.feature_penalty(values, group_ids, mask)

    def _divide(
        self, excess_sum: Tensor, num_tokens: Tensor, num_items_in_batch: Any, num_generated: Tensor | None
    ) -> Tensor:
        """
        Divide as the trainer divides its token loss.

        Args:
            excess_sum (`torch.Tensor` of shape `()`):
                Sum over the tokens of the micro-batch: of excesses, or of probabilities.
            num_tokens (`torch.Tensor` of shape `()`):
                How many count.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Labels of the accumulation window, over all processes if `average_tokens_across_devices`.
            num_generated (`torch.Tensor`, *optional*):
                Tokens that were generated at once over all processes, which trainers that generate put in the batch.
        """
        if self._trainer_divides(num_items_in_batch):
            return excess_sum / num_tokens.to(excess_sum.device).clamp(min=1)
        if num_generated is not None:  # as `GRPOTrainer._compute_loss` divides with `loss_type="dapo"`
            num_items = num_generated.to(excess_sum.device).clamp(min=1) / self.accelerator.num_processes
            num_batches = getattr(self.args, "steps_per_generation", None)
            if num_batches:  # what is generated at once may serve several windows, or part of one
                num_items = num_items * self.current_gradient_accumulation_steps / num_batches  # type: ignore[attr-defined]
            return excess_sum / num_items
        if num_items_in_batch is None:
            num_tokens = num_tokens.to(excess_sum.device)
            return excess_sum / num_tokens.clamp(min=1) / self.current_gradient_accumulation_steps  # type: ignore[attr-defined]
        scaled = excess_sum / torch.as_tensor(num_items_in_batch, device=excess_sum.device).clamp(min=1)
        if self.args.average_tokens_across_devices:  # DDP averages gradients, the count is of all processes
            scaled = scaled * (self.accelerator.num_processes // self.get_tp_size())  # type: ignore[attr-defined]
        return scaled

    def _trainer_divides(self, num_items_in_batch: Any) -> bool:
        """Whether `Trainer.training_step` divides the loss by the accumulation steps."""
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is not None:
            return not scaled
        counted = self.model_accepts_loss_kwargs and num_items_in_batch is not None  # type: ignore[attr-defined]
        return not counted and self.compute_loss_func is None  # type: ignore[attr-defined]

    def _adapt_weight(
        self, adaptive_weight: AdaptiveWeight, reading: PenaltyReading, loss: Tensor, num_items_in_batch: Any
    ) -> None:
        """At the last micro-batch of an optimizer step, reduce its figures over all processes and adapt the weight."""
        num_features = len(reading.num_above)
        num_possible = reading.num_penalised * num_features
        device, wide = self.accelerator.device, widest_float(self.accelerator.device)
        parts = (reading.num_above.sum(), num_possible, loss, torch.ones_like(num_possible))
        sums = torch.stack([part.to(device, wide) for part in parts])
        self._window = sums if self._window is None else self._window + sums
        if not self.accelerator.sync_gradients:
            return
        above, possible, loss_sum, num_batches = self.accelerator.reduce(self._window, "sum").tolist()
        self._window = None
        divisor = num_batches if self._trainer_divides(num_items_in_batch) else self.accelerator.num_processes
        if possible:
            adaptive_weight.update(above / possible, loss_sum / divisor)

    # Metrics stay tensors on the device until the logging step, where they are reduced once.

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        if self.feature_penalty is not None and mode in self._penalty_sums:
            sums = self._reduced(self._penalty_sums, mode)
            metrics = penalty_metrics(sums, self.feature_penalty)
            if self.adaptive_weight is not None:
                metrics["sae/penalty_weight"] = self.penalty_weight
            logs.update({name if mode == "train" else f"eval_{name}": value for name, value in metrics.items()})
        if self.token_penalty is not None and mode in self._token_sums:
            metrics = token_metrics(self._reduced(self._token_sums, mode))
            logs.update({name if mode == "train" else f"eval_{name}": value for name, value in metrics.items()})
        if self._holds and mode in self._group_sums:
            metrics = group_metrics(self._reduced(self._group_sums, mode))
            logs.update({name if mode == "train" else f"eval_{name}": value for name, value in metrics.items()})
        super().log(logs, start_time)  # type: ignore[misc]

    def _reduced(self, sums: dict[str, Tensor], mode: str) -> Tensor:
        """The sums of a window over all processes; they begin anew."""
        return self.accelerator.reduce(sums.pop(mode).to(self.accelerator.device), reduction="sum")


def _without_groups(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name != GROUP_IDS}


def _counted(tokens: Tensor, group_ids: Tensor, behind: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens that count, and the group of each, `(B, T)`; the groups are given by row or by token."""
    if len(group_ids) != len(tokens):
        raise ValueError(
            f"The batch has {len(tokens)} rows and the groups of {len(group_ids)}; whose tokens are whose is lost. "
            "Use a collator that makes one row of each example (no `DataCollatorWithFlattening`)."
        )
    if group_ids.dim() == 1:
        group_ids = group_ids[:, None].expand_as(tokens)
    # Nothing predicts a document's first token, and TRL does not count it.
    return tokens & (group_ids != PADDING) & behind, group_ids
