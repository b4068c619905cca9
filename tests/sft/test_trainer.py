"""What a user of SASFTTrainer can rely on. Runs that must agree are compared in their weights after training."""

import contextlib
import logging

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig
from transformers import TrainingArguments
from trl import SFTConfig, SFTTrainer

from sae_posttrain import SASFTConfig, SASFTTrainer
from sae_posttrain.hooks.blocks import find_blocks
from sae_posttrain.hooks.record import record_blocks
from sae_posttrain.penalty.feature_penalty import FeaturePenalty
from sae_posttrain.penalty.groups import GROUP_IDS

from ..trained import ONE_STEP_OF_SGD, logged, weights

TEXTS = [
    ("en", "A file.", "open it now"),
    ("ko", "파일", "파일을 여세요"),
    ("zh", "文件", "打开这个文件"),
    ("en", "Save a page", "press the key"),
    ("ko", "쪽 저장", "키를 누르세요"),
    ("zh", "保存", "按下这个键"),
    ("en", "x", "yes, it is possible to do so"),
    ("ko", "그림", "그림 넣기"),
]


@pytest.fixture
def data() -> Dataset:
    return Dataset.from_list([{"lang": lang, "prompt": p, "completion": c} for lang, p, c in TEXTS])


@pytest.fixture
def train(make_model, make_features, tokenizer, data, tmp_path):
    """Train the tiny model for a step or more with plain SGD, and return the trainer."""

    def run(
        trainer=SASFTTrainer,
        config=SASFTConfig,
        *,
        dataset=data,
        eval_dataset=None,
        features="default",
        batch=8,
        accumulation=1,
        peft_config=None,
        model=None,
        fit=True,
        **kwargs,
    ):
        settings = {
            **ONE_STEP_OF_SGD,
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulation,
            "learning_rate": 1.0,
        }
        if config is SASFTConfig:
            settings["penalty_weight"] = 3.0
        args = config(str(tmp_path / "run"), **{**settings, **kwargs})
        extra = {}
        if trainer is SASFTTrainer and features is not None:
            extra["feature_set"] = make_features() if features == "default" else features
        built = trainer(
            make_model() if model is None else model,
            args,
            train_dataset=dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            peft_config=peft_config,
            **extra,
        )
        if fit:
            built.train()
        return built

    return run


def spy_on_the_penalty(trainer) -> tuple[list[torch.Tensor], list]:
    """Lists that will hold the mask each penalty was asked with, and what it read."""
    masks, readings = [], []

    class Spy(FeaturePenalty):
        def __call__(self, residuals, group_ids, mask):
            masks.append(mask)
            readings.append(super().__call__(residuals, group_ids, mask))
            return readings[-1]

    trainer.feature_penalty.__class__ = Spy
    return masks, readings


# The loss ------------------------------------------------------------------------------------------------------------


def test_zero_weight_trains_exactly_like_plain_sft(train):
    plain = train(SFTTrainer, SFTConfig, batch=2, max_steps=4)
    ours = train(penalty_weight=0.0, batch=2, max_steps=4)
    assert torch.equal(weights(plain), weights(ours))
    assert logged(plain, "loss") == logged(ours, "loss")
    assert len(logged(ours, "sae/penalty")) == 4
    assert logged(ours, "sae/penalty")[0] > 0


def test_penalty_changes_the_update(train):
    assert not torch.allclose(weights(train(penalty_weight=0.0)), weights(train()), atol=1e-4)


@pytest.mark.parametrize(
    "split",
    [
        {"batch": 4, "accumulation": 2},
        {"batch": 1, "accumulation": 8},
        {"batch": 8, "padding_free": True, "max_length": None},
        {"batch": 2, "accumulation": 4, "padding_free": True, "max_length": None},
        {"batch": 8, "packing": True, "packing_strategy": "bfd", "max_length": 64},
        {"batch": 8, "pad_to_multiple_of": 16},
    ],
    ids=["4x2", "1x8", "padding_free", "padding_free_2x4", "bfd", "padded_to_multiple"],
)
@pytest.mark.filterwarnings("ignore")  # TRL's advice on attention kernels for padding-free batches
def test_update_does_not_depend_on_how_the_batch_is_split(train, split):
    whole, other = train(), train(**split)
    start = weights(train(fit=False))
    assert (weights(whole) - start).abs().max() > 1e-2
    assert torch.allclose(weights(whole), weights(other), atol=2e-5)


