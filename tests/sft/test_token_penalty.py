"""What a user of SASFTTrainer can rely on when the probability of tokens is penalised, alone or beside features."""

import logging
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import LoraConfig, PromptTuningConfig
from trl import SFTConfig, SFTTrainer

from sae_posttrain import SASFTConfig, SASFTTrainer
from sae_posttrain.measure.faults.script_tokens import script_tokens
from sae_posttrain.penalty.groups import GROUP_IDS

from ..trained import ONE_STEP_OF_SGD, logged, weights

TEXTS = [
    ("en", "A file.", "open it now"),
    ("ko", "파일", "파일을 여세요"),
    ("zh", "文件", "打开这个文件"),
    ("en", "Save a page", "press 键"),  # what the loss wants, the penalty leaves alone
    ("ko", "쪽 저장", "키를 누르세요"),
    ("zh", "保存", "按下这个键"),
]
TOKENS = {"penalised_tokens": "zh"}


@pytest.fixture
def data() -> Dataset:
    return Dataset.from_list([{"lang": lang, "prompt": p, "completion": c} for lang, p, c in TEXTS])


@pytest.fixture
def train(make_model, tokenizer, data, tmp_path):
    """Train the tiny model for a step or more with plain SGD, and return the trainer."""

    def run(
        trainer=SASFTTrainer,
        config=SASFTConfig,
        *,
        dataset=data,
        eval_dataset=None,
        batch=6,
        peft_config=None,
        feature_set=None,
        fit=True,
        **kwargs,
    ):
        settings = {
            **ONE_STEP_OF_SGD,
            "per_device_train_batch_size": batch,
            "learning_rate": 1.0,
        }
        built = trainer(
            make_model(),
            config(str(tmp_path / "run"), **{**settings, **kwargs}),
            train_dataset=dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            peft_config=peft_config,
            **({"feature_set": feature_set} if feature_set is not None else {}),
        )
        if fit:
            built.train()
        return built

    return run


def masses(trainer, tokenizer) -> list[float]:
    """From the model's own logits, the mass of each position that counts."""
    ids = list(script_tokens(tokenizer, "zh").ids)
    found = []
    for lang, prompt, completion in TEXTS:
        asked = tokenizer(prompt)["input_ids"]
        answered = [*tokenizer(completion)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = trainer.model(input_ids=torch.tensor([asked + answered])).logits[0]
        mass = logits.softmax(dim=-1)[:, ids].sum(dim=-1).tolist()
        if lang != "zh":
            found += [mass[len(asked) + i - 1] for i, token in enumerate(answered) if token not in ids]
    return found


# The loss ------------------------------------------------------------------------------------------------------------


def test_added_term_is_the_mean_probability_where_answers_of_other_groups_are_predicted(train, tokenizer):
    trainer = train(**TOKENS, token_penalty_weight=4.0, fit=False)
    batch = next(iter(trainer.get_train_dataloader()))
    num_tokens = (batch["labels"] != -100).sum()
    with_penalty = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=num_tokens)
    trainer.token_penalty.weight = 0.0
    without = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=num_tokens)
    expected = sum(masses(trainer, tokenizer))
    assert (with_penalty - without).item() == pytest.approx(4.0 * expected / num_tokens.item(), rel=1e-3)


def test_logged_mass_is_the_mean_over_the_positions_that_count(train, data, tokenizer):
    trainer = train(**TOKENS, eval_dataset=data, learning_rate=0.0, batch=1, gradient_accumulation_steps=6)
    found = masses(trainer, tokenizer)
    assert logged(trainer, "tokens/mass") == [pytest.approx(sum(found) / len(found), rel=1e-4)]
    assert trainer.evaluate()["eval_tokens/mass"] == pytest.approx(sum(found) / len(found), rel=1e-4)
    assert not any(key.startswith("sae/") for entry in trainer.state.log_history for key in entry)


def test_a_few_steps_lower_the_mass(train):
    held, free = (train(**TOKENS, token_penalty_weight=w, max_steps=4, learning_rate=0.1) for w in (10.0, 0.0))
    assert logged(held, "tokens/mass")[0] == pytest.approx(logged(free, "tokens/mass")[0])
    assert logged(held, "tokens/mass")[-1] < 0.75 * logged(free, "tokens/mass")[-1]


def test_zero_weight_trains_exactly_like_plain_sft(train):
    plain = train(SFTTrainer, SFTConfig, batch=2, max_steps=3)
    ours = train(**TOKENS, token_penalty_weight=0.0, batch=2, max_steps=3)
    assert torch.equal(weights(plain), weights(ours))
    assert logged(plain, "loss") == logged(ours, "loss")
    assert len(logged(ours, "tokens/mass")) == 3


