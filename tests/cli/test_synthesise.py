"""`synthesise` from end to end, on a tiny model in a folder laid out as on the Hub."""

import copy
import json

import pytest
import torch

from sae_posttrain.cli import main

pytest.importorskip("datasketch")


@pytest.fixture
def folder(tmp_path, make_model, tokenizer):
    make_model().save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    normal = torch.Generator().manual_seed(0)
    (tmp_path / "sae").mkdir()
    for block in (0, 1):
        weights = {
            "W_enc": torch.randn(64, 32, generator=normal),
            "W_dec": torch.randn(32, 64, generator=normal),
            "b_enc": torch.zeros(64),
            "b_dec": torch.zeros(32),
        }
        torch.save(weights, tmp_path / "sae" / f"layer{block}.sae.pt")
    for name, words in (("seeds", "aa aaa"), ("reference", "Zebra quiz fjord JINX vortex sphinx")):
        rows = [{"text": f"{word} {i} {word}!"} for i, word in enumerate(words.split())]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def synthesise(folder, *extra):
    common = {"model": "tiny", "sae": "sae", "seeds": "seeds.jsonl", "reference": "reference.jsonl", "out": "made"}
    paths = [word for name, path in common.items() for word in (f"--{name}", str(folder / path))]
    return main(["synthesise", *paths, "--block", "1", "--k", "4", *map(str, extra)])


def test_rows_and_a_report_are_written_and_the_same_command_goes_on(folder, capsys):
    (folder / "templates.json").write_text('{"new": "{words}", "rewrite": "{seed} {words}"}')
    settings = ["--generator", folder / "tiny", "--max-new-tokens", 24, "--unfinished", "trim", "--min-tokens", 1]
    settings += ["--templates", folder / "templates.json", "--check-blocks", 0, "--max-targets", 6, "--strength", 2]
    settings += ["--attempts-per-target", 12, "--max-rows", 2, "--duplicate-threshold", 1.0]
    assert synthesise(folder, *settings) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    rows = [json.loads(line) for line in (folder / "made" / "synthetic.jsonl").read_text("utf-8").splitlines()]
    assert rows and all(row["text"] and row["provenance"]["activation"] > 0 for row in rows)
    assert "took part" in said and "Written: " in said and f"{len(rows)} rows of" in said
    attempts = (folder / "made" / "attempts.jsonl").read_bytes()
    assert synthesise(folder, *settings) == 0 and (folder / "made" / "attempts.jsonl").read_bytes() == attempts
    capsys.readouterr()
    assert synthesise(folder, *settings, "--seed", 1) == 2
    assert "other settings or other seeds: seed was 0, is 1. Give another --out" in capsys.readouterr().err


def test_a_base_model_needs_no_chat_template(folder, capsys, tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder / "tiny")
    (folder / "tiny" / "chat_template.jinja").unlink(missing_ok=True)
    settings = ["--generator", folder / "tiny", "--max-new-tokens", 4, "--attempts-per-target", 1, "--max-targets", 2]
    assert synthesise(folder, *settings) == 2
    assert "set --completions" in capsys.readouterr().err
    synthesise(folder, *settings, "--completions")
    attempts = [json.loads(line) for line in (folder / "made" / "attempts.jsonl").read_text("utf-8").splitlines()]
    assert attempts and all(" text" in each["prompt"].splitlines()[-1] for each in attempts)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([], "one of two: --generator MODEL, or --endpoint URL"),
        (["--generator", "m", "--endpoint", "http://x/v1", "--endpoint-model", "n"], "one of two"),
        (["--endpoint", "http://x/v1"], "--endpoint and --endpoint-model belong together"),
        (["--endpoint", "http://x/v1", "--endpoint-model", "n", "--strength", 1], "--strength needs --generator"),
        (["--generator", "m", "--concurrency", 2], "--concurrency needs --endpoint"),
        (["--generator", "m", "--check-sae", "x"], "--check-sae needs --check-blocks"),
        (["--generator", "m", "--targets", "1", "x"], "--targets takes numbers of features, or one feature set"),
        (["--generator", "nowhere/at/all"], "There is no model folder nowhere/at/all"),
        (["--generator", "TINY", "--targets", "99"], "The SAE has no feature 99: it has 64"),
        (["--generator", "TINY", "--rows-per-target", "0"], "--rows-per-target must be 1 or more"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(folder, capsys, extra, message):
    extra = [folder / "tiny" if word in ("m", "TINY") else word for word in extra]
    assert synthesise(folder, *extra) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and error.splitlines()[-1].startswith("sae-posttrain: ")
    assert not (folder / "made" / "synthetic.jsonl").exists()
