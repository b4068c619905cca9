"""The command `diagnose` from end to end."""

import json
import random

import pytest
import torch

from sae_posttrain import FeatureSet
from sae_posttrain.cli.commands import main


@pytest.fixture
def folder(make_model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_model().save_pretrained("tiny")
    tokenizer.save_pretrained("tiny")
    normal = torch.Generator().manual_seed(0)
    weights = {
        "W_enc": torch.randn(24, 32, generator=normal) / 4,
        "W_dec": torch.randn(32, 24, generator=normal),
        "b_enc": torch.zeros(24),
        "b_dec": torch.zeros(32),
    }
    (tmp_path / "sae").mkdir()
    torch.save(weights, "sae/layer1.sae.pt")
    letters = random.Random(0)
    for name, alphabet in (("bad", "qxzjkv"), ("good", "aeioun")):
        rows = [{"text": "".join(letters.choices(alphabet, k=24))} for _ in range(16)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


COMMAND = [
    *("diagnose", "--model", "tiny", "--sae", "sae", "--k", "4", "--blocks", "1", "--bad", "bad.jsonl"),
    *("--out", "found.safetensors"),
]


def test_command_writes_features_table_and_page(folder, capsys):
    assert main([*COMMAND, "--good", "good.jsonl", "--num-features", "2", "--cache", "read.safetensors"]) == 0
    printed = capsys.readouterr().out
    assert "16 bad and 16 good answers" in printed and "Words alone:" in printed
    assert (folder / "found.txt").read_text() in printed
    assert "Bad answers" in (folder / "found.html").read_text()
    found = FeatureSet.load("found.safetensors")
    assert len(found) == 2 and found.notes["command"].startswith("sae-posttrain diagnose --model tiny")
    assert (folder / "read.safetensors").is_file()


def test_mistake_is_one_line_and_writes_nothing(folder, capsys):
    assert main(COMMAND) == 2
    assert "There are no good answers" in capsys.readouterr().err
    assert not list(folder.glob("found*"))
