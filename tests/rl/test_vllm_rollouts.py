"""Steered GRPO with vLLM, against stand-ins of its engine and server. The real ones are in the slow vLLM suite."""

import inspect
import shutil
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from trl import GRPOTrainer, RLOOTrainer
from trl.generation import vllm_generation
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer.utils import add_fused_lm_head

from sae_posttrain import FaultWatchCallback, FeatureSet
from sae_posttrain.hooks.row_sampling import SAME_AS_CALL, RowSampling
from sae_posttrain.measure.answers.generate import generate_answers
from sae_posttrain.measure.answers.prompts import read_prompts
from sae_posttrain.rl.push_check import require_explained, told_logps, told_temperatures
from sae_posttrain.rl.vllm_rollouts import at_temperature, engines_that_steer
from sae_posttrain.serving import RowSettings, engine_arguments
from sae_posttrain.serving.engine import CONFIG
from sae_posttrain.training.watch.record import WATCH_FILE, read
from sae_posttrain.training.watch.sampling import Sampling, WatchedPrompts

from ..trained import logged
from .conftest import LOOPING
from .fake_vllm import Engine, FakeClient, FakeLLM, FakeParams

COLOCATE = {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 128}
SERVER = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": "http://fake"}


@pytest.fixture(autouse=True)
def fakes(monkeypatch, make_model, make_loop_feature, tmp_path):
    """TRL's module calls the stand-ins, and writes its variables for vLLM into another environment."""
    monkeypatch.setattr(vllm_generation, "os", SimpleNamespace(environ={}))
    monkeypatch.setattr(vllm_generation, "ensure_master_addr_port", lambda: None)
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "empty_cache", lambda: None)
    for name, fake in (("LLM", FakeLLM), ("SamplingParams", FakeParams), ("VLLMClient", FakeClient)):
        monkeypatch.setattr(vllm_generation, name, fake, raising=False)
    model = make_model()
    file = make_loop_feature(model).save(tmp_path / "served.safetensors")
    config = engine_arguments(file)["additional_config"][CONFIG]
    for fake in (FakeLLM, FakeClient):
        monkeypatch.setattr(fake, "source", model, raising=False)
        monkeypatch.setattr(fake, "made", [])
    monkeypatch.setattr(FakeClient, "config", config, raising=False)
    monkeypatch.setattr(FakeLLM, "behaviour", "right")
    monkeypatch.setattr(FakeClient, "behaviour", "right")


def engine_of(settings):
    return (FakeLLM if settings is COLOCATE else FakeClient).made[-1].engine


MODES = pytest.mark.parametrize("mode", [COLOCATE, SERVER], ids=["colocate", "server"])


@MODES
def test_steered_rows_are_pushed_and_the_others_are_plain(train, keep_batches, mode):
    # The last norm bounds the pushed token's logit: at the temperature 0.5 its probability is 0.9964 at any strength.
    sharp = {"temperature": 0.1}
    trainer = train(fit=False, **mode, **sharp, max_steps=3, num_steered=2, steer_strength=30.0)
    batches, _ = keep_batches(trainer)
    trainer.train()
    assert logged(trainer, "steer/hit_rate") == [1.0] * 3
    assert len(batches) == 3
    for batch in batches:
        assert batch["steered"].tolist() == [False, False, True, True] * 2
        assert (batch["completion_ids"][batch["steered"]] == LOOPING).all()
    engine = engine_of(mode)
    asked = [row["asked"] for row in engine.told]
    assert sorted(asked) == [0.0] * 12 + [30.0] * 12
    assert all((row["salt"] or "").startswith("sae_posttrain:") == bool(row["asked"]) for row in engine.told)
    assert engine.num_syncs >= 3


WATCHED = [{"lang": "en", "prompt": prompt} for prompt in ("Open it", "Save", "파일")]


