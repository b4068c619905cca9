"""Two gloo processes with every group across them, against one: the same rollouts, kept groups and update."""

import json
import subprocess
import sys

import pytest
from datasets import Dataset
from safetensors.torch import load_file

TRAIN = """
import json, os, sys, torch
from accelerate.utils import gather_object
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer
from sae_posttrain import SteeredGRPOConfig, SteeredGRPOTrainer

folder, out, batch, options = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
LOOPING = 50
torch.set_num_threads(1)

def faulty(ids, finished):
    return set(ids[-4:]) == {LOOPING}

def reward(prompts, completion_ids, **kwargs):
    values = [-float(faulty(ids, False)) for ids in completion_ids]
    if args.dynamic_sampling != "none":  # answers are greedy: which prompts have spread is told by the slot
        first = int(os.environ["RANK"]) * len(prompts)
        slots = [(first + row) % 4 for row in range(len(prompts))]
        values = [value + slot % 2 * (len(prompt) % 2) for value, slot, prompt in zip(values, slots, prompts)]
    return values

args = SteeredGRPOConfig(
    out, features=folder + "/features", steer_strength=10.0, per_device_train_batch_size=batch, num_generations=4,
    max_completion_length=12, max_steps=2, temperature=0.5, learning_rate=0.1,
    optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, use_cpu=True, bf16=False,
    gradient_checkpointing=False, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
    shuffle_dataset=False, **{"generation_kwargs": {"do_sample": False}, **options},
)
trainer = SteeredGRPOTrainer(
    AutoModelForCausalLM.from_pretrained(folder + "/model"), reward, args, fault=faulty,
    train_dataset=load_from_disk(folder + "/data"), processing_class=AutoTokenizer.from_pretrained(folder + "/model"),
)
compute_loss = trainer._compute_loss
kept, num_cold = [], []
def check(model, inputs):
    kept.extend(inputs["prompt_ids"][:, -1].tolist())
    looping = (inputs["completion_ids"][:, -4:] == LOOPING).all(dim=1)
    assert torch.equal(inputs["steered"], looping), (inputs["steered"], looping)
    assert ("cold" in inputs) == (args.num_cold > 0)
    num_cold.append(int(inputs["cold"].sum()) if args.num_cold else 0)
    return compute_loss(model, inputs)
trainer._compute_loss = check
trainer.train()
trainer.save_model(out)
kept = sorted(gather_object(kept))
assert sum(gather_object(num_cold)) == 2 * args.num_cold
if trainer.accelerator.is_main_process:
    print("KEPT", json.dumps(kept))
    print("LOGGED", json.dumps([
        {key: value for key, value in entry.items() if key.startswith(("steer/", "dynamic/")) and value is not None}
        for entry in trainer.state.log_history
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
        {"dynamic_sampling": "fresh"},
        {"dynamic_sampling": "same", "dynamic_sampling_max_rounds": 2},
        {
            "num_cold": 1,
            "top_k": 1,  # sampled, and yet the same on any number of processes
            "generation_kwargs": {},
            "off_policy_weight": "truncated",
            "dynamic_sampling": "same",
            "dynamic_sampling_max_rounds": 2,
        },
    ],
    ids=["default", "weighted and controlled", "fresh prompts", "the same prompts", "cold"],
)
def test_a_group_across_two_processes_makes_the_same_update_as_on_one(
    tmp_path, make_model, make_loop_feature, tokenizer, options
):
    Dataset.from_list([{"prompt": prompt} for prompt in ("a", "one file", "xyz", "keys")]).save_to_disk(
        tmp_path / "data"
    )
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
        printed = {line.partition(" ")[0]: line.partition(" ")[2] for line in done.stdout.splitlines()}
        return load_file(out / "model.safetensors"), json.loads(printed["LOGGED"]), json.loads(printed["KEPT"])

    alone, logged_alone, kept_alone = run(1, batch=4)
    # The steered row of each group lies on the second process.
    together, logged_together, kept_together = run(2, batch=2)
    assert kept_alone == kept_together and len(kept_alone) == 8
    for one, two in zip(logged_alone, logged_together):
        assert one.keys() == two.keys()
        assert two == {key: pytest.approx(value, rel=1e-4, abs=1e-6) for key, value in one.items()}
    assert logged_together[0]["steer/hit_rate"] == 1.0
    start = dict(model.state_dict())
    largest = max((alone[name] - together[name]).abs().max().item() for name in alone)
    moved = max((alone[name] - start[name]).abs().max().item() for name in alone)
    assert moved > 1e-5 and largest < 0.01 * moved, (largest, moved)
