"""Steered GRPO on TRL's `GRPOTrainer`: some rollouts of each prompt are pushed into the fault."""

import re
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from ..checkpoints import CompleteCheckpoints
from ..conversations import datasets_with_messages
from ..cpu_logits import contiguous_states
from ..features.set.feature_set import FeatureSet
from ..gguf_models import with_trainable_model
from ..hooks.row_sampling import SAME_AS_CALL
from ..hooks.steer import Steerer
from ..measure.faults.fault import Fault, is_endless
from ..model_card import FeatureCard
from ..training.progress import show_first_figures
from ..unsloth import refuse_unsloth
from .advantages import total_reward
from .blind_reward import BlindRewardCheck
from .config import SteeredGRPOConfig
from .controller import StrengthController
from .dynamic_sampling import DynamicSampler, SamplingState
from .improbable import ImprobableCheck
from .kinds import RolloutKinds
from .metrics import LossPasses, pass_means, provoked_metrics, rollout_metrics
from .push_check import compare_pushes
from .refusals import (
    refuse_arguments,
    refuse_own_sampling,
    refuse_settings,
    refuse_several_turns,
    refuse_short_completions,
)
from .resume import ResumableGRPO
from .rewards import tell_template
from .rollouts import (
    Rollouts,
    roll_out,
    show_fault,
    steered_positions,
)
from .start import (
    check_rollouts,
    check_steering,
    cold_sampling,
    controller_of,
    first_strength,
    load_features,
    steered_sampling,
    warn_of_plain_config,
    warn_of_rollouts_that_run_on,
)
from .vllm_rollouts import VLLMRollouts, drawn_logps, engines_that_steer, row_settings
from .weighing import leave_out_of_kl, new_advantages, weigh

_Callback = TypeVar("_Callback")


