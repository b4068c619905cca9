"""Steered GRPO on TRL's `GRPOTrainer`: some rollouts of each prompt are pushed into the fault."""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from ..checkpoints import CompleteCheckpoints
from ..conversations import datasets_with_messages
from ..features.set.feature_set import FeatureSet
from ..hooks.steer import Steerer
from ..measure.answers.end_of_turn import why_rollouts_run_on
from ..model_card import FeatureCard
from ..unsloth import refuse_unsloth
from .advantages import floor_weights, group_advantages, total_reward, truncated_weights
from .blind_reward import BlindRewardCheck, sees_repetition
from .config import SteeredGRPOConfig
from .controller import StrengthController
from .dynamic_sampling import DynamicSampling
from .metrics import loss_shares, loss_sums, pass_means, pass_sums, rollout_metrics
from .prompting import require_calibrated_prompts
from .refusals import (
    refuse_arguments,
    refuse_settings,
    refuse_several_turns,
    refuse_sharded_resampling,
    refuse_short_completions,
)
from .resume import ResumableGRPO
from .rewards import tell_template
from .rollouts import (
    Fault,
    Rollouts,
    cut_loops,
    endless_repetition,
    rows_in_step,
    show_fault,
    steered_positions,
    steered_slots,
)

logger = logging.getLogger(__name__)


