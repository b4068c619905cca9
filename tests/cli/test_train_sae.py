import argparse
import json

import pytest

from sae_posttrain.cli import train_sae as command
from sae_posttrain.cli.train_sae import add_train_sae, format_figures
from sae_posttrain.sae_training import trainer

FIGURES = {
    **{"fvu": 0.123, "l0": 31.96, "dead_features": 0.25, "num_tokens": 5000, "loss": 2.5, "loss_with_sae": 2.625},
    **{"loss_recovered": 0.98765, "loss_recovered_from_mean": 0.975},
}
NEEDED = ["--model", "tiny", "--texts", "texts.jsonl", "--blocks", "2", "4", "--out", "saes"]


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_train_sae(parser)
    return parser.parse_args([*NEEDED, *arguments])


def test_options_reach_the_function_under_its_names(tmp_path, monkeypatch, capsys):
    calls = []

    def train_sae(model, texts, **options):
        calls.append((model, texts, options))
        out = options["output_dir"]
        entry = {"measured": FIGURES}
        (out / "training.json").write_text(json.dumps({"blocks.2.hook_resid_post": entry, "older": {}}))
        return [out / "blocks.2.hook_resid_post"]

    monkeypatch.setattr(trainer, "train_sae", train_sae)
    monkeypatch.setattr(command, "require_model", lambda _model: None)
    arguments = parse("--num-tokens", "2e6", "--lr", "1e-3", "--k", "32", "--expansion", "4", "--site", "mlp_out")
    arguments.out = tmp_path
    arguments.run(arguments)
    [(model, texts, options)] = calls
    assert (model, texts) == ("tiny", "texts.jsonl")
    assert options == {
        "blocks": [2, 4],
        "output_dir": tmp_path,
        "num_tokens": 2_000_000,
        "learning_rate": 1e-3,
        "k": 32,
        "expansion": 4,
        "site": "mlp_out",
    }
    printed = capsys.readouterr().out
    assert "On 5,000 held-out tokens" in printed
    assert "0.123" in printed
    assert str(tmp_path / "training.json") in printed


def test_what_is_left_out_keeps_the_default_of_the_function():
    assert set(vars(parse())) == {"model", "texts", "blocks", "out", "run"}


def test_every_option_is_one_of_the_function():
    names = ["--site=attn_z", "--architecture=gated", "--num-features=9", "--l1=1", "--batch-size=9", "--held-out=0.1"]
    names += ["--text-column=body", "--split=test", "--max-length=9", "--texts-per-pass=9", "--buffer-tokens=9"]
    names += ["--save-every=5", "--restart"]
    renamed = {"out": "output_dir", "l1": "l1_coefficient"}
    options = {renamed.get(name, name) for name in vars(parse(*names, "--seed=1"))} - {"run"}
    assert options <= set(trainer.train_sae.__kwdefaults__) | {"model", "texts", "blocks", "output_dir"}


@pytest.mark.parametrize("arguments", [["--num-tokens", "2.5"], ["--num-tokens", "inf"], ["--batch-size", "many"]])
def test_a_number_of_tokens_is_whole(arguments, capsys):
    with pytest.raises(SystemExit):
        parse(*arguments)
    assert "argument --" in capsys.readouterr().err


def test_features_are_given_as_a_number_or_a_multiple():
    with pytest.raises(SystemExit):
        parse("--num-features", "512", "--expansion", "4")


def test_the_table_has_a_row_for_each_sae():
    undefined = {**FIGURES, "loss_recovered": None}
    table = format_figures({"blocks.2.attn.hook_z": {"measured": FIGURES}, "blocks.9.x": {"measured": undefined}})
    assert [line.split() for line in table.splitlines()[2:4]] == [
        ["blocks.2.attn.hook_z", "0.123", "32.0", "0.250", "2.500", "2.625", "0.988", "0.975"],
        ["blocks.9.x", "0.123", "32.0", "0.250", "2.500", "2.625", "-", "0.975"],
    ]
