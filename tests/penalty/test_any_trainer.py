"""What a user of `FeaturePenaltyMixin` can rely on, whichever trainer it stands before."""

from dataclasses import dataclass

import pytest
import torch
from peft import LoraConfig

from sae_posttrain import FeaturePenaltyArguments, FeaturePenaltyMixin, SteeredGRPOConfig, SteeredGRPOTrainer
from sae_posttrain.hooks.record import record_blocks

from ..trained import logged, weights
from .conftest import CLASSES, GENERATING, ROWS, rows_of

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's notes on tiny batches, greedy settings, deprecations
KINDS = list(CLASSES)
GENERATED = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


@dataclass
class HeldSteeredConfig(FeaturePenaltyArguments, SteeredGRPOConfig):
    pass


class HeldSteeredTrainer(FeaturePenaltyMixin, SteeredGRPOTrainer):
    pass


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_steps_lower_the_features_excess(train, kind):
    held, free = (train(kind, max_steps=4, penalty_weight=weight) for weight in (3.0, 0.0))
    assert logged(held, "sae/penalty")[0] == pytest.approx(logged(free, "sae/penalty")[0])
    assert logged(held, "sae/penalty")[-1] < 0.9 * logged(free, "sae/penalty")[-1]
    assert len(logged(held, "sae/pre_activation/0.3")) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_zero_weight_trains_exactly_like_the_parent(train, kind):
    ours, plain = train(kind, max_steps=2, penalty_weight=0.0), train(kind, plain=True, max_steps=2)
    assert torch.equal(weights(ours), weights(plain))
    assert logged(ours, "loss") == logged(plain, "loss")


