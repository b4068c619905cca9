"""The command from its YAML file to the saved model, on a tiny model in a folder."""

import json
import pickle

import pytest
import torch
import yaml
from datasets import Dataset
from safetensors.torch import load_file
from trl import TrlParser

from sae_posttrain import EndlessRepetitionReward, SteeredGRPOConfig, SteeredGRPOTrainer
from sae_posttrain.cli import main
from sae_posttrain.rl.script import ARGUMENTS, REWARDS, end_token_ids, load_rewards, make_trainer
from sae_posttrain.training.script import train_and_save

OTHER_END = 7


@pytest.fixture
def folder(tmp_path, make_model, make_loop_feature, tokenizer):
    """A model that also ends its answers with another token than its tokenizer says, a feature, and prompts."""
    model = make_model()
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, OTHER_END]
    model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    make_loop_feature(model, base_model="tiny").save(tmp_path / "loop.safetensors")
    rows = [{"prompt": [{"role": "user", "content": text}], "lang": "en"} for text in ("a", "file", "key", "x y")]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def write_yaml(folder):
    """Writes the settings of two short steps, and returns the file."""

    def write(**changes):
        settings = {
            "model_name_or_path": str(folder / "tiny"),
            "dataset_name": str(folder / "train.jsonl"),
            "features": str(folder / "loop.safetensors"),
            "output_dir": str(folder / "run"),
            "steer_strength": 10.0,
            "num_generations": 4,
            "per_device_train_batch_size": 4,
            "max_completion_length": 64,
            "temperature": 0.5,
            "learning_rate": 0.01,
            "max_steps": 2,
            "logging_steps": 1,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }
        file = folder / "grpo.yaml"
        file.write_text(yaml.safe_dump(settings | changes))
        return file

    return write


def parse(file, *extra):
    return TrlParser(ARGUMENTS).parse_args_and_config(args=["--config", str(file), *extra])


def run(script_args, *settings):
    trainer = make_trainer(script_args, *settings)
    train_and_save(trainer, script_args)
    return trainer


def rewards_of(*arguments):
    script_args, training_args, model_args, _ = parse(*arguments)
    return load_rewards(script_args.reward_funcs, training_args, model_args)


def test_command_trains_and_saves(folder, write_yaml, capsys):
    assert main(["grpo", "--config", str(write_yaml()), "--max_steps", "1"]) == 0
    assert "Model saved to" in capsys.readouterr().out
    before, after = (load_file(folder / name / "model.safetensors") for name in ("tiny", "run"))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_steered_rollouts_loop_and_are_punished(write_yaml):
    trainer = run(*parse(write_yaml(max_steps=1, reward_funcs=["endless_repetition", "soft_overlong"])))
    logged = trainer.state.log_history[0]
    assert logged["steer/hit_rate"] == 1
    # -1 for the loop, and -1 for the full length
    assert logged["steer/reward"] == -2
    assert logged["rewards/endless_repetition_reward/mean"] == -0.25  # one of four
    assert trainer.args.epsilon_high == 0.28


def test_lora_trains_adapters_only(folder, write_yaml):
    file = write_yaml(max_steps=1, use_peft=True, lora_r=2, lora_target_modules=["q_proj", "v_proj"])
    trainer = run(*parse(file))
    assert (folder / "run" / "adapter_model.safetensors").exists()
    assert not (folder / "run" / "model.safetensors").exists()
    assert trainer.state.log_history[0]["steer/hit_rate"] == 1


def test_every_named_reward_is_made_and_can_be_pickled(write_yaml):
    rewards = rewards_of(write_yaml(reward_funcs=list(REWARDS)))
    assert [pickle.loads(pickle.dumps(reward)).__name__ for reward in rewards] == [
        "endless_repetition_reward",
        "language_consistency_reward",
        "repetition_penalty_reward",
        "soft_overlong_punishment_reward",
    ]
    assert rewards[0].eos_token_ids == (1, OTHER_END)
    # the cache is a fifth of 64 tokens, 12: 58 tokens are 6 into it
    assert rewards[3](completion_ids=[[5] * 52, [5] * 58, [5] * 64]) == [0, -0.5, -1]


