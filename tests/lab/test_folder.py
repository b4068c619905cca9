"""`sae-posttrain lab`: the files that it writes are what the other commands take."""

import json

import pytest
import regex
import torch
import yaml
from transformers import AutoModelForCausalLM

from sae_posttrain import load_sae
from sae_posttrain.cli import main
from sae_posttrain.lab.folder import CONTENTS
from sae_posttrain.measure.answers.prompts import read_prompts
from sae_posttrain.training.gate import require_training_rows


def rows(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_every_file_is_what_a_command_takes(tmp_path, capsys):
    lab = tmp_path / "a: lab"
    assert main(["lab", str(lab)]) == 0
    assert {file.name for file in lab.iterdir()} == set(CONTENTS)
    assert all(str(lab / name) in capsys.readouterr().out for name in list(CONTENTS)[:1])
    assert AutoModelForCausalLM.from_pretrained(lab / "model", dtype=torch.float32).config.hidden_size == (
        load_sae(lab / "sae", block=2).d_model
    )
    texts = rows(lab / "texts.jsonl")
    assert {row["lang"] for row in texts} == {"en", "ko", "ru", "zh"} and all(row["text"] for row in texts)
    require_training_rows(rows(lab / "train.jsonl"))
    prompts = read_prompts(lab / "prompts.jsonl", group_column="lang", target_lang="zh")
    assert len(prompts) > 1000 and all(prompt.messages for prompt in prompts)
    settings = yaml.safe_load((lab / "sft.yaml").read_text(encoding="utf-8"))
    assert settings["model_name_or_path"] == str(lab / "model")
    assert settings["dataset_name"] == str(lab / "train.jsonl")


def test_only_the_training_answers_hold_stray_chinese(tmp_path):
    main(["lab", str(tmp_path / "lab")])

    def has_chinese(text):
        return bool(regex.search(r"\p{Han}", text))

    train = [row for row in rows(tmp_path / "lab/train.jsonl") if row["lang"] != "zh"]
    assert any(has_chinese(row["messages"][-1]["content"]) for row in train)
    for row in rows(tmp_path / "lab/prompts.jsonl"):
        assert row["lang"] == "zh" or not has_chinese(row["messages"][0]["content"]), row


def test_a_folder_that_is_not_empty_is_refused(tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    assert main(["lab", str(tmp_path)]) == 2
    assert "is not an empty folder. Name a new or empty one." in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_settings_name_only_known_fields(tmp_path):
    from sae_posttrain.cli.train import read_settings

    main(["lab", str(tmp_path / "lab")])
    file = str(tmp_path / "lab" / "sft.yaml")
    settings = read_settings("sft", ["--config", file, "--penalty-weight", "0", "--features", "zh.safetensors"])
    assert settings["penalty_weight"] == "0"


@pytest.mark.slow
def test_the_road_from_features_to_a_comparison(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["lab", "lab"]) == 0
    find = ["find-features", "--model", "lab/model", "--sae", "lab/sae", "--blocks", "2", "3"]
    find += ["--texts", "lab/texts.jsonl", "--target-group", "zh", "--num-features", "8"]
    assert main([*find, "--out", "zh.safetensors"]) == 0
    for name, weight in (("sft", "0"), ("sasft", "10")):
        settings = ["--config", "lab/sft.yaml", "--features", "zh.safetensors", "--penalty_weight", weight]
        assert main(["sft", *settings, "--output_dir", name]) == 0
        asked = ["--prompts", "lab/prompts.jsonl", "--max-new-tokens", "64", "--limit", "400", "--batch-size", "100"]
        compare = ["--compare", "sft-answers"] if name == "sasft" else []
        assert main(["evaluate", "--model", name, *asked, *compare, "--out", f"{name}-answers"]) == 0
    switched = []
    for name in ("sft", "sasft"):
        evaluation = json.loads((tmp_path / f"{name}-answers/evaluation.json").read_text(encoding="utf-8"))
        switched.append(evaluation["overall"]["unexpected"]["1"]["count"])
    assert switched[1] < switched[0] / 2