@pytest.mark.filterwarnings("ignore")
def test_wrapped_packing_keeps_the_order_and_tokens_of_its_own_plain_run(train):
    settings = {"packing": True, "packing_strategy": "wrapped", "max_length": 40, "batch": 2, "max_steps": 3}
    plain, ours = train(SFTTrainer, SFTConfig, **settings), train(penalty_weight=0.0, **settings)
    assert torch.equal(weights(plain), weights(ours))
    assert not torch.allclose(weights(ours), weights(train(**settings)), atol=1e-4)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
@pytest.mark.filterwarnings("ignore")
def test_groups_travel_with_their_tokens_through_packing(train, tokenizer, strategy, shuffle):
    settings = {"packing": True, "packing_strategy": strategy, "max_length": 48, "shuffle_dataset": shuffle}
    plain = train(SFTTrainer, SFTConfig, fit=False, **settings)
    ours = train(fit=False, **settings)
    assert ours.train_dataset["input_ids"] == plain.train_dataset["input_ids"]
    assert ours.train_dataset["labels"] == plain.train_dataset["labels"]
    batch = next(iter(ours.get_train_dataloader()))
    assert batch[GROUP_IDS].shape == batch["input_ids"].shape
    hangul = [tokenizer(c)["input_ids"] for lang, p, c in TEXTS if lang == "ko" for c in (p + c)]
    hangul_bytes = {ids[0] for ids in hangul if len(ids) == 3}
    for row_ids, row_groups in zip(batch["input_ids"].tolist(), batch[GROUP_IDS].tolist()):
        for token, group in zip(row_ids, row_groups):
            if token in hangul_bytes:  # first byte of a Hangul syllable: names zh, ko, en are numbered 0, 1, 2
                assert group == 1


def test_published_form_is_ours_times_the_accumulation_steps(train, make_features):
    """The published code adds its micro-batch mean to a loss that is already divided by the whole window."""

    class PublishedTrainer(SASFTTrainer):
        def _divide(self, total, batch, num_items_in_batch):
            return total / batch.num_tokens  # per micro-batch, and not divided again

    # Answers of one length and one penalised group: then the mean of the window is the mean of the micro-batches.
    rows = [{"lang": "ko", "prompt": f"{i}", "completion": f"word {i}"} for i in range(8)]
    raw = {"dataset": Dataset.from_list(rows), "penalty_unit": "raw"}
    features = make_features()

    def run(trainer, weight, **split):
        built = train(SASFTTrainer, features=features, penalty_weight=weight, fit=False, **raw, **split)
        built.__class__ = trainer
        built.train()
        return weights(built)

    at_one = {"batch": 8, "accumulation": 1}
    at_eight = {"batch": 1, "accumulation": 8}
    assert torch.allclose(run(PublishedTrainer, 0.5, **at_one), run(SASFTTrainer, 0.5, **at_one), atol=1e-5)
    assert torch.allclose(run(PublishedTrainer, 0.5, **at_eight), run(SASFTTrainer, 4.0, **at_eight), atol=1e-5)
    assert not torch.allclose(run(PublishedTrainer, 0.5, **at_eight), run(SASFTTrainer, 0.5, **at_eight), atol=1e-3)


def test_only_response_tokens_of_other_groups_are_penalised(train, tokenizer):
    trainer = train(fit=False)
    num_response = sum(len(tokenizer(c)["input_ids"]) + 1 for _, _, c in TEXTS)  # and <|end|>
    num_chinese = sum(len(tokenizer(c)["input_ids"]) + 1 for lang, _, c in TEXTS if lang == "zh")
    masks, readings = spy_on_the_penalty(trainer)
    trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    assert masks[0].sum().item() == num_response  # TRL's num_items_in_batch
    assert readings[0].num_penalised.item() == num_response - num_chinese


