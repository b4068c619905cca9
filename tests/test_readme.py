"""Every code block of the README and of the pages that go on from it, run with the small model that ships."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from sae_posttrain.cli import main
from sae_posttrain.lab.contents import MODEL, SAE, as_messages, read_texts

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/sasft.md", "docs/recipes.md", "docs/measuring.md", "docs/formats.md")
README, *FURTHER = ((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
FIRST_RUN = README.split("## Two minutes on the model that ships\n")[1].split("\n## ")[0]
TEXT = "\n".join([README.replace(FIRST_RUN, ""), *FURTHER])
CODE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = CODE.findall(TEXT)
OF_ONES_OWN = "list_mine"
"""A name in the block that shows where functions of the reader's own go; it is not run."""

IN_PLACE = {
    "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50": str(SAE),
    "Qwen/Qwen3-1.7B-Base": str(MODEL),
    "Qwen/Qwen3-1.7B": str(MODEL),
    "block=20, features=[17, 4711]": "block=2, features=[17, 471]",
    "torch.zeros(3, 2048)": "torch.zeros(3, 192)",
    "max_completion_length=1024": "max_completion_length=64, max_steps=1, use_cpu=True, bf16=False",
    "assistant_only_loss=True": "assistant_only_loss=True, max_steps=1, use_cpu=True, bf16=False",
    "--blocks 26 27": "--blocks 2 3",
    "--block 20": "--block 2",
    "qwen-20": "converted",
    "--blocks 20 --num-tokens 2e8": "--blocks 2 --num-tokens 2e4",
    "--blocks 8 12 16": "--blocks 1 2",
    "recipes/": f"{ROOT}/recipes/",
}
"""What the pages say, and what stands for it here. Each must occur."""

SHORTER = {
    "find-features": [],
    "find-features --kind repetition": [
        *("--rank-by", "increase", "--num-loops", "8", "--max-new-tokens", "80"),
        *("--loops", "loops.jsonl"),
    ],
    "calibrate": [
        *("--strengths", "0.25", "0.5", "0.75", "--target", "0.1"),
        *("--num-prompts", "32", "--max-new-tokens", "80"),
    ],
    "evaluate": ["--limit", "4", "--max-new-tokens", "16"],
    "report": [],
    "estimate": ["--model_name_or_path", str(MODEL)],
    "inspect": [],
    "convert": [],
    "train-sae": ["--num-features", "64", "--k", "4", "--batch-size", "256", "--buffer-tokens", "2048"],
    "sft": [
        *("--model_name_or_path", str(MODEL), "--features", "zh-qwen3-1.7b.safetensors"),
        *("--dataset_name", "train.jsonl", "--output_dir", "runs/trained", "--max_steps", "1", "--use_cpu", "true"),
        *("--bf16", "false", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1"),
    ],
    "grpo": [
        *("--model_name_or_path", str(MODEL), "--features", "repetition-qwen3-1.7b.safetensors"),
        *("--dataset_name", "prompts.jsonl", "--output_dir", "runs/dapo", "--max_steps", "1", "--use_cpu", "true"),
        *("--bf16", "false", "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "1"),
        *("--num_generations", "4", "--max_completion_length", "64", "--steer_strength", "1.0"),
        *("--reward_funcs", "endless_repetition"),
    ],
}
"""Options that make a command short, by command."""

IN_A_HURRY = {"sft": ["--max_steps", "2"], "evaluate": ["--limit", "4", "--max-new-tokens", "16"]}
"""The same for the first run, whose commands run as they are written but for these."""


def of_language(language: str) -> list[str]:
    return [text for tag, text in BLOCKS if tag == language and OF_ONES_OWN not in text]


def replaced(text: str) -> str:
    for name, stands_in in IN_PLACE.items():
        text = text.replace(name, stands_in)
    return text


def commands() -> list[list[str]]:
    """Words of each command of the bash blocks, once, with comments taken out."""
    return words_of(replaced("\n".join(of_language("bash"))))


def words_of(text: str) -> list[list[str]]:
    lines = dict.fromkeys(re.sub(r" *\\\n *", " ", text).splitlines())
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that the pages name, small; what its commands write is there for its Python."""
    folder = tmp_path_factory.mktemp("readme")
    train = read_texts("train")[:16]
    write(folder / "train.jsonl", [{"messages": row["messages"], "lang": row["lang"]} for row in train])
    test = [row for row in read_texts("test") if "\n" in row["answer"]][:80]
    asked = [{"prompt": row["prompt"], "lang": row["lang"]} for row in as_messages(test)]
    write(folder / "prompts.jsonl", asked)
    write(folder / "texts.jsonl", [{"text": row["answer"], "lang": row["lang"]} for row in test])
    write(folder / "loops.jsonl", [{"prompt": "Write a list.", "completion": "1. Tea\n" * 30}] * 12)
    for name in ("sft", "sasft"):
        shutil.copytree(MODEL, folder / "runs" / name)
    return folder


def write(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def arguments_of(words: list[str]) -> list[str]:
    """What `sae-posttrain` is called with; a command of another program is not known here."""
    launched = ["accelerate", "launch", "-m", "sae_posttrain.cli"]
    start = len(launched) if words[: len(launched)] == launched else 1
    assert start > 1 or words[0] == "sae-posttrain", words
    arguments = words[start:]
    kind = "find-features --kind repetition" if "repetition" in arguments else arguments[0]
    return [*arguments, *SHORTER[kind]]


def test_every_name_that_is_replaced_occurs():
    for name in IN_PLACE:
        assert name in TEXT, name


def test_every_block_is_of_a_kind_that_is_run_here():
    assert {tag for tag, _ in CODE.findall(README + TEXT)} == {"bash", "python", "text"}


@pytest.mark.parametrize("target", [words[1] for words in commands() if words[0] == "make"])
def test_make_knows_the_target(target):
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_extras_that_are_installed_exist():
    installs = [" ".join(words) for words in commands() if words[0] == "pip"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = set(re.findall(r"\[(\w+)\]", " ".join(installs) + TEXT))
    assert installs and named & set(extras)


def test_commands_run_one_after_the_other(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for words in commands():
        if words[0] in ("make", "pip") or ("train-sae" in words and importlib.util.find_spec("sae_lens") is None):
            continue
        assert main(arguments_of(words)) == 0, words
    assert Path("report.html").exists()


def test_python_runs_on_what_the_commands_made(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names: dict = {}
    for code in of_language("python"):
        exec(compile(replaced(code), "README.md", "exec"), names)
    assert names["sae"].num_features == 2


def test_the_first_run_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for tag, text in CODE.findall(FIRST_RUN):
        if tag == "python":
            exec(compile(text, "README.md", "exec"), {})
        for words in words_of(text) if tag == "bash" else ():
            assert words[0] == "sae-posttrain"
            assert main([*words[1:], *IN_A_HURRY.get(words[1], ())]) == 0, words
    assert Path("sasft-answers").exists()


def test_the_readme_is_short_and_each_sentence_has_a_line():
    prose = re.sub(r"\|.*", "", CODE.sub("", README))
    assert len(CODE.sub("", README).split()) < 950
    assert not re.findall(r"[a-z)`][.] [A-Z].*", prose)
