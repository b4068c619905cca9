"""What a user of dynamic sampling can rely on: which groups are kept, that nothing is counted twice, and no bias."""

import json
import logging
import math
from itertools import groupby

import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerState
from trl import GRPOConfig, GRPOTrainer

from sae_posttrain import SteeredGRPOConfig, SteeredGRPOTrainer
from sae_posttrain.rl.dynamic_sampling import SamplingState, fresh_indices, prompts_to_ask

from ..trained import logged, weights

PLAIN = {"num_steered": 0, "feature_set": None, "temperature": 1.0}
SIZE = 4


class SpreadFor:
    """Half of the answers to some prompts are right; to the others none is, or all are."""

    __name__ = "spread_for"
    sees_repetition = True

    def __init__(self, prompts: set[str], level: float = 0.0):
        self.prompts, self.level, self.calls = prompts, level, []

    def __call__(self, prompts, completion_ids, log_extra, **kwargs):
        self.calls.append(list(prompts))
        log_extra("said", [len(ids) for ids in completion_ids])
        return [float(row % 2) if prompt in self.prompts else self.level for row, prompt in enumerate(prompts)]


def prompts_of(trainer, batch) -> list[str]:
    """The prompt of each group, in the order of the batch."""
    texts = [
        trainer.processing_class.decode(ids[mask.bool()])
        for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"])
    ]
    groups = [texts[start : start + SIZE] for start in range(0, len(texts), SIZE)]
    assert all(len(set(group)) == 1 for group in groups)
    return [group[0] for group in groups]


# Which groups are kept -----------------------------------------------------------------------------------------------