@pytest.fixture
def watched(train, tmp_path):
    """Train while the model is watched at each step; gives the trainer and the answers of each watch."""

    def run(mode, engine="transformers", **given):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        trainer = train(fit=False, **mode, **given.pop("settings", {}))
        how = {"every": 1, "max_new_tokens": 8, "batch_size": 2, "temperature": 0, "num_shown": None, **given}
        trainer.add_callback(FaultWatchCallback(WATCHED, engine=engine, trainer=trainer, **how))
        trainer.train()
        lines = read(tmp_path / "run" / WATCH_FILE)
        return trainer, [[answer["answer"] for answer in line["answers"]] for line in lines]

    return run


@MODES
def test_watch_asks_the_model_if_nothing_else_is_said(watched, mode):
    still = {"settings": {"learning_rate": 0.0}}
    trainer, answers = watched(mode, **still)
    assert len(engine_of(mode).told) == 8  # the rollouts alone
    assert logged(trainer, "watch/num_answers") == [3.0]
    assert answers == watched({}, **still)[1]


@MODES
def test_watch_asks_the_engine_for_answers_of_the_weights_of_the_step(watched, mode):
    settings = {"max_steps": 2, "learning_rate": 0.1}
    trainer, answers = watched(mode, "vllm", settings=settings)
    told = engine_of(mode).told
    assert len(told) == 2 * (8 + 3)
    assert all(row["asked"] == 0 for row in told if row["temperature"] == 0)
    assert {tuple(row["stop_token_ids"]) for row in told if row["temperature"] == 0} == {(1,)}
    assert answers[0] != answers[1]
    generation, args = trainer.vllm_generation, trainer.args
    assert (generation.temperature, generation.max_completion_length) == (args.temperature, args.max_completion_length)
    num_weights = len(list(trainer.model.parameters())) if mode is COLOCATE else 1  # one by one, or all at once
    assert engine_of(mode).num_syncs == 3 * num_weights  # before the first step, and after each: not twice

    model = trainer.model.eval()  # as it is after the last step
    tokenizer = trainer.processing_class
    expected = [
        generate_answers(model, tokenizer, [tokenizer(row["prompt"]).input_ids], max_new_tokens=8, temperature=0)[0][0]
        for row in WATCHED
    ]
    assert answers[1] == [tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]


