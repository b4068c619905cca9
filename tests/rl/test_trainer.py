"""What a user of SteeredGRPOTrainer can rely on: which rollouts are steered, and that nothing else is."""

import logging
from dataclasses import dataclass, replace

import pytest
import torch
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from sae_posttrain import LanguageConsistencyReward, SteeredGRPOConfig, SteeredGRPOTrainer
from sae_posttrain.features.set.calibrated_for import calibrated_features
from sae_posttrain.rl import trainer as trainer_file

from ..trained import logged, weights

LOOPING = 50
GREEDY = {"generation_kwargs": {"do_sample": False}}


def ends_looping(batch) -> torch.Tensor:
    """Rows that say nothing but the looping token in their last four tokens."""
    return (batch["completion_ids"][:, -4:] == LOOPING).all(dim=1)


# Which rollouts are steered ------------------------------------------------------------------------------------------


def test_without_steered_rollouts_it_trains_exactly_like_grpo(train):
    settings = {"max_steps": 3, "num_iterations": 2, "gradient_accumulation_steps": 2}
    plain = train(GRPOTrainer, GRPOConfig, epsilon_high=0.28, **settings)
    ours = train(num_steered=0, feature_set=None, **settings)
    assert torch.equal(weights(plain), weights(ours))
    assert logged(plain, "loss") == logged(ours, "loss")
    assert len(logged(ours, "steer/hit_rate_plain")) > 0
    assert logged(ours, "steer/hit_rate") == []


def test_rollouts_are_steered_at_another_site_than_a_blocks_output(train, keep_batches, make_model, make_loop_feature):
    model = make_model()
    trainer = train(
        model=model,
        feature_set=replace(make_loop_feature(model), sites=("mlp_out",)),
        fit=False,
        num_steered=1,
        **GREEDY,
    )
    batches, _ = keep_batches(trainer)
    trainer.train()
    assert torch.equal(ends_looping(batches[0]), batches[0]["steered"])
    assert batches[0]["steered"].tolist() == [False, False, False, True] * 2


@pytest.mark.parametrize("num_steered", [1, 2])
def test_the_last_rollouts_of_each_group_are_steered_and_only_they_differ(
    train, keep_batches, make_model, num_steered
):
    batches = {}
    for steered in (0, num_steered):
        trainer = train(num_steered=steered, fit=False, **GREEDY)
        (batches[steered], _) = keep_batches(trainer)
        trainer.train()
    plain, ours = batches[0][0], batches[num_steered][0]
    expected = torch.tensor([slot >= 4 - num_steered for slot in range(4)] * 2)
    assert torch.equal(ours["steered"], expected)
    assert torch.equal(ends_looping(ours), expected)
    assert torch.equal(ours["completion_ids"][~expected], plain["completion_ids"][~expected])
    assert (ours["completion_ids"][expected] == LOOPING).all()  # the first generated token too
    assert "steered" not in plain


@pytest.mark.parametrize(
    "split",
    [
        {"per_device_train_batch_size": 8},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 2, "steps_per_generation": 4, "max_steps": 4},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_iterations": 2, "max_steps": 2},
    ],
    ids=["whole", "accumulated", "split over steps", "two iterations"],
)
def test_the_flag_follows_its_row_through_shuffling_and_splitting(train, keep_batches, split):
    trainer = train(fit=False, **split)
    before = weights(trainer).clone()
    _, losses = keep_batches(trainer)
    trainer.train()
    flags = torch.cat([inputs["steered"] for inputs in losses])
    assert torch.equal(flags, torch.cat([ends_looping(inputs) for inputs in losses]))
    assert flags.float().mean() == 0.25
    for inputs in losses:  # the steered row has the bad reward
        assert (inputs["advantages"][inputs["steered"]] < 0).all()
    assert not torch.equal(before, weights(trainer))


def test_lora_trains_on_steered_rollouts(train, keep_batches):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    trainer = train(peft_config=config, fit=False, max_steps=2)
    before = weights(trainer).clone()
    batches, _ = keep_batches(trainer)
    trainer.train()
    assert all(torch.equal(ends_looping(batch), batch["steered"]) for batch in batches)
    assert not torch.equal(before, weights(trainer))


def test_frozen_bfloat16_logits_of_a_prompt_are_not_computed_row_by_row(train, make_model):
    """On CPU that takes a hundred times longer; see `cpu_logits.py`."""
    model = make_model().bfloat16()
    trainer = train(model=model, peft_config=LoraConfig(r=4, target_modules=["q_proj"]), fit=False)
    head, seen = trainer.model.get_output_embeddings(), []
    forward = head.forward
    head.forward = lambda states: seen.append((states.shape[1], states.is_contiguous())) or forward(states)
    trainer.train()
    generated = [contiguous for num_positions, contiguous in seen if num_positions == 1]
    assert generated
    assert all(generated)
    assert not head._forward_pre_hooks


def test_evaluation_is_never_steered(train, keep_batches, data):
    trainer = train(eval_dataset=data, per_device_eval_batch_size=8, fit=False)
    batches, _ = keep_batches(trainer)
    trainer.evaluate()
    assert len(batches) == 2
    for batch in batches:
        assert "steered" not in batch
        assert not ends_looping(batch).any()


