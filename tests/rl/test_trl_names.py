"""What of TRL's and transformers' inside SteeredGRPOTrainer rests on. A release that moves it fails here first."""

import inspect

from transformers import Trainer, TrainerState
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment
from trl.trainer.utils import RepeatSampler


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def source(function) -> str:
    return inspect.getsource(function)


def test_overridden_methods_take_what_we_pass_on():
    turn = parameters(GRPOTrainer._generate_single_turn)
    assert turn[:5] == ["self", "prompt_ids", "images", "multimodal_fields", "num_generations"]
    assert parameters(GRPOTrainer._generate_and_score_completions) == ["self", "inputs"]
    rewards = ["self", "inputs", "prompts", "completions", "completion_ids_list"]
    assert parameters(GRPOTrainer._calculate_rewards) == rewards
    assert parameters(GRPOTrainer._compute_loss) == ["self", "model", "inputs"]
    assert parameters(GRPOTrainer.log) == ["self", "logs", "start_time"]
    logps = ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size"]
    assert parameters(GRPOTrainer._get_per_token_logps_and_entropies)[:6] == logps
    assert parameters(disable_gradient_checkpointing) == ["model", "gradient_checkpointing_kwargs"]
    assert parameters(GRPOTrainer._log_completion_extra) == ["self", "column", "values"]


def test_generation_is_one_turn_on_the_model_in_training_mode():
    generate = source(GRPOTrainer._generate)
    assert 'mode = "train" if self.model.training else "eval"' in generate
    assert generate.count("self._generate_single_turn(") == 1
    assert "return completion_ids, logprobs" in source(GRPOTrainer._generate_single_turn)
    assert "generation_kwargs" in source(GRPOTrainer._generate_single_turn)


def test_processes_hold_contiguous_slices_of_prompts_repeated_one_after_the_other():
    body = source(GRPOTrainer._generate_and_score_completions)
    assert "self.accelerator.process_index * len(prompts)" in body
    assert "rewards.view(-1, num_generations)" in body
    assert "mini_repeat_count=self.num_generations" in source(GRPOTrainer._get_train_sampler)


def test_the_batch_holds_what_we_change():
    body = source(GRPOTrainer._generate_and_score_completions)
    for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "num_items_in_batch"):
        assert f'"{key}": {key}' in body
    assert 'output["old_per_token_logps"] = old_per_token_logps' in body
    assert "num_items_in_batch = self.accelerator.gather(loss_mask.sum()).sum()" in body
    assert 'self._logs["advantages"].extend(all_process_advantages.tolist())' in body
    assert '"advantages": deque(maxlen=args.generation_batch_size)' in source(GRPOTrainer.__init__)
    assert "split_tensor_dict(shuffle" in source(GRPOTrainer._prepare_inputs) or (
        "shuffle_sequence_dict(generation_batch)" in source(GRPOTrainer._prepare_inputs)
    )


def test_the_loss_takes_advantages_per_token_and_makes_one_pass():
    body = source(GRPOTrainer._compute_loss)
    assert "if advantages.dim() == 1:" in body
    assert body.count("self._get_per_token_logps_and_entropies(") == 1
    assert "compute_entropy=True" in body
    assert "return logps, entropies, aux_loss" in source(GRPOTrainer._get_per_token_logps_and_entropies)


def test_advantages_are_those_we_work_out_again():
    body = source(GRPOTrainer._generate_and_score_completions)
    assert "advantages = advantages / (std_rewards + 1e-4)" in body
    assert "advantages = torch.nan_to_num(advantages, nan=0.0)" in body


def test_a_generation_can_be_sampled_and_scored_by_itself():
    """What dynamic sampling calls in its rounds, and what it sets right after them."""
    assert parameters(GRPOTrainer._generate) == ["self", "prompts"]
    returned = "return prompt_ids, completion_ids, tool_mask, completions, logprobs,"
    assert returned in source(GRPOTrainer._generate)
    assert "self.state.num_input_tokens_seen += " in source(GRPOTrainer._generate)
    assert 'self._metrics[mode]["num_tokens"] = [self.state.num_input_tokens_seen]' in source(GRPOTrainer._generate)
    assert "self._logs" not in source(GRPOTrainer._generate)
    assert "self._logs" not in source(GRPOTrainer._calculate_rewards)
    assert "return rewards_per_func" in source(GRPOTrainer._calculate_rewards)
    assert "self._pending_extra_logs[column].extend(values)" in source(GRPOTrainer._log_completion_extra)
    body = source(GRPOTrainer._generate_and_score_completions)
    assert body.index("self._generate(prompts)") < body.index("self._get_per_token_logps_and_entropies(")
    assert body.count("self._generate(") == body.count("self._calculate_rewards(") == 1
    assert '"dynamic' not in body


def test_attributes_of_the_trainer():
    init = source(GRPOTrainer.__init__)
    for name in ("eos_token_ids", "num_generations", "reward_weights", "reward_func_names", "reward_funcs"):
        assert f"self.{name} = " in init
    for name in ("scale_rewards", "_is_vlm", "generation_kwargs"):
        assert f"self.{name} = " in init
    assert 'self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}' in init


def test_generation_falls_back_on_the_models_own_settings():
    """So `refuse_settings` looks at them: TRL sets the penalty and leaves, for one, `no_repeat_ngram_size` open."""
    init = source(GRPOTrainer.__init__)
    assert '"repetition_penalty": self.repetition_penalty' in init
    assert "no_repeat_ngram_size" not in init


def test_rewards_that_see_repetition_are_these_classes():
    repetition, overlong = type(get_repetition_penalty_reward()), type(get_soft_overlong_punishment(10, 2))
    assert (repetition.__module__, repetition.__name__) == ("trl.rewards.other_rewards", "_RepetitionPenalty")
    assert (overlong.__module__, overlong.__name__) == ("trl.rewards.other_rewards", "_SoftOverlongPunishment")


def test_callback_states_are_a_dict_that_is_saved_and_read_before_training_begins():
    assert TrainerState().stateful_callbacks == {}
    assert "TrainerState.load_from_json" in source(Trainer._init_training_state)
    assert "self.state.save_to_json" in source(Trainer._save_checkpoint)


def test_state_of_callbacks_is_saved_under_the_name_of_their_class_which_must_be_there():
    save = source(Trainer._save_checkpoint)
    assert "isinstance(cb, ExportableState)" in save
    assert "isinstance(self.state.stateful_callbacks[cb_name], list)" in save
    assert "type(callback)(**args)" in source(Trainer._load_callback_state)


def test_the_order_of_prompts_is_drawn_once_an_epoch_from_a_generator_that_checkpoints_do_not_keep():
    assert "torch.randperm(self.num_samples, generator=self.generator)" in source(RepeatSampler.__iter__)
    assert "return RepeatSampler(" in source(GRPOTrainer._get_train_sampler)
    assert not hasattr(RepeatSampler, "set_epoch")  # with one, transformers would restore the order by itself