class SteeredGRPOTrainer(DynamicSampling, ResumableGRPO, CompleteCheckpoints, FeatureCard, GRPOTrainer):  # type: ignore[misc]
    """
    [`~trl.GRPOTrainer`] that steers some rollouts of each prompt along features into a fault, so that every prompt
    has a bad case to learn from (rare negative augmentation, https://huggingface.co/papers/2605.11887, section 8).

    Only rollouts in training are steered: log-probabilities (current, old, reference) and evaluation never are.
    Logged under `steer/`: `hit_rate` (at the first attempt), `reward` and `length` of steered rollouts, the same with
    `_plain` of the others; `strength`; `token_share` and `advantage_share`, the steered rollouts' part of the loss's
    tokens and of `Σ |advantage · weight|` over them; `logp`, their log-probability per token for the policy as it is
    trained, at the sampling temperature; `entropy_plain`; `only_signal`, the share of prompts for which only the
    steered rollout makes a difference; `dropped`, `resampled`, `hit_rate_resampled` where rollouts are.

    With `dynamic_sampling`, also of `num_steered=0`, prompts whose plain rollouts all score the same are replaced
    before anything is computed from their rollouts. Logged under `dynamic/`: `rounds`; `kept`, `all_right` and
    `all_wrong`, shares of the prompts that were asked (right and wrong by the middle of the rewards seen so far);
    `generated_per_kept`, rollouts; `shortfall`, the share of the batch that still has no spread. Every other figure
    counts kept rollouts only, but for `num_tokens`, which counts whatever was generated, and what a reward logs by
    `log_metric`.

    `GRPOConfig` in place of [`SteeredGRPOConfig`] trains plainly, with a warning.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`):
            As in [`~trl.GRPOTrainer`].
        reward_funcs:
            As in [`~trl.GRPOTrainer`]. One of them must score the fault lower; one of your own that sees endless
            repetition says so by an attribute `sees_repetition = True`.
        args ([`SteeredGRPOConfig`], *optional*):
            Settings.
        feature_set ([`FeatureSet`], *optional*):
            The features, in place of `args.features`.
        fault (`Callable[[list[int], bool], bool]`, *optional*):
            From an answer's token ids, without the end token, and whether it was ended: does it show the fault? By
            default, whether [`find_loop`] calls it endless.
        **kwargs:
            Everything else [`~trl.GRPOTrainer`] takes.

    Raises:
        ValueError: If there are no features or no strength, they belong to another model, or a setting would undo the
            steering. In training: if the rewards do not see the fault.
        RuntimeError: If Unsloth has been imported.
    """

    _tag_names = ["trl", "grpo", "sae"]
    _name = "Steered GRPO"
    _paper = {
        "title": "Qwen-Scope",
        "id": "2605.11887",
    }
    card_tag = "steered-grpo"

    model: Any  # set by GRPOTrainer, whose annotations allow for None
    num_generations: Any
    _logs: Any

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: SteeredGRPOConfig | GRPOConfig | None = None,
        *,
        feature_set: FeatureSet | None = None,
        fault: Fault | None = None,
        **kwargs: Any,
    ):
        refuse_unsloth(type(self))
        if args is None and feature_set is not None:
            name = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "")
            args = SteeredGRPOConfig(f"{str(name).split('/')[-1] or 'model'}-SteeredGRPO")
        self._steering: SteeredGRPOConfig | None = args if isinstance(args, SteeredGRPOConfig) else None
        refuse_short_completions(reward_funcs, getattr(args, "max_completion_length", None))
        self._fault = fault or endless_repetition
        self._steerer: Steerer | None = None
        self._strength = 0.0
        self._rollouts: Rollouts | None = None
        self._rewards: Tensor | None = None
        self._loss_pass: list[tuple[Tensor, Tensor]] | None = None
        self._pass_sums: Tensor | None = None

        steers = self._steering is not None and self._steering.num_steered > 0
        other_rollouts = [kwargs.get(name) for name in ("rollout_func", "tools", "environment_factory")]
        if self._steering is not None and self._steering.dynamic_sampling != "none":
            refuse_several_turns(*other_rollouts)
        if self._steering is not None and steers:
            feature_set = _load_features(self._steering, feature_set)
            refuse_arguments(*other_rollouts)
            own = getattr(model, "generation_config", None)
            refuse_settings(self._steering, own, detects_loops=fault is None)
            self._strength = _strength(self._steering, feature_set)
            if isinstance(model, nn.Module):  # before any work; a name is checked once it is loaded
                feature_set.check_model(model, allow_base_model=self._steering.allow_base_model)
        elif self._steering is None:
            _require_nothing_to_steer(args, feature_set)

        if self._steering is not None:
            kwargs = datasets_with_messages(kwargs)
        super().__init__(model, reward_funcs, args, **kwargs)

        tell_template(self.reward_funcs, self.processing_class, self.chat_template, self.chat_template_kwargs)
        self._say_what_runs_on()
        if self._steering is not None:
            self._blind_reward = BlindRewardCheck(self._steering.blind_reward_patience, self.reward_func_names)
            self._start_dynamic_sampling()
        if self._steering is not None and steers:
            assert feature_set is not None
            feature_set.check_model(
                self.model, allow_base_model=self._steering.allow_base_model, tokenizer=self.processing_class
            )
            refuse_settings(self._steering, self.model.generation_config, detects_loops=fault is None)
            if self._steering.steer_strength is None and self.train_dataset is not None:
                variables: Any = self.chat_template_kwargs
                require_calibrated_prompts(
                    feature_set.notes.get("calibration") or {},
                    self.train_dataset,
                    getattr(self.processing_class, "tokenizer", self.processing_class),
                    variables,
                )
            refuse_sharded_resampling(self._steering, is_sharded=self._is_sharded())
            if self._is_vlm:
                raise ValueError("Steering works on text; vision-language models are not supported yet.")
            if fault is None and not any(sees_repetition(reward_func) for reward_func in self.reward_funcs):
                logger.warning(
                    "None of the rewards (%s) is known to score endless repetition lower, and then the steered "
                    "rollouts teach nothing. Add `EndlessRepetitionReward(tokenizer.eos_token_id)`; if one of yours "
                    "sees it, set its attribute `sees_repetition = True`.",
                    ", ".join(self.reward_func_names),
                )
            self.feature_set = feature_set
            self._steerer = Steerer(self.model, feature_set)  # a hook added after `torch.compile` would never fire
            if self._steering.target_hit_rate is not None:
                controller = StrengthController(
                    self._strength,
                    target=self._steering.target_hit_rate,
                    gain=self._steering.strength_gain,
                    largest=self._steering.max_steer_strength,
                )
                self.add_callback(controller)

    def _say_what_runs_on(self) -> None:
        first = next(iter(self.train_dataset), None) if self.train_dataset is not None else None
        if first is not None and not isinstance(first.get("prompt"), str):
            tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
            message = why_rollouts_run_on(tokenizer, self.eos_token_ids)
            if message is not None:
                logger.warning(message)

    @property
    def _controller(self) -> StrengthController | None:
        return next((each for each in self.callback_handler.callbacks if isinstance(each, StrengthController)), None)

    @property
    def steer_strength(self) -> float:
        """Strength of the next steered rollouts, in residual norms."""
        return self._controller.strength if self._controller is not None else self._strength

    # Rollouts

    def _generate_single_turn(
        self, prompt_ids: list, images: Any, multimodal_fields: dict, num_generations: int, *args: Any, **kwargs: Any
    ):
        if self._steering is None or not self.model.training:
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs
            )
        if self._replay is not None:
            self._rollouts = self._replay.rollouts
            return self._replay.completion_ids, self._replay.logprobs

        def generate(prompts: list, steered: Tensor):
            rest = (prompts, images, multimodal_fields, num_generations, *args)
            if self._steerer is None:
                return super(SteeredGRPOTrainer, self)._generate_single_turn(*rest, **kwargs)
            assert self._steering is not None
            positions = self._steering.steer_positions
            with self._steerer.armed(self.steer_strength, rows=steered, positions=positions):
                return super(SteeredGRPOTrainer, self)._generate_single_turn(*rest, **kwargs)

        steered = self._slots(len(prompt_ids))
        completion_ids, logprobs = generate(prompt_ids, steered)
        faulty = show_fault(self._fault, completion_ids, self.eos_token_ids)
        hit_at_first, num_resampled = faulty.clone(), 0
        if self._steering.on_miss == "resample":
            for _ in range(self._steering.max_resamples):
                missed = (steered & ~faulty).nonzero().flatten().tolist()
                if not missed:
                    break
                again, _ = generate([prompt_ids[row] for row in missed], torch.ones(len(missed), dtype=torch.bool))
                for row, ids in zip(missed, again):
                    completion_ids[row] = ids
                faulty[missed] = show_fault(self._fault, again, self.eos_token_ids)
                num_resampled += len(missed)
        self._rollouts = Rollouts(steered, faulty, hit_at_first, num_resampled, self.steer_strength)
        return completion_ids, logprobs

    def _slots(self, num_rows: int) -> Tensor:
        assert self._steering is not None
        return steered_slots(
            num_rows, self.accelerator.process_index, self.num_generations, self._steering.num_steered
        )

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._rewards = total_reward(rewards_per_func, self.reward_weights)
        if self._steerer is not None:  # a column of the completions table, which needs a value in evaluation too
            steered = self._rollouts.steered.tolist() if self._rollouts is not None else [False] * len(prompts)
            self._log_completion_extra("steered", steered)
        return rewards_per_func

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rollouts = None
        batch = super()._generate_and_score_completions(inputs)
        if self._rollouts is None:  # plain training, or evaluation
            return batch
        assert self._steering is not None and self._rewards is not None
        rollouts = self._rollouts
        num_tokens = batch["completion_mask"].sum(dim=1)
        own = [rollouts.steered, rollouts.faulty, rollouts.hit_at_first, num_tokens]
        everyone = self.accelerator.gather(torch.stack([column.to(num_tokens) for column in own], dim=1))
        steered, faulty, hit_at_first = everyone[:, :3].bool().unbind(dim=1)
        metrics = rollout_metrics(self._rewards, everyone[:, 3], steered, faulty, hit_at_first, self.num_generations)
        if self._steerer is not None:
            self._blind_reward.update(self._rewards, steered, faulty, self.num_generations)
            metrics |= self._weigh(batch, rollouts, steered, faulty)
            batch["steered"] = rollouts.steered.to(num_tokens.device)
            sums = loss_sums(batch["completion_mask"], batch["advantages"], batch["steered"])
            metrics |= loss_shares(self.accelerator.reduce(sums, reduction="sum"))
            metrics["strength"] = rollouts.strength
            if self._controller is not None:
                self._controller.update(metrics["hit_rate"])
        for name, value in metrics.items():
            self._metrics["train"][f"steer/{name}"].append(value)
        return batch

    # Weight of the steered rollouts in the loss

    def _weigh(
        self, batch: dict[str, Any], rollouts: Rollouts, steered_N: Tensor, faulty_N: Tensor
    ) -> dict[str, float]:
        """Apply the options to the batch; returns what is worth logging of it."""
        assert self._steering is not None
        args, device = self._steering, batch["completion_mask"].device
        steered = rollouts.steered.to(device)
        metrics: dict[str, float] = {}
        # The weights need the whole rollout as the policy saw it, so they come before any token is masked.
        weights = self._off_policy_weights(batch, rollouts) if args.off_policy_weight != "none" else None

        dropped_N = (steered_N & ~faulty_N) if args.on_miss == "drop" else torch.zeros_like(steered_N)
        if args.steered_baseline == "plain" or args.on_miss == "drop":
            in_baseline = ~steered_N if args.steered_baseline == "plain" else torch.ones_like(steered_N)
            self._replace_advantages(batch, in_baseline, ~dropped_N)
        if args.on_miss == "drop":
            metrics["dropped"] = float(dropped_N.sum())
        if args.on_miss == "resample":
            metrics["resampled"] = float(
                self.accelerator.gather(torch.tensor([rollouts.num_resampled], device=device)).sum()
            )
            metrics["hit_rate_resampled"] = faulty_N[steered_N].float().mean().item()

        mask = batch["completion_mask"]
        if args.loop_cut is not None:
            mask = cut_loops(batch["completion_ids"], mask, steered, args.loop_cut, self.eos_token_ids)
        if args.on_miss == "drop":
            mask = mask * ~(steered & ~rollouts.faulty.to(device))[:, None]
        if mask is not batch["completion_mask"]:
            batch["completion_mask"] = mask
            batch["num_items_in_batch"] = self.accelerator.gather(mask.sum()).sum()  # as TRL counts them

        advantages = batch["advantages"]
        if args.cap_steered_advantage:
            advantages = torch.where(steered, advantages.clamp(max=0), advantages)
        if args.steered_weight != 1:
            advantages = torch.where(steered, advantages * args.steered_weight, advantages)
        if weights is not None:
            advantages = advantages[:, None] * weights  # TRL's loss takes advantages of shape (B, C)
        batch["advantages"] = advantages
        return metrics

    def _replace_advantages(self, batch: dict[str, Any], in_baseline: Tensor, in_group: Tensor) -> None:
        assert self._rewards is not None
        advantages_N = group_advantages(
            self._rewards,
            self.num_generations,
            scale_rewards=self.scale_rewards,
            in_baseline=in_baseline,
            in_group=in_group,
        )
        num_rows = len(batch["advantages"])
        start = self.accelerator.process_index * num_rows
        batch["advantages"] = advantages_N[start : start + num_rows]
        self._logs["advantages"].extend(advantages_N.tolist())  # a queue of one generation: these push TRL's out

    def _off_policy_weights(self, batch: dict[str, Any], rollouts: Rollouts) -> Tensor:
        """Weight of each token `(B, C)`: 1 on plain rollouts."""
        assert self._steering is not None and self._steerer is not None
        args = self._steering
        rows = rows_in_step(
            rollouts.steered,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            self.num_generations,
            args.num_steered,
        )
        asked = rollouts.steered[rows]  # not the rows that only keep in step
        old = batch.get("old_per_token_logps")
        logps = old[rows] if old is not None else self._logps(batch, rows)
        if args.off_policy_weight == "floor":
            weights_RC = floor_weights(logps, args.off_policy_floor)
        else:
            weights_RC = truncated_weights(logps, self._logps(batch, rows, rollouts.strength), args.off_policy_clip)
        weights = torch.ones_like(batch["completion_mask"], dtype=torch.float32)
        weights[rows[asked]] = weights_RC[asked.to(weights_RC.device)]
        return weights

    def _logps(self, batch: dict[str, Any], rows: Tensor, strength: float | None = None) -> Tensor:
        """Log-probabilities of the completions of some rows `(R, C)`, under steering if a strength is given."""
        assert self._steering is not None and self._steerer is not None
        input_ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        attention_mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        num_prompt, num_completion = batch["prompt_ids"].shape[1], batch["completion_ids"].shape[1]
        checkpointing: Any = self.args.gradient_checkpointing_kwargs
        chunks = []
        with torch.no_grad(), disable_gradient_checkpointing(self.model, checkpointing):
            for chunk in rows.split(self.args.per_device_train_batch_size):
                inputs = (self.model, input_ids[chunk], attention_mask[chunk], num_completion)
                if strength is None:
                    logps, *_ = self._get_per_token_logps_and_entropies(*inputs)
                else:
                    positions = steered_positions(self._steering.steer_positions, num_prompt, attention_mask[chunk])
                    with self._steerer.armed(strength, positions=positions):
                        logps, *_ = self._get_per_token_logps_and_entropies(*inputs)
                chunks.append(logps)
        return torch.cat(chunks)

    # What the loss pass saw: tensors until the logging step, where they are reduced once

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any):
        result = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if self._loss_pass is not None:
            self._loss_pass.append((result[0].detach(), result[1].detach()))
        return result

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        steered = inputs.get("steered")
        if steered is None:
            return super()._compute_loss(model, inputs)
        self._loss_pass = []
        try:
            loss = super()._compute_loss(model, inputs)
            ((logps, entropies),) = self._loss_pass
        finally:
            self._loss_pass = None
        sums = pass_sums(logps, entropies, inputs["completion_mask"], steered)
        self._pass_sums = sums if self._pass_sums is None else self._pass_sums + sums
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._pass_sums is not None and self.model.training:
            sums = self.accelerator.reduce(self._pass_sums, reduction="sum")
            self._pass_sums = None
            for name, value in pass_means(sums).items():
                self._metrics["train"][f"steer/{name}"].append(value)
        super().log(logs, start_time)

    def _moved_settings(self) -> dict[str, Any]:
        moved = {"steer_strength": self._strength}
        return moved | ({"strength in the end": self.steer_strength} if self._controller is not None else {})

    def _is_sharded(self) -> bool:
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        return self.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)


