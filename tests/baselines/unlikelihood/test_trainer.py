import logging
from collections.abc import Callable

import pytest
import torch
from datasets import Dataset
from peft import PromptTuningConfig
from trl import SFTConfig, SFTTrainer, TrlParser

from sae_posttrain.baselines.unlikelihood.config import UnlikelihoodConfig
from sae_posttrain.baselines.unlikelihood.rows import sample_unlikely_rows
from sae_posttrain.baselines.unlikelihood.trainer import UnlikelihoodTrainer

from ...trained import ONE_STEP_OF_SGD

TEXTS = [("A file.", "open it now"), ("Save", "press the key"), ("x", "yes, it is"), ("Print", "use the menu")]
LOOP = {"input_ids": [20, 21, 22, 50, 51, 50, 51, 50, 51], "unlikely": [0, 0, 0, 0, 0, 1, 1, 1, 1]}


@pytest.fixture
def data(tokenizer) -> Dataset:
    rows = []
    for prompt, completion in TEXTS:
        asked, answer = (tokenizer(text)["input_ids"] for text in (prompt, completion + tokenizer.eos_token))
        rows.append({"input_ids": asked + answer, "labels": [-100] * len(asked) + answer})
    return Dataset.from_list(rows)


@pytest.fixture
def loops() -> Dataset:
    longer = {"input_ids": [30, 60, 60, 60, 60, 60], "unlikely": [0, 0, 1, 1, 1, 1]}
    return Dataset.from_list([LOOP, longer, LOOP, longer])


@pytest.fixture
def sharp(make_model) -> Callable[[], torch.nn.Module]:
    """A model that is sure of what it says, so that its repetitions have a probability worth lowering."""

    def make():
        model = make_model()
        model.lm_head.weight.data *= 3
        return model

    return make


@pytest.fixture
def own_rows(sharp, tokenizer) -> Dataset:
    return sample_unlikely_rows(sharp(), tokenizer, ["a", "xyz", "f", "keys", "b", "no"], n=1, max_new_tokens=12)


@pytest.fixture
def train(make_model, tokenizer, data, tmp_path):
    """Train the tiny model for a step or more with plain SGD, and return the trainer."""

    def run(trainer=UnlikelihoodTrainer, config=UnlikelihoodConfig, *, model=None, fit=True, given=None, **kwargs):
        settings = {
            **ONE_STEP_OF_SGD,
            "per_device_train_batch_size": 8,
            "learning_rate": 0.5,
        }
        args = config(str(tmp_path / "run"), **{**settings, **kwargs})
        arguments = {"train_dataset": data, "processing_class": tokenizer, **(given or {})}
        built = trainer(make_model() if model is None else model, args, **arguments)
        if fit:
            built.train()
        return built

    return run


