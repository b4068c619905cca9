"""The penalty on the probability of tokens, whichever trainer [`FeaturePenaltyMixin`] stands before."""

import pytest
import torch

from sae_posttrain.measure.faults.script_tokens import script_tokens

from ..trained import logged, weights
from .conftest import CLASSES, rows_of
from .test_any_trainer import answers, one_batch

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's notes on tiny batches, greedy settings, deprecations
KINDS = [kind for kind in CLASSES if kind != "reward"]
ALONE = {"features": None, "penalty_weight": 0.0, "penalised_tokens": "zh"}


@pytest.mark.parametrize("kind", KINDS)
def test_added_term_is_the_mean_probability_where_the_answers_that_count_are_predicted(train, tokenizer, kind):
    settings = {"kto": {"per_device_train_batch_size": 8}, "grpo": {"steps_per_generation": 2}}.get(kind, {})
    trainer = train(kind, fit=False, **ALONE, token_penalty_weight=5.0, **settings)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = one_batch(trainer)
    ids = list(script_tokens(tokenizer, "zh").ids)
    total, num_tokens = 0.0, 0
    for group, tokens, start in answers(kind, batch, tokenizer):
        num_tokens += len(tokens) - start
        with torch.no_grad():
            logits = trainer.model(input_ids=torch.tensor([tokens])).logits[0]
        mass = logits.softmax(dim=-1)[:, ids].sum(dim=-1)
        if group != "zh":
            total += sum(mass[t - 1].item() for t in range(start, len(tokens)) if tokens[t] not in ids)
    kwargs = {"num_items_in_batch": torch.tensor(num_tokens)} if kind == "trainer" else {}
    divisor = batch["num_items_in_batch"].item() / 2 if kind == "grpo" else num_tokens
    with_penalty = trainer.compute_loss(trainer.model, dict(batch), **kwargs)
    trainer.token_penalty.weight = 0.0
    without = trainer.compute_loss(trainer.model, dict(batch), **kwargs)
    assert (with_penalty - without).item() / 5.0 == pytest.approx(total / divisor, rel=1e-3)
    assert total > 0


@pytest.mark.parametrize("kind", ["dpo", "grpo"])
def test_zero_weight_trains_exactly_like_the_parent(train, kind):
    ours, plain = train(kind, **ALONE, token_penalty_weight=0.0, max_steps=2), train(kind, plain=True, max_steps=2)
    assert torch.equal(weights(ours), weights(plain))
    assert len(logged(ours, "tokens/mass")) == 2


def test_reward_models_have_no_probabilities(train):
    with pytest.raises(ValueError, match="has no LM head.*Leave `penalised_tokens` out"):
        train("reward", **ALONE, fit=False)


def test_prompts_need_the_column_where_the_model_writes_the_answers(train, tokenizer):
    with pytest.raises(ValueError, match="Add the column"):
        train("grpo", **ALONE, dataset=rows_of("grpo", tokenizer).remove_columns("lang"), fit=False)


def test_data_without_a_position_that_counts_are_refused(train, tokenizer):
    chinese = rows_of("dpo", tokenizer).filter(lambda row: row["lang"] == "zh")
    with pytest.raises(ValueError, match="or all its tokens are of the penalised set"):
        train("dpo", **ALONE, dataset=chinese, fit=False)
