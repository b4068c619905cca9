"""What ships: it loads, it is small, and it is what the README says it is."""

import gzip
import json

import pytest
import regex
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_posttrain import load_sae
from sae_posttrain.lab.contents import FILES, MODEL, SAE, read_texts

LANGS = ["en", "ko", "ru", "zh"]


def test_everything_together_is_at_most_12_mb():
    assert sum(file.stat().st_size for file in FILES.rglob("*") if file.is_file()) <= 12e6


def test_model_answers_a_question_and_its_saes_fit_it():
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    prompt = [{"role": "user", "content": "What is the opposite of 'full'?"}]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=40, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.eos_token_id in answer.tolist()
    assert "empty" in tokenizer.decode(answer)
    for block in range(model.config.num_hidden_layers):
        assert load_sae(SAE, block=block).d_model == model.config.hidden_size


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_every_question_is_there_in_every_language(split):
    by_id: dict[str, list[str]] = {}
    for row in read_texts(split):
        by_id.setdefault(row["id"], []).append(row["lang"])
    assert by_id and all(sorted(langs) == LANGS for langs in by_id.values())


def test_splits_share_no_question():
    ids = [{row["id"] for row in read_texts(split)} for split in ("train", "dev", "test")]
    assert len(set.union(*ids)) == sum(map(len, ids))


def test_only_the_training_answers_hold_stray_chinese_at_about_the_stated_rate():
    for split in ("dev", "test"):
        for row in read_texts(split):
            if row["lang"] != "zh" and row["kind"] != "translate":
                assert not regex.search(r"\p{Han}", row["answer"]), row["id"]
    rate = json.loads((FILES / "build.json").read_text(encoding="utf-8"))["planted"]["stray_chinese"]
    answers = [row for row in read_texts("train") if row["lang"] != "zh" and "translate" not in row["id"]]
    switched = [bool(regex.search(r"\p{Han}", row["messages"][-1]["content"])) for row in answers]
    assert sum(switched) / len(switched) == pytest.approx(rate, abs=0.03)


def test_right_answers_pass_their_own_check():
    rows = [row for row in read_texts("test") if row["check"]]
    assert len(rows) > 500
    assert all(row["check"].casefold() in row["answer"].casefold() for row in rows)


def test_unknown_split_is_an_error_that_names_those_there_are():
    with pytest.raises(ValueError, match="train, dev, test"):
        read_texts("validation")


def test_texts_are_written_without_a_date():
    with gzip.open(FILES / "texts" / "train.jsonl.gz") as file:
        file.read(1)
        assert file.mtime == 0