@pytest.mark.parametrize("settings", [{}, {"padding_free": True, "max_length": None}], ids=["padded", "flat"])
@pytest.mark.filterwarnings("ignore")  # TRL's advice on attention kernels for padding-free batches
def test_predicting_positions_lie_one_to_the_left_of_the_answers_tokens(train, settings):
    """They begin with the last token of the prompt and leave out the last of the answer."""
    trainer = train(penalty_positions="predicting", fit=False, **settings)
    masks, _ = spy_on_the_penalty(trainer)
    batch = next(iter(trainer.get_train_dataloader()))
    labels = batch["labels"].clone()
    trainer.compute_loss(trainer.model, batch)
    first = batch["position_ids"] == 0 if "position_ids" in batch else torch.zeros_like(labels).bool()
    first[:, 0] = True  # a prompt of one token: its state is the attention sink
    assert torch.equal(masks[0][:, :-1], (labels[:, 1:] != -100) & ~first[:, :-1])
    assert not masks[0][:, -1].any()


def test_data_of_the_target_group_alone_is_refused(train, data):
    chinese = data.filter(lambda row: row["lang"] == "zh")
    with pytest.raises(
        ValueError, match="No token of the training data would be penalised: every answer belongs to zh"
    ):
        train(dataset=chinese, fit=False)
    train(dataset=chinese, penalty_weight=0.0)


def test_micro_batch_without_a_token_to_penalise_adds_nothing(train, data):
    mixed = Dataset.from_list([row for row in data if row["lang"] == "zh"] + [data[0]])
    trainer = train(dataset=mixed, batch=2, max_steps=2, shuffle_dataset=False)
    chinese = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    plain = train(SFTTrainer, SFTConfig, model=trainer.model, fit=False)
    with_penalty = trainer.compute_loss(trainer.model, dict(chinese))
    chinese.pop(GROUP_IDS)
    assert torch.equal(with_penalty, plain.compute_loss(trainer.model, chinese))