def weights(trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def first_log(trainer) -> dict[str, float]:
    return next(entry for entry in trainer.state.log_history if "loss" in entry)


def log_probs(model, ids: list[int]) -> torch.Tensor:
    """Log-probability of each token except the first."""
    batch = torch.tensor([ids])
    return model(batch).logits[0, :-1].log_softmax(-1).gather(1, batch[0, 1:, None])[:, 0]


def test_zero_weight_trains_exactly_like_plain_sft(train, loops, caplog):
    settings = {"max_steps": 2, "per_device_train_batch_size": 2}
    plain = train(SFTTrainer, SFTConfig, **settings)
    assert torch.equal(weights(train(unlikelihood_weight=0.0, **settings)), weights(plain))
    with caplog.at_level(logging.WARNING):
        ours = train(unlikelihood_weight=0.0, given={"unlikely_dataset": loops}, **settings)
    assert torch.equal(weights(ours), weights(plain))
    assert "the rows of `unlikely_dataset` are left out" in caplog.text


def test_loss_and_update_are_those_worked_out_by_hand(train, sharp, own_rows):
    given = {"unlikely_dataset": own_rows}
    trainer = train(model=sharp(), unlikelihood_weight=2.0, given=given, learning_rate=1.0)
    model = sharp()
    before = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    likelihood, unlikelihood, num_tokens = 0.0, 0.0, 0
    for row in trainer.train_dataset:
        own = log_probs(model, row["input_ids"])
        labelled = torch.tensor(row["labels"][1:]) != -100
        num_tokens += int(labelled.sum())
        if row["unlikely"] is None:
            likelihood = likelihood - own[labelled].sum()
        else:
            assert torch.equal(labelled, torch.tensor(row["unlikely"][1:]).bool())
            unlikelihood = unlikelihood - torch.log(1 - own[labelled].exp()).sum()
    assert 2 * unlikelihood > 0.05 * likelihood  # enough for the comparison to see it
    loss = (likelihood + 2.0 * unlikelihood) / num_tokens
    loss.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert first_log(trainer)["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert torch.allclose(weights(trainer), before - gradient, atol=1e-4)


def test_update_does_not_depend_on_how_the_batch_is_split(train, sharp, own_rows):
    given = {"unlikely_dataset": own_rows}
    whole = train(model=sharp(), given=given)
    split = train(model=sharp(), given=given, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert torch.allclose(weights(whole), weights(split), atol=1e-5)


def test_marked_tokens_become_less_likely_and_the_metrics_say_so(train, sharp, own_rows, data):
    trainer = train(model=sharp(), given={"unlikely_dataset": own_rows}, max_steps=4, learning_rate=0.1)
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    first, last = entries[0], entries[-1]
    with torch.no_grad():
        own = [log_probs(sharp(), row["input_ids"])[torch.tensor(row["unlikely"][1:]).bool()] for row in own_rows]
    marked = torch.cat(own)
    assert first["unlikelihood/probability"] == pytest.approx(marked.exp().mean().item(), rel=1e-3)
    assert first["unlikelihood/loss"] == pytest.approx(-torch.log(1 - marked.exp()).mean().item(), rel=1e-3)
    assert last["unlikelihood/probability"] < first["unlikelihood/probability"] / 2
    num_ordinary = sum(label != -100 for labels in data["labels"] for label in labels)
    assert first["unlikelihood/share"] == pytest.approx(len(marked) / (len(marked) + num_ordinary))
    plain = train(SFTTrainer, SFTConfig, model=sharp())
    for ours, theirs in (("unlikelihood/nll", "loss"), ("mean_token_accuracy",) * 2, ("entropy",) * 2):
        assert first[ours] == pytest.approx(first_log(plain)[theirs], rel=1e-3)  # of the ordinary tokens


def test_evaluation_is_that_of_plain_sft(train, loops, data):
    given = {"eval_dataset": data}
    ours = train(given={**given, "unlikely_dataset": loops}, fit=False).evaluate()
    plain = train(SFTTrainer, SFTConfig, given=given, fit=False).evaluate()
    assert ours["eval_loss"] == plain["eval_loss"]


def test_prompt_tuning_keeps_the_marks_on_their_tokens(train, loops):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    trainer = train(given={"unlikely_dataset": loops, "peft_config": config}, learning_rate=0.0)
    own = []
    with torch.no_grad():
        for row in loops:
            ids = torch.tensor([row["input_ids"]])
            logits = trainer.model(input_ids=ids).logits[0, -ids.shape[1] : -1]
            picked = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            own.append(picked[torch.tensor(row["unlikely"][1:]).bool()])
    assert first_log(trainer)["unlikelihood/probability"] == pytest.approx(
        torch.cat(own).exp().mean().item(), rel=1e-3
    )


def test_rows_are_cut_at_the_length_limit_and_those_without_a_mark_left_out(train, loops, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = train(given={"unlikely_dataset": loops}, fit=False, max_length=5)
    assert "2 of 4 rows of `unlikely_dataset` have no marked token" in caplog.text
    kept = [row for row in trainer.train_dataset if row["unlikely"] is not None]
    assert [row["labels"] for row in kept] == [[-100, -100, 60, 60, 60]] * 2
    with pytest.raises(ValueError, match="is marked within `max_length=2`: nothing to unlearn"):
        train(given={"unlikely_dataset": loops}, fit=False, max_length=2)


# Refused -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"packing": True, "max_length": 64}, "With `packing` or `padding_free` the repeated tokens"),
        ({"padding_free": True}, "With `packing` or `padding_free`"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` works on the full logits"),
        ({"loss_type": "dft"}, "`loss_type='dft'` would weigh repeated tokens too"),
        ({"unlikelihood_weight": -1.0}, "`unlikelihood_weight` must be a number, 0 or more, got -1.0"),
        ({"unlikelihood_weight": "1"}, "must be a number, 0 or more, got '1'"),
    ],
)
def test_settings_that_would_train_towards_repetitions_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        UnlikelihoodConfig(str(tmp_path), use_cpu=True, bf16=False, **settings)


def test_weight_without_rows_and_rows_without_a_weight_are_refused(train, loops, caplog):
    with pytest.raises(ValueError, match="`unlikelihood_weight` is 1.0, but there is no `unlikely_dataset`"):
        train()
    with pytest.raises(ValueError, match="a plain `SFTConfig`, which has no weight for it. Use `UnlikelihoodConfig`"):
        train(config=SFTConfig, given={"unlikely_dataset": loops})
    with caplog.at_level(logging.WARNING):
        train(config=SFTConfig, fit=False)
    assert "it trains like `SFTTrainer`" in caplog.text


def test_data_that_cannot_be_mixed_is_refused(train, loops, data):
    with pytest.raises(ValueError, match="got `train_dataset` of IterableDataset"):
        train(given={"unlikely_dataset": loops, "train_dataset": data.to_iterable_dataset()})
    broken = Dataset.from_list([{"input_ids": [1, 2, 3], "unlikely": [0, 1]}])
    with pytest.raises(ValueError, match=r"Row 0 .* it has input_ids \(3\), unlikely \(2\). `sample_unlikely_rows`"):
        train(given={"unlikely_dataset": broken})
    with pytest.raises(ValueError, match="`compute_loss_func` would train towards the repeated tokens"):
        train(given={"unlikely_dataset": loops, "compute_loss_func": len})


def test_settings_parse_from_yaml(tmp_path):
    (tmp_path / "run.yaml").write_text("output_dir: out\nunlikelihood_weight: 0.5\nuse_cpu: true\nbf16: false\n")
    (config,) = TrlParser(UnlikelihoodConfig).parse_args_and_config(["--config", str(tmp_path / "run.yaml")])
    assert config.unlikelihood_weight == 0.5