def test_groups_without_spread_are_replaced_by_those_of_further_prompts(train, keep_batches):
    reward = SpreadFor({"a", "xyz"})
    trainer = train(**PLAIN, rewards=reward, dynamic_sampling="fresh", max_steps=4, fit=False)
    batches, _ = keep_batches(trainer)
    trainer.train()
    for batch in batches:
        assert set(prompts_of(trainer, batch)) <= {"a", "xyz"}
        assert batch["advantages"].abs().min() > 0.5
    assert logged(trainer, "dynamic/shortfall") == [0.0] * 4
    asked = sum(len(call) // SIZE for call in reward.calls)
    assert asked > 8  # of which two a step are kept
    right = sum(prompt in reward.prompts for call in reward.calls for prompt in call[::SIZE])
    rounds = logged(trainer, "dynamic/rounds")
    assert sum(rounds) == len(reward.calls) and max(rounds) > 1
    generated = [value * 2 for value in logged(trainer, "dynamic/generated_per_kept")]
    assert sum(generated) == asked
    kept = logged(trainer, "dynamic/kept")
    assert sum(share * number for share, number in zip(kept, generated)) == pytest.approx(right)
    wrong = logged(trainer, "dynamic/all_wrong")
    # the first generation may not have seen a right answer yet when it meets a wrong group
    assert all(share + other <= 1 + 1e-9 for share, other in zip(kept, wrong))
    assert wrong[-1] == pytest.approx(1 - kept[-1]) and logged(trainer, "dynamic/all_right") == [0.0] * 4


def test_groups_that_are_all_right_are_counted_apart(train):
    trainer = train(**PLAIN, rewards=SpreadFor({"a", "xyz"}, level=1.0), dynamic_sampling="fresh", max_steps=4)
    assert logged(trainer, "dynamic/all_wrong") == [0.0] * 4
    kept, right = logged(trainer, "dynamic/kept"), logged(trainer, "dynamic/all_right")
    assert right[-1] == pytest.approx(1 - kept[-1])


class SpreadAtTheSecondAttempt:
    """Each prompt's group has spread when it is asked for the second time, and then at every second one."""

    __name__ = "second_attempt"

    def __init__(self):
        self.attempts: dict[str, int] = {}

    def __call__(self, prompts, **kwargs):
        values = []
        for prompt, rows in groupby(prompts):
            for _ in range(len(list(rows)) // SIZE):
                self.attempts[prompt] = self.attempts.get(prompt, 0) + 1
                values += [float(row % 2) * (self.attempts[prompt] % 2 == 0) for row in range(SIZE)]
        return values


def test_the_same_prompt_is_sampled_again(train, keep_batches):
    plain = train(**PLAIN, rewards=SpreadFor(set()), fit=False)
    expected, _ = keep_batches(plain)
    plain.train()
    reward = SpreadAtTheSecondAttempt()
    trainer = train(**PLAIN, rewards=reward, dynamic_sampling="same", fit=False)
    batches, _ = keep_batches(trainer)
    trainer.train()
    assert sorted(prompts_of(trainer, batches[0])) == sorted(prompts_of(plain, expected[0]))
    assert set(reward.attempts.values()) == {2}
    assert logged(trainer, "dynamic/rounds") == [2.0] and logged(trainer, "dynamic/kept") == [0.5]
    assert (batches[0]["advantages"] != 0).all()


@pytest.mark.parametrize("mode", ["fresh", "same"])
def test_where_every_group_has_spread_it_trains_exactly_like_grpo(train, mode):
    settings = {"max_steps": 3, "num_iterations": 2, "gradient_accumulation_steps": 2, "temperature": 1.0}
    reward = SpreadFor({"a", "one file", "xyz", "keys and more"})
    plain = train(GRPOTrainer, GRPOConfig, rewards=reward, epsilon_high=0.28, **settings)
    ours = train(**PLAIN | settings, rewards=reward, dynamic_sampling=mode)
    assert torch.equal(weights(plain), weights(ours))
    kept_apart = ("time", "runtime", "per_second")
    for theirs, own in zip(plain.state.log_history, ours.state.log_history):
        theirs = {name: value for name, value in theirs.items() if not any(word in name for word in kept_apart)}
        assert {name: own[name] for name in theirs} == theirs


def test_after_the_last_round_it_goes_on_with_what_there_is_and_says_so(train, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = train(
            **PLAIN,
            rewards=SpreadFor(set()),
            dynamic_sampling="fresh",
            dynamic_sampling_max_rounds=3,
            max_steps=2,
            fit=False,
        )
        before = weights(trainer).clone()
        trainer.train()
    assert torch.equal(weights(trainer), before)  # no difference, no gradient
    assert logged(trainer, "dynamic/rounds") == [3.0, 3.0] and logged(trainer, "dynamic/shortfall") == [1.0, 1.0]
    assert all(value is None for value in logged(trainer, "dynamic/generated_per_kept"))  # nothing was kept
    assert caplog.text.count("After 3 rounds, 2 of 2 prompts still have plain rollouts that all score the same") == 1


def test_open_places_go_to_groups_of_the_last_round(train, keep_batches):
    reward = SpreadFor({"a"})
    trainer = train(
        **PLAIN, rewards=reward, dynamic_sampling="same", dynamic_sampling_max_rounds=2, max_steps=2, fit=False
    )
    batches, _ = keep_batches(trainer)
    trainer.train()
    shortfalls = logged(trainer, "dynamic/shortfall")
    assert sorted(shortfalls) == [0.5, 1.0]  # four prompts in two steps, one of which has spread
    for batch, shortfall in zip(batches, shortfalls):
        assert ("a" in prompts_of(trainer, batch)) == (shortfall == 0.5)
        assert (batch["advantages"] == 0).float().mean() == shortfall
        assert len(batch["advantages"]) == 8


# Steered rollouts ----------------------------------------------------------------------------------------------------


def test_spread_is_that_of_the_plain_rollouts(train, keep_batches):
    """The steered rollout of each group scores -1; for two of the prompts it is the only one that differs."""

    class Reward(SpreadFor):
        def __call__(self, prompts, completion_ids, **kwargs):
            values = super().__call__(prompts, completion_ids, **kwargs)
            return [-1.0 if set(ids[-4:]) == {50} else value for ids, value in zip(completion_ids, values)]

    trainer = train(rewards=Reward({"a", "xyz"}), dynamic_sampling="fresh", max_steps=3, fit=False)
    batches, losses = keep_batches(trainer)
    trainer.train()
    assert logged(trainer, "dynamic/shortfall") == [0.0] * 3 and max(logged(trainer, "dynamic/rounds")) > 1
    assert logged(trainer, "steer/only_signal") == [0.0] * 3
    assert logged(trainer, "steer/hit_rate") == [1.0] * 3
    for batch in [*batches, *losses]:
        looping = (batch["completion_ids"][:, -4:] == 50).all(dim=1)
        assert torch.equal(batch["steered"], looping) and looping.float().mean() == 0.25
    for batch in batches:
        assert set(prompts_of(trainer, batch)) <= {"a", "xyz"}


def test_one_reward_of_several_may_be_judged_by(train, keep_batches):
    def length(completion_ids, **kwargs):
        return [row / 100 for row in range(len(completion_ids))]

    settings = {"rewards": [SpreadFor({"a"}), length], "dynamic_sampling": "fresh", "fit": False, "max_steps": 2}
    trainer = train(**PLAIN, **settings, dynamic_sampling_reward="spread_for")
    batches, _ = keep_batches(trainer)
    trainer.train()
    assert all(set(prompts_of(trainer, batch)) == {"a"} for batch in batches)
    trainer = train(**PLAIN, **settings)
    trainer.train()
    assert logged(trainer, "dynamic/kept") == [1.0, 1.0]  # the sum of both differs everywhere


# What is counted -----------------------------------------------------------------------------------------------------


def test_each_kept_row_counts_once_and_each_generated_token_once(train, keep_batches, tmp_path):
    reward = SpreadFor({"a", "xyz"})
    trainer = train(
        **PLAIN,
        rewards=reward,
        dynamic_sampling="fresh",
        max_steps=3,
        log_completions=True,
        beta=0.1,
        peft_config=LoraConfig(r=4, target_modules=["q_proj"]),  # so that the reference needs no second model
        fit=False,
    )
    batches, _ = keep_batches(trainer)
    turn, logps = trainer._generate_single_turn, trainer._get_per_token_logps_and_entropies
    num_tokens, num_passes = [], []

    def count_tokens(prompt_ids, *rest):
        again = trainer._rollouts is not None  # kept, and not to be generated
        completion_ids, logprobs = turn(prompt_ids, *rest)
        num_tokens.append(0 if again else sum(map(len, [*prompt_ids, *completion_ids])))
        return completion_ids, logprobs

    def count_rows(model, input_ids, *rest, **kwargs):
        num_passes.append(len(input_ids))
        return logps(model, input_ids, *rest, **kwargs)

    trainer._generate_single_turn, trainer._get_per_token_logps_and_entropies = count_tokens, count_rows
    trainer.train()
    assert trainer.state.num_input_tokens_seen == sum(num_tokens)
    assert logged(trainer, "num_tokens")[-1] == sum(num_tokens)
    assert num_passes == [8, 8] * 3  # reference and loss, over kept rows only
    lengths = [batch["completion_mask"].sum(dim=1).float() for batch in batches]
    assert logged(trainer, "completions/mean_length") == [pytest.approx(each.mean().item()) for each in lengths]
    assert logged(trainer, "reward") == [0.5] * 3
    assert logged(trainer, "frac_reward_zero_std") == [0.0] * 3
    for step, each in enumerate(lengths, 1):
        table = pd.read_parquet(tmp_path / "run" / "completions" / f"completions_{step:05d}.parquet")
        assert set(table["prompt"]) <= reward.prompts and len(table) == 8
        assert table["said"].tolist() == each.int().tolist()


def test_evaluation_is_left_alone(train, data):
    reward = SpreadFor(set())
    trainer = train(
        **PLAIN, rewards=reward, dynamic_sampling="fresh", eval_dataset=data, per_device_eval_batch_size=8, fit=False
    )
    trainer.evaluate()
    assert len(reward.calls) == 2
    assert not any("dynamic" in name for entry in trainer.state.log_history for name in entry)


# Wherever GRPO runs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "split",
    [
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 2, "steps_per_generation": 4, "max_steps": 4},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_iterations": 2, "max_steps": 2},
        {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)},
    ],
    ids=["accumulated", "split over steps", "two iterations", "lora"],
)
def test_every_row_of_the_loss_is_of_a_group_with_spread(train, keep_batches, split):
    trainer = train(**PLAIN, rewards=SpreadFor({"a", "xyz"}), dynamic_sampling="fresh", fit=False, **split)
    before = weights(trainer).clone()
    batches, losses = keep_batches(trainer)
    trainer.train()
    assert not torch.equal(before, weights(trainer))
    assert all((inputs["advantages"] != 0).all() for inputs in losses)
    for inputs in losses:
        texts = [trainer.processing_class.decode(ids[ids != 0]) for ids in inputs["prompt_ids"]]
        assert set(texts) <= {"a", "xyz"}
    assert batches[0]["num_items_in_batch"] == batches[0]["completion_mask"].sum()