# TRL's traps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "checkpointing", [{"use_reentrant": True}, {"use_reentrant": False}], ids=["reentrant", "not"]
)
@pytest.mark.filterwarnings("ignore")
def test_gradient_checkpointing_gives_the_same_update(train, checkpointing):
    other = train(gradient_checkpointing=True, gradient_checkpointing_kwargs=checkpointing)
    assert torch.allclose(weights(train()), weights(other), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_lora_with_reentrant_checkpointing_gives_the_same_update(train):
    lora = {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)}
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    assert torch.allclose(weights(train(**lora)), weights(train(**lora, **reentrant)), atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_model_gives_the_same_update(train):
    compiled = train(torch_compile=True, torch_compile_backend="aot_eager")
    assert torch.allclose(weights(train()), weights(compiled), atol=1e-5)


def test_autocast_does_not_touch_the_penalty_itself(train):
    full, half = train(learning_rate=0.0), train(learning_rate=0.0, bf16=True)
    assert logged(half, "sae/penalty") == pytest.approx(logged(full, "sae/penalty"), rel=0.02)  # bf16 residuals


@pytest.mark.filterwarnings("ignore")
def test_metrics_function_runs_one_more_forward_and_the_eval_metrics_stay(train, data):
    trainer = train(eval_dataset=data, fit=False)
    trainer.compute_metrics = lambda prediction: {"rows": len(prediction.predictions)}
    plain = train(eval_dataset=data, fit=False).evaluate()
    with_metrics = trainer.evaluate()
    assert with_metrics["eval_rows"] == 8
    assert with_metrics["eval_sae/penalty"] == pytest.approx(plain["eval_sae/penalty"], rel=1e-5)


def test_columns_that_nobody_uses_may_stay(train):
    assert torch.equal(weights(train(remove_unused_columns=False)), weights(train()))


def test_blocks_that_return_a_tuple_are_read_like_those_that_return_a_tensor(train, make_model):
    model = make_model()
    for block in model.model.layers:  # as in Transformers 4 and some remote code: (hidden, ...)
        block.register_forward_hook(lambda _module, _args, output: (output,))
    trainer = train(fit=False)
    with record_blocks(model, [0]) as outputs, contextlib.suppress(TypeError, AttributeError, ValueError):
        model(torch.arange(6)[None])  # the next block cannot take a tuple; block 0 has been recorded by then
    with record_blocks(trainer.model, [0]) as expected:
        trainer.model(torch.arange(6)[None])
    assert torch.equal(outputs[0][0], expected[0][0])


def test_sharded_sequences_are_refused(train, monkeypatch):
    trainer = train(fit=False)
    sharded = type("Parallelism", (), {"cp_enabled": True, "sp_enabled": False})()
    monkeypatch.setattr(type(trainer.accelerator), "parallelism_config", sharded, raising=False)
    with pytest.raises(ValueError, match="does not support context or sequence parallelism"):
        trainer._refuse_what_cannot_work(trainer.args)


@pytest.mark.filterwarnings("ignore")
def test_label_smoothing_runs_a_second_forward_and_the_penalty_stays_attached(train):
    smoothed = {"label_smoothing_factor": 0.1}
    with_penalty, without = train(**smoothed), train(penalty_weight=0.0, **smoothed)
    assert not torch.allclose(weights(with_penalty), weights(without), atol=1e-4)


def test_dft_loss_takes_the_same_penalty(train):
    """The gradient of the penalty does not depend on the token loss it stands beside."""
    start = weights(train(fit=False))
    steps = {
        (loss, weight): weights(train(loss_type=loss, penalty_weight=weight)) - start
        for loss in ("nll", "dft")
        for weight in (0.0, 3.0)
    }
    assert torch.allclose(steps["nll", 3.0] - steps["nll", 0.0], steps["dft", 3.0] - steps["dft", 0.0], atol=2e-5)


def test_model_never_sees_our_column(train):
    trainer = train(fit=False)
    seen = []
    trainer.model.model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(set(kwargs)), with_kwargs=True
    )
    trainer.train()
    assert seen
    assert not any(GROUP_IDS in kwargs for kwargs in seen)


def test_truncated_examples_keep_the_groups_aligned(train):
    trainer = train(max_length=14, fit=False)
    for row in trainer.train_dataset:
        assert len(row[GROUP_IDS]) >= len(row["input_ids"])
        assert len(set(row[GROUP_IDS])) == 1
    trainer.train()


def test_streamed_dataset_trains_like_the_same_rows_in_memory(train, data):
    settings = {"max_steps": 1, "batch": 8, "shuffle_dataset": False}
    assert torch.allclose(
        weights(train(dataset=data.to_iterable_dataset(), **settings)), weights(train(**settings)), atol=1e-5
    )


def test_tokenized_dataset_with_a_group_column_is_taken_as_it_is(train):
    prepared = train(SFTTrainer, SFTConfig, fit=False).train_dataset
    assert "lang" in prepared.column_names
    tokenized = prepared.select_columns(["input_ids", "labels", "lang"])
    assert torch.allclose(weights(train(dataset=tokenized)), weights(train()), atol=1e-5)


def test_lora_trains_the_adapter_with_the_penalty(train):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    # The B matrices start at zero, so the first step moves only them; three steps move both.
    settings = {"peft_config": lora, "max_steps": 3, "learning_rate": 0.1}
    with_penalty, without = train(**settings), train(**settings, penalty_weight=0.0)
    assert logged(with_penalty, "sae/penalty")[-1] < logged(without, "sae/penalty")[-1]
    lora_only = [n for n, p in with_penalty.model.named_parameters() if p.requires_grad]
    assert lora_only
    assert all("lora_" in name for name in lora_only)


@pytest.mark.parametrize("shared", [{"padding_free": True, "max_length": None}, {"packing": True, "max_length": 64}])
def test_virtual_tokens_before_documents_that_share_a_row_are_refused(train, shared):
    """PEFT drops the positions that keep the documents apart; the gradient would be wrong without a word."""
    tuning = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(ValueError, match="they would read each other. Set `padding_free=False` and `packing=False`"):
        train(peft_config=tuning, fit=False, **shared)


