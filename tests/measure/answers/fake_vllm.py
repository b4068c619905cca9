"""A module that stands for vLLM in tests: its `LLM` answers with transformers, one request at a time."""

import json
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from sae_posttrain import FeatureSet, steer


@dataclass
class SamplingParams:
    """The settings of vLLM's that are used here."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    max_tokens: int
    stop_token_ids: list[int]
    ignore_eos: bool
    detokenize: bool
    extra_args: dict[str, Any] | None = None

    def __replace__(self, **changes: Any) -> "SamplingParams":
        return replace(self, **changes)


class LLM:
    """Answers like vLLM: the end token is among the ids."""

    started: list["LLM"] = []

    def __init__(self, model: str, **options: Any):
        self.options = options
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, options["dtype"]))
        self.seeds: list[int] = []
        self.asked: list[tuple[list[list[int]], SamplingParams]] = []
        self.is_running = True
        given = options.get("additional_config", {}).get("sae_posttrain", {"features": {}})["features"].values()
        self.sets = {each["fingerprint"]: FeatureSet.load(each["path"]) for each in given}
        self.pushed: dict[tuple[str, str], int] = {}
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self._shut_down))
        torch.manual_seed(12345)  # as vLLM seeds the process that it runs in
        LLM.started.append(self)

    def _shut_down(self) -> None:
        self.is_running = False

    def collective_rpc(self, method: str, args: tuple = ()) -> Any:
        if method == "steering_report":
            counts = [
                {"features": known, "block": block, "name": name, "count": self.pushed.get((known, name), 0)}
                for known, features in self.sets.items()
                for block, name in zip(features.blocks, features.names)
            ]
            return [{"counts": counts, "errors": [], "num_errors": 0}]
        assert method == "reseed"
        self.seeds.append(*args)
        torch.manual_seed(*args)

    def generate(self, prompts: list[dict], sampling: Any, use_tqdm: bool) -> list[Any]:
        assert self.is_running and not use_tqdm
        self.asked.append(([prompt["prompt_token_ids"] for prompt in prompts], sampling))
        of_rows = sampling if isinstance(sampling, list) else [sampling] * len(prompts)
        return [self._answer(prompt["prompt_token_ids"], own) for prompt, own in zip(prompts, of_rows, strict=True)]

    def _answer(self, prompt: list[int], sampling: SamplingParams) -> Any:
        ids: list[int] = []
        said = sampling.extra_args or {}
        features = self.sets.get(said.get("steer_features"))
        strengths = json.loads(said.get("steer", "{}"))
        with torch.inference_mode():
            while len(ids) < sampling.max_tokens and not (ids and ids[-1] in sampling.stop_token_ids):
                tokens = torch.tensor([prompt + ids])
                steering: Any = nullcontext()
                if features is not None:
                    positions = torch.arange(tokens.shape[1])[None] >= len(prompt) - 1
                    strength = torch.tensor([[strengths.get(name, 0.0) for name in features.names]])
                    steering = steer(self.model, features, strength=strength, positions=positions)
                with steering:
                    logits = self.model(tokens).logits[0, -1]
                if sampling.temperature == 0:
                    ids.append(int(logits.argmax()))
                else:
                    ids.append(int(torch.multinomial((logits / sampling.temperature).softmax(-1), 1)))
        for name in strengths:
            place = (said["steer_features"], name)
            self.pushed[place] = self.pushed.get(place, 0) + len(ids)
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids)])


def module() -> ModuleType:
    """What `import vllm` gives."""
    LLM.started = []
    fake = ModuleType("vllm")
    fake.__spec__ = ModuleSpec("vllm", None)
    fake.LLM, fake.SamplingParams = LLM, SamplingParams
    return fake