def _load_features(args: SteeredGRPOConfig, feature_set: FeatureSet | None) -> FeatureSet:
    if feature_set is not None:
        return feature_set
    if args.features is None:
        raise ValueError(
            f"`num_steered` is {args.num_steered}, but there are no features to steer along. Set `features` to a "
            "feature set (`sae-posttrain find-features --kind repetition` writes one), or `num_steered=0` for plain "
            "GRPO."
        )
    return FeatureSet.from_pretrained(args.features)


def _strength(args: SteeredGRPOConfig, feature_set: FeatureSet) -> float:
    strength: float | None = args.steer_strength
    if strength is None:
        calibration = feature_set.calibration
        strength = calibration.get("strength")
        if not strength:
            found = "its calibration found none" if calibration else "it was not calibrated"
            raise ValueError(
                f"There is no `steer_strength`, and none is stored in the feature set: {found}. Run `calibrate` on "
                "it, or set `steer_strength` (in residual norms)."
            )
        overrides: Any = args.generation_kwargs or {}
        sampled_at = overrides.get("temperature", args.temperature)
        temperature = calibration.get("settings", {}).get("temperature", sampled_at)
        if temperature != sampled_at:
            logger.warning(
                "The strength was calibrated at temperature %g, the rollouts are sampled at %g: the hit rate may be "
                "another. Calibrate at that temperature, or set `target_hit_rate`.",
                temperature,
                sampled_at,
            )
    if args.target_hit_rate is not None and strength > args.max_steer_strength:
        raise ValueError(
            f"The strength starts at {strength}, above `max_steer_strength={args.max_steer_strength}`. Raise that, or "
            "set a lower `steer_strength`."
        )
    return float(strength)


def _require_nothing_to_steer(args: Any, feature_set: FeatureSet | None) -> None:
    if feature_set is not None:
        raise ValueError(
            f"A `feature_set` was passed with a plain `{type(args).__name__}`, which steers nothing. Use "
            "`SteeredGRPOConfig`."
        )
    logger.warning(
        "SteeredGRPOTrainer got a plain `%s`: it trains like `GRPOTrainer`, and no rollout is steered. Use "
        "`SteeredGRPOConfig(features=…)`.",
        type(args).__name__ if args is not None else "GRPOConfig",
    )
