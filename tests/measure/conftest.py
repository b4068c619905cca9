"""Evaluations of a tiny model on five prompts, with answers of its own or given ones."""

import json

import pytest

from sae_posttrain import evaluate
from sae_posttrain.measure.answers import evaluation as evaluation_module


@pytest.fixture
def prompt_rows():
    return [
        {"id": 0, "lang": "ko", "prompt": "저장"},
        {"id": 1, "lang": "ko", "prompt": "파일 열기"},
        {"id": 2, "lang": "ru", "prompt": "Файл"},
        {"id": 3, "lang": "zh", "prompt": "保存"},
        {"id": 4, "lang": "en", "prompt": "Open a file"},
    ]


@pytest.fixture
def run(tmp_path, tokenizer, make_model, prompt_rows):
    """Evaluates the tiny model in a folder of that name; settings can be overridden."""

    def run(folder="run", data=prompt_rows, **settings):
        defaults = {"tokenizer": tokenizer, "max_new_tokens": 8, "batch_size": 2, "progress": False}
        model = settings.pop("model", None) or make_model()
        return evaluate(model, data, output_dir=tmp_path / folder, **{**defaults, **settings})

    return run


@pytest.fixture
def answer_with(monkeypatch, tokenizer):
    """Makes the model answer what is given for each prompt; samples of a prompt get its answers in turn."""

    def answer_with(answers, finished=True):
        num_given = {}

        def fixed(_model, _tokenizer, prompts, **_settings):
            texts = []
            for ids in prompts:
                prompt = tokenizer.decode(ids, skip_special_tokens=True)
                num_given[prompt] = num_given.get(prompt, -1) + 1
                given = answers[prompt]
                texts.append(given if isinstance(given, str) else given[num_given[prompt] % len(given)])
            return [tokenizer(text)["input_ids"] for text in texts], [finished] * len(prompts)

        monkeypatch.setattr(evaluation_module, "generate_answers", fixed)

    return answer_with


@pytest.fixture
def read_answers(tmp_path):
    """Lines of the `answers.jsonl` in the folder of that name."""

    def read_answers(folder="run"):
        lines = (tmp_path / folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    return read_answers
