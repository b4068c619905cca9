"""
Steered GRPO with a real vLLM engine in this process, on a CPU; prints what it saw as one line of JSON.

Run by `test_vllm_training.py` in an environment with vLLM, one process for each case, since an engine stays as long as
its process.
"""

import argparse
import json
import os
from functools import partial

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import torch
import vllm._custom_ops
from datasets import Dataset
from peft import LoraConfig
from trl.generation import vllm_generation

import sae_posttrain.rl.push_check as push_check
from sae_posttrain import FaultWatchCallback, FeatureSet, SteeredGRPOConfig, SteeredGRPOTrainer
from sae_posttrain.serving import worker_mixin
from sae_posttrain.training.watch.sampling import WatchedPrompts

PROMPTS = ["How to print a page", "Formula", "Insert a table", "Change the font"]
WATCHED = [
    {"lang": "en", "prompt": prompt} for prompt in ("Styles", "Spell check", "Save a file", "Delete a row", "Zoom")
]
SHORT = {"max_new_tokens": 24, "batch_size": 2, "num_shown": None}


def different_tokens(completion_ids, **_):
    """A reward that sees loops: the number of different tokens."""
    return [float(len(set(ids))) for ids in completion_ids]


different_tokens.sees_repetition = True  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--wrong-block", action="store_true")
    parser.add_argument("--server", help="address of a server; no weights are sent to it")
    parser.add_argument("--features", help="feature set that the server pushes along")
    parser.add_argument("--watch", action="store_true", help="the engine answers watched prompts after each step")
    parser.add_argument("--settings", type=json.loads, default={})
    given = parser.parse_args()

    vllm._custom_ops._supports_onednn = False  # packed weights of the CPU backend cannot be synchronised
    eager = {} if given.compile else {"enforce_eager": True}
    vllm_generation.LLM = partial(vllm_generation.LLM, dtype="float32", **eager)
    if given.wrong_block:
        blocks_of = worker_mixin.decoder_blocks
        worker_mixin.decoder_blocks = lambda *args: [*blocks_of(*args)[1:], blocks_of(*args)[0]]
    if given.server:
        client = vllm_generation.VLLMClient
        client.init_communicator = lambda *_, **__: None
        client.update_named_params = lambda *_, **__: None
    seen: list[list[float]] = []
    check = push_check.require_explained
    push_check.require_explained = lambda *means: seen.append(list(means)) or check(*means)

    torch.manual_seed(0)
    features = FeatureSet.from_directions(
        torch.randn(2, 256), blocks=[1, 3], names=["a", "b"], residual_norms=[5.0, 8.0]
    )
    if given.features:
        features = FeatureSet.load(given.features)
    settings = {
        "use_vllm": True,
        "vllm_mode": "server" if given.server else "colocate",
        "vllm_server_base_url": given.server,
        "vllm_gpu_memory_utilization": 0.1,
        "vllm_max_model_length": 256,
        "use_cpu": True,
        "bf16": False,
        "max_steps": given.steps,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 64,
        "learning_rate": 1e-3,
        "steer_strength": 2.0,
        "blind_reward_patience": 0,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        **given.settings,
    }
    trainer = SteeredGRPOTrainer(
        given.model,
        different_tokens,
        SteeredGRPOConfig(given.out, **settings),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS * 4]),
        feature_set=features if settings.get("num_steered", 1) else None,
        peft_config=LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False) if given.lora else None,
    )
    ratios = []
    weigh = trainer._weigh

    def keep(batch, rollouts):
        trainer._checked_state = None  # compare again in each step: the weights have moved
        if "importance_sampling_ratio" in batch:
            ratios.append(batch["importance_sampling_ratio"][rollouts.steered].flatten().tolist())
        return weigh(batch, rollouts)

    trainer._weigh = keep
    watch = FaultWatchCallback(WATCHED, engine="vllm", trainer=trainer, every=1, temperature=0, **SHORT)
    if given.watch:
        trainer.add_callback(watch)
    trainer.train()
    watched: list[list[str]] = []  # by the engine, and by the trained model
    if given.watch:
        by_model = WatchedPrompts(watch._rows, trainer.processing_class, {}, watch._how).answer(
            trainer.model, {}, 0, 1
        )
        by_model.sort(key=lambda answer: answer["row"])
        watched = [[answer["answer"] for answer in answers] for answers in (watch.latest["answers"], by_model)]
    if trainer.accelerator.is_main_process:
        logs = [{k: v for k, v in entry.items() if isinstance(v, int | float)} for entry in trainer.state.log_history]
        print("\n" + json.dumps({"explained": seen, "ratios": ratios, "logs": logs, "watched": watched}))


if __name__ == "__main__":
    main()