@pytest.mark.parametrize("restore_callbacks", [False, True])
def test_a_resumed_run_draws_the_prompts_of_one_that_was_not_interrupted(train, tmp_path, restore_callbacks):
    settings = PLAIN | {
        "rewards": SpreadFor({"a", "xyz"}),
        "dynamic_sampling": "fresh",
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 1,
        "restore_callback_states_from_checkpoint": restore_callbacks,
    }
    whole = train(**settings)
    folder = tmp_path / "run" / "checkpoint-2"
    drawn = json.loads((folder / "trainer_state.json").read_text())["stateful_callbacks"]["SamplingState"]
    assert drawn["attributes"]["num_drawn"] > 0
    resumed = train(**settings, fit=False)
    resumed.train(resume_from_checkpoint=str(folder))
    assert torch.equal(weights(whole), weights(resumed))
    assert logged(whole, "dynamic/rounds") == logged(resumed, "dynamic/rounds")
    assert whole._callback(SamplingState).num_drawn == resumed._callback(SamplingState).num_drawn


def test_a_damaged_state_is_refused():
    state = TrainerState()
    state.stateful_callbacks["SamplingState"] = {"args": {}, "attributes": {"num_drawn": "many"}}
    with pytest.raises(ValueError, match="'?many'? drawn prompts.*is damaged"):
        SamplingState().on_train_begin(None, state, None)


