"""Training says before it starts when the model would never learn to end its answers."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import SFTConfig

from sae_posttrain import SASFTConfig, SASFTTrainer, evaluate

END = "<|assistant|>"
"""What the template of these tests ends a turn with: not the tokenizer's end token, as on a base model."""

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|user|>{% generation %}{{ m['content'] }}<|assistant|>"
    "{% endgeneration %}{% else %}<|user|>{{ m['content'] }}<|assistant|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|user|>{% endif %}"
)


@pytest.fixture
def base_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    loaded.chat_template = TEMPLATE
    return loaded


@pytest.fixture
def start(make_model, make_features, base_tokenizer, tmp_path):
    def run(config=SASFTConfig, fit=False, rows=None, **settings):
        peft_config = settings.pop("peft_config", None)
        settings = {
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "save_strategy": "no",
            "assistant_only_loss": True,
            "disable_tqdm": True,
            **settings,
        }
        texts = [("en", "open it"), ("ko", "열기"), ("zh", "打开")]
        rows = rows or [
            {
                "lang": lang,
                "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}],
            }
            for lang, text in texts
        ]
        extra = {"feature_set": make_features()} if config is SASFTConfig else {}
        trainer = SASFTTrainer(
            make_model(),
            config(str(tmp_path / "run"), **settings),
            train_dataset=Dataset.from_list(rows),
            processing_class=base_tokenizer,
            peft_config=peft_config,
            **extra,
        )
        if fit:
            trainer.train()
        return trainer

    return run


TOLD = "the training rows end their answers with '<|assistant|>' (3), as the chat template does"


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (SASFTConfig, {}),
        (SASFTConfig, {"peft_config": LoraConfig(target_modules=["q_proj"], r=2)}),
        (SASFTConfig, {"assistant_only_loss": True, "packing": True, "max_length": 64, "packing_strategy": "wrapped"}),
        (SFTConfig, {}),
    ],
)
def test_end_that_no_generation_knows_is_told_with_what_to_set(config, settings, start, caplog):
    start(config, **settings)
    assert TOLD in caplog.text
    assert f"Set `eos_token: '{END}'`" in caplog.text
    caplog.clear()
    start(config, eos_token=END, **settings)
    assert "end" not in caplog.text.replace("Generation config", "")


def test_texts_to_which_trl_adds_the_end_token_are_fine(start, caplog):
    start(rows=[{"lang": "en", "prompt": "a", "completion": "b"}] * 2, assistant_only_loss=False)
    assert "training rows" not in caplog.text


def test_end_outside_the_marks_of_generation_is_told(start, base_tokenizer, caplog):
    base_tokenizer.chat_template = TEMPLATE.replace(f"{END}{{% endgeneration %}}", f"{{% endgeneration %}}{END}")
    start()
    assert "put it inside the template's `{% generation %}`" in caplog.text


@pytest.mark.parametrize("eos_token", [None, END])
def test_evaluation_counts_the_end_of_the_turn_whatever_the_model_was_told(eos_token, start, tmp_path, base_tokenizer):
    settings = {"learning_rate": 0.05, "max_steps": 40, "penalty_weight": 0.0, "optim": "adamw_torch"}
    trainer = start(fit=True, eos_token=eos_token, **settings)
    ends = trainer.model.generation_config.eos_token_id
    assert (ends == 1) is (eos_token is None)  # all that other programs would stop at
    asked = [{"lang": "en", "prompt": [{"role": "user", "content": "?"}]}]
    torch.manual_seed(0)
    result = evaluate(
        trainer.model,
        asked,
        tokenizer=base_tokenizer,
        output_dir=tmp_path / "out",
        max_new_tokens=20,
        temperature=0,
        progress=False,
    )
    assert result["overall"]["truncated"]["rate"] == 0
    assert END in result["end_tokens"]