class SteeredGRPOTrainer(ResumableGRPO, CompleteCheckpoints, FeatureCard, GRPOTrainer):  # type: ignore[misc]
    """
    [`~trl.GRPOTrainer`] that steers some rollouts of each prompt along features into a fault, so that every prompt
    has a bad case to learn from (rare negative augmentation, https://huggingface.co/papers/2605.11887, section 8).

    Only rollouts in training are steered. Log-probabilities (current, old, reference) and evaluation never are.

    Steered rollouts may be sampled at a temperature of their own (`steer_temperature`), and `num_cold` rollouts of
    each prompt at `cold_temperature`, without steering. All rollouts are generated in one batch. The plain ones are
    sampled as without these settings: in the first generation bit for bit, later from another place of the random
    stream if a generation took another number of steps. Log-probabilities are those of the policy at `temperature`.
    With `use_vllm`, vLLM generates the rollouts, steered ones and plain ones together. In the first generation of each
    training its log-probabilities are compared with those of the trainer's own passes, with and without steering.

    Logged under `steer/`:
    - `hit_rate` (at the first attempt), `endless_rate` (share of answers that [`find_loop`] calls endless), `reward`
      and `length`: means over steered rollouts. `hit_rate`, `reward` and `length` with `_plain`: over plain ones.
    - `strength`: strength of the steered rollouts.
    - `token_share` and `advantage_share`: share of the steered rollouts in the tokens of the loss, and in
      `Σ |advantage · weight|` over these tokens.
    - `logp`: log-probability per token of steered rollouts under the policy in training, at the sampling temperature.
    - `entropy_plain`: entropy per token of plain rollouts.
    - `only_signal`: share of prompts for which only the steered and cold rollouts make a difference in reward.
    - `dropped`, `resampled`, `hit_rate_resampled`: with `on_miss="drop"` or `"resample"`.

    Logged under `cold/`, with `num_cold`: `hit_rate`, `endless_rate`, `reward`, `length`, `token_share`,
    `advantage_share`, `logp`, `dropped`, `resampled` and `hit_rate_resampled` of cold rollouts, as under `steer/`.

    With `dynamic_sampling` (with `num_steered=0` too), prompts whose plain rollouts all score the same are replaced
    before anything is computed from their rollouts. Every other figure then counts kept rollouts only, with two
    exceptions: `num_tokens` counts everything that was generated, and so does what a reward logs by `log_metric`.
    Logged under `dynamic/`:
    - `rounds`: rounds of generation.
    - `kept`, `all_right`, `all_wrong`: shares of the prompts that were asked. Right and wrong are told by the middle
      of the rewards seen so far.
    - `generated_per_kept`: generated rollouts for each kept one.
    - `shortfall`: share of the batch that still has no spread.

    With a `GRPOConfig` instead of a [`SteeredGRPOConfig`] it trains plainly, with a warning.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`):
            As in [`~trl.GRPOTrainer`].
        reward_funcs:
            As in [`~trl.GRPOTrainer`]. One of them must score the fault lower. A reward of your own that sees endless
            repetition says so by an attribute `sees_repetition = True`.
        args ([`SteeredGRPOConfig`], *optional*):
            Settings.
        feature_set ([`FeatureSet`], *optional*):
            Features to steer along, instead of `args.features`.
        fault (`Callable[[list[int], bool], bool]`, *optional*):
            Tells whether an answer shows the fault, from its token ids (without the end token) and whether the model
            ended it. By default an answer is faulty if [`find_loop`] calls it endless.
        **kwargs:
            Further arguments of [`~trl.GRPOTrainer`].

    Raises:
        ValueError: If there are no features or no strength, the features belong to another model, or a setting would
            undo the steering. In training: if the rewards do not see the fault, or vLLM did not push as it should.
        RuntimeError: If Unsloth has been imported.
    """

    _tag_names = ["trl", "grpo", "sae"]
    _name = "Steered GRPO"
    _paper = {"title": "Qwen-Scope", "id": "2605.11887"}
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
            args = SteeredGRPOConfig(f"{re.split('[/:]', str(name))[-1] or 'model'}-SteeredGRPO")
        self._steering: SteeredGRPOConfig | None = args if isinstance(args, SteeredGRPOConfig) else None
        refuse_short_completions(reward_funcs, getattr(args, "max_completion_length", None))
        self._fault = fault or is_endless
        self._steerer: Steerer | None = None
        self._sampler: DynamicSampler | None = None
        self._strength = 0.0
        self._steered_sampling = self._cold_sampling = SAME_AS_CALL
        self._vllm: VLLMRollouts | None = None
        self._checked_state: Any = None  # that of the training in which vLLM's pushes were compared with ours
        self._loss_passes = LossPasses()
        self._improbable = ImprobableCheck()
        # The rollouts of the generation that is under way; `None` outside of one and in evaluation. `GRPOTrainer`
        # calls `_generate_single_turn`, `_calculate_rewards` and `_generate_and_score_completions` without a way to
        # pass something of ours from one to the next. This attribute is that way, and the only one. Rollouts that
        # have rewards already were kept by dynamic sampling: `GRPOTrainer` gets them instead of a generation.
        self._rollouts: Rollouts | None = None

        steers = self._steering is not None and self._steering.num_steered > 0
        provokes = self._steering is not None and self._steering.num_provoked > 0
        other_rollouts = [kwargs.get(name) for name in ("rollout_func", "tools", "environment_factory")]
        if self._steering is not None and self._steering.dynamic_sampling != "none":
            refuse_several_turns(*other_rollouts)
        if self._steering is not None and provokes:
            if steers:
                feature_set = load_features(self._steering, feature_set)
                self._steered_sampling = steered_sampling(self._steering, feature_set)
            self._cold_sampling = cold_sampling(self._steering)
            if {self._steered_sampling, self._cold_sampling} != {SAME_AS_CALL}:
                refuse_own_sampling(self._steering)
            refuse_arguments(*other_rollouts)
            refuse_settings(self._steering, getattr(model, "generation_config", None), detects_loops=fault is None)
        if self._steering is not None and steers:
            assert feature_set is not None
            self._strength = first_strength(self._steering, feature_set)
            if isinstance(model, nn.Module):  # before any work; a name is checked once it is loaded
                feature_set.check_model(model, allow_base_model=self._steering.allow_base_model)
        elif self._steering is None:
            warn_of_plain_config(args, feature_set)

        if self._steering is not None:
            kwargs = datasets_with_messages(kwargs)
        (model, _, args), kwargs = with_trainable_model((model, None, args), kwargs)
        engines: Any = nullcontext()
        if self._steering is not None and steers and self._steering.use_vllm:
            assert feature_set is not None
            engines = engines_that_steer(self._steering, feature_set)
        with engines:
            super().__init__(model, reward_funcs, args, **kwargs)

        show_first_figures(self)
        tell_template(self.reward_funcs, self.processing_class, self.chat_template, self.chat_template_kwargs)
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        warn_of_rollouts_that_run_on(self.train_dataset, tokenizer, self.eos_token_ids)
        if self._steering is not None:
            place = (self.num_generations, self.accelerator.process_index)
            self._kinds = RolloutKinds(self._steering, *place, self._steered_sampling, self._cold_sampling)
            self._blind_reward = BlindRewardCheck(self._steering.blind_reward_patience, self.reward_func_names)
            if self._steering.dynamic_sampling != "none":
                self._sampler = DynamicSampler(
                    self._roll_out,
                    self._steering,
                    accelerator=self.accelerator,
                    dataset=self.train_dataset,
                    reward_names=self.reward_func_names,
                    reward_weights=self.reward_weights,
                )
                self.add_callback(SamplingState())
        if self._steering is not None and provokes:
            check_rollouts(self, self._steering, detects_loops=fault is None)
            if self._steering.use_vllm:
                self._vllm = VLLMRollouts(self.vllm_generation, self._steering, feature_set if steers else None)
        if self._steering is not None and steers:
            assert feature_set is not None
            check_steering(self, self._steering, feature_set)
            self.feature_set = feature_set
            self._steerer = Steerer(self.model, feature_set)  # a hook added after `torch.compile` would never fire
            if self._steering.target_hit_rate is not None:
                self.add_callback(controller_of(self._steering, self._strength))

    def _callback(self, kind: type[_Callback]) -> _Callback | None:
        # Resuming may replace callbacks, so no reference to one is kept.
        return next((each for each in self.callback_handler.callbacks if isinstance(each, kind)), None)

    @property
    def steer_strength(self) -> float:
        """Strength of the next steered rollouts, in residual norms."""
        return getattr(self._callback(StrengthController), "strength", self._strength)

    # Rollouts

    def _generate_single_turn(
        self, prompt_ids: list, images: Any, multimodal_fields: dict, num_generations: int, *args: Any, **kwargs: Any
    ):
        settings, is_training = self._steering, self.model.training
        super_turn = super()._generate_single_turn

        def generate_turn(*given: Any, **options: Any):
            answers = super_turn(*given, **options)
            if self.model.training != is_training:  # TRL trains on after continuous batching, in evaluation too
                self.model.train(is_training)
            return answers

        if settings is None or not is_training:
            return generate_turn(prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs)

        def generate(prompts: list, steered: Tensor, cold: Tensor):
            turn = partial(generate_turn, prompts, images, multimodal_fields, num_generations, *args, **kwargs)
            if self._vllm is not None:
                rows = self._kinds.sampling_of(steered, cold)
                return self._vllm.generate(
                    turn, row_settings(steered, rows, self.steer_strength, settings.steer_positions)
                )
            steering: Any = nullcontext()
            if self._steerer is not None:
                steering = self._steerer.armed(self.steer_strength, rows=steered, positions=settings.steer_positions)
            sampling = self._kinds.sampling(self.model, steered, cold)
            with steering, contiguous_states(self.model), sampling as recorded:
                ids, logprobs = turn()
            return ids, logprobs, None if recorded is None else recorded.logps(ids)

        if self._rollouts is None or self._rollouts.rewards is None:
            self._rollouts = roll_out(
                generate,
                prompt_ids,
                *self._kinds.rows(len(prompt_ids)),
                fault=self._fault,
                end_ids=self.eos_token_ids,
                strength=self.steer_strength,
                max_resamples=settings.max_resamples if settings.on_miss == "resample" else 0,
            )
        return self._rollouts.completion_ids, self._rollouts.logprobs

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        rollouts = self._rollouts
        if rollouts is not None and rollouts.rewards is not None:
            rewards = rollouts.rewards
            for column, values in rollouts.extra.items():
                self._pending_extra_logs[column].extend(values)
        else:
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
            if rollouts is not None:
                rollouts.rewards = rewards
        settings = self._steering
        if settings is not None:  # columns of the completions table, which need a value in evaluation too
            for column, number in (("steered", settings.num_steered), ("cold", settings.num_cold)):
                if number:
                    flags = getattr(rollouts, column).tolist() if rollouts is not None else [False] * len(prompts)
                    self._log_completion_extra(column, flags)
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        try:
            if self._sampler is None or not self.model.training:
                batch = super()._generate_and_score_completions(inputs)
            else:
                batch = self._sample_and_score(inputs, self._sampler)
            if self._rollouts is not None:  # neither plain training nor evaluation
                if self._vllm is not None:
                    if self._steerer is not None and self._checked_state is not self.state:
                        self._compare_pushes(batch, self._rollouts)
                        self._checked_state = self.state  # a training has a state of its own
                    assert self._rollouts.sampling_logps is not None
                    rows = self._kinds.sampling_of(self._rollouts.steered, self._rollouts.cold)
                    self._rollouts.sampling_logps = drawn_logps(
                        self._rollouts.sampling_logps, [own.is_greedy for own in rows]
                    )
                self._weigh(batch, self._rollouts)
        finally:
            self._rollouts = None
        return batch

    def _sample_and_score(self, inputs: list[dict[str, Any]], sampler: DynamicSampler) -> dict[str, Any]:
        """
        The batch of those rollouts that dynamic sampling keeps.

        `GRPOTrainer` does its own work once, on kept rollouts: log-probabilities, advantages, metrics and logs.
        `inputs` holds the kept rows from then on, in the order of the batch.
        """
        state: Any = self._callback(SamplingState)
        metrics = {name: list(values) for name, values in self._metrics["train"].items()}
        kept, self._rollouts, sampled = sampler.fill(inputs, state)
        num_tokens = self.state.num_input_tokens_seen
        self._metrics["train"].clear()
        self._metrics["train"].update(metrics)
        batch = super()._generate_and_score_completions(kept)
        inputs[:] = kept  # whoever passed the rows, such as a penalty by their language, knows those of the batch
        self.state.num_input_tokens_seen = num_tokens  # each generated token once, those of kept rows among them
        self._metrics["train"]["num_tokens"] = [num_tokens]
        self._log_all({f"dynamic/{name}": value for name, value in sampled.items()})
        return batch

    def _roll_out(self, inputs: list[dict[str, Any]]) -> Rollouts:
        """Generate and score one rollout for each row of this process."""
        self._rollouts = None
        prompts = [row["prompt"] for row in inputs]
        _, completion_ids, _, completions, *_ = self._generate(prompts)
        rollouts: Any = self._rollouts  # `_generate_single_turn` has set it
        rollouts.rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids)
        rollouts.extra = dict(self._pending_extra_logs)
        self._pending_extra_logs.clear()
        return rollouts

    def _log_all(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)

    # Weight of the steered rollouts in the loss

    def _weigh(self, batch: dict[str, Any], rollouts: Rollouts) -> None:
        """Apply the settings to the batch, and log rates, means and shares."""
        args, gather = self._steering, self.accelerator.gather
        assert args is not None and rollouts.rewards is not None
        num_tokens = batch["completion_mask"].sum(dim=1)
        endless = rollouts.faulty
        if self._fault is not is_endless:
            endless = show_fault(is_endless, rollouts.completion_ids, self.eos_token_ids)
        flags = [rollouts.steered, rollouts.cold, rollouts.faulty, rollouts.hit_at_first, endless]
        everyone = gather(torch.stack([*(flag.to(num_tokens) for flag in flags), num_tokens], dim=1))
        steered_N, cold_N, faulty_N, hit_at_first_N, endless_N = everyone[:, :5].bool().unbind(dim=1)
        rewards_N = total_reward(rollouts.rewards, self.reward_weights)
        rates = (rewards_N, everyone[:, 5], steered_N, faulty_N, hit_at_first_N, self.num_generations)
        metrics = rollout_metrics(*rates, cold=cold_N, endless=endless_N)
        if args.num_provoked:
            provoked_N = steered_N | cold_N
            self._blind_reward.update(rewards_N, provoked_N, faulty_N, self.num_generations)
            advantages_N = new_advantages(args, rewards_N, provoked_N, faulty_N, self.scale_rewards)
            if advantages_N is not None:
                self._logs["advantages"].extend(advantages_N.tolist())  # its length is one generation: TRL's go out
            logps = partial(self._logps, batch)
            weigh(args, batch, rollouts, advantages_N, logps, accelerator=self.accelerator, end_ids=self.eos_token_ids)
            metrics |= provoked_metrics(args, batch, rollouts, (steered_N, cold_N, faulty_N), self.accelerator)
            if args.num_steered:
                metrics["steer/strength"] = rollouts.strength
            controller = self._callback(StrengthController)
            if controller is not None:
                controller.update(metrics["steer/hit_rate"])
        self._log_all(metrics)

    def _compare_pushes(self, batch: dict[str, Any], rollouts: Rollouts) -> None:
        assert self._steering is not None
        compare_pushes(
            rollouts,
            partial(self._logps, batch),
            self._steering,
            sampling=self._steered_sampling,
            model=self.model,
            accelerator=self.accelerator,
            num_generations=self.num_generations,
        )

    def _logps(self, batch: dict[str, Any], rows: Tensor, strength: float | None = None) -> Tensor:
        """Log-probabilities `(R, C)` of the completions of some rows, under steering if a strength is given."""
        assert self._steering is not None
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
                    assert self._steerer is not None
                    with self._steerer.armed(strength, positions=positions):
                        logps, *_ = self._get_per_token_logps_and_entropies(*inputs)
                chunks.append(logps)
        return torch.cat(chunks)

    # What the loss pass saw

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any):
        result = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        self._loss_passes.see(*result[:2])
        return result

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if "steered" not in inputs:
            return super()._compute_loss(model, inputs)
        leave_out = None
        if self._steering is not None and not self._steering.steered_kl and "ref_per_token_logps" in inputs:
            inputs = dict(inputs)  # the batch itself is used again by later iterations
            leave_out = partial(leave_out_of_kl, inputs)
        rows = (inputs["completion_mask"], inputs["steered"], inputs.get("cold"))
        with self._loss_passes.recording(*rows, on_logps=leave_out):
            return super()._compute_loss(model, inputs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        sums = self._loss_passes.take() if self.model.training else None
        if sums is not None:
            means = pass_means(self.accelerator.reduce(sums, reduction="sum"))
            self._log_all(means)
            if self.accelerator.is_main_process:
                self._improbable.update(means)
        super().log(logs, start_time)

    def _moved_settings(self) -> dict[str, Any]:
        moved: dict[str, Any] = {"steer_strength": self._strength}
        if self._steered_sampling.temperature is not None:
            moved["steer_temperature"] = self._steered_sampling.temperature
        return moved | ({"strength in the end": self.steer_strength} if self._callback(StrengthController) else {})