def test_eval_loss_is_the_token_loss_alone(train, data):
    ours, plain = (
        train(**TOKENS, eval_dataset=data, fit=False),
        train(SFTTrainer, SFTConfig, eval_dataset=data, fit=False),
    )
    assert ours.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-6)


@pytest.mark.filterwarnings("ignore")  # TRL's advice on attention kernels for padding-free batches, deprecations
def test_update_does_not_depend_on_how_it_is_computed(train):
    whole = weights(train(**TOKENS))
    ways = {
        "accumulated": {"batch": 1, "gradient_accumulation_steps": 6},
        "padding-free": {"batch": 2, "gradient_accumulation_steps": 3, "padding_free": True, "max_length": None},
        "packed": {"packing": True, "packing_strategy": "bfd", "max_length": 64},
        "checkpointed": {
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": True},
        },
        # The model's own loss, from its logits, and not that of TRL's fused head.
        "without fused head": {"label_smoothing_factor": 1e-9},
    }
    for way, settings in ways.items():
        assert torch.allclose(whole, weights(train(**TOKENS, **settings)), atol=2e-5), way


def test_beside_features_each_term_is_added_as_if_alone(train, make_features):
    features = make_features()
    start = weights(train(**TOKENS, fit=False))

    def step(**settings):
        return weights(train(**settings)) - start

    plain = weights(train(SFTTrainer, SFTConfig)) - start
    of_features = step(feature_set=features, penalty_weight=3.0) - plain
    of_tokens = step(**TOKENS, token_penalty_weight=5.0) - plain
    both = train(feature_set=features, penalty_weight=3.0, **TOKENS, token_penalty_weight=5.0)
    assert torch.allclose(weights(both) - start - plain, of_features + of_tokens, atol=2e-5)
    assert min(of_features.abs().max(), of_tokens.abs().max()) > 1e-2
    assert logged(both, "sae/penalty") and logged(both, "tokens/mass")


def test_features_may_be_watched_while_tokens_are_penalised(train, make_features):
    watched = train(feature_set=make_features(), penalty_weight=0.0, **TOKENS)
    assert torch.equal(weights(watched), weights(train(**TOKENS)))


@pytest.mark.parametrize(
    "tuning",
    [
        LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ],
    ids=["lora", "prompt"],
)
@pytest.mark.filterwarnings("ignore")
def test_adapters_are_trained_and_the_head_stays_frozen(train, tuning):
    settings = {"peft_config": tuning, "max_steps": 2, "learning_rate": 0.1, **TOKENS}
    held, free = train(**settings, token_penalty_weight=30.0), train(**settings, token_penalty_weight=0.0)
    assert logged(held, "tokens/mass")[0] == pytest.approx(logged(free, "tokens/mass")[0])
    assert logged(held, "tokens/mass")[-1] < logged(free, "tokens/mass")[-1]


def test_autocast_does_not_touch_the_penalty_itself(train):
    full, half = train(**TOKENS, learning_rate=0.0), train(**TOKENS, learning_rate=0.0, bf16=True)
    assert logged(half, "tokens/mass") == pytest.approx(logged(full, "tokens/mass"), rel=0.03)  # bf16 residuals


# Groups --------------------------------------------------------------------------------------------------------------


def test_target_group_is_the_language_where_the_data_have_it(train, data):
    assert train(**TOKENS, fit=False).token_penalty.groups.targets == ("zh",)
    named = data.map(lambda row: {"lang": {"zh": "Chinese"}.get(row["lang"], row["lang"])})
    assert train(**TOKENS, dataset=named, fit=False).train_dataset[2]["group_ids"][0] == 0
    renamed = data.map(lambda row: {"lang": {"zh": "sinitic"}.get(row["lang"], row["lang"])})
    with pytest.raises(ValueError, match="Set `target_group`.*`penalised_tokens='zh'`: the data tell of no group"):
        train(**TOKENS, dataset=renamed, fit=False)
    set_by_hand = train(**TOKENS, dataset=renamed, target_group="sinitic")
    assert torch.equal(weights(set_by_hand), weights(train(**TOKENS)))


def test_no_row_has_to_belong_to_the_target_group(train, data):
    others = data.filter(lambda row: row["lang"] != "zh")
    assert train(**TOKENS, dataset=others, target_group="zh", fit=False).token_penalty.groups.targets == ("zh",)


