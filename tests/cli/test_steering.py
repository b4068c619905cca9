"""`generate`, `chat` and `export` from end to end on a tiny model."""

import io
import json
from dataclasses import replace

import pytest
import torch

from sae_posttrain import FeatureSet, import_directions
from sae_posttrain.cli import main
from sae_posttrain.steering.export.pushes import pushes_of


@pytest.fixture
def folder(tmp_path, make_model, make_features, tokenizer):
    """A model, features of which one makes it loop, and prompts."""
    model = make_model()
    model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    features = make_features(blocks=(1,)).rename({"1.3": "loop", "1.13": "other"})
    directions = features.directions.clone()
    directions[0] = model.lm_head.weight[tokenizer.convert_tokens_to_ids("a")].detach()
    replace(features, directions=directions).save(tmp_path / "loop.safetensors")
    rows = [{"lang": "en", "prompt": "Hello"}, {"lang": "ko", "prompt": "저장"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "open the file and save it"}) + "\n")
    return tmp_path


def generate(folder, *words):
    given = ["--model", str(folder / "tiny"), "--features", str(folder / "loop.safetensors")]
    return main(["generate", *given, "--max-new-tokens", "72", "--temperature", "0.3", *words])


def test_generate_shows_answers_side_by_side_and_writes_a_page(folder, capsys):
    assert generate(folder, "--prompt", "Hello", "--strength", "loop=20", "--html", str(folder / "page.html")) == 0
    printed = capsys.readouterr().out
    assert "English: Hello" in printed and "loop=20 1 of 1" in printed
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert '<mark class="loop round"' in page and "shows the fault" in page and "<script" not in page


def test_generate_prints_json_for_machines(folder, capsys):
    assert generate(folder, "--prompts", str(folder / "prompts.jsonl"), "--strength", "loop=20", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [(each["lang"], each["steered"]["faulty"]) for each in found["answers"]] == [("en", True), ("ko", True)]
    assert found["model"] == "tiny" and str(folder) not in json.dumps(found)


def test_generate_sweeps_the_strength(folder, capsys):
    words = ["--prompts", str(folder / "prompts.jsonl"), "--limit", "1", "--sweep", "0", "20", "2"]
    words += ["--texts", str(folder / "texts.jsonl"), "--strength", "loop=1"]
    words += ["--picture", str(folder / "dose.png"), "--html", str(folder / "dose.html")]
    assert generate(folder, *words) == 0
    printed = capsys.readouterr().out
    assert "1 answer at each strength, times loop=1" in printed and "1 held-out text." in printed
    assert (folder / "dose.png").exists() and "Dose curve" in (folder / "dose.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strength", "loop=1"], "Say what to answer, with one of two"),
        (["--prompt", "Hi"], "Say how far to push: --strength NAME=NUMBER, or --sweep"),
        (
            ["--prompt", "Hi", "--strength", "lop=1"],
            "names 'lop', which is not in the feature set. Known: loop, other",
        ),
        (["--prompt", "Hi", "--strength", "loop=x"], "The strength in 'loop=x' is not a finite number"),
        (["--prompt", "Hi", "--strength", "loop=1", "--temperature", "nan"], "--temperature must be 0 or more"),
        (["--prompt", "Hi", "--sweep", "1", "0", "3"], "--sweep takes the lowest strength"),
        (["--prompt", "Hi", "--strength", "loop=1", "--picture", "x.png"], "--picture needs --sweep LOW HIGH NUM"),
        (["--prompt", "x" * 300, "--strength", "loop=1"], "do not fit the 256 positions of the model"),
        (["--prompts", "none.jsonl", "--strength", "loop=1"], "There is no file none.jsonl"),
        (["--prompt", "Hi", "--strength", "loop=1", "--lang", "klingon"], "klingon"),
    ],
)
def test_a_mistake_of_generate_is_one_line(folder, capsys, words, message):
    assert generate(folder, *words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("sae-posttrain: ") and message in error


def test_chat_answers_a_script(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n/set loop 20\n/plain\nHello\n/why\n"))
    given = ["--model", str(folder / "tiny"), "--features", str(folder / "loop.safetensors")]
    assert main(["chat", *given, "--max-new-tokens", "70", "--temperature", "0"]) == 0
    printed = capsys.readouterr().out
    assert "> Hello" in printed and "a" * 60 in printed and "loop: mean" in printed


def export(folder, to, out, *words):
    features = str(folder / "loop.safetensors")
    return main(["export", features, "--to", to, "--strength", "loop=-0.8", "--out", str(folder / out), *words])


@pytest.mark.parametrize(
    ("to", "out"), [("gguf", "calm.gguf"), ("repeng", "calm.gguf"), ("steering-vectors", "calm.pt")]
)
def test_export_writes_what_import_directions_reads(folder, capsys, to, out):
    if out.endswith(".gguf"):
        pytest.importorskip("gguf")
    assert export(folder, to, out) == 0
    assert f"Written: {folder / out}" in capsys.readouterr().out
    push = pushes_of(FeatureSet.load(folder / "loop.safetensors"), {"loop": -0.8})[1, "resid_post"]
    assert torch.equal(import_directions(folder / out).directions[0], push)
    assert export(folder, to, out) == 2
    assert "exists already" in capsys.readouterr().err
    assert export(folder, to, out, "--overwrite") == 0


def test_export_of_a_bias_needs_a_model_that_can_have_one(folder, capsys):
    assert export(folder, "bias", "calm") == 2
    assert "--to bias needs --model" in capsys.readouterr().err
    assert export(folder, "bias", "calm", "--model", str(folder / "tiny")) == 2
    assert "has no `mlp_bias` to give it one" in capsys.readouterr().err
    assert not (folder / "calm").exists()
    assert export(folder, "gguf", "calm.gguf", "--model", "x") == 2
    assert "--model belongs to --to bias" in capsys.readouterr().err
