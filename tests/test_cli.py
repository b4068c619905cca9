"""The three commands from end to end, on a tiny model in a folder laid out as on the Hub."""

import json

import pytest
import torch
import yaml

from sae_posttrain import FeatureSet
from sae_posttrain.cli import main

SENTENCES = {
    "zh": ["打开文件并保存", "按下这个键", "选择一种颜色", "关闭窗口", "插入新的一行", "删除整个页面"],
    "ko": ["파일을 열고 저장", "이 키를 누르세요", "색을 고르세요", "창을 닫습니다", "새 줄을 넣기", "쪽을 지우기"],
    "en": [
        "open the file and save",
        "press this key now",
        "choose a colour",
        "close the window",
        "insert",
        "delete it",
    ],
}


@pytest.fixture
def folder(tmp_path, make_model, tokenizer):
    """A model, its SAEs in Qwen-Scope's layout, texts, training data and prompts."""
    make_model().save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    generator = torch.Generator().manual_seed(0)
    for block in (0, 1):
        weights = {
            "W_enc": torch.randn(64, 32, generator=generator),
            "W_dec": torch.randn(32, 64, generator=generator),
            "b_enc": torch.zeros(64),
            "b_dec": torch.zeros(32),
        }
        (tmp_path / "sae").mkdir(exist_ok=True)
        torch.save(weights, tmp_path / "sae" / f"layer{block}.sae.pt")
    rows = [(lang, text) for lang, texts in SENTENCES.items() for text in texts]
    write(tmp_path / "texts.jsonl", [{"lang": lang, "text": text * 3} for lang, text in rows])
    write(tmp_path / "prompts.jsonl", [{"id": i, "lang": lang, "prompt": t} for i, (lang, t) in enumerate(rows)])
    write(
        tmp_path / "train.jsonl",
        [
            {"lang": lang, "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]}
            for lang, text in rows
        ],
    )
    return tmp_path


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def find(folder, *extra):
    return main(
        [
            *("find-features", "--model", str(folder / "tiny"), "--sae", str(folder / "sae"), "--k", "8"),
            *("--texts", str(folder / "texts.jsonl"), "--blocks", "0", "1", "--target-group", "zh"),
            *("--out", str(folder / "zh.safetensors"), *extra),
        ]
    )


def test_find_train_evaluate_compare(folder, capsys):
    assert find(folder, "--check", "--num-features", "3") == 0
    printed = capsys.readouterr().out
    assert "6 features for zh, found on tiny (width 32)" in printed
    assert "only the target should suffer" in printed
    assert (folder / "zh.txt").read_text() in printed
    assert (folder / "zh.png").stat().st_size > 10_000
    features = FeatureSet.load(folder / "zh.safetensors")
    assert features.blocks == (0, 0, 0, 1, 1, 1)
    assert len(features.sources[0].sha256) == 64
    assert str(folder) not in str(vars(features))

    config = {
        "model_name_or_path": str(folder / "tiny"),
        "dataset_name": str(folder / "train.jsonl"),
        "features": str(folder / "zh.safetensors"),
        "output_dir": str(folder / "run"),
        "target_group": "zh",
        "assistant_only_loss": True,
        "penalty_weight": 2,
        "max_steps": 2,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    (folder / "sft.yaml").write_text(yaml.safe_dump(config))
    assert main(["sft", "--config", str(folder / "sft.yaml"), "--margin", "0.5"]) == 0
    assert "Model saved to" in capsys.readouterr().out
    assert (folder / "run" / "model.safetensors").exists()

    sampling = ["--data", str(folder / "prompts.jsonl"), "--max-new-tokens", "6", "--batch-size", "9"]
    assert main(["evaluate", "--model", str(folder / "tiny"), "--out", str(folder / "before"), *sampling]) == 0
    after = ["--model", str(folder / "run"), "--out", str(folder / "after"), "--compare", str(folder / "before")]
    assert main(["evaluate", *after, *sampling]) == 0
    table = capsys.readouterr().out
    assert "ko" in table
    assert json.loads((folder / "after" / "evaluation.json").read_text())["groups"]["ko"]["any"]["1"]["n"] == 6
    assert str(folder) not in (folder / "after" / "evaluation.json").read_text()


def test_missing_yaml_data_is_an_error_that_names_it(folder):
    (folder / "sft.yaml").write_text(yaml.safe_dump({"dataset_name": "none.jsonl", "bf16": False, "use_cpu": True}))
    with pytest.raises(FileNotFoundError, match="There is no file none.jsonl"):
        main(["sft", "--config", str(folder / "sft.yaml"), "--penalty_weight", "0"])
    (folder / "sft.yaml").write_text(
        yaml.safe_dump({"dataset_name": str(folder / "train.jsonl"), "dataset_train_split": "train", "bf16": False})
    )
    with pytest.raises(ValueError, match="The dataset has no split 'test'; it has train. Set `dataset_test_split`"):
        main(["sft", "--config", str(folder / "sft.yaml"), "--use_cpu", "true", "--eval_strategy", "epoch"])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--target-group", "fr"], "No text belongs to the target group 'fr'; the groups are en, ko, zh"),
        (["--blocks", "7"], "layer7.sae.pt"),
        (["--texts", "none.jsonl"], "There is no file none.jsonl"),
        (["--group-column", "language"], "no group column 'language'"),
        (["--out", "zh.bin"], "--out must end in .safetensors"),
    ],
)
def test_mistake_ends_in_one_line_and_writes_nothing(folder, capsys, extra, message):
    assert find(folder, *extra) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("sae-posttrain: ")
    assert message in error
    assert not (folder / "zh.safetensors").exists()


def test_help_of_every_command(capsys):
    for command in ("find-features", "evaluate"):
        with pytest.raises(SystemExit) as exit_:
            main([command, "--help"])
        assert exit_.value.code == 0
    assert "--top-p" in capsys.readouterr().out
