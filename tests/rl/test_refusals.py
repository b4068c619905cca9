"""Settings that would undo steering are refused when the trainer is built, with messages that say what to do."""

from types import SimpleNamespace

import pytest
from transformers import GenerationConfig

from sae_posttrain import EndlessRepetitionReward
from sae_posttrain.rl.refusals import refuse_settings, refuse_sharded_resampling

VLLM = {"use_vllm": True, "vllm_mode": "colocate"}
PAGED = {"use_transformers_continuous_batching": True}

REFUSED = [
    ({"mask_truncated_completions": True}, "an endless repetition is one. Set `mask_truncated_completions=False`"),
    ({**VLLM, "vllm_model_impl": "transformers"}, "Set `vllm_model_impl='vllm'`"),
    ({**VLLM, "vllm_structured_outputs_regex": "a+"}, "Leave out `vllm_structured_outputs_regex`"),
    ({**VLLM, "generation_kwargs": {"structured_outputs": {"regex": "a+"}}}, "Structured outputs forbid tokens"),
    ({**VLLM, "generation_kwargs": {"n": 2}}, "`n` in `generation_kwargs` makes several answers"),
    (
        {**VLLM, "generation_kwargs": {"extra_args": {"steer": "1"}}},
        "`extra_args` in `generation_kwargs` steers all rollouts, evaluation included. Leave it out",
    ),
    (
        {**VLLM, "vllm_mode": "server", "generation_kwargs": {"vllm_xargs": {"steer": "1"}}},
        "`vllm_xargs` in `generation_kwargs` steers all rollouts",
    ),
    (
        {**VLLM, "vllm_mode": "server", "on_miss": "resample"},
        "`on_miss='resample'` with `vllm_mode='server'` would have processes ask.*Set `on_miss` to 'keep' or 'drop'",
    ),
    (
        {**VLLM, "vllm_tensor_parallel_size": 2, "on_miss": "resample"},
        "`on_miss='resample'` with `vllm_tensor_parallel_size` would have processes ask",
    ),
    ({**VLLM, "generation_kwargs": {"frequency_penalty": 0.5}}, "`frequency_penalty=0.5` in `generation_kwargs`"),
    ({**VLLM, "generation_kwargs": {"presence_penalty": 0.5}}, "`presence_penalty=0.5` in `generation_kwargs`"),
    ({**VLLM, "repetition_penalty": 1.1}, "`repetition_penalty=1.1` in the settings keeps tokens from being"),
    (
        {**PAGED, "transformers_continuous_batching_config": {"allow_block_sharing": True}},
        "`allow_block_sharing` in `transformers_continuous_batching_config` lets plain rollouts read.*Leave it out",
    ),
    (
        {**PAGED, "transformers_continuous_batching_config": {"use_cuda_graph": [False, True]}},
        "`use_cuda_graph` in `transformers_continuous_batching_config` replays a graph that runs no hooks",
    ),
    (
        {**PAGED, "transformers_continuous_batching_config": {"default_compile_level": 1}},
        "`default_compile_level` in `transformers_continuous_batching_config` compiles the passes",
    ),
    ({"off_policy_mask_threshold": 0.5}, "drops rollouts that have a negative advantage.*Leave it unset"),
    ({"top_entropy_quantile": 0.2}, "repeated tokens have the lowest. Set `top_entropy_quantile=1.0`"),
    ({"repetition_penalty": 1.1}, "`repetition_penalty=1.1` in the settings keeps tokens from being repeated"),
    (
        {"generation_kwargs": {"repetition_penalty": 1.2}},
        "`repetition_penalty=1.2` in `generation_kwargs` keeps tokens from being repeated.*Set it to 1.0",
    ),
    ({"generation_kwargs": {"no_repeat_ngram_size": 3}}, "`no_repeat_ngram_size=3` in `generation_kwargs`"),
    ({"generation_kwargs": {"encoder_repetition_penalty": 2.0}}, "`encoder_repetition_penalty=2.0`"),
    ({"generation_kwargs": {"num_beams": 4}}, "beams compete in one row. Set `num_beams` to 1"),
    ({"generation_kwargs": {"prompt_lookup_num_tokens": 3}}, "`prompt_lookup_num_tokens` in `generation_kwargs`"),
    ({"generation_kwargs": {"use_mtp": True}}, "`use_mtp` in `generation_kwargs`"),
    ({"generation_kwargs": {"assistant_model": "small"}}, "`assistant_model` in `generation_kwargs`"),
    ({"generation_kwargs": {"prefill_chunk_size": 16}}, "`prefill_chunk_size=16`.*Leave it out"),
    ({"cache_implementation": "static"}, "`cache_implementation='static'` in the settings is a static cache"),
    ({"cache_implementation": "hybrid"}, "is a static cache"),
    ({"generation_kwargs": {"cache_implementation": "offloaded_static"}}, "is a static cache"),
    ({"fault": None}, "`max_completion_length=12` is too short to tell a loop.*Set it to 64 or more"),
    ({"num_steered": 4}, "`num_steered` is 4 of `num_generations=4`: no plain rollout is left"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[str(settings) for settings, _ in REFUSED])
def test_settings_that_undo_steering_are_refused(train, settings, message):
    with pytest.raises(ValueError, match=message):
        train(fit=False, **settings)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"rollout_func": print}, "`rollout_func` generates by itself"),
        ({"tools": [print]}, "`tools` makes rollouts of several turns"),
        ({"environment_factory": object}, "`environment_factory` makes rollouts of several turns"),
    ],
)
def test_arguments_that_undo_steering_are_refused(train, argument, message):
    with pytest.raises(ValueError, match=message):
        train(fit=False, arguments=argument)


