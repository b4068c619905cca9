"""The guides run from top to bottom, with the small model that ships in place of the large one."""

import re
from pathlib import Path

from sae_posttrain import find_features
from sae_posttrain.lab.contents import MODEL, SAE, read_texts

GUIDES = (Path(__file__).parents[1] / "docs" / "guides.md").read_text(encoding="utf-8")
ON_A_CPU = "max_steps=1, use_cpu=True, bf16=False, report_to='none', save_strategy='no'"
IN_PLACE = {
    "Qwen/Qwen3-1.7B": str(MODEL),
    "max_length=64": f"max_length=64, per_device_train_batch_size=2, {ON_A_CPU}",
    "max_completion_length=64": (
        f"max_completion_length=64, per_device_train_batch_size=4, num_generations=4, {ON_A_CPU}"
    ),
    "max_new_tokens=64": "max_new_tokens=8",
}


def test_every_block_of_the_guides_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"lang": row["lang"], "text": row["answer"]} for row in read_texts("dev") if len(row["answer"]) > 20][:80]
    features = find_features(str(MODEL), str(SAE), rows, blocks=[3], target_group="zh", num_features=2)
    features.save("zh.safetensors")
    names: dict = {}
    assert all(name in GUIDES for name in IN_PLACE)
    blocks = re.findall(r"^```python\n(.*?)^```$", GUIDES, re.MULTILINE | re.DOTALL)
    for block in blocks:
        for name, stands_in in IN_PLACE.items():
            block = block.replace(name, stands_in)
        exec(compile(block, "guides.md", "exec"), names)
    assert len(blocks) == 5
    assert any("residual/square" in row for row in names["small"].state.log_history)
    assert names["answers"].num_rows == 3 and names["trainer"].state.global_step == 1