def test_prefix_tuning_with_gradient_checkpointing_is_refused(train):
    tuning = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(ValueError, match="Set `gradient_checkpointing=False`"):
        train(peft_config=tuning, fit=False, gradient_checkpointing=True)


def test_prompt_tuning_puts_virtual_tokens_in_front_and_the_labels_still_fit(train, make_model):
    trainer = train(peft_config=PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    plain = train(penalty_weight=0.0)
    assert logged(trainer, "sae/penalty")[0] > 0
    assert logged(trainer, "sae/penalty")[0] != logged(plain, "sae/penalty")[0]


def test_hooks_are_disarmed_when_the_forward_raises(train):
    trainer = train(fit=False)
    batch = next(iter(trainer.get_train_dataloader()))
    batch["input_ids"] = batch["input_ids"] + 10_000  # outside the vocabulary
    with pytest.raises(IndexError):
        trainer.compute_loss(trainer.model, batch)
    assert trainer.feature_penalty._recorder._captures is None


def test_sae_tensors_are_not_part_of_the_model(train):
    trainer, plain = train(fit=False), train(SFTTrainer, SFTConfig, fit=False)
    assert trainer.model.state_dict().keys() == plain.model.state_dict().keys()
    assert len(find_blocks(trainer.model)[0]._forward_hooks) == 1


# Metrics -------------------------------------------------------------------------------------------------------------


def test_metrics_are_logged_in_training_and_evaluation(train, data):
    trainer = train(eval_dataset=data, batch=2, max_steps=4, logging_steps=2, eval_strategy="steps", eval_steps=4)
    assert len(logged(trainer, "sae/penalty")) == 2
    assert all(0 <= rate <= 1 for rate in logged(trainer, "sae/excess_rate"))
    for name in ("0.3", "0.13", "1.23", "1.33"):
        assert len(logged(trainer, f"sae/pre_activation/{name}")) == 2
        assert len(logged(trainer, f"eval_sae/pre_activation/{name}")) == 1


def test_logged_values_are_those_of_the_window_not_of_its_last_batch(train):
    """With a learning rate of zero, one batch of 8 and eight batches of 1 must log the same."""
    frozen = {"learning_rate": 0.0, "shuffle_dataset": False}
    whole = train(batch=8, **frozen)
    parts = train(batch=1, accumulation=8, **frozen)
    for key in ("sae/penalty", "sae/excess_rate", "sae/pre_activation/0.3"):
        assert logged(whole, key) == pytest.approx(logged(parts, key), rel=1e-5)


def test_eval_loss_is_the_token_loss_alone(train, data):
    trainer = train(eval_dataset=data, learning_rate=0.0)
    plain = train(SFTTrainer, SFTConfig, eval_dataset=data, learning_rate=0.0)
    ours = trainer.evaluate()
    assert ours["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-6)
    assert trainer.evaluate(data.select([0, 1]))["eval_loss"] > 0  # a dataset that was not prepared at init


def test_many_features_log_one_mean(train, make_features):
    trainer = train(features=make_features(per_block=20))
    assert logged(trainer, "sae/pre_activation")
    assert not any("pre_activation/" in key for entry in trainer.state.log_history for key in entry)


# Settings that would undo the method ---------------------------------------------------------------------------------


def test_weight_without_features_is_an_error(train):
    with pytest.raises(ValueError, match="there are no features to penalise. Set `features`"):
        train(features=None, fit=False)
    train(features=None, penalty_weight=0.0)


def test_plain_config_trains_plainly_with_a_warning(train, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = train(SASFTTrainer, SFTConfig, features=None)
    assert "without a feature penalty" in caplog.text
    assert torch.equal(weights(trainer), weights(train(SFTTrainer, SFTConfig)))
    with pytest.raises(ValueError, match="plain `SFTConfig`, which has no penalty"):
        train(SASFTTrainer, SFTConfig, fit=False)
    with pytest.raises(ValueError, match="plain `TrainingArguments`"):
        train(SASFTTrainer, TrainingArguments, fit=False)


def test_features_are_read_from_the_file_in_the_config(train, make_features, tmp_path):
    file = make_features().save(tmp_path / "zh.safetensors")
    from_file = train(
        features=None, config=lambda folder, **settings: SASFTConfig(folder, features=str(file), **settings)
    )
    assert torch.equal(weights(from_file), weights(train(penalty_weight=1.0)))


def test_group_without_statistics_is_an_error(train, data):
    odd = Dataset.from_list([*data, {"lang": "ru", "prompt": "файл", "completion": "открыть"}])
    with pytest.raises(ValueError, match="'ru' occurs in the data"):
        train(dataset=odd, fit=False)
    train(dataset=odd, unknown_group="mean")


def test_group_column_that_is_missing_is_an_error(train):
    with pytest.raises(ValueError, match="no column 'language' .`group_column`.. It has completion, lang, prompt"):
        train(group_column="language", fit=False)


def test_without_a_column_the_script_of_the_answer_tells_the_group(train, data, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = train(dataset=data.remove_columns("lang"))
    assert "told from the script: {'en': 3, 'ko': 3, 'zh': 2}" in caplog.text
    assert torch.allclose(weights(trainer), weights(train()), atol=1e-6)


def test_groups_of_one_script_need_the_column(train, data, make_features):
    features = make_features(groups=("zh", "en", "es"))
    with pytest.raises(ValueError, match="'en' and 'es' share the script Latin"):
        train(dataset=data.remove_columns("lang"), features=features, fit=False)


def messages(data):
    return Dataset.from_list(
        [
            {
                "lang": row["lang"],
                "messages": [
                    {"role": "user", "content": row["prompt"]},
                    {"role": "assistant", "content": row["completion"]},
                ],
            }
            for row in data
        ]
    )


def test_messages_with_the_loss_on_user_turns_are_refused(train, data):
    with pytest.raises(ValueError, match="Set `assistant_only_loss=True`"):
        train(dataset=messages(data), fit=False)
    trainer = train(dataset=messages(data), assistant_only_loss=True)
    conversational = data.map(
        lambda row: {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
        }
    )
    assert torch.allclose(weights(trainer), weights(train(dataset=conversational)), atol=1e-5)


def test_loss_on_prompts_is_refused(train):
    with pytest.raises(ValueError, match="With `completion_only_loss=False` the penalty would fall on the prompts"):
        train(completion_only_loss=False, fit=False)


def test_skipping_the_preparation_is_refused(train):
    with pytest.raises(ValueError, match="leaves no place to add the group of each token"):
        train(dataset_kwargs={"skip_prepare_dataset": True}, fit=False)


def test_features_of_another_model_are_refused_before_anything_is_prepared(train, make_features, make_model):
    with pytest.raises(ValueError, match="the model has blocks 0 to 1"):
        train(features=make_features(blocks=(4,)), fit=False)
    model = make_model()
    model.config._name_or_path = "org/other"
    with pytest.raises(ValueError, match="allow_base_model='other'"):
        train(features=make_features(base_model="org/base"), model=model, fit=False)
    train(features=make_features(base_model="org/base"), model=model, allow_base_model="org/other", fit=False)


def test_absent_target_group_is_refused(train):
    with pytest.raises(ValueError, match="The target group 'fr' is not in the feature set"):
        train(target_group="fr", fit=False)


def test_replaced_collator_is_an_error_not_a_silent_plain_run(train):
    trainer = train(fit=False)
    trainer.data_collator = trainer.data_collator.collator
    with pytest.raises(ValueError, match="The batch has no `group_ids`"):
        trainer.train()


# Answers without a language ------------------------------------------------------------------------------------------


def without_letters(data) -> Dataset:
    rows = [*data.remove_columns("lang"), {"prompt": "1 + 1", "completion": "= 2 !"}]
    return Dataset.from_list(rows)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.filterwarnings("ignore")  # TRL's advice on attention kernels
def test_answer_without_letters_is_counted_and_never_penalised(train, data, tokenizer, caplog, packing):
    with caplog.at_level(logging.WARNING):
        trainer = train(dataset=without_letters(data), batch=9, packing=packing, max_length=256, fit=False)
    assert "told from the script: {'en': 3, 'ko': 3, 'no letters': 1, 'zh': 2}" in caplog.text
    masks, readings = spy_on_the_penalty(trainer)
    trainer.train()
    chinese_or_none = [*(c for lang, _, c in TEXTS if lang == "zh"), "= 2 !"]
    exempt = sum(len(tokenizer(completion)["input_ids"]) + 1 for completion in chinese_or_none)
    assert readings[0].num_penalised.item() == masks[0].sum().item() - exempt
    share = (len(tokenizer("= 2 !")["input_ids"]) + 1) / masks[0].sum().item()
    assert logged(trainer, "sae/without_group") == [pytest.approx(share)]


def test_answer_without_letters_is_no_refusal_at_weight_zero_or_in_a_stream(train, data):
    rows = without_letters(data)
    zero = train(dataset=rows, penalty_weight=0.0)
    assert torch.equal(weights(zero), weights(train(SFTTrainer, SFTConfig, dataset=rows)))
    streamed = train(dataset=rows.to_iterable_dataset(), batch=9)
    assert logged(streamed, "sae/without_group")[0] > 0
    assert not logged(train(), "sae/without_group")


def test_template_without_marks_is_answered_with_prompt_and_completion(train, data, tokenizer, monkeypatch):
    marked = tokenizer.chat_template
    plain = marked.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    monkeypatch.setattr(tokenizer, "chat_template", plain)
    with pytest.raises(
        ValueError, match="no such marks.*columns `prompt` and `completion`.*TRL says: The chat template"
    ):
        train(dataset=messages(data), assistant_only_loss=True, fit=False)
    with pytest.raises(ValueError, match="or give the data as columns `prompt` and `completion`"):
        train(dataset=messages(data), fit=False)


# Languages by any name -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unknown_group", ["error", "mean"])
def test_languages_are_the_same_groups_whatever_they_are_called(train, data, unknown_group):
    names = {"zh": "zh-CN", "ko": "kor_Hang", "en": "English"}
    renamed = data.map(lambda row: {"lang": names[row["lang"]]})
    trainer = train(dataset=renamed, unknown_group=unknown_group, target_group=["zho_Hans"])
    assert torch.equal(weights(trainer), weights(train()))


def test_groups_read_with_the_mean_are_named(train, data, caplog):
    odd = Dataset.from_list([*data, {"lang": "ru", "prompt": "файл", "completion": "открыть"}])
    with caplog.at_level(logging.WARNING):
        train(dataset=odd, unknown_group="mean", fit=False)
    assert "without statistics, read with the mean of the others: ru." in caplog.text


# First positions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["response", "predicting"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"padding_free": True, "max_length": None}, {"packing": True, "max_length": 64}],
    ids=["padded", "flat", "packed"],
)
@pytest.mark.filterwarnings("ignore")  # TRL's advice on attention kernels for padding-free batches
def test_first_position_of_a_document_is_never_read(train, data, tokenizer, positions, settings):
    """Plain texts have a label on every token; the state at the first is the attention sink."""
    texts = Dataset.from_list([{"lang": row["lang"], "text": row["completion"]} for row in data])
    trainer = train(dataset=texts, penalty_positions=positions, fit=False, **settings)
    masks, _ = spy_on_the_penalty(trainer)
    batch = next(iter(trainer.get_train_dataloader()))
    lengths = sum(len(tokenizer(row["text"])["input_ids"]) + 1 for row in texts)
    first = batch["position_ids"] == 0 if "position_ids" in batch else torch.zeros_like(batch["labels"]).bool()
    first[:, 0] = True
    trainer.compute_loss(trainer.model, batch)
    assert not (masks[0] & first).any()
    left_out = 2 if positions == "predicting" else 1  # the first, and the last, which predicts nothing
    assert masks[0].sum().item() == lengths - left_out * len(texts)