def test_watch_with_the_engine_leaves_the_weights_bit_for_bit(watched, train):
    sampled = {"temperature": 1.0, "settings": {"max_steps": 3, "learning_rate": 0.1}}
    plain = train(**COLOCATE, **sampled["settings"])
    trainer, answers = watched(COLOCATE, "vllm", **sampled)
    assert len(answers) == 3
    for one, other in zip(plain.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert watched(COLOCATE, "vllm", **sampled)[1] == answers


def test_watch_wakes_the_engine(watched):
    answers = watched(COLOCATE, "vllm", settings={"vllm_enable_sleep_mode": True})[1]
    assert len(answers) == 1
    assert FakeLLM.made[-1].asleep


@pytest.mark.parametrize(
    ("mode", "how", "message"),
    [
        ({}, {}, "this trainer has none. Set `use_vllm=True`"),
        (COLOCATE, {"max_new_tokens": 126}, "has room for 128. Set `vllm_max_model_length` to 1.. or more"),
        (SERVER, {"max_new_tokens": 24}, "cut a watched answer at 20 tokens, before `max_new_tokens`"),
    ],
    ids=["no engine", "no room", "cut by the server"],
)
def test_watch_says_why_an_engine_cannot_answer(watched, mode, how, message, monkeypatch):
    answer = Engine.answer
    monkeypatch.setattr(
        Engine,
        "answer",
        lambda self, prompt, params, *rest: answer(
            self, prompt, {**params, "max_tokens": min(params["max_tokens"], 20)}, *rest
        ),
    )
    with pytest.raises(ValueError, match=message):
        watched(mode, "vllm", **how)


def test_watch_needs_the_trainer_of_the_engine(train):
    trainer = train(fit=False, **COLOCATE)
    trainer.add_callback(FaultWatchCallback(WATCHED, engine="vllm", every=1, num_shown=None))
    with pytest.raises(ValueError, match="Pass it: `trainer.add_callback"):
        trainer.train()
    with pytest.raises(ValueError, match="`engine` is one of transformers, vllm; got 'sglang'"):
        FaultWatchCallback(WATCHED, engine="sglang")


def test_processes_ask_the_engine_together(tokenizer):
    """Three batches over two processes: two generations each, of equally many prompts; no answer twice."""
    how = Sampling("zh", 4, 1.0, 1.0, 2, 2, 0, "vllm")
    prompts = WatchedPrompts(
        read_prompts(WATCHED, group_column="lang", target_lang=None, source="the prompts"), tokenizer, {}, how
    )

    class Shared:
        def __init__(self, tensor_parallel):
            self.calls, self.tensor_parallel = [], tensor_parallel

        def update(self):
            self.calls.append("update")

        def seed_of(self, process):
            return process - process % self.tensor_parallel

        def generate(self, prompts, seed, **_):
            self.calls.append((len(prompts), seed))
            return [[5]] * len(prompts), [True] * len(prompts)

    for tensor_parallel in (1, 2):
        engines = [Shared(tensor_parallel) for _ in range(2)]
        answers = [prompts.answer(None, {}, process, 2, engine) for process, engine in enumerate(engines)]
        sizes = [[call if call == "update" else call[0] for call in engine.calls] for engine in engines]
        assert sizes == [["update", 2, 2]] * 2
        seeds = [[call[1] for call in engine.calls[1:]] for engine in engines]
        assert (seeds[0] == seeds[1]) == (tensor_parallel == 2)
        assert [len(own) for own in answers] == [4, 2]
        assert len({(answer["row"], answer["sample"]) for own in answers for answer in own}) == 6


def test_the_names_of_trl_that_a_watch_rests_on():
    made = inspect.getsource(VLLMGeneration.__init__)
    sampling = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_completion_length")
    names = (*sampling, "structured_outputs_regex", "generation_kwargs", "mode", "max_model_length")
    assert all(f"self.{name} = " in made for name in (*names, "tensor_parallel_size"))
    assert list(inspect.signature(VLLMGeneration.generate).parameters)[1:4] == ["prompts", "images", "num_generations"]
    for trainer in (GRPOTrainer, RLOOTrainer):
        source = inspect.getsource(trainer)
        assert "self.vllm_generation = VLLMGeneration(" in source
        assert "if self.state.global_step != self._last_loaded_step:" in source


def test_all_rows_of_a_process_share_one_batch(train):
    train(**COLOCATE)
    assert FakeLLM.made[0].calls == [8]
    given = FakeLLM.made[0].given
    assert given["logprobs_mode"] == "processed_logprobs"  # of TRL: μ is the sampling distribution's
    assert list(given["additional_config"]) == [CONFIG]


def test_the_server_is_asked_for_plain_and_steered_rows_at_the_same_time(train):
    train(**SERVER)
    client = FakeClient.made[0]
    assert client.has_communicator
    assert sorted(n for _, n in client.calls) == [1, 1, 3]  # two prompts of different length, then their plain rows


@MODES
def test_weights_are_synchronised(train, mode):
    trainer = train(**mode, max_steps=2)
    engine = engine_of(mode)
    before_the_last_step = engine.model.model.layers[0].mlp.up_proj.weight
    trained = trainer.model.model.layers[0].mlp.up_proj.weight
    assert not torch.equal(before_the_last_step, trained)
    assert not torch.equal(before_the_last_step, FakeLLM.source.model.layers[0].mlp.up_proj.weight)


@MODES
def test_steered_rows_have_a_ratio_of_exactly_one_and_plain_ones_their_own(train, keep_batches, mode):
    trainer = train(fit=False, **mode, vllm_importance_sampling_mode="token_truncate")
    batches, losses = keep_batches(trainer)
    trainer.train()
    ratio, steered = batches[0]["importance_sampling_ratio"], batches[0]["steered"]
    assert (ratio[steered] == 1).all()
    assert ratio[~steered] == pytest.approx(1, abs=1e-3) and (ratio[~steered] != 1).any()
    assert batches[0]["sampling_per_token_logps"][steered].isnan().all()
    assert losses[0]["advantages"][losses[0]["steered"]].abs().min() > 0


def test_with_sequence_weights_they_stay_in_the_loss(train, keep_batches):
    trainer = train(fit=False, **COLOCATE)  # TRL's default: `sequence_mask`
    batches, _ = keep_batches(trainer)
    trainer.train()
    assert (batches[0]["importance_sampling_ratio"][batches[0]["steered"]] == 1).all()
    assert logged(trainer, "steer/advantage_share")[0] > 0


@pytest.mark.parametrize("own", [{}, {"steer_temperature": 0.8}, {"steer_temperature": 0}], ids=str)
@MODES
def test_what_the_sampler_told_is_the_weight_that_a_forward_pass_gives(train, keep_batches, mode, own):
    """Truncated weights need no further pass: μ is what vLLM told. Up to float32, it is that of the steered pass."""
    settings = {**mode, **own, "off_policy_weight": "truncated", "steer_strength": 2.0, "seed": 1}
    trainer = train(fit=False, **settings)
    batches, _ = keep_batches(trainer)
    trainer.train()
    (batch,) = batches
    rows = batch["steered"].nonzero().flatten()
    unfitted = train(fit=False, **settings)
    policy = unfitted._logps(batch, rows)
    temperature = own.get("steer_temperature", 0.5)
    pushed = torch.zeros_like(policy)  # a greedy token has no alternative
    if temperature:
        with at_temperature(unfitted.model, temperature):
            pushed = unfitted._logps(batch, rows, 2.0)
    expected = (policy - pushed).exp().clamp(max=1.0)
    plain_advantage = batch["advantages"][rows]
    whole = plain_advantage.abs().max(dim=1, keepdim=True).values
    shown = (plain_advantage.abs() / whole)[batch["completion_mask"][rows].bool()]
    scaled = (expected / expected.max(dim=1, keepdim=True).values)[batch["completion_mask"][rows].bool()]
    assert shown == pytest.approx(scaled, abs=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"on_miss": "resample", "steer_strength": 0.1},
        {"on_miss": "drop", "steer_strength": 0.1},
        {"dynamic_sampling": "fresh"},
        {"dynamic_sampling": "same"},
        {"target_hit_rate": 0.5, "steer_strength": 5.0},
        {"steered_baseline": "plain"},
        {"steps_per_generation": 2, "num_iterations": 2, "max_steps": 4},
        {"vllm_enable_sleep_mode": True},
        {"steer_positions": "all"},
        {"vllm_importance_sampling_correction": False, "off_policy_weight": "truncated"},
        {"temperature": 1.0, "generation_kwargs": {"temperature": 0.5}},
    ],
    ids=str,
)
def test_the_options_work_with_it(train, settings):
    trainer = train(**{"max_steps": 2, **COLOCATE, **settings})
    assert len(logged(trainer, "loss")) == trainer.args.max_steps
    if settings.get("on_miss") == "resample":
        assert logged(trainer, "steer/resampled")[0] > 0
    if "target_hit_rate" in settings:
        asked = {row["asked"] for row in engine_of(COLOCATE).told}
        assert asked > {0.0, 5.0}  # the controller's strength was asked for