def test_other_languages_of_the_same_script_must_be_named(train, data, tmp_path, tokenizer):
    japanese = data.map(lambda row: {"lang": {"ko": "ja"}.get(row["lang"], row["lang"])})
    with pytest.raises(ValueError, match=r"'ja' .* in the script of `penalised_tokens='zh'`.*\['zh', 'ja'\]"):
        train(**TOKENS, dataset=japanese, fit=False)
    with pytest.raises(ValueError, match="'ja' occurs in the data"):
        train(**TOKENS, eval_dataset=japanese, fit=False)
    trainer = train(**TOKENS, dataset=japanese, target_group=["zh", "ja"], fit=False)
    assert trainer.token_penalty.groups.is_penalised(torch.tensor([0, 1, 2])).tolist() == [False, False, True]
    train(**TOKENS, dataset=japanese, token_penalty_weight=0.0, fit=False)
    file = tmp_path / "ids.json"
    file.write_text(str(list(script_tokens(tokenizer, "zh").ids)))
    train(penalised_tokens=str(file), target_group="zh", dataset=japanese, fit=False)


def test_without_a_column_the_script_of_the_answer_tells_the_target_group(train, data, caplog):
    with caplog.at_level(logging.WARNING):
        told = train(**TOKENS, dataset=data.remove_columns("lang"), fit=False)
    assert "told from the script: {'other': 4, 'zh': 2}" in caplog.text
    assert told.train_dataset[GROUP_IDS] == train(**TOKENS, fit=False).train_dataset[GROUP_IDS]


def test_streamed_rows_train_like_those_in_memory(train, data):
    settings = {**TOKENS, "shuffle_dataset": False}
    streamed = train(**settings, dataset=data.to_iterable_dataset())
    assert torch.allclose(weights(streamed), weights(train(**settings)), atol=1e-5)


# What would do nothing -----------------------------------------------------------------------------------------------


def test_data_without_a_position_that_counts_are_refused(train, data, tmp_path, tokenizer):
    chinese = data.filter(lambda row: row["lang"] == "zh")
    with pytest.raises(ValueError, match="every answer belongs to zh or has no token in the loss, or all its tokens"):
        train(**TOKENS, dataset=chinese, fit=False)
    train(**TOKENS, dataset=chinese, token_penalty_weight=0.0, fit=False)
    english = data.filter(lambda row: row["lang"] == "en")
    file = tmp_path / "ids.json"
    file.write_text(str([number for number in range(len(tokenizer)) if number != tokenizer.pad_token_id]))
    with pytest.raises(ValueError, match="or all its tokens are of the penalised set"):
        train(penalised_tokens=str(file), target_group="zh", dataset=english, fit=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalty_weight": 0.5}, "`penalty_weight` is 0.5, but there are no features"),
        ({"penalty_target": 0.1}, "`penalty_target` adapts the weight of features, and there are none"),
        ({"penalty_rows": "both"}, "the data of SFT holds none"),
        ({"completion_only_loss": False}, "the penalty would fall on the prompts"),
    ],
)
def test_settings_that_cannot_act_are_refused(train, settings, message):
    with pytest.raises(ValueError, match=message):
        train(**TOKENS, **settings, fit=False)


def test_sharded_models_are_refused(train, monkeypatch):
    trainer = train(**TOKENS, fit=False)
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    with pytest.raises(ValueError, match="With FSDP or ZeRO-3 the LM head is split"):
        trainer._refuse_what_cannot_work(trainer.args)


# The card ------------------------------------------------------------------------------------------------------------


def card_of(trainer) -> ModelCard:
    trainer.create_model_card(model_name="mine")
    return ModelCard.load(Path(trainer.args.output_dir) / "README.md")


def test_card_names_the_tokens_and_does_not_speak_of_features(train, tokenizer):
    card = card_of(train(**TOKENS, token_penalty_weight=7.0, fit=False))
    assert "## Penalised tokens" in card.text
    assert f"{len(script_tokens(tokenizer, 'zh').ids)} tokens, set with `zh`" in card.text
    assert "| `token_penalty_weight` | `7.0` |" in card.text
    assert "No sparse autoencoder is involved" in card.text
    assert "features" not in card.text.lower().replace("features to", "")
    assert "`penalty_weight`" not in card.text and "`margin`" not in card.text
    assert "trained with SASFT" not in card.text
    assert "token-penalty" in card.data.tags and not {"sae", "sasft"} & set(card.data.tags)


def test_card_says_when_tokens_were_only_watched(train):
    assert "only watched: the weight was 0" in card_of(train(**TOKENS, token_penalty_weight=0.0, fit=False)).text


def test_card_of_both_names_both_and_that_of_features_alone_no_tokens(train, make_features):
    both = card_of(train(feature_set=make_features(), **TOKENS, fit=False))
    assert "4 features for `zh`" in both.text and "### Penalised tokens" in both.text
    assert {"sasft", "token-penalty"} <= set(both.data.tags)
    alone = card_of(train(feature_set=make_features(), fit=False))
    assert "oken_penalty" not in alone.text and "Penalised tokens" not in alone.text
