"""Two gloo processes divide the prompts, and write what one writes."""

import subprocess
import sys

import pytest

from sae_posttrain.training.watch.record import WATCH_FILE, read

TRAIN = """
import os, sys, torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
from sae_posttrain import FaultWatchCallback

folder, out, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
args = SFTConfig(
    out, per_device_train_batch_size=batch, max_steps=9, learning_rate=0.0, use_cpu=True, bf16=False, max_length=32,
    gradient_checkpointing=False, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
)
rows = [{"text": f"open it {i}"} for i in range(8)]
prompts = [{"lang": lang, "prompt": text} for lang, text in (("en", "Open"), ("ko", "abc"), ("en", "Save it"))]
watch = FaultWatchCallback(
    prompts, every=2, max_new_tokens=8, batch_size=1, num_shown=None, judges={"bad": lambda answer: True}, patience=2,
    stop_on="bad",
)
trainer = SFTTrainer(
    AutoModelForCausalLM.from_pretrained(folder), args, train_dataset=Dataset.from_list(rows),
    processing_class=AutoTokenizer.from_pretrained(folder), callbacks=[watch],
)
trainer.train()
assert len(watch.latest["answers"]) == 3
assert trainer.state.global_step == 6, trainer.state.global_step  # both stop after the third watch
trainer.accelerator.end_training()
sys.stdout.flush()
os._exit(0)  # on a busy machine gloo's threads now and then abort an interpreter that is ending
"""


@pytest.mark.slow
def test_two_processes_write_the_answers_of_one(tmp_path, make_model, tokenizer):
    make_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "train.py").write_text(TRAIN)

    def run(processes: int, batch: int):
        out = tmp_path / f"on{processes}"
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *launcher, tmp_path / "train.py", tmp_path / "model", out, batch]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return [(watch["step"], watch["answers"], watch["rates"]) for watch in read(out / WATCH_FILE)]

    assert run(1, batch=4) == run(2, batch=2)
