"""
The plugin in axolotl itself: its configuration, its builder, its trainer.

Needs axolotl 0.19.0, whose pins clash with ours, so in an environment of its own: `pip install axolotl==0.19.0`, then
`pip install --no-deps .` and `pytest -m slow tests/integrations/test_axolotl_library.py`. No network is used.
"""

import pytest
from datasets import Dataset

PLUGIN = "sae_posttrain.integrations.axolotl.plugin.FeaturePlugin"
TEXTS = {"en": "press the key", "ko": "키를 눌러", "zh": "按下按键"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("packed", [False, True], ids=["single", "packed"])
def test_axolotl_takes_two_steps_with_features_held_down(packed, make_features, make_model, tokenizer, tmp_path):
    manager = pytest.importorskip("axolotl.integrations.base", reason="axolotl is not installed").PluginManager
    from axolotl.cli.config import plugin_set_cfg, prepare_plugins
    from axolotl.monkeypatch.data.batch_dataset_fetcher import apply_multipack_dataloader_patch
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    features = make_features().save(tmp_path / "zh.safetensors")
    settings = {
        "base_model": "tiny",
        "plugins": [PLUGIN],
        "sae_posttrain": {"features": str(features), "penalty_weight": 2.0},
        "datasets": [{"path": str(tmp_path), "type": "chat_template"}],
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "optimizer": "adamw_torch",
        "num_epochs": 1,
        "max_steps": 2,
        "sequence_len": 128,
        "sample_packing": packed,
        "pad_to_sequence_len": packed,
        "val_set_size": 0,
        "output_dir": str(tmp_path / "out"),
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "fp16": False,
    }
    prepare_plugins(DictDefault(settings))
    cfg = validate_config(DictDefault(settings))
    plugin_set_cfg(cfg)
    rows = []
    for i in range(8):
        for text in TEXTS.values():
            prompt, answer = tokenizer("Write.")["input_ids"], tokenizer(f"{text} {i}")["input_ids"]
            row = {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}
            row["attention_mask"] = [1] * len(row["input_ids"])
            if packed:
                row |= {"position_ids": list(range(len(row["input_ids"]))), "length": len(row["input_ids"])}
            rows.append(row)
    model = make_model()
    manager.get_instance().post_model_load(cfg, model)
    from axolotl.core.builders import HFCausalTrainerBuilder  # its arguments take up those of the plugins there are

    builder = HFCausalTrainerBuilder(cfg, model, tokenizer)
    builder.train_dataset = Dataset.from_list(rows)
    if packed:
        apply_multipack_dataloader_patch()  # as its model loader does
    trainer = builder.build(total_num_steps=2)
    manager.get_instance().post_trainer_create(cfg, trainer)
    trainer.train()
    penalties = [entry["sae/penalty"] for entry in trainer.state.log_history if "sae/penalty" in entry]
    assert len(penalties) == 2
    assert all(value > 0 for value in penalties)
