"""The penalty in a trainer, on features of sites beside a block's output."""

from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from sae_posttrain import SASFTConfig, SASFTTrainer

from ..trained import ONE_STEP_OF_SGD, logged, weights

ROWS = [
    ("en", "A file.", "open it now"),
    ("ko", "파일", "여세요"),
    ("zh", "文件", "打开"),
    ("en", "Save", "press the key"),
]
NAMES = ("heads", "halfway", "mlp", "output")


@pytest.fixture
def features(make_features):
    """One feature at each of four sites of the second block."""
    some = make_features(blocks=(1,), per_block=4)
    return replace(some, sites=("attn_z", "resid_mid", "mlp_out", "resid_post"), names=NAMES)


@pytest.fixture
def train(make_model, features, tokenizer, tmp_path):
    """Train the tiny model for a step of plain SGD or more, and return the trainer."""

    def run(peft_config=None, **settings) -> SASFTTrainer:
        args = SASFTConfig(
            str(tmp_path / "run"),
            **{
                **ONE_STEP_OF_SGD,
                "penalty_weight": 3.0,
                "per_device_train_batch_size": 4,
                "learning_rate": 0.3,
                **settings,
            },
        )
        data = Dataset.from_list([{"lang": lang, "prompt": p, "completion": c} for lang, p, c in ROWS])
        trainer = SASFTTrainer(
            make_model(),
            args,
            feature_set=features,
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=peft_config,
        )
        trainer.train()
        return trainer

    return run


def test_features_of_any_site_are_held_down_and_logged_by_name(train):
    held, free = train(max_steps=4), train(max_steps=4, penalty_weight=0.0)
    assert logged(held, "sae/penalty")[0] == logged(free, "sae/penalty")[0] > 0
    assert logged(held, "sae/penalty")[-1] < 0.7 * logged(free, "sae/penalty")[-1]
    for name in NAMES:
        assert len(logged(held, f"sae/pre_activation/{name}")) == 4


@pytest.mark.filterwarnings("ignore")
def test_gradient_checkpointing_gives_the_same_update(train):
    checkpointed = train(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})
    assert torch.allclose(weights(train()), weights(checkpointed), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_reentrant_checkpointing_is_refused_where_it_would_cut_the_gradient(train):
    with pytest.raises(ValueError, match="attn_z of block 1 does not depend.*'use_reentrant': False"):
        train(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True})


def test_lora_on_the_projection_after_the_site_is_trained_by_the_sites_behind_it(train):
    lora = LoraConfig(r=4, target_modules=["v_proj", "o_proj"], init_lora_weights=False)
    held, free = train(lora, max_steps=4), train(lora, max_steps=4, penalty_weight=0.0)
    assert logged(held, "sae/penalty")[-1] < logged(free, "sae/penalty")[-1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_model_gives_the_same_update(train):
    compiled = train(torch_compile=True, torch_compile_backend="aot_eager")
    assert torch.allclose(weights(train()), weights(compiled), atol=1e-5)
