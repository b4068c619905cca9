"""What searches write on the command line: nothing is replaced silently, nothing is lost, mistakes come first."""

import json

import pytest
import torch

from sae_posttrain import FeatureSet
from sae_posttrain.cli import main

ALPHABETS = {"zh": "qxzjkv", "ko": "tslrdm", "en": "aeioun"}


@pytest.fixture
def folder(tmp_path, make_model, tokenizer):
    make_model().save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    (tmp_path / "sae").mkdir()
    generator = torch.Generator().manual_seed(0)
    weights = {
        "W_enc": torch.randn(64, 32, generator=generator),
        "W_dec": torch.randn(32, 64, generator=generator),
        "b_enc": torch.zeros(64),
        "b_dec": torch.zeros(32),
    }
    torch.save(weights, tmp_path / "sae/layer0.sae.pt")
    rows = [
        {"lang": lang, "text": (letters[i:] + letters) * 4} for lang, letters in ALPHABETS.items() for i in range(5)
    ]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def find(folder, *extra, k=("--k", "8")):
    return main(
        [
            *("find-features", "--model", str(folder / "tiny"), "--sae", str(folder / "sae"), *k),
            *("--texts", str(folder / "texts.jsonl"), "--blocks", "0", "--target-group", "zh"),
            *("--out", str(folder / "zh.safetensors"), *extra),
        ]
    )


@pytest.fixture
def no_model(monkeypatch):
    """A test that fails if a model is loaded."""
    import transformers

    def refuse(*args, **kwargs):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)


@pytest.mark.parametrize("there", ["zh.safetensors", "zh.txt", "zh.png"])
@pytest.mark.parametrize(
    "command",
    [
        ["find-features", "--sae", "sae", "--texts", "t.jsonl", "--blocks", "0", "--target-group", "zh"],
        [
            *("find-directions", "--method", "probe", "--texts", "t.jsonl", "--blocks", "0"),
            *("--target-group", "zh"),
        ],
        ["calibrate", "--features", "loop.safetensors", "--prompts", "p.jsonl"],
    ],
)
def test_files_that_are_there_are_named_before_any_work(command, there, tmp_path, capsys, no_model):
    (tmp_path / there).write_text("mine")
    assert main([*command, "--model", "m", "--out", str(tmp_path / "zh.safetensors")]) == 2
    error = capsys.readouterr().err
    assert f"sae-posttrain: {tmp_path / there} exists already. Give another --out, or --overwrite" in error
    assert (tmp_path / there).read_text() == "mine"


def test_files_are_replaced_when_that_is_asked_for(folder):
    (folder / "zh.safetensors").write_text("old")
    (folder / "zh.txt").write_text("old")
    assert find(folder, "--overwrite") == 0
    assert len(FeatureSet.load(folder / "zh.safetensors")) == 2
    assert "found on tiny" in (folder / "zh.txt").read_text()


def test_missing_k_is_told_before_the_model_is_loaded(folder, capsys, no_model):
    assert find(folder, k=()) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("sae-posttrain: The SAE's files (layer0.sae.pt) do not say how many features are active")
    assert "--k 50" in error
    (folder / "p.jsonl").write_text('{"prompt": "a"}\n')
    arguments = [
        *("--model", str(folder / "tiny"), "--sae", str(folder / "sae"), "--blocks", "0"),
        *("--out", str(folder / "loop.safetensors")),
    ]
    assert main(["find-features", "--kind", "repetition", "--prompts", str(folder / "p.jsonl"), *arguments]) == 2
    assert "do not say how many features are active" in capsys.readouterr().err


def test_search_is_saved_when_the_check_fails(folder, monkeypatch):
    def run_out_of_memory(*args):
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr("sae_posttrain.features.find.by_group.check_by_ablation", run_out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        find(folder, "--check")
    found = FeatureSet.load(folder / "zh.safetensors")
    assert "check" not in found.notes and found.notes["command"].startswith("sae-posttrain find-features")


def test_check_is_saved_with_the_search(folder, capsys):
    assert find(folder, "--check") == 0
    assert set(FeatureSet.load(folder / "zh.safetensors").notes["check"]["loss"]) == set(ALPHABETS)
    assert "only the target should suffer" in capsys.readouterr().out
