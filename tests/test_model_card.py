"""What the card of a trained model says, read back as the Hub reads it."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from datasets import Dataset
from huggingface_hub import HfApi, ModelCard, ModelCardData
from trl import SFTConfig

from sae_posttrain import (
    EndlessRepetitionReward,
    FeatureSet,
    SASFTConfig,
    SASFTTrainer,
    SteeredGRPOConfig,
    SteeredGRPOTrainer,
    evaluate,
)
from sae_posttrain.cli import main
from sae_posttrain.features.set.card import _ask_for_licence, code
from sae_posttrain.features.set.source import FeatureSource
from sae_posttrain.model_card import METHODS, add_measured_rates, feature_section, own_settings

SETTINGS = {
    "max_steps": 1,
    "learning_rate": 0.01,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
QUESTIONS = [{"id": str(i), "lang": "en", "prompt": f"question {i}"} for i in range(3)]


@pytest.fixture(autouse=True)
def hub(monkeypatch, no_hub):
    """A Hub that knows one SAE and its licence; what it was asked for."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked: list[tuple] = []

    def model_info(self, repository, *, revision, timeout):
        asked.append((repository, revision))
        assert 0 < timeout <= 10
        if repository != "owner/sae":
            raise OSError("no such host")
        return SimpleNamespace(card_data=ModelCardData(license="other", license_name="qwen"))

    monkeypatch.setattr(HfApi, "model_info", model_info)
    _ask_for_licence.cache_clear()
    yield asked
    _ask_for_licence.cache_clear()


@pytest.fixture
def make_trainer(make_model, make_features, tokenizer, tmp_path):
    def make(config=SASFTConfig, feature_set="default", **kwargs) -> SASFTTrainer:
        rows = [{"lang": lang, "prompt": "x", "completion": c} for lang, c in (("en", "open"), ("zh", "打开"))]
        features = make_features() if feature_set == "default" else feature_set
        return SASFTTrainer(
            make_model(),
            config(str(tmp_path / "run"), **SETTINGS | kwargs),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            **({"feature_set": features} if features is not None else {}),
        )

    return make


@pytest.fixture
def measure(tokenizer):
    """Evaluate a model on three prompts."""
    return lambda model, folder: evaluate(
        model, QUESTIONS, output_dir=folder, tokenizer=tokenizer, max_new_tokens=8, progress=False
    )


def card_of(trainer) -> ModelCard:
    return ModelCard.load(Path(trainer.args.output_dir) / "README.md")


def test_card_of_sasft_names_features_sae_licence_and_weight(make_trainer, hub):
    trainer = make_trainer(penalty_weight=2.5, margin=0.25)
    trainer.create_model_card(model_name="mine", tags="extra")
    card = card_of(trainer)
    assert {"trl", "sft", "sae", "sasft", "extra"} <= set(card.data.tags)
    assert "# Model Card for mine" in card.text
    assert "4 features for `zh`." in card.text
    assert "| `0.3` | 0 | `resid_post` | 3 |" in card.text
    repository = "[`owner/sae`](https://huggingface.co/owner/sae) at `aaaaaaaaaaaa`"
    assert f"| {repository} | `layer0.sae.pt` | `qwen_scope` | `other (qwen)` |" in card.text
    assert "| `penalty_weight` | `2.5` |" in card.text
    assert "| `margin` | `0.25` |" in card.text
    assert "### Measured rates\n\nNone: `sae-posttrain evaluate` measures them." in card.text
    assert "eprint = {arXiv:2507.14894}" in card.text
    assert hub == [("owner/sae", "a" * 40)]


def test_card_of_steered_grpo_names_the_strength(make_model, tokenizer, tmp_path):
    model = make_model()
    features = FeatureSet.from_directions(
        model.lm_head.weight[50].detach()[None], blocks=[1], names=["loop"], residual_norms=[10.0]
    )
    settings = {"num_generations": 2, "per_device_train_batch_size": 2, "max_completion_length": 64}
    trainer = SteeredGRPOTrainer(
        model,
        EndlessRepetitionReward(tokenizer.eos_token_id),
        SteeredGRPOConfig(str(tmp_path), steer_strength=3.0, target_hit_rate=0.5, **settings, **SETTINGS),
        feature_set=features,
        train_dataset=Dataset.from_list([{"prompt": "a"}]),
        processing_class=tokenizer,
    )
    trainer.create_model_card()
    card = card_of(trainer)
    assert {"trl", "grpo", "sae", "steered-grpo"} <= set(card.data.tags)
    assert "They are directions, not features of a published SAE." in card.text
    assert "| `steer_strength` | `3.0` |" in card.text
    assert "| `strength in the end` | `3.0` |" in card.text
    assert "eprint = {arXiv:2605.11887}" in card.text