@pytest.mark.parametrize("kind", KINDS)
def test_update_does_not_depend_on_how_the_batch_is_split(train, kind):
    """All answers that count are of one length, so the micro-batch means of preference trainers agree too."""
    settings = {"kto": {"loss_type": "apo_zero_unpaired", "per_device_train_batch_size": 8, "penalty_rows": "both"}}
    whole = {"per_device_train_batch_size": 4, **settings.get(kind, {})}
    size = whole["per_device_train_batch_size"]
    split = {**whole, "per_device_train_batch_size": size // 2, "gradient_accumulation_steps": 2}
    assert torch.allclose(weights(train(kind, **whole)), weights(train(kind, **split)), atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_logs_the_features_and_leaves_the_loss_alone(train, tokenizer, kind):
    data = rows_of(kind, tokenizer)
    ours = train(kind, eval_dataset=data, fit=False)
    plain = train(kind, plain=True, eval_dataset=data, fit=False)
    torch.manual_seed(0)
    found = ours.evaluate()
    torch.manual_seed(0)
    assert found["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"])
    assert found["eval_sae/penalty"] > 0


def one_batch(trainer):
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


def term(trainer, batch, **kwargs) -> float:
    """What the penalty adds to the loss of a batch, per unit of its weight."""
    with_penalty = trainer.compute_loss(trainer.model, dict(batch), **kwargs)
    weight, trainer.feature_penalty.weight = trainer.penalty_weight, 0.0
    without = trainer.compute_loss(trainer.model, dict(batch), **kwargs)
    trainer.feature_penalty.weight = weight
    return (with_penalty - without).item() / weight


def answers(kind: str, batch, tokenizer) -> list[tuple[str, list[int], int]]:
    """Group, token ids and place of the answer of each sequence that counts, from the texts or what was generated."""
    if kind in GENERATING:
        groups = {prompt: lang for lang, prompt, _, _ in ROWS}
        found = []
        for prompt, kept, answer, mask in zip(*(batch[name] for name in GENERATED)):
            asked, answered = prompt[kept.bool()].tolist(), answer[mask.bool()].tolist()
            found.append((groups[tokenizer.decode(asked)], asked + answered, len(asked)))
        return found
    found = []
    for lang, prompt, good, _ in ROWS:
        asked, answered = tokenizer(prompt)["input_ids"], tokenizer(good)["input_ids"]
        end = [] if kind == "trainer" else [tokenizer.eos_token_id]
        found.append((lang, asked + answered + end, len(asked)))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_added_term_is_the_mean_excess_over_the_answers_that_count(train, make_features, tokenizer, kind):
    settings = {"kto": {"per_device_train_batch_size": 8}, "grpo": {"steps_per_generation": 2}}.get(kind, {})
    trainer, features = train(kind, fit=False, **settings), make_features()
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = one_batch(trainer)
    total, num_tokens = 0.0, 0
    for group, ids, start in answers(kind, batch, tokenizer):
        num_tokens += len(ids) - start
        if group == "zh":  # counted, not penalised
            continue
        with record_blocks(trainer.model, [0, 1]) as residuals, torch.no_grad():
            trainer.model(input_ids=torch.tensor([ids]))
        for block in (0, 1):
            part = features.select(block=block)
            pre = part.pre_activations(residuals[block][0][0, start:])
            g = part.groups.index(group)
            total += torch.relu((pre - part.mean[:, g]) / part.std[:, g]).mean(dim=1).sum().item()
    divisor, kwargs = num_tokens, {}
    if kind == "trainer":  # a window of two such batches
        divisor = 2 * num_tokens
        kwargs["num_items_in_batch"] = torch.tensor(divisor)
    if kind == "grpo":  # what was generated at once serves two windows
        divisor = batch["num_items_in_batch"].item() / 2
    assert term(trainer, batch, **kwargs) == pytest.approx(total / divisor, rel=1e-4)
    assert total > 0


def test_rejected_answers_pay_when_asked(train):
    for kind in ("dpo", "kto", "reward"):
        chosen, both = (train(kind, fit=False, penalty_rows=rows) for rows in ("chosen", "both"))
        batches = [one_batch(trainer) for trainer in (chosen, both)]
        counts = [(batch["group_ids"] != -1).sum().item() for batch in batches]
        assert counts[1] == 2 * counts[0] or kind == "kto"  # a batch of KTO is any four rows
        assert counts[1] == len(batches[1]["input_ids"])


def test_a_generated_batch_that_is_used_again_keeps_its_groups(train):
    again = train("grpo", max_steps=3, num_iterations=3)
    assert len(logged(again, "sae/penalty")) == 3


def test_answers_by_steered_rollouts_are_read_like_the_others(train, make_model, make_features):
    """The features that provoke the fault in the rollouts are held down in the same step."""
    trainer = train(
        "grpo",
        classes=(HeldSteeredTrainer, HeldSteeredConfig),
        max_steps=2,
        num_steered=1,
        steer_strength=1.0,
        arguments={"fault": lambda ids, finished: False},
        blind_reward_patience=100,
    )
    assert len(logged(trainer, "sae/penalty")) == 2
    assert logged(trainer, "steer/strength") == [1.0, 1.0]
    batch = one_batch(trainer)
    assert batch["steered"].sum() == 2
    assert (batch["group_ids"] != -1).all()


def test_adapters_are_what_the_penalty_trains(train):
    lora = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    settings = {"arguments": {"peft_config": lora, "ref_model": None}, "max_steps": 2, "learning_rate": 0.01}
    held, free = (train("dpo", penalty_weight=weight, **settings) for weight in (3.0, 0.0))
    assert not torch.allclose(weights(held), weights(free), atol=1e-4)
    assert all("lora_" in name for name, p in held.model.named_parameters() if p.requires_grad)


def test_evaluation_reads_the_answers_not_the_other_forwards_of_the_loss(train, tokenizer):
    """KTO first scores each prompt with another row's answer, and in evaluation no gradient tells the two apart."""
    whole = {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 8}
    trainer = train("kto", eval_dataset=rows_of("kto", tokenizer), learning_rate=0.0, **whole)
    assert trainer.evaluate()["eval_sae/penalty"] == pytest.approx(logged(trainer, "sae/penalty")[0], rel=1e-5)


def test_reference_may_be_computed_beforehand(train, tokenizer):
    settings = {"precompute_ref_log_probs": True, "arguments": {"ref_model": None}}
    trainer = train("dpo", fit=False, **settings)
    before = trainer.evaluate(rows_of("dpo", tokenizer))  # prepared, and its reference computed, here
    trainer.train()
    assert before["eval_sae/penalty"] == pytest.approx(logged(trainer, "sae/penalty")[0], rel=1e-5)


def test_streamed_rows_train_like_those_in_memory(train, tokenizer):
    streamed = train("dpo", dataset=rows_of("dpo", tokenizer).to_iterable_dataset())
    assert torch.allclose(weights(streamed), weights(train("dpo")), atol=1e-6)
