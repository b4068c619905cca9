"""
The plugin in ms-swift itself: its command line, its template, its trainer.

Needs ms-swift 4.6.0, whose pin on TRL clashes with ours, so in an environment of its own: `pip install '.[dev]'`, then
`pip install --no-deps ms-swift==4.6.0` and what it asks for when imported, and
`pytest -m slow tests/integrations/test_ms_swift_library.py`. No network is used.
"""

import json

import pytest

TEXTS = {"en": "press the key", "ko": "키를 눌러", "zh": "按下按键"}
PLUGIN = "from sae_posttrain.integrations.ms_swift.plugin import hold_features\nhold_features(features={!r})\n"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("channel", [True, False], ids=["channel", "script"])
def test_ms_swift_takes_two_steps_with_features_held_down(channel, make_features, make_model, tokenizer, tmp_path):
    pipeline = pytest.importorskip("swift.pipelines.train.sft", reason="ms-swift is not installed")
    for part in (make_model(), tokenizer):
        part.save_pretrained(tmp_path / "model")
    features = make_features().save(tmp_path / "zh.safetensors")
    plugin, data = tmp_path / "plugin.py", tmp_path / "train.jsonl"
    plugin.write_text(PLUGIN.format(str(features)), encoding="utf-8")
    with data.open("w", encoding="utf-8") as file:
        for i in range(8):
            for group, text in TEXTS.items():
                messages = [{"role": "user", "content": "Write."}, {"role": "assistant", "content": f"{text} {i}"}]
                row = {"messages": messages} | ({"channel": group} if channel else {})
                file.write(json.dumps(row) + "\n")
    settings = {
        "model": tmp_path / "model",
        "model_type": "qwen3",
        "template": "dummy",
        "dataset": data,
        "external_plugins": plugin,
        "output_dir": tmp_path / "out",
        "max_steps": 2,
        "max_length": 96,
        "tuner_type": "full",
        "torch_dtype": "float32",
        "attn_impl": "eager",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_hf": "true",
        "check_model": "false",
        "use_cpu": "true",
        "bf16": "false",
        "fp16": "false",
        "dataloader_num_workers": 0,
    }
    arguments = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    log = pipeline.SwiftSft(arguments).main()["log_history"]
    penalties = [entry["sae/penalty"] for entry in log if "sae/penalty" in entry]
    assert len(penalties) == 2
    assert all(value > 0 for value in penalties)