@pytest.mark.parametrize(
    "settings", [{"dynamic_sampling": "fresh"}, {"on_miss": "drop", "steer_strength": 0.1}], ids=str
)
def test_the_options_work_with_a_server(train, settings):
    trainer = train(**{"max_steps": 2, **SERVER, **settings})
    assert len(logged(trainer, "loss")) == trainer.args.max_steps


@MODES
def test_adapters_are_trained(train, mode):
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    trainer = train(**mode, max_steps=2, peft_config=lora)
    assert logged(trainer, "steer/hit_rate")[0] == 1.0


@MODES
def test_evaluation_is_not_steered(train, data, mode):
    trainer = train(fit=False, eval_dataset=data, per_device_eval_batch_size=4, **mode)
    trainer.evaluate()
    assert {row["asked"] for row in engine_of(mode).told} == {0.0}


def test_a_resumed_run_asks_for_the_strength_it_had(train, tmp_path):
    settings = {**COLOCATE, "target_hit_rate": 0.5, "steer_strength": 5.0, "save_strategy": "steps", "save_steps": 1}
    first = train(**settings, max_steps=2)
    again = train(fit=False, **settings, max_steps=2)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert again.steer_strength == pytest.approx(first.steer_strength)
    assert engine_of(COLOCATE).num_syncs >= 1