@pytest.mark.parametrize(
    "settings",
    [{"mask_truncated_completions": True}, {"repetition_penalty": 1.1}, {"max_completion_length": 4, "fault": None}],
    ids=str,
)
def test_without_steered_rollouts_nothing_is_refused(train, settings):
    train(fit=False, num_steered=0, feature_set=None, **settings)


@pytest.mark.parametrize("settings", [{}, {"num_steered": 0, "feature_set": None}], ids=["steered", "plain"])
def test_completions_too_short_for_the_reward_to_see_a_loop_are_refused(train, settings):
    message = "counts loops of 64 tokens or more, `max_completion_length` is 12: the reward would always be 0"
    with pytest.raises(ValueError, match=message):
        train(fit=False, rewards=[EndlessRepetitionReward(2)], **settings)
    train(fit=False, rewards=[EndlessRepetitionReward(2, min_tokens=12)], **settings)


def test_the_models_own_generation_settings_are_looked_at_too(train, make_model):
    model = make_model()
    model.generation_config.no_repeat_ngram_size = 3
    with pytest.raises(ValueError, match="`no_repeat_ngram_size=3` in the model's `generation_config`"):
        train(model=model, fit=False)
    train(model=model, fit=False, generation_kwargs={"no_repeat_ngram_size": 0})
    model.generation_config.repetition_penalty = 1.05  # TRL always sets it, so this one has no effect
    model.generation_config.cache_implementation = "hybrid"  # nor has this one, in transformers
    train(model=model, fit=False, generation_kwargs={"no_repeat_ngram_size": 0})


def test_a_plain_generation_config_is_accepted(train):
    refuse_settings(train(fit=False).args, GenerationConfig(), detects_loops=False)


def test_resampling_is_refused_on_sharded_models():
    args = SimpleNamespace(on_miss="resample")
    with pytest.raises(ValueError, match="would hang. Set `on_miss` to 'keep' or 'drop'"):
        refuse_sharded_resampling(args, is_sharded=True)
    refuse_sharded_resampling(args, is_sharded=False)
    refuse_sharded_resampling(SimpleNamespace(on_miss="drop"), is_sharded=True)
