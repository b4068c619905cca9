"""Two gloo processes with every group across them, against one: the same rollouts, the same update."""

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
from sae_posttrain import SteeredGRPOConfig, SteeredGRPOTrainer

folder, out, batch, options = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
LOOPING = 50
torch.set_num_threads(1)

def faulty(ids, finished):
    return set(ids[-4:]) == {LOOPING}

def reward(completion_ids, **kwargs):
    return [-float(faulty(ids, False)) for ids in completion_ids]

args = SteeredGRPOConfig(
    out, features=folder + "/features", steer_strength=10.0, per_device_train_batch_size=batch, num_generations=4,
    max_completion_length=12, max_steps=2, temperature=0.5, generation_kwargs={"do_sample": False}, learning_rate=0.1,
    optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, use_cpu=True, bf16=False,
    gradient_checkpointing=False, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
    shuffle_dataset=False, **options,
)
trainer = SteeredGRPOTrainer(
    AutoModelForCausalLM.from_pretrained(folder + "/model"), reward, args, fault=faulty,
    train_dataset=load_from_disk(folder + "/data"), processing_class=AutoTokenizer.from_pretrained(folder + "/model"),
)
compute_loss = trainer._compute_loss
def check(model, inputs):
    looping = (inputs["completion_ids"][:, -4:] == LOOPING).all(dim=1)
    assert torch.equal(inputs["steered"], looping), (inputs["steered"], looping)
    return compute_loss(model, inputs)
trainer._compute_loss = check
trainer.train()
trainer.save_model(out)
if trainer.accelerator.is_main_process:
    print("LOGGED", json.dumps([
        {key: value for key, value in entry.items() if key.startswith("steer/")} for entry in trainer.state.log_history
    ]))
trainer.accelerator.end_training()
sys.stdout.flush()
os._exit(0)  # on a busy machine gloo's threads now and then abort an interpreter that is ending
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "off_policy_weight": "truncated",
            "steered_baseline": "plain",
            "on_miss": "drop",
            "target_hit_rate": 0.5,
            "max_steer_strength": 20.0,
        },
    ],
    ids=["default", "weighted and controlled"],
)
def test_a_group_across_two_processes_makes_the_same_update_as_on_one(
    tmp_path, make_model, make_loop_feature, tokenizer, options
):
    Dataset.from_list([{"prompt": prompt} for prompt in ("a", "one file")]).save_to_disk(tmp_path / "data")
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    make_loop_feature(model).save(tmp_path / "features")
    (tmp_path / "train.py").write_text(TRAIN)

    def run(processes: int, batch: int):
        out = tmp_path / f"on{processes}"
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        arguments = [str(tmp_path), str(out), str(batch), json.dumps(options)]
        command = [sys.executable, *launcher, str(tmp_path / "train.py"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        line = next(line for line in done.stdout.splitlines() if line.startswith("LOGGED"))
        return load_file(out / "model.safetensors"), json.loads(line.removeprefix("LOGGED"))

    alone, logged_alone = run(1, batch=4)
    together, logged_together = run(2, batch=2)  # the steered row of each group lies on the second process
    for one, two in zip(logged_alone, logged_together):
        assert one.keys() == two.keys()
        assert two == {key: pytest.approx(value, rel=1e-4, abs=1e-6) for key, value in one.items()}
    assert logged_together[0]["steer/hit_rate"] == 1.0
    start = dict(model.state_dict())
    largest = max((alone[name] - together[name]).abs().max().item() for name in alone)
    moved = max((alone[name] - start[name]).abs().max().item() for name in alone)
    assert moved > 1e-5 and largest < 0.01 * moved, (largest, moved)