@MODES
def test_without_steered_rollouts_nothing_of_it_is_touched(train, monkeypatch, mode):
    class PlainLLM(FakeLLM):
        def __init__(self, model, **given):
            assert "worker_cls" not in given
            file = next(iter(FakeClient.config["features"].values()))["path"]
            super().__init__(model, **given, **engine_arguments(file))

    monkeypatch.setattr(vllm_generation, "LLM", PlainLLM)
    trainer = train(**mode, num_steered=0, feature_set=None)
    assert trainer._vllm is None
    assert {row["asked"] for row in engine_of(mode).told} == {0.0}


# Rows of their own temperature ---------------------------------------------------------------------------------------


@MODES
def test_cold_and_steered_rows_are_sampled_with_settings_of_their_own(train, keep_batches, mode):
    own = {"num_cold": 1, "steer_temperature": 0.1, "steer_top_p": 0.9, "steer_top_k": 7, "temperature": 2.0}
    trainer = train(fit=False, **mode, **own, max_steps=2, vllm_importance_sampling_mode="token_truncate")
    batches, _ = keep_batches(trainer)
    trainer.train()
    asked = [(row["asked"], row["temperature"], row["top_p"], row["top_k"]) for row in engine_of(mode).told]
    assert sorted(asked) == [(0.0, 0.0, 1.0, 0)] * 4 + [(0.0, 2.0, 1.0, 0)] * 8 + [(10.0, 0.1, 0.9, 7)] * 4
    batch = batches[0]
    cold, steered = batch["cold"], batch["steered"]
    assert (cold.tolist(), steered.tolist()) == ([False, False, True, False] * 2, [False, False, False, True] * 2)
    for row in cold.nonzero().flatten().tolist():
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()][None]
        greedy = FakeLLM.source.generate(prompt, do_sample=False, max_new_tokens=12, pad_token_id=0)[
            0, prompt.shape[1] :
        ]
        ids = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
        assert ids.tolist() == greedy.tolist()
    assert (batch["completion_ids"][steered] == LOOPING).all()
    assert (batch["importance_sampling_ratio"][cold | steered] == 1).all()
    assert (batch["importance_sampling_ratio"][~(cold | steered)] != 1).any()
    assert logged(trainer, "cold/advantage_share")[0] > 0


@MODES
def test_cold_rows_alone_need_no_features_and_no_worker_of_ours(train, keep_batches, monkeypatch, mode):
    monkeypatch.setattr(FakeClient, "worker", "auto")
    monkeypatch.setattr(FakeClient, "config", None)
    settings = {**mode, "num_steered": 0, "num_cold": 1, "cold_temperature": 0.2, "temperature": 2.0}
    trainer = train(fit=False, feature_set=None, off_policy_weight="truncated", **settings)
    batches, _ = keep_batches(trainer)
    trainer.train()
    engine = engine_of(mode)
    assert sorted(row["temperature"] for row in engine.told) == [0.2] * 2 + [2.0] * 6
    assert not any(row["asked"] or row["salt"] for row in engine.told)
    if mode is COLOCATE:
        assert not {"worker_cls", "additional_config"} & set(FakeLLM.made[0].given)
        assert FakeLLM.made[0].calls == [8]
    (batch,) = batches
    advantages, inside = batch["advantages"].abs(), batch["completion_mask"].bool()
    assert (advantages[batch["cold"]] < advantages[batch["cold"]].max())[inside[batch["cold"]]].any()  # weights
    assert batch["cold"].tolist() == [False, False, False, True] * 2