def test_steering_makes_the_fault_rarer(train):
    """The method, in small: what is steered and scored low becomes less likely without steering."""
    trainer = train(max_steps=6, learning_rate=1.0)
    logps = logged(trainer, "steer/logp")
    assert logps[-1] < logps[0] - 1.0


# Log-probabilities ---------------------------------------------------------------------------------------------------


def test_current_old_and_reference_log_probabilities_are_those_of_the_unsteered_policy(
    train, keep_batches, make_model
):
    settings = {"num_iterations": 2, "beta": 0.1, "gradient_accumulation_steps": 1, "temperature": 0.5}
    trainer = train(peft_config=LoraConfig(r=4, target_modules=["q_proj"]), fit=False, **settings)
    passes = []
    inner = trainer._get_per_token_logps_and_entropies

    def spy(*args, **kwargs):
        assert trainer._steerer._pass is None
        result = inner(*args, **kwargs)
        passes.append(result[0].detach())
        return result

    trainer._get_per_token_logps_and_entropies = spy
    batches, _ = keep_batches(trainer)
    trainer.train()
    batch = batches[0]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    num_completion = batch["completion_ids"].shape[1]
    with torch.no_grad():
        logits = make_model()(input_ids=ids, attention_mask=mask).logits[:, -num_completion - 1 : -1] / 0.5
    expected = logits.log_softmax(-1).gather(2, batch["completion_ids"][:, :, None])[:, :, 0]
    counted = batch["completion_mask"].bool()
    for logps in (batch["old_per_token_logps"], batch["ref_per_token_logps"]):
        assert torch.allclose(logps[counted], expected[counted], atol=1e-4)
    assert len(passes) == 3  # old, reference, current
    assert sorted(passes[2].sum(dim=1).tolist()) == pytest.approx(sorted(passes[0].sum(dim=1).tolist()), abs=1e-3)


def test_log_probabilities_under_steering_are_those_the_rollout_was_sampled_with(train, keep_batches, make_model):
    trainer = train(fit=False, off_policy_weight="truncated", temperature=1.0, steer_strength=0.3)
    batches, _ = keep_batches(trainer)
    trainer.train()
    batch, rows = batches[0], torch.tensor([3, 7])
    trainer.model.load_state_dict(make_model().state_dict())
    ours = trainer._logps(batch, rows, 0.3)
    sampled = []
    prompt, cache = {"attention_mask": batch["prompt_mask"][rows]}, None
    with trainer._steerer.armed(0.3), torch.no_grad():  # token by token, as `generate` does
        tokens = batch["prompt_ids"][rows]
        for position in range(batch["completion_ids"].shape[1]):
            out = trainer.model(input_ids=tokens, past_key_values=cache, use_cache=True, **prompt)
            cache, tokens = out.past_key_values, batch["completion_ids"][rows, position][:, None]
            sampled.append(out.logits[:, -1].log_softmax(-1).gather(1, tokens)[:, 0])
            prompt["attention_mask"] = torch.cat([prompt["attention_mask"], torch.ones(2, 1).long()], dim=1)
    assert torch.allclose(ours, torch.stack(sampled, dim=1), atol=1e-4)
    assert (ours - trainer._logps(batch, rows)).abs().max() > 0.1


# Metrics -------------------------------------------------------------------------------------------------------------


def test_what_is_logged_is_worked_out_from_the_batch(train, keep_batches):
    trainer = train(fit=False, log_completions=True)
    batches, _ = keep_batches(trainer)
    trainer.train()
    (batch,) = batches
    steered, mask = batch["steered"], batch["completion_mask"]
    size = batch["advantages"].abs()[:, None] * mask
    assert logged(trainer, "steer/hit_rate") == [1.0]
    assert logged(trainer, "steer/hit_rate_plain") == [0.0]
    assert logged(trainer, "steer/strength") == [10.0]
    assert logged(trainer, "steer/reward") == [-1.0]
    assert logged(trainer, "steer/length") == [12.0]
    assert logged(trainer, "steer/length_plain") == [pytest.approx(mask[~steered].sum().item() / 6)]
    assert logged(trainer, "steer/token_share") == [pytest.approx((mask[steered].sum() / mask.sum()).item())]
    assert logged(trainer, "steer/advantage_share") == [pytest.approx((size[steered].sum() / size.sum()).item())]
    assert logged(trainer, "steer/only_signal") == [0.0]
    assert logged(trainer, "steer/logp")[0] < 0
    assert 0 < logged(trainer, "steer/entropy_plain")[0] < 5.6
    assert list(trainer._logs["extra"]["steered"]) == steered.tolist()


def test_groups_whose_only_signal_is_the_steered_rollout_are_counted(train):
    def only_loops(completion_ids, **kwargs):
        return [-float(ids[-1] == LOOPING) for ids in completion_ids]

    assert logged(train(rewards=only_loops), "steer/only_signal") == [1.0]


# Refused and warned --------------------------------------------------------------------------------------------------


