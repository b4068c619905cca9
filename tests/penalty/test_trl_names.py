"""What of TRL's and transformers' inside FeaturePenaltyMixin rests on. A release that moves one fails here first."""

import inspect

import torch
from transformers import Trainer
from trl import (
    DistillationTrainer,
    DPOTrainer,
    GRPOTrainer,
    KTOTrainer,
    RewardTrainer,
    RLOOTrainer,
    SFTTrainer,
)
from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

ALL = (SFTTrainer, DPOTrainer, KTOTrainer, RewardTrainer, GRPOTrainer, RLOOTrainer, DistillationTrainer, Trainer)
GENERATING = (GRPOTrainer, RLOOTrainer, DistillationTrainer)


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def source(function) -> str:
    return inspect.getsource(function)


def test_overridden_methods_take_what_we_pass_on():
    for trainer in ALL:
        loss = ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]
        assert parameters(trainer.compute_loss) == loss
        assert parameters(trainer.log) == ["self", "logs", "start_time"]
        assert parameters(trainer._set_signature_columns_if_needed) == ["self"]
    for trainer in GENERATING:
        assert parameters(trainer._generate_and_score_completions) == ["self", "inputs"]
    for trainer in (DPOTrainer, KTOTrainer):
        assert parameters(trainer.compute_ref_log_probs) == ["self", "model", "inputs"]


def test_who_divides_by_the_accumulation_is_what_we_take_it_to_be():
    scaled = {trainer: getattr(trainer, "loss_is_scaled_for_ga", None) for trainer in ALL}
    assert [trainer for trainer in ALL if scaled[trainer] is False] == [
        DPOTrainer,
        KTOTrainer,
        RewardTrainer,
        RLOOTrainer,
    ]
    assert [trainer for trainer in ALL if scaled[trainer] is True] == [GRPOTrainer, DistillationTrainer]
    step = source(Trainer.training_step)
    assert "self.model_accepts_loss_kwargs and num_items_in_batch is not None" in step
    assert "or self.compute_loss_func is not None" in step
    assert "loss = loss / self.current_gradient_accumulation_steps" in step


def test_generating_trainers_divide_as_ours_does():
    body = source(GRPOTrainer._compute_loss)
    assert 'inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes' in body
    assert "normalizer * self.current_gradient_accumulation_steps / self.args.steps_per_generation" in body
    own = source(DistillationTrainer.compute_loss)
    assert 'inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes' in own
    assert not hasattr(DistillationTrainer, "steps_per_generation")


def test_batches_hold_the_answers_where_we_look():
    for trainer in GENERATING:
        body = source(trainer._generate_and_score_completions)
        for key in ("prompt_ids", "completion_mask"):
            assert f'"{key}": {key}' in body
        assert "input_ids = torch.cat([" in source(trainer._compute_loss)
    for trainer in (DPOTrainer, KTOTrainer):
        assert 'inputs["completion_mask"]' in source(trainer.compute_ref_log_probs)
    assert "chosen_logps, rejected_logps = logps.chunk(2, dim=0)" in source(DPOTrainer._compute_loss)
    assert "torch.chunk(outputs.logits.squeeze(-1), chunks=2)" in source(RewardTrainer.compute_loss)


def test_kto_scores_other_answers_before_those_of_the_loss():
    body = source(KTOTrainer._compute_loss)
    assert body.index("self._compute_kl_logps(model, batch)") < body.index("outputs = model(")
    assert "if self.calculate_KL:" in source(KTOTrainer._compute_kl_logps)


def test_a_number_per_row_is_shuffled_and_split_with_the_generated_batch():
    batch = {
        "completion_ids": torch.arange(8)[:, None],
        "group_ids": torch.arange(8),
        "num_items_in_batch": torch.tensor(3),
    }
    parts = split_tensor_dict(shuffle_sequence_dict(batch), 2)
    for part in parts:
        assert part["completion_ids"][:, 0].tolist() == part["group_ids"].tolist()
