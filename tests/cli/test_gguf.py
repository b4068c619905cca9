import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sae_posttrain import FeatureSet
from sae_posttrain.cli import main

from ..gguf_writer import tiny_model, write_gguf


@pytest.fixture
def folder(tokenizer, tmp_path, monkeypatch):
    """A folder with the same tiny model as a GGUF file and as a folder, prompts and texts; the working directory."""
    monkeypatch.chdir(tmp_path)
    model = tiny_model(LlamaForCausalLM, LlamaConfig, tokenizer)
    write_gguf(tmp_path / "tiny.gguf", model, tokenizer)
    model.save_pretrained("tiny")
    tokenizer.save_pretrained("tiny")
    prompts = [{"prompt": f"the cat {word}", "lang": "en"} for word in ("sat", "ran", "hid")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    pairs = [("en", "the cat "), ("ko", "고양이 ")]
    texts = [{"text": text * times, "lang": lang} for lang, text in pairs for times in (3, 4, 5, 6)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    return tmp_path


def evaluate(model: str, out: str) -> dict:
    given = ["--prompts", "prompts.jsonl", "--max-new-tokens", "8", "--temperature", "0", "--out", out]
    assert main(["evaluate", "--model", model, *given]) == 0
    return json.loads(Path(out, "evaluation.json").read_text())


def test_evaluate_answers_as_from_the_folder_and_records_the_file(folder):
    of_file, of_folder = evaluate("tiny.gguf", "a"), evaluate("tiny", "b")
    written = [Path(out, "answers.jsonl").read_text().splitlines() for out in ("a", "b")]
    answers = [[json.loads(line)["answer"] for line in lines] for lines in written]
    assert answers[0] == answers[1]
    assert of_file["settings"]["model"] == "tiny.gguf (F32)"
    assert of_folder["settings"]["model"] == "tiny"
    assert of_file["settings"]["model_fingerprint"] not in (None, of_folder["settings"]["model_fingerprint"])


def test_directions_are_found_on_the_file(folder):
    given = ["--texts", "texts.jsonl", "--blocks", "0", "--target-group", "ko", "--method", "difference_of_means"]
    assert main(["find-directions", "--model", "tiny.gguf", *given, "--out", "ko.safetensors"]) == 0
    found = FeatureSet.load("ko.safetensors")
    assert found.base_model == "tiny.gguf"
    assert found.fingerprint["gguf_quantization"] == "F32"


def test_sft_and_estimate_take_the_file(folder, capsys):
    settings = {
        "model_name_or_path": "tiny.gguf",
        "dataset_name": "texts.jsonl",
        "output_dir": "run",
        "penalty_weight": 0,
        "max_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
    }
    (folder / "run.yaml").write_text(json.dumps(settings))
    assert main(["estimate", "--config", "run.yaml"]) == 0
    assert "tiny.gguf" in capsys.readouterr().out
    assert main(["sft", "--config", "run.yaml"]) == 0
    assert AutoModelForCausalLM.from_pretrained("run").config.model_type == "llama"


@pytest.mark.parametrize("command", ["evaluate", "find-directions", "inspect", "train-sae", "sft", "calibrate"])
def test_damaged_file_is_one_line_for_every_command(folder, command, capsys):
    (folder / "tiny.gguf").write_bytes((folder / "tiny.gguf").read_bytes()[:3000])
    directions = "--texts texts.jsonl --blocks 0 --target-group ko --method probe --out k.safetensors"
    given = {
        "evaluate": ["--prompts", "prompts.jsonl", "--out", "a"],
        "find-directions": directions.split(),
        "inspect": ["none", "--block", "0", "--texts", "texts.jsonl"],
        "train-sae": ["--texts", "texts.jsonl", "--blocks", "0", "--out", "saes"],
        "calibrate": ["--features", "none.safetensors", "--prompts", "prompts.jsonl", "--out", "c.safetensors"],
        "sft": ["--dataset_name", "texts.jsonl", "--output_dir", "run"],
    }[command]
    model = "--model_name_or_path" if command == "sft" else "--model"
    assert main([command, *given, model, "tiny.gguf"]) != 0
    said = capsys.readouterr().err.strip()
    assert "tiny.gguf ends inside its header: it was cut" in said
    assert len(said.splitlines()) == 1
    assert not {each.name for each in folder.iterdir()} - {"tiny.gguf", "tiny", "prompts.jsonl", "texts.jsonl"}
