"""What the trainer does with conversations in other forms than TRL's, and what it says of rows that it drops."""

import pytest
from datasets import Dataset

from sae_posttrain import SASFTConfig, SASFTTrainer

TEXTS = {"ko": "저장", "en": "save", "zh": "保存"}


@pytest.fixture
def build(tmp_path, make_model, make_features, tokenizer):
    def build(dataset, **kwargs):
        args = SASFTConfig(
            str(tmp_path / "run"),
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            **{"assistant_only_loss": True, **kwargs},
        )
        options = {"feature_set": make_features(), "train_dataset": dataset, "processing_class": tokenizer}
        return SASFTTrainer(make_model(), args, **options)

    return build


def rows(question, answer):
    return [{"messages": [question, answer(text)], "lang": lang} for lang, text in TEXTS.items()]


def test_other_forms_train_on_the_same_tokens(build):
    user = {"role": "user", "content": "What?"}
    plain = build(Dataset.from_list(rows(user, lambda text: {"role": "assistant", "content": text})))
    forms = {
        "parts": rows(
            {"role": "user", "content": [{"type": "text", "text": "What?"}]},
            lambda text: {"role": "assistant", "content": [{"type": "text", "text": text}]},
        ),
        "gpt": rows({"role": "human", "content": "What?"}, lambda text: {"role": "gpt", "content": text}),
        "sharegpt": [
            {"conversations": row["messages"], "lang": row["lang"]}
            for row in rows({"from": "human", "value": "What?"}, lambda text: {"from": "gpt", "value": text})
        ],
    }
    for form, given in forms.items():
        built = build(Dataset.from_list(given))
        for column in ("input_ids", "labels"):
            assert built.train_dataset[column] == plain.train_dataset[column], form


def test_what_cannot_be_converted_is_refused_at_init(build):
    image = {"role": "user", "content": [{"type": "image", "text": None}]}
    given = rows(image, lambda text: {"role": "assistant", "content": [{"type": "text", "text": text}]})
    with pytest.raises(ValueError, match="Row 1 of the train dataset: message 1 of `messages` has a part 1 of the"):
        build(Dataset.from_list(given))


@pytest.mark.parametrize("packing", [False, True])
def test_rows_that_the_length_limit_drops_are_said_by_group(build, caplog, packing):
    def row(lang, length):
        return {"prompt": "a" * length, "completion": TEXTS[lang], "lang": lang}

    data = [row("en", 4), row("en", 90), row("ko", 90), row("ko", 90), row("zh", 4)]
    build(Dataset.from_list(data), max_length=64, packing=packing, assistant_only_loss=False)
    assert "The train dataset: 3 of 5 rows are dropped, because their whole answer lies behind" in caplog.text
    assert "`max_length=64` tokens (1 of 2 in en, 2 of 2 in ko). NO ROW IS LEFT OF ko." in caplog.text
    with pytest.raises(ValueError, match="3 of 3 rows are dropped.*Nothing is left to train on. Raise `max_length`"):
        build(Dataset.from_list(data[1:4]), max_length=64, packing=packing, assistant_only_loss=False)