def test_language_reward_learns_from_the_template_whether_it_opens_the_thinking(
    train, tokenizer, sees_loops, monkeypatch
):
    template = "{% for message in messages %}{{ message.content }}{% endfor %}{% if think %}<think>\n{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    question, cut = [{"role": "user", "content": "?"}], [{"role": "assistant", "content": "用户想要保存"}]
    for think, expected in ((True, None), (False, 0)):
        reward = LanguageConsistencyReward()
        train(rewards=[sees_loops, reward], fit=False, chat_template_kwargs={"think": think})
        assert reward(prompts=[question], completions=[cut], lang=["ko"]) == [expected]


def test_plain_config_trains_plainly_with_a_warning(train, caplog):
    with caplog.at_level(logging.WARNING):
        ours = train(config=GRPOConfig, feature_set=None)
    assert "got a plain `GRPOConfig`" in caplog.text
    assert torch.equal(weights(ours), weights(train(GRPOTrainer, GRPOConfig)))
    assert not any(key.startswith("steer/") for entry in ours.state.log_history for key in entry)


def test_features_without_their_config_are_refused(make_model, make_loop_feature, tokenizer, data, tmp_path):
    model = make_model()
    args = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match="plain `GRPOConfig`, which steers nothing. Use `SteeredGRPOConfig`"):
        SteeredGRPOTrainer(model, len, args, feature_set=make_loop_feature(model), train_dataset=data)


def test_without_settings_a_feature_set_is_enough(
    make_model, make_loop_feature, sees_loops, data, tokenizer, monkeypatch, tmp_path
):
    @dataclass
    class OnCpu(SteeredGRPOConfig):
        use_cpu: bool = True
        bf16: bool | None = False

    monkeypatch.setattr(trainer_file, "SteeredGRPOConfig", OnCpu)
    monkeypatch.chdir(tmp_path)
    features = make_loop_feature(make_model())
    features.notes["calibration"] = {"strength": 2.0}
    trainer = SteeredGRPOTrainer(
        make_model(), sees_loops, feature_set=features, train_dataset=data, processing_class=tokenizer
    )
    assert trainer.args.output_dir == "model-SteeredGRPO"
    assert (trainer.steer_strength, trainer.args.num_steered, trainer.args.epsilon_high) == (2.0, 1, 0.28)


def test_steering_needs_features(train):
    with pytest.raises(ValueError, match="`num_steered` is 1, but there are no features to steer along"):
        train(feature_set=None)


def test_features_come_from_a_file(train, make_model, make_loop_feature, tmp_path):
    path = make_loop_feature(make_model()).save(tmp_path / "loop.safetensors")
    from_file = train(feature_set=None, features=str(path))
    assert logged(from_file, "steer/hit_rate") == [1.0]


def test_features_of_another_model_are_refused(train, make_model, make_features, make_loop_feature):
    model = make_model()
    model.config._name_or_path = "owner/mine"
    with pytest.raises(ValueError, match="found on 'owner/other', this model is 'owner/mine'"):
        train(model=model, feature_set=make_loop_feature(model, base_model="owner/other"))
    features = make_loop_feature(model, base_model="owner/other")
    assert train(model=model, feature_set=features, allow_base_model="mine", fit=False).steer_strength == 10.0
    with pytest.raises(ValueError, match="block 3, the model has blocks 0 to 1"):
        train(feature_set=make_features(blocks=(3,)))


def test_strength_of_other_features_is_refused(train, make_model, make_loop_feature):
    features = make_loop_feature(make_model())
    features.notes["calibration"] = {"strength": 7.5, "features": calibrated_features(features)}
    assert train(feature_set=features, steer_strength=None, fit=False).steer_strength == 7.5
    other = replace(features, directions=-features.directions)
    with pytest.raises(ValueError, match="was measured for .* run `calibrate` on this set, or set the strength"):
        train(feature_set=other, steer_strength=None, fit=False)
    assert train(feature_set=other, steer_strength=3.0, fit=False).steer_strength == 3.0


def test_strength_comes_from_the_calibration(train, make_model, make_loop_feature, caplog):
    features = make_loop_feature(make_model())
    settings = {"feature_set": features, "steer_strength": None, "fit": False}
    with pytest.raises(ValueError, match="not calibrated. Run `calibrate` on it, or set `steer_strength`"):
        train(**settings)
    features.notes["calibration"] = {"strength": None, "settings": {"temperature": 0.5}}
    with pytest.raises(ValueError, match="its calibration found none"):
        train(**settings)
    features.notes["calibration"]["strength"] = 7.5
    with caplog.at_level(logging.WARNING):
        assert train(**settings).steer_strength == 7.5
        assert train(**(settings | {"steer_strength": 3.0}), temperature=0.7).steer_strength == 3.0
        assert "calibrated at temperature" not in caplog.text
        train(**settings, temperature=0.7)
    assert "calibrated at temperature 0.5, the steered rollouts are sampled at 0.7" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):  # the rollouts have a temperature of their own
        train(**settings, temperature=0.7, generation_kwargs={"temperature": 0.5})
        assert "calibrated at temperature" not in caplog.text