def test_endless_repetition_is_the_default_and_one_name_needs_no_list(write_yaml):
    assert [reward.__name__ for reward in rewards_of(write_yaml())] == ["endless_repetition_reward"]
    file = write_yaml(reward_funcs="ngram_repetition")
    assert [reward.__name__ for reward in rewards_of(file)] == ["repetition_penalty_reward"]
    extra = ("--reward_funcs", "soft_overlong", "language_consistency")
    assert len(rewards_of(file, *extra)) == 2


def test_end_tokens_of_a_model_without_generation_settings_are_those_of_its_configuration(folder, write_yaml):
    (folder / "tiny" / "generation_config.json").unlink()
    _, training_args, model_args, _ = parse(write_yaml())
    assert end_token_ids(training_args, model_args) == [1]


def test_reward_of_ones_own_is_found_where_the_command_is_started(folder, write_yaml, monkeypatch):
    code = """
limit = 5

class Short:
    def __call__(self, completion_ids, **kwargs):
        return [-len(ids) for ids in completion_ids]

short = Short()
"""
    (folder / "my_short_rewards.py").write_text(code)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(".")  # puts sys.path back afterwards
    (reward,) = rewards_of(write_yaml(), "--reward_funcs", "my_short_rewards.short")
    assert reward(completion_ids=[[1, 2]]) == [-2]
    with pytest.raises(ValueError, match="is a class; name a function"):
        rewards_of(write_yaml(), "--reward_funcs", "my_short_rewards.Short")
    with pytest.raises(ValueError, match="is a int; name a function"):
        rewards_of(write_yaml(), "--reward_funcs", "my_short_rewards.limit")
    with pytest.raises(ValueError, match="cannot be imported: .*no attribute 'long'. Known: endless_repetition, lang"):
        rewards_of(write_yaml(), "--reward_funcs", "my_short_rewards.long")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"reward_funcs": ["loops"]},
            "Unknown reward 'loops'. Known: endless_repetition, language_consistency, ngram",
        ),
        ({"reward_funcs": ["no_such_file.loops"]}, "'no_such_file.loops' cannot be imported: No module named"),
        ({"reward_funcs": []}, "`reward_funcs` is empty. Known: endless_repetition"),
        ({"model_name_or_path": None}, "Name the model: `model_name_or_path`"),
        ({"dataset_name": None}, "Name the training data: `dataset_name`"),
        ({"features": None}, "no features to steer along"),
        ({"steer_strength": None}, "no `steer_strength`, and none is stored"),
        ({"mask_truncated_completions": True}, "Set `mask_truncated_completions=False`"),
        ({"eval_strategy": "epoch"}, "The dataset has no split 'test'; it has train"),
    ],
)
def test_mistake_is_refused_before_training(write_yaml, changes, message):
    with pytest.raises(ValueError, match=message):
        run(*parse(write_yaml(**changes)))


def test_prompts_in_other_forms_are_sent_as_trls(folder, write_yaml):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turns = ([{"role": "human", "content": "a\nb"}], [{"from": "user", "value": "a\nb"}])
    for messages in (*turns, [{"role": "user", "content": parts}]):
        (folder / "train.jsonl").write_text((json.dumps({"prompt": messages, "lang": "en"}) + "\n") * 4)
        trainer = make_trainer(*parse(write_yaml()))
        assert trainer.train_dataset[3]["prompt"] == [{"role": "user", "content": "a\nb"}]


def test_the_trainer_converts_the_prompts_of_a_dataset_or_refuses_them(folder, make_model, tokenizer, tmp_path):
    def build(content):
        data = Dataset.from_list([{"prompt": [{"role": "user", "content": content}]}] * 4)
        args = SteeredGRPOConfig(str(tmp_path / "run"), use_cpu=True, bf16=False, num_steered=0, num_generations=2)
        options = {"train_dataset": data, "eval_dataset": data, "processing_class": tokenizer}
        return SteeredGRPOTrainer(make_model(), EndlessRepetitionReward(1), args, **options)

    trainer = build([{"type": "text", "text": "a"}])
    for dataset in (trainer.train_dataset, trainer.eval_dataset):
        assert dataset[0]["prompt"] == [{"role": "user", "content": "a"}]
    with pytest.raises(ValueError, match="Row 1 of the train dataset: message 1 of `prompt` has a part 1 of the type"):
        build([{"type": "audio"}])
