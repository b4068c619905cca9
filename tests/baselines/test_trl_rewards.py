"""The rewards against repetition that need no feature, together: nothing of ours stands in the way of TRL's."""

import pytest
from datasets import Dataset
from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment

from sae_posttrain import EndlessRepetitionReward, SteeredGRPOConfig, SteeredGRPOTrainer

LENGTH = 12


def test_ngram_and_overlong_rewards_train_beside_ours_without_steering(make_model, tokenizer, tmp_path):
    args = SteeredGRPOConfig(
        str(tmp_path),
        num_steered=0,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=LENGTH,
        max_steps=1,
        learning_rate=0.1,
        optim="sgd",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    rewards = [
        EndlessRepetitionReward(tokenizer.eos_token_id, min_tokens=8),
        get_repetition_penalty_reward(ngram_size=1),
        get_soft_overlong_punishment(max_completion_len=LENGTH, soft_punish_cache=8),
    ]
    trainer = SteeredGRPOTrainer(
        make_model(),
        rewards,
        args,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in ("a", "one file")]),
        processing_class=tokenizer,
    )
    before = trainer.model.lm_head.weight.detach().clone()
    trainer.train()
    entry = trainer.state.log_history[0]
    means = [value for name, value in sorted(entry.items()) if name.startswith("rewards/") and name.endswith("/mean")]
    assert len(means) == 3
    assert sum(means) == pytest.approx(entry["reward"])
    assert min(means) < 0
    assert "steer/hit_rate" not in entry  # no rollout was steered
    assert (trainer.model.lm_head.weight != before).any()
