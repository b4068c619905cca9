"""The command `find-directions` from end to end."""

import argparse
import json
import random

import pytest

from sae_posttrain import FeatureSet
from sae_posttrain.cli.find_directions import add_find_directions

ALPHABETS = {"zh": "qxzjkv", "en": "aeioun", "ko": "tslrdm"}


@pytest.fixture
def run(tmp_path, make_model, tokenizer):
    make_model().save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    letters = random.Random(0)
    rows = [{"lang": g, "text": "".join(letters.choices(a, k=40))} for _ in range(6) for g, a in ALPHABETS.items()]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def call(*extra: str, out: str = "zh.safetensors") -> None:
        parser = argparse.ArgumentParser()
        add_find_directions(parser)
        arguments = parser.parse_args(
            [
                *("--model", str(tmp_path / "tiny"), "--texts", str(tmp_path / "texts.jsonl"), "--blocks", "0", "1"),
                *("--target-group", "zh", "--out", str(tmp_path / out), *extra),
            ]
        )
        arguments.run(arguments)

    return call


def test_probe_is_written_with_its_table_and_picture(run, tmp_path, capsys):
    run("--method", "probe", "--num-directions", "2", "--max-tokens", "200", "--l2", "0.1", "--seed", "3")
    printed = capsys.readouterr().out
    assert "4 features for zh, found on tiny (width 32)" in printed
    assert (tmp_path / "zh.txt").read_text() in printed
    assert (tmp_path / "zh.png").stat().st_size > 10_000
    found = FeatureSet.load(tmp_path / "zh.safetensors")
    assert (found.blocks, found.groups, found.target_groups) == ((0, 0, 1, 1), ("en", "ko", "zh"), ("zh",))
    assert {name: found.notes[name] for name in ("method", "max_tokens", "l2", "seed")} == {
        "method": "probe",
        "max_tokens": 200,
        "l2": 0.1,
        "seed": 3,
    }


def test_difference_of_means_of_another_site(run, tmp_path):
    run("--method", "difference_of_means", "--site", "mlp_out", "--max-texts", "4")
    found = FeatureSet.load(tmp_path / "zh.safetensors")
    assert found.places == ((0, "mlp_out"), (1, "mlp_out"))
    assert found.notes["num_texts"] == {"en": 3, "ko": 3, "zh": 3}


def test_options_that_do_not_belong_are_refused(run):
    with pytest.raises(ValueError, match="--l2 belongs to --method probe, the method asked for is difference_of_mean"):
        run("--method", "difference_of_means", "--l2", "0.1")
    with pytest.raises(ValueError, match="--out must end in .safetensors"):
        run("--method", "probe", out="zh.pt")
