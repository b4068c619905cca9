"""What cannot work is refused with one sentence, before training."""

import logging
from dataclasses import dataclass

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening, Trainer
from trl import SFTConfig, SFTTrainer

from sae_posttrain import FeaturePenaltyArguments, FeaturePenaltyMixin

from ..trained import logged, weights
from .conftest import CLASSES, GENERATING, rows_of

pytestmark = pytest.mark.filterwarnings("ignore")
KINDS = list(CLASSES)


@pytest.mark.parametrize("kind", KINDS)
def test_data_without_a_token_to_penalise_is_refused(train, tokenizer, kind):
    chinese = rows_of(kind, tokenizer).filter(lambda row: row["lang"] == "zh")
    with pytest.raises(ValueError, match="No token of the training data would be penalised: every answer belongs"):
        train(kind, dataset=chinese, fit=False)


@pytest.mark.parametrize("kind", ["dpo", "kto", "reward", "trainer"])
def test_without_a_column_the_script_tells_the_group_and_the_update_is_the_same(train, tokenizer, caplog, kind):
    with caplog.at_level(logging.WARNING):
        told = train(kind, dataset=rows_of(kind, tokenizer).remove_columns("lang"))
    assert "the group of each example is told from the script of its answer" in caplog.text
    assert torch.allclose(weights(told), weights(train(kind)), atol=1e-6)


@pytest.mark.parametrize("kind", GENERATING)
def test_prompts_without_a_column_are_refused_where_the_model_writes_the_answers(train, tokenizer, kind):
    with pytest.raises(ValueError, match="no column 'lang'.*the model writes it in training"):
        train(kind, dataset=rows_of(kind, tokenizer).remove_columns("lang"), fit=False)


def test_evaluation_data_needs_the_column_too(train, tokenizer):
    data = rows_of("grpo", tokenizer)
    with pytest.raises(ValueError, match="The eval dataset has no column 'lang'"):
        train("grpo", eval_dataset=data.remove_columns("lang"), fit=False)


def test_group_without_statistics_is_refused_before_training(train, tokenizer):
    for kind in ("dpo", "grpo"):
        odd = rows_of(kind, tokenizer).map(lambda row, i: {"lang": "ru" if i == 3 else row["lang"]}, with_indices=True)
        with pytest.raises(ValueError, match="'ru' occurs in the data"):
            train(kind, dataset=odd, fit=False)


def test_rejected_answers_are_asked_for_where_there_are_some(train, tokenizer):
    with pytest.raises(ValueError, match="penalises rejected answers too, and this trainer's data holds none"):
        train("grpo", penalty_rows="both", fit=False)
    with pytest.raises(ValueError, match="cannot be told from its script, which may be the fault"):
        train("kto", penalty_rows="both", dataset=rows_of("kto", tokenizer).remove_columns("lang"), fit=False)


def test_tokenizer_is_needed_only_without_a_column(train, tokenizer):
    train("trainer", arguments={"processing_class": None}, fit=False)
    data = rows_of("trainer", tokenizer).remove_columns("lang")
    with pytest.raises(ValueError, match="the trainer has no tokenizer. Add the column"):
        train("trainer", dataset=data, arguments={"processing_class": None}, fit=False)


def test_flattened_batches_are_refused(train):
    trainer = train("trainer", arguments={"data_collator": DataCollatorWithFlattening()}, fit=False)
    with pytest.raises(ValueError, match="The batch has 1 rows and the groups of 4"):
        trainer.train()


def test_packing_is_left_to_sasft(train, tokenizer):
    @dataclass
    class HeldSFTConfig(FeaturePenaltyArguments, SFTConfig):
        pass

    class HeldSFTTrainer(FeaturePenaltyMixin, SFTTrainer):
        pass

    data = Dataset.from_list([{"lang": "ko", "prompt": "a", "completion": "b"}])
    for setting in ({"packing": True, "max_length": 32}, {"padding_free": True, "max_length": None}):
        with pytest.raises(ValueError, match="Use `SASFTTrainer`, which keeps them by token"):
            train(
                "trainer",
                classes=(HeldSFTTrainer, HeldSFTConfig),
                dataset=data,
                fit=False,
                arguments={"data_collator": None},
                **setting,
            )
    held = train("trainer", classes=(HeldSFTTrainer, HeldSFTConfig), dataset=data, arguments={"data_collator": None})
    assert logged(held, "sae/penalty")[0] > 0


def test_trainer_with_batches_of_its_own_says_which_tokens_count(train, tokenizer):
    class OwnTrainer(Trainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            return super().compute_loss(model, {**inputs, "labels": inputs.pop("targets")}, *args, **kwargs)

    class Held(FeaturePenaltyMixin, OwnTrainer):
        pass

    class Told(Held):
        def penalised_positions(self, inputs):
            return inputs["targets"] != -100

    def collate(rows):
        batch = DataCollatorForSeq2Seq(tokenizer)(rows)
        batch["targets"] = batch.pop("labels")
        return batch

    config, arguments = CLASSES["trainer"][1], {"data_collator": collate}
    with pytest.raises(ValueError, match="it holds 'input_ids', 'attention_mask', 'targets'. Override"):
        train("trainer", classes=(Held, config), arguments=arguments)
    told = train("trainer", classes=(Told, config), arguments=arguments)
    assert torch.allclose(weights(told), weights(train("trainer")), atol=1e-6)


def test_weight_cannot_be_bound_by_the_loss_of_reinforcement_learning(train):
    with pytest.raises(ValueError, match="Leave `penalty_max_loss_increase` out"):
        train("grpo", penalty_target=0.1, penalty_max_loss_increase=0.1, fit=False)


def test_plain_config_trains_plainly_with_a_warning_and_features_are_refused(train, make_features, caplog):
    held, _, _, plain_config = CLASSES["dpo"]
    with caplog.at_level(logging.WARNING):
        trainer = train("dpo", classes=(held, plain_config))
    assert "HeldDPOTrainer got a plain `DPOConfig`: it trains like `DPOTrainer`, without" in caplog.text
    assert torch.equal(weights(trainer), weights(train("dpo", plain=True)))
    with pytest.raises(ValueError, match="plain `DPOConfig`, which has no penalty"):
        train("dpo", classes=(held, plain_config), arguments={"feature_set": make_features()}, fit=False)
    with pytest.raises(ValueError, match="there are no features to penalise. Set `features`"):
        train("dpo", features=None, fit=False)


def test_features_of_another_model_are_refused_before_anything_is_prepared(train, make_features):
    with pytest.raises(ValueError, match="the model has blocks 0 to 1"):
        train("dpo", features=make_features(blocks=(4,)), fit=False)