def test_plain_training_gets_the_card_of_trl(make_trainer, caplog):
    trainer = make_trainer(SFTConfig, None)
    trainer.create_model_card()
    card = card_of(trainer)
    assert "Sparse-autoencoder features" not in card.text
    assert "sasft" not in card.data.tags


def test_features_that_were_only_watched_are_not_said_to_be_held_down(make_trainer):
    trainer = make_trainer(penalty_weight=0.0)
    trainer.create_model_card()
    assert "In training they were only watched" in card_of(trainer).text


def test_a_hub_that_cannot_be_asked_costs_no_training(make_trainer, make_features, hub, caplog):
    features = make_features()
    other = FeatureSource("other/sae", "x.pt", "qwen_scope", None, None)
    trainer = make_trainer(feature_set=replace(features, sources=(other,) * len(features)), save_strategy="steps")
    with caplog.at_level(logging.WARNING):
        trainer.train()
        trainer.create_model_card()
    assert "| `qwen_scope` | see [the repository](https://huggingface.co/other/sae) |" in card_of(trainer).text
    assert "The licence of other/sae is not known (no such host)" in caplog.text
    assert hub == [("other/sae", None)]  # once, though a checkpoint has a card too


def test_offline_the_hub_is_not_asked(make_trainer, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    trainer = make_trainer()
    trainer.create_model_card()
    assert "see [the repository](https://huggingface.co/owner/sae)" in card_of(trainer).text
    assert hub == []


def test_a_local_sae_and_a_name_that_is_no_repository_are_not_asked_for(make_features, hub):
    for repository, shown in (("", "a local folder"), ("../a b", "`../a b`")):
        features = replace(make_features(), sources=(FeatureSource(repository, "x.pt", "qwen_scope"),) * 4)
        section = feature_section(features, METHODS["sasft"], {}, [])
        assert f"| {shown} | `x.pt` | `qwen_scope` | not known |" in section
    assert hub == []


# Measured rates ------------------------------------------------------------------------------------------------------


def test_rates_that_were_measured_on_this_model_are_in_its_card(make_trainer, measure, tmp_path):
    trainer = make_trainer()
    trainer.train()
    measure(trainer.model, tmp_path / "run" / "rates")
    trainer.create_model_card()
    text = card_of(trainer).text
    assert "    lang  answers" in text and "    all " in text
    assert "None: `sae-posttrain evaluate`" not in text


def test_rates_of_the_saved_model_are_in_its_card(make_trainer, measure, tmp_path):
    trainer = make_trainer()
    trainer.train()
    trainer.save_model(str(tmp_path / "run"))
    measure(str(tmp_path / "run"), tmp_path / "run")
    trainer.create_model_card()
    assert "    lang  answers" in card_of(trainer).text


def test_rates_of_other_weights_are_left_out_unless_asked_for(make_trainer, make_model, measure, tmp_path, caplog):
    trainer = make_trainer()
    measure(make_model(seed=1), tmp_path / "run" / "before")
    with caplog.at_level(logging.WARNING):
        trainer.create_model_card()
    assert "    lang  answers" not in card_of(trainer).text
    assert "measured on other weights than the model has now" in caplog.text
    trainer.create_model_card(evaluation=tmp_path / "run" / "before")
    assert "    lang  answers" in card_of(trainer).text


def test_a_damaged_evaluation_is_left_out_and_refused_when_named(make_trainer, measure, tmp_path, caplog):
    trainer = make_trainer()
    folder = tmp_path / "run" / "rates"
    measure(trainer.model, folder)
    content = json.loads((folder / "evaluation.json").read_text())
    for damaged in ("{", "[1]", json.dumps(content | {"overall": {}}), json.dumps(content | {"groups": {"en": 3}})):
        (folder / "evaluation.json").write_text(damaged)
        with caplog.at_level(logging.WARNING):
            trainer.create_model_card()
        assert "The card leaves out an evaluation" in caplog.text
        assert "None: `sae-posttrain evaluate`" in card_of(trainer).text
        with pytest.raises(ValueError, match="is no evaluation|is damaged"):
            trainer.create_model_card(evaluation=folder)
        caplog.clear()


def test_rates_can_be_added_to_the_card_of_a_finished_training(make_trainer, make_model, measure, tmp_path):
    trainer = make_trainer()
    trainer.create_model_card()
    before = card_of(trainer).content
    measure(trainer.model, tmp_path / "rates")
    add_measured_rates(tmp_path / "run", tmp_path / "rates")
    once = card_of(trainer).content
    add_measured_rates(tmp_path / "run", tmp_path / "rates")
    assert card_of(trainer).content == once
    assert "    lang  answers" in once
    assert once.partition("### Measured rates")[0] == before.partition("### Measured rates")[0]
    assert once.partition("### Citation of")[2] == before.partition("### Citation of")[2]
    with pytest.raises(ValueError, match="is no card that a training with features wrote"):
        add_measured_rates(tmp_path, tmp_path / "rates")


def test_an_evaluation_that_no_card_would_show_is_refused(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="this training uses no features"):
        make_trainer(SFTConfig, None).create_model_card(evaluation=tmp_path)


def test_pushing_writes_the_card_with_the_named_evaluation(make_trainer, make_model, measure, tmp_path, monkeypatch):
    trainer = make_trainer()
    measure(make_model(seed=1), tmp_path / "rates")
    trainer.hub_model_id = "me/mine"
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **kwargs: kwargs["repo_id"])
    assert trainer.push_to_hub(evaluation=tmp_path / "rates") == "me/mine"
    text = card_of(trainer).text
    assert "## Sparse-autoencoder features" in text and "    lang  answers" in text


