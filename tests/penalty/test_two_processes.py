"""Two gloo processes against one: the same batch, the same update, and the same adapted weight."""

import json
import subprocess
import sys

import pytest
from datasets import Dataset
from safetensors.torch import load_file

TRAIN = """
import json, os, sys, torch
from dataclasses import dataclass
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer
from sae_posttrain import FeaturePenaltyArguments, FeaturePenaltyMixin, SASFTConfig, SASFTTrainer

@dataclass
class HeldDPOConfig(FeaturePenaltyArguments, DPOConfig):
    pass

class HeldDPOTrainer(FeaturePenaltyMixin, DPOTrainer):
    pass

folder, out, batch, kind = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
trainer, config = {"dpo": (HeldDPOTrainer, HeldDPOConfig), "sasft": (SASFTTrainer, SASFTConfig)}[kind]
args = config(
    out, features=folder + "/features", penalty_target=0.1, per_device_train_batch_size=batch, max_steps=3,
    learning_rate=0.05, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, use_cpu=True, bf16=False,
    gradient_checkpointing=False, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
)
load = AutoModelForCausalLM.from_pretrained
extra = {"ref_model": load(folder + "/model")} if kind == "dpo" else {}
trainer = trainer(
    load(folder + "/model"), args=args, train_dataset=load_from_disk(folder + "/" + kind),
    processing_class=AutoTokenizer.from_pretrained(folder + "/model"), **extra,
)
trainer.train()
trainer.save_model(out)
weights = trainer.accelerator.gather(torch.tensor([trainer.penalty_weight], dtype=torch.float64)).tolist()
if trainer.accelerator.is_main_process:
    logged = [entry["sae/penalty_weight"] for entry in trainer.state.log_history if "sae/penalty_weight" in entry]
    with open(out + "/weights.json", "w") as file:
        json.dump({"of_processes": weights, "logged": logged}, file)
trainer.accelerator.end_training()
sys.stdout.flush()
os._exit(0)  # on a busy machine gloo's threads now and then abort an interpreter that is ending
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dpo", "sasft"])
def test_two_processes_adapt_the_weight_and_update_the_model_as_one(
    tmp_path, make_model, make_features, tokenizer, kind
):
    texts = [("en", "open it"), ("ko", "열기!"), ("zh", "打开!"), ("en", "shut it")] * 2  # of seven bytes each
    rows = [
        {"lang": lang, "prompt": f"{i}", "chosen": answer, "rejected": "nothing"}
        for i, (lang, answer) in enumerate(texts)
    ]
    Dataset.from_list(rows).save_to_disk(tmp_path / "dpo")
    Dataset.from_list(rows).rename_column("chosen", "completion").save_to_disk(tmp_path / "sasft")
    make_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    make_features().save(tmp_path / "features")
    (tmp_path / "train.py").write_text(TRAIN)

    def run(processes: int, batch: int):
        out = tmp_path / f"on{processes}"
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *launcher, str(tmp_path / "train.py"), str(tmp_path), str(out), str(batch), kind]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return load_file(out / "model.safetensors"), json.loads((out / "weights.json").read_text())

    alone, weight_alone = run(1, batch=8)
    together, weight_together = run(2, batch=4)
    assert len(set(weight_together["of_processes"])) == 1
    assert weight_together["logged"] == pytest.approx(weight_alone["logged"], rel=1e-5)
    assert len(set(weight_alone["logged"])) == 3
    largest = max((alone[name] - together[name]).abs().max().item() for name in alone)
    assert largest < 2e-5, largest