# No bias -------------------------------------------------------------------------------------------------------------


def test_the_gradient_of_the_kept_groups_is_that_of_all_groups_over_the_share_that_is_kept(
    make_model, tokenizer, tmp_path
):
    """
    One token an answer, right if its id can be divided by 8. With `p` the probability of that after a prompt, a group
    holds `k` of G right answers with the binomial probability `B(k)`, and GRPO's gradient of the mean over answers is,
    in expectation over the right and the wrong tokens,

        Σ_k B(k) · [k · A_right(k) / p − (G − k) · A_wrong(k) / (1 − p)] / G · ∇p,

    in which `k = 0` and `k = G` have no advantage. Groups with spread are a share `1 − B(0) − B(G)` of all; the kept
    ones are drawn from them alone, so their mean gradient is the sum over prompts divided by that share.
    """
    model = make_model(seed=3)
    prompts = ["a", "one file", "xyz", "keys and more"]
    num_groups = 1000

    class DividedByEight:
        __name__ = "divided"

        def __call__(self, completion_ids, **kwargs):
            return [float(ids[0] % 8 == 0) for ids in completion_ids]

    args = SteeredGRPOConfig(
        str(tmp_path / "run"),
        num_steered=0,
        dynamic_sampling="fresh",
        per_device_train_batch_size=num_groups * SIZE,
        num_generations=SIZE,
        max_completion_length=1,
        temperature=1.0,
        max_steps=1,
        scale_rewards="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        seed=1,
    )
    trainer = SteeredGRPOTrainer(
        model,
        DividedByEight(),
        args,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts * 250]),
        processing_class=tokenizer,
    )
    head = model.lm_head.weight

    expected, share = torch.zeros_like(head), 0.0
    for prompt in prompts:
        logits = model(torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1]
        p = logits.softmax(dim=0)[::8].sum()
        (slope,) = torch.autograd.grad(p, head)
        p = p.item()
        for k in range(1, SIZE):
            chance = math.comb(SIZE, k) * p**k * (1 - p) ** (SIZE - k)
            right, wrong = 1 - k / SIZE, -k / SIZE  # rewards less their mean
            expected += chance * (k * right / p - (SIZE - k) * wrong / (1 - p)) / SIZE * slope / len(prompts)
            share += chance / len(prompts)
    assert 0.2 < share < 0.7  # enough groups are dropped for a bias to show
    model.zero_grad()
    gradients = []
    trainer.accelerator.backward, backward = (
        lambda loss, **kwargs: (backward(loss, **kwargs), gradients.append(head.grad.clone()))[0],
        trainer.accelerator.backward,
    )
    trainer.train()
    assert logged(trainer, "dynamic/shortfall") == [0.0]
    (kept,) = logged(trainer, "dynamic/kept")
    num_asked = num_groups * logged(trainer, "dynamic/generated_per_kept")[0]
    assert abs(kept - share) < 4 * math.sqrt(share * (1 - share) / num_asked)
    ratio = -(gradients[0] * expected).sum() / expected.square().sum() * share  # 1 where there is no bias
    assert abs(ratio - 1) < 0.08
    assert torch.cosine_similarity(-gradients[0].flatten(), expected.flatten(), dim=0) > 0.9


# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dynamic_sampling": "new"}, "`dynamic_sampling` must be one of 'none', 'fresh', 'same', got 'new'."),
        ({"dynamic_sampling": "same", "dynamic_sampling_max_rounds": 1}, "must be a whole number, 2 or more, got 1"),
        ({"dynamic_sampling_reward": "r"}, "does nothing without dynamic sampling. Set `dynamic_sampling`"),
        ({"dynamic_sampling": "fresh", "num_steered": 3}, "leaves a single plain rollout"),
    ],
)
def test_settings_that_do_nothing_or_cannot_be_are_refused(train, settings, message):
    with pytest.raises(ValueError, match=message):
        train(**settings, fit=False)


def test_a_reward_of_another_name_is_refused(train):
    with pytest.raises(ValueError, match="`dynamic_sampling_reward='length'` is none of the rewards, .* 'SeesLoops'."):
        train(dynamic_sampling="fresh", dynamic_sampling_reward="length", fit=False)


def test_a_stream_has_no_further_prompts_to_draw_but_its_own_can_be_sampled_again(
    make_model, tokenizer, data, tmp_path
):
    def build(mode: str) -> SteeredGRPOTrainer:
        args = SteeredGRPOConfig(
            str(tmp_path),
            num_steered=0,
            dynamic_sampling=mode,
            per_device_train_batch_size=8,
            num_generations=SIZE,
            max_completion_length=4,
            max_steps=1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            logging_steps=1,
        )
        stream = data.to_iterable_dataset()
        rewards = SpreadAtTheSecondAttempt()
        return SteeredGRPOTrainer(make_model(), rewards, args, train_dataset=stream, processing_class=tokenizer)

    with pytest.raises(ValueError, match="a stream has none. Set `dynamic_sampling='same'`"):
        build("fresh")
    trainer = build("same")
    trainer.train()
    assert logged(trainer, "dynamic/rounds") == [2.0] and logged(trainer, "dynamic/shortfall") == [0.0]


@pytest.mark.parametrize("name", ["rollout_func", "tools"])
def test_rollouts_of_several_turns_are_refused(train, name):
    def something(*args):
        """Nothing."""

    value = [something] if name == "tools" else something
    with pytest.raises(ValueError, match=f"`{name}` makes rollouts that hold more than one answer"):
        train(**PLAIN, dynamic_sampling="same", arguments={name: value}, fit=False)


def test_images_are_refused(train):
    trainer = train(**PLAIN, dynamic_sampling="same", fit=False)
    trainer.train_dataset = trainer.train_dataset.map(lambda row: {"image": "picture"})
    with pytest.raises(ValueError, match="The dataset has a column 'image'"):
        trainer.train()


# Pure functions ------------------------------------------------------------------------------------------------------


def test_each_prompt_is_drawn_once_before_any_comes_again():
    whole = fresh_indices(0, 25, 10, seed=3)
    assert sorted(whole[:10]) == sorted(whole[10:20]) == list(range(10))
    assert whole[:10] != whole[10:20]
    assert fresh_indices(7, 9, 10, seed=3) == whole[7:16]
    assert fresh_indices(0, 10, 10, seed=4) != whole[:10]


def test_the_next_round_asks_for_what_is_missing_over_the_share_that_had_spread():
    # share (7 + 1) / (14 + 2) = 1/2: two for each of the 3 that are missing
    assert prompts_to_ask(3, 7, 14, at_most=16) == 6
    assert prompts_to_ask(3, 0, 14, at_most=16) == 16  # never more than a batch
    assert prompts_to_ask(3, 14, 14, at_most=16) == 4  # (14 + 1) / (14 + 2): a little more than what is missing
