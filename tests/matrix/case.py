"""
One step of one case: the trainer as a user would build it, and the gradient it hands to the optimizer.

`torchrun case.py FOLDER CASES.json RESULTS` runs those of several processes.
"""

import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from data import (
    LOOPING,
    MAX_COMPLETION_LENGTH,
    MAX_LENGTH,
    NUM_DOCUMENTS,
    NUM_GENERATIONS,
    NUM_PACKED_ROWS,
    NUM_PROCESSES,
    PROMPTS,
    TEMPERATURE,
    completions,
    documents,
    reward,
)
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from truth import WEIGHT

from sae_posttrain import FeatureSet, SASFTConfig, SASFTTrainer, SteeredGRPOConfig, SteeredGRPOTrainer

_WRAPPERS = ("_orig_mod.", "module.", "_checkpoint_wrapped_module.")


def peft_config(tuning: str) -> Any:
    """The adapter of a case; `None` for full fine-tuning."""
    if tuning in ("LoRA", "DoRA"):
        return LoraConfig(r=4, target_modules=["q_proj", "down_proj"], use_dora=tuning == "DoRA")
    kind = {"prompt tuning": PromptTuningConfig, "prefix tuning": PrefixTuningConfig}.get(tuning)
    return kind and kind(task_type="CAUSAL_LM", num_virtual_tokens=4)


def settle(model: Any) -> None:
    """Give the adapter values that do not hang on when it was made, none of them zero."""
    if hasattr(model, "peft_config"):
        generator = torch.Generator().manual_seed(0)
        for name, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                values = 0.1 * torch.randn(parameter.shape, generator=generator)
                parameter.data.copy_(values + 1 if "magnitude" in name else values)


class Gradients(TrainerCallback):
    """Keeps the gradient of every trainable parameter, whole, just before the optimizer's step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.by_name: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.grad is not None:
                for wrapper in _WRAPPERS:
                    name = name.replace(wrapper, "")
                grad = parameter.grad
                self.by_name[name] = (grad.full_tensor() if hasattr(grad, "full_tensor") else grad).detach().clone()


@contextmanager
def fixed_rollouts() -> Iterator[None]:
    """
    Rollouts are made as ever, under steering where some are steered, and then replaced by fixed ones, so that the
    update can be compared.
    """
    generate = GRPOTrainer._generate_single_turn

    def generate_and_replace(self, prompt_ids, *args, **kwargs):
        _, logprobs = generate(self, prompt_ids, *args, **kwargs)
        first = self.accelerator.process_index * len(prompt_ids)
        return completions()[first : first + len(prompt_ids)], logprobs

    with mock.patch.object(GRPOTrainer, "_generate_single_turn", generate_and_replace):
        yield


def settings(case: dict[str, str], out: Path) -> dict[str, Any]:
    """Arguments of the trainer's configuration."""
    num_rows = NUM_PACKED_ROWS if case["batches"] in ("bfd", "bfd_split", "wrapped") else NUM_DOCUMENTS
    chosen: dict[str, Any] = {
        "output_dir": str(out),
        "per_device_train_batch_size": num_rows // NUM_PROCESSES[case["processes"]],
        "max_steps": 1,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "use_cpu": True,
        "bf16": case["precision"] == "bf16",
        "gradient_checkpointing": case["checkpointing"] != "none",
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "shuffle_dataset": False,
    }
    if case["checkpointing"] != "none":
        chosen["gradient_checkpointing_kwargs"] = {"use_reentrant": case["checkpointing"] == "reentrant"}
    if case["processes"] == "DDP" and case["checkpointing"] == "reentrant":
        # transformers looks for unused parameters where the model is PEFT's, and DDP then meets some of them twice.
        chosen["ddp_find_unused_parameters"] = False
    if case["compilation"] == "torch_compile":
        chosen |= {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    if case["processes"] == "FSDP2":
        chosen |= {
            "fsdp": True,
            "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["Qwen3DecoderLayer"]},
        }
    if case["batches"] == "rollouts":
        return chosen | {
            "num_generations": NUM_GENERATIONS,
            "max_completion_length": MAX_COMPLETION_LENGTH,
            "temperature": TEMPERATURE,
        }
    chosen |= {"loss_type": case["loss"], "max_length": MAX_LENGTH}
    if case["batches"] == "padding-free":
        chosen |= {"padding_free": True, "max_length": None}
    elif case["batches"] != "padded":
        chosen |= {"packing": True, "packing_strategy": case["batches"]}
    return chosen


def build(case: dict[str, str], folder: Path, out: Path) -> Any:
    """The trainer of a case, ready to train."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    arguments = settings(case, out)
    common = {"processing_class": tokenizer, "peft_config": peft_config(case["tuning"])}
    if case["trainer"] in ("SFT", "SASFT"):
        ours = case["trainer"] == "SASFT"
        features = {"features": str(folder / "features"), "penalty_weight": WEIGHT} if ours else {}
        kind, config = (SASFTTrainer, SASFTConfig) if ours else (SFTTrainer, SFTConfig)
        args = config(**arguments, **features)
        _shard_on_cpu(case)
        return kind(model, args, train_dataset=Dataset.from_list(documents()), **common)

    def rewards(completion_ids, **kwargs):
        return [reward(ids) for ids in completion_ids]

    data = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS])
    if case["trainer"] == "GRPO":
        args = GRPOConfig(**arguments)
        _shard_on_cpu(case)
        return GRPOTrainer(model, rewards, args, train_dataset=data, **common)
    row = model.lm_head.weight[LOOPING].detach().clone()
    loop = FeatureSet.from_directions(row[None], blocks=[1], names=["loop"], residual_norms=[10.0])
    args = SteeredGRPOConfig(**arguments, steer_strength=10.0)
    _shard_on_cpu(case)
    return SteeredGRPOTrainer(
        model,
        rewards,
        args,
        feature_set=loop,
        fault=lambda ids, finished: set(ids[-4:]) == {LOOPING},
        train_dataset=data,
        **common,
    )


def _shard_on_cpu(case: dict[str, str]) -> None:
    """accelerate turns FSDP on among accelerators only; gloo can shard too, once accelerate takes it for one."""
    if case["processes"] == "FSDP2":
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def run(case: dict[str, str], folder: Path, out: Path) -> dict[str, Tensor]:
    """Train one step; the gradient of each trainable parameter, by its name."""
    torch._dynamo.reset()
    with fixed_rollouts():
        trainer = build(case, folder, out)
        settle(trainer.model)
        kept = Gradients()
        trainer.add_callback(kept)
        trainer.train()
    return kept.by_name


def main(folder: Path, cases: list[dict[str, str]], results: Path) -> None:
    """Run cases one after the other; each leaves its gradients, or what went wrong, under its number."""
    for number, case in enumerate(cases):
        try:
            found = run(case, folder, folder / "run")
        except Exception:  # the cases after it are none the worse
            (results / f"{number}.{os.environ['RANK']}.txt").write_text(traceback.format_exc())
            continue
        if os.environ["RANK"] == "0":
            save_file({name: grad.contiguous() for name, grad in found.items()}, results / f"{number}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3]))
    torch.distributed.barrier()
    os._exit(0)  # on a busy machine gloo's threads now and then abort an interpreter that is ending