# Names are data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a`b", "`a'b`"),
        ("a|b", "`a¦b`"),
        ("<script>", "`<script>`"),
        ("a\n---\n# b", "`a\\n---\\n# b`"),
        ("\u202eabc", "`\\u202eabc`"),
        ("", "-"),
        ("x" * 500, f"`{'x' * 200}`"),
    ],
)
def test_nothing_in_a_name_ends_its_code_span(text, shown):
    assert code(text) == shown


def test_names_from_a_feature_file_stay_in_their_cells(make_features):
    bad = "`|[x](http://evil)\n\n---\ntags: [a]\n---\n<img src=x>"
    features = replace(
        make_features(blocks=(0,), per_block=1),
        names=(bad,),
        base_model=bad,
        groups=(bad, "ko", "en"),
        target_groups=(bad,),
        sources=(FeatureSource(bad, bad, bad, bad),),
    )
    section = feature_section(features, METHODS["sasft"], {"hold": {bad: "up"}}, [])
    shown = "'¦[x](http://evil)\\n\\n---\\ntags: [a]\\n---\\n<img src=x>"
    rows = [line for line in section.splitlines() if "evil" in line]
    assert len(rows) == 4  # the sentence, the feature, its SAE, a setting
    for row in rows:
        outside = "".join(row.split("`")[::2])  # what is not in a code span
        assert "evil" not in outside and "img" not in outside
        assert "\n" not in row
    assert f"`{shown}`" in section


def test_settings_hold_ours_and_no_path_of_this_machine(tmp_path):
    args = SteeredGRPOConfig(str(tmp_path), features=str(tmp_path), allow_base_model=str(tmp_path), **SETTINGS)
    settings = own_settings(args)
    assert settings["num_steered"] == 1 and settings["epsilon_high"] == 0.28
    assert not {"features", "output_dir", "learning_rate"} & set(settings)
    assert str(tmp_path.parent) not in str(settings)


def test_the_command_writes_the_card(make_model, make_features, tokenizer, tmp_path):
    make_model().save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    make_features(base_model="tiny").save(tmp_path / "zh.safetensors")
    rows = [{"lang": lang, "prompt": "x", "completion": c} for lang, c in (("en", "open"), ("zh", "打开"))]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model_name_or_path": str(tmp_path / "tiny"),
        "dataset_name": str(tmp_path / "train.jsonl"),
        "features": str(tmp_path / "zh.safetensors"),
        "output_dir": str(tmp_path / "run"),
        **SETTINGS,
    }
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(settings))
    assert main(["sft", "--config", str(tmp_path / "sft.yaml"), "--resume_from_checkpoint", "true"]) == 0
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.data.datasets is None  # a file of this machine is no dataset of the Hub
    assert "found on `tiny`" in card.text
    assert str(tmp_path) not in card.content.replace(f"[{tmp_path / 'tiny'}]", "")
