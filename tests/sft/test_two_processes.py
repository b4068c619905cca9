"""Two gloo processes against one: the same batch, the same update."""

import json
import subprocess
import sys

import pytest
from datasets import Dataset
from safetensors.torch import load_file

TRAIN = """
import json, os, sys, torch
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer
from sae_posttrain import SASFTConfig, SASFTTrainer

folder, out, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
args = SASFTConfig(
    out, per_device_train_batch_size=batch, max_steps=1, **json.loads(sys.argv[4]),
    learning_rate=1.0, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, use_cpu=True, bf16=False,
    gradient_checkpointing=False, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
)
trainer = SASFTTrainer(
    AutoModelForCausalLM.from_pretrained(folder + "/model"), args, train_dataset=load_from_disk(folder + "/data"),
    processing_class=AutoTokenizer.from_pretrained(folder + "/model"),
)
trainer.train()
trainer.save_model(out)
if trainer.accelerator.is_main_process:
    print("penalty", trainer.state.log_history[0][sys.argv[5]])
trainer.accelerator.end_training()
sys.stdout.flush()
os._exit(0)  # on a busy machine gloo's threads now and then abort an interpreter that is ending
"""


@pytest.mark.slow
@pytest.mark.parametrize("held", ["features", "tokens"])
def test_two_processes_make_the_same_update_as_one(tmp_path, make_model, make_features, tokenizer, held):
    rows = [
        {"lang": lang, "prompt": f"{i}", "completion": answer * (1 + i % 3)}
        for i, (lang, answer) in enumerate([("en", "open it"), ("ko", "열기"), ("zh", "打开"), ("en", "yes")] * 2)
    ]
    Dataset.from_list(rows).save_to_disk(tmp_path / "data")
    make_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    make_features().save(tmp_path / "features")
    (tmp_path / "train.py").write_text(TRAIN)
    settings, metric = {
        "features": ({"features": str(tmp_path / "features"), "penalty_weight": 3.0}, "sae/penalty"),
        "tokens": ({"penalised_tokens": "zh"}, "tokens/mass"),
    }[held]

    def run(processes: int, batch: int):
        out = tmp_path / f"on{processes}"
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *launcher, str(tmp_path / "train.py"), str(tmp_path), str(out), str(batch)]
        command += [json.dumps(settings), metric]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        penalty = float(next(line for line in done.stdout.splitlines() if line.startswith("penalty")).split()[1])
        return load_file(out / "model.safetensors"), penalty

    alone, penalty_alone = run(1, batch=8)
    together, penalty_together = run(2, batch=4)
    assert penalty_together == pytest.approx(penalty_alone, rel=1e-5)
    largest = max((alone[name] - together[name]).abs().max().item() for name in alone)
    assert largest < 2e-5, largest
