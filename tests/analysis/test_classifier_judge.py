"""The share of positives among the answers that a training is watched by."""

import json
from pathlib import Path

import pytest
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from sae_posttrain import FaultWatchCallback
from sae_posttrain.analysis import ClassifierJudge

from ..trained import ON_CPU, logged
from .test_classifier import LETTERS, fitted_on_letters


@pytest.fixture
def classifier(make_model, make_sae, tokenizer):
    return fitted_on_letters(make_model, make_sae, tokenizer, "topk")


@pytest.mark.parametrize("chat", [False, True])
def test_judge_says_what_the_classifier_predicts(classifier, chat):
    judge = ClassifierJudge(classifier, chat=chat)
    rows = [{"prompt": "zz?", "completion": text} for text in LETTERS]
    if chat:
        user = {"role": "user", "content": "zz?"}
        rows = [{"messages": [user, {"role": "assistant", "content": text}]} for text in LETTERS]
    positive = (classifier.predict(rows) == 1).tolist()
    assert 0 < sum(positive) < len(positive)
    assert [judge({"prompt": "zz?", "answer": text}) for text in LETTERS] == positive
    assert judge({"prompt": "zz?", "answer": " "}) is None


def test_share_of_positives_is_logged_during_training(classifier, make_model, tokenizer, tmp_path):
    prompts = [{"lang": "en", "prompt": text} for text in ("zz", "aa", "zaz", "aza")]
    args = SFTConfig(str(tmp_path / "run"), **{**ON_CPU, "max_steps": 2, "max_length": 32})
    trainer = SFTTrainer(make_model(), args, train_dataset=Dataset.from_list([{"text": "open it"}] * 4),
                         processing_class=tokenizer)  # fmt: skip
    judges = {"letter_z": ClassifierJudge(classifier)}
    trainer.add_callback(
        FaultWatchCallback(prompts, judges=judges, every=1, max_new_tokens=8, num_shown=None, trainer=trainer)
    )
    trainer.train()
    watches = [json.loads(line) for line in Path(args.output_dir, "watch.jsonl").read_text("utf-8").splitlines()]
    assert len(watches) == 2
    for watch, rate in zip(watches, logged(trainer, "watch/letter_z"), strict=True):
        rows = [{"prompt": each["prompt"], "completion": each["answer"]} for each in watch["answers"]]
        positive = classifier.predict([row for row in rows if row["completion"].strip()]) == 1
        assert rate == positive.mean()


def test_a_classifier_without_a_model_is_refused(classifier):
    classifier.set_params(model=None)
    with pytest.raises(ValueError, match="give the classifier `model`"):
        ClassifierJudge(classifier)