@pytest.mark.parametrize("settings", [{"on_miss": "resample"}, {"dynamic_sampling": "fresh"}], ids=str)
def test_the_options_work_with_cold_rows(train, settings):
    cold = {"num_cold": 1, "cold_temperature": 0.3, "steer_temperature": 0.7, "steer_strength": 0.1}
    trainer = train(**{**COLOCATE, **cold, "max_steps": 2, **settings})
    assert len(logged(trainer, "cold/hit_rate")) == 2


@pytest.mark.parametrize("temperature", [0.8, 0])
@pytest.mark.parametrize("behaviour", ["another block", "half as far"])
def test_a_wrong_push_is_caught_at_a_temperature_of_its_own(train, monkeypatch, behaviour, temperature):
    train(**COLOCATE, num_cold=1, steer_temperature=temperature, steer_strength=2.0)
    monkeypatch.setattr(FakeLLM, "behaviour", behaviour)
    with pytest.raises(ValueError, match="vLLM did not push where and as far as the trainer does"):
        train(**COLOCATE, num_cold=1, steer_temperature=temperature, steer_strength=2.0)


# Guards --------------------------------------------------------------------------------------------------------------


@MODES
def test_an_engine_that_never_pushes_is_caught_by_its_count(train, monkeypatch, mode):
    monkeypatch.setattr(FakeLLM if mode is COLOCATE else FakeClient, "behaviour", "never pushes")
    with pytest.raises(ValueError, match=r"The steered answers have \d+ tokens, but only 0 positions were pushed"):
        train(**mode)


@pytest.mark.parametrize("behaviour", ["another block", "half as far"])
@MODES
def test_a_wrong_push_is_caught_by_its_log_probabilities(train, monkeypatch, mode, behaviour):
    monkeypatch.setattr(FakeLLM if mode is COLOCATE else FakeClient, "behaviour", behaviour)
    with pytest.raises(ValueError, match="vLLM did not push where and as far as the trainer does. Set `use_vllm=Fal"):
        train(**mode, steer_strength=2.0)


def test_a_push_from_another_position_on_is_caught(train, monkeypatch):
    monkeypatch.setattr(FakeLLM, "behaviour", "from the start")
    torch.manual_seed(0)
    features = FeatureSet.from_directions(torch.randn(1, 32), blocks=[0], names=["f"], residual_norms=[10.0])
    with pytest.raises(ValueError, match="vLLM did not push where and as far as the trainer does"):
        train(**COLOCATE, steer_strength=2.0, feature_set=features)


def test_the_comparison_is_made_once_a_training(train, monkeypatch):
    trainer = train(fit=False, **COLOCATE, max_steps=2)
    compared = []
    plain = trainer._compare_pushes
    monkeypatch.setattr(
        trainer, "_compare_pushes", lambda *given: compared.append(trainer.state.global_step) or plain(*given)
    )
    trainer.train()
    trainer.train()
    assert compared == [0, 0]


@pytest.mark.parametrize(
    ("steered", "steered_as_plain", "plain", "is_right"),
    [
        (1e-6, 0.2, 1e-6, True),  # float32
        (0.02, 0.2, 0.011, True),  # bfloat16 in the engine, float32 in the trainer
        (0.15, 0.2, 0.011, False),  # a push at a wrong block
        (0.2, 0.2, 0.011, False),  # none
        (0.03, 0.035, 0.004, False),  # a weak push, none of it made
        (0.004, 0.004, 0.004, True),  # a push too weak to be seen
    ],
)
def test_what_counts_as_explained(steered, steered_as_plain, plain, is_right):
    if is_right:
        require_explained(steered, steered_as_plain, plain)
    else:
        with pytest.raises(ValueError, match=f"differ by {steered:.4f} nat a token"):
            require_explained(steered, steered_as_plain, plain)


@pytest.mark.parametrize(
    ("own", "temperatures"),
    [
        (SAME_AS_CALL, (0.5, 0.5)),
        (RowSampling(0.2), (0.2, 0.5)),
        (RowSampling(0.0, top_p=0.5, top_k=3), (1.0, 0.5)),  # greedy: told at temperature 1, and nothing is cut
    ],
    ids=str,
)
def test_log_probabilities_are_told_at_the_temperature_of_their_rows(train, own, temperatures):
    args = train(fit=False, **COLOCATE).args
    assert told_temperatures(args, own) == temperatures
    args.generation_kwargs = {"temperature": 0.0}
    assert told_temperatures(args, own) == (temperatures[0] if own.temperature is not None else 1.0, 1.0)


@pytest.mark.parametrize("settings", [{"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_what_cannot_be_compared_is_said(train, caplog, settings):
    args = train(fit=False, **COLOCATE).args
    assert told_temperatures(args, SAME_AS_CALL) and "is not compared" not in caplog.text
    assert told_temperatures(args, RowSampling(top_p=0.8)) is None
    assert "the steered rollouts are sampled from a truncated distribution" in caplog.text
    for name, value in settings.items():
        setattr(args, name, value)
    assert told_temperatures(args, SAME_AS_CALL) is None
    assert "the plain rollouts are sampled from a truncated distribution" in caplog.text


@pytest.mark.parametrize("peft_config", [None, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)])
def test_log_probabilities_at_another_temperature(train, keep_batches, peft_config):
    trainer = train(fit=False, num_steered=0, feature_set=None, peft_config=peft_config)
    batches, _ = keep_batches(trainer)
    trainer.train()
    (batch,) = batches
    rows, width = torch.arange(8), batch["completion_ids"].shape[1]
    before = trainer._logps(batch, rows)
    with at_temperature(trainer.model, 2.0):
        got = trainer._logps(batch, rows)
    assert torch.equal(trainer._logps(batch, rows), before)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    with torch.no_grad():
        logits = trainer.model(ids, attention_mask=attention).logits[:, -width - 1 : -1]
    inside = batch["completion_mask"].bool()
    for logps, temperature in ((got, 2.0), (before, 0.5)):
        expected = (logits / temperature).log_softmax(-1).gather(2, batch["completion_ids"][:, :, None]).squeeze(2)
        assert torch.allclose(logps[inside], expected[inside], atol=1e-4)


@pytest.mark.parametrize("behaviour", ["another block", "half as far"])
def test_a_wrong_push_is_caught_with_a_temperature_of_generation_kwargs(train, monkeypatch, behaviour):
    monkeypatch.setattr(FakeLLM, "behaviour", behaviour)
    with pytest.raises(ValueError, match="while plain rollouts differ by 0.0000: vLLM did not push where"):
        train(**COLOCATE, steer_strength=2.0, temperature=1.0, generation_kwargs={"temperature": 0.5})


def test_told_log_probabilities_are_padded_with_nan():
    told = told_logps([[-1.0, None], None, [-2.0]], torch.tensor([2, 0, 1]), torch.zeros(3, 2))
    assert told.nan_to_num(nan=9.0).tolist() == [[-2.0, 9.0], [-1.0, 9.0], [9.0, 9.0]]


# Refusals ------------------------------------------------------------------------------------------------------------


def test_a_server_without_our_worker_is_refused_before_weights_are_sent(train, monkeypatch):
    monkeypatch.setattr(FakeClient, "worker", "auto")
    with pytest.raises(ValueError, match="The vLLM server runs the worker 'auto', which ignores steering. Start it"):
        train(fit=False, **SERVER)
    assert not FakeClient.made[0].has_communicator


def test_a_server_of_other_features_is_refused(train, make_model, make_loop_feature):
    other = make_loop_feature(make_model(seed=1))
    with pytest.raises(ValueError, match="The vLLM server steers along"):
        train(fit=False, **SERVER, feature_set=other)


def test_features_at_other_sites_are_refused(train):
    features = FeatureSet.from_directions(
        torch.randn(1, 32), blocks=[1], sites=["mlp_out"], names=["f"], residual_norms=[1.0]
    )
    with pytest.raises(ValueError, match="mlp_out"):
        train(fit=False, **COLOCATE, feature_set=features)


def test_a_version_of_trl_that_builds_its_engine_elsewhere_is_refused(train, make_model, make_loop_feature):
    args = train(fit=False, **COLOCATE).args
    with pytest.raises(ValueError, match="TRL did not build its `LLM` where"):
        with engines_that_steer(args, make_loop_feature(make_model())):
            pass
    assert vllm_generation.LLM is FakeLLM  # put back


def test_rows_may_have_sampling_settings_of_their_own(train):
    """What rollouts of their own temperature need: such a row is not a plain one, steered or not."""
    trainer = train(fit=False, **COLOCATE)
    rows = [RowSettings(), RowSettings(sampling={"temperature": 0.1}), RowSettings(strength=10.0)]
    ids, logprobs, sampling = trainer._vllm.generate(
        lambda: GRPOTrainer._generate_single_turn(trainer, [[70, 71], [72], [73]], None, {}, 4), rows
    )
    assert [row["temperature"] for row in FakeLLM.made[0].engine.told] == [0.5, 0.1, 0.5]
    assert [row is None for row in sampling] == [True, False, False]
    assert [set(row) == {None} for row in logprobs] == [False, True, True]
    assert [len(row) for row in logprobs] == [len(row) for row in ids]


# Names of TRL --------------------------------------------------------------------------------------------------------


def test_names_of_trl_that_we_touch():
    """A release that moves one of them fails here first."""
    built = inspect.getsource(VLLMGeneration._init_vllm)
    assert "self.llm = LLM(" in built and "self.vllm_client = VLLMClient(" in built
    assert built.index("self.vllm_client = VLLMClient(") < built.index("self.vllm_client.init_communicator(")
    assert "self.tp_group, _ = " in built and 'logprobs_mode="processed_logprobs"' in built
    assert "worker_cls" not in built and "additional_config" not in built
    generated = inspect.getsource(VLLMGeneration.generate)
    assert "self.llm.generate(vllm_prompts, sampling_params=sampling_params, use_tqdm=False)" in generated
    assert "torch.distributed.all_gather_object(gathered_prompts, prompts, group=self.tp_group)" in generated
    assert "all_prompts = gather_object(prompts)" in generated  # the order in which rows are armed on the server
    assert "ordered_set_of_prompt_ids = all_prompts[::num_generations]" in generated
    assert "output = self.vllm_client.generate(" in generated
    turn = inspect.getsource(GRPOTrainer._generate_single_turn)
    assert (
        "self.vllm_generation.generate(" in turn and "logprobs = [[lp[0] for lp in seq] for seq in logprobs]" in turn
    )
    assert "self.vllm_generation = VLLMGeneration(" in inspect.getsource(GRPOTrainer.__init__)
    scored = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert 'torch.tensor([float("nan") if x is None else x for x in logps])' in scored
    assert "per_token_logps_diff = torch.nan_to_num(per_token_logps_diff, nan=0.0)" in scored  # a ratio of 1
    given = list(inspect.signature(VLLMClient.generate).parameters)
    assert given[1:4] == ["prompts", "features", "n"] and given[-1] == "generation_kwargs"
    assert list(inspect.signature(add_fused_lm_head).parameters)[:3] == [
        "model",
        "temperature",
        "cast_lm_head_to_fp32",
    ]
    assert "model.forward = " in inspect.getsource(add_fused_lm_head)  # which `at_temperature` puts back
