"""A module that stands for vLLM in tests: its `LLM` answers with transformers, one request at a time."""

from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM


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


class LLM:
    """Answers like vLLM: the end token is among the ids."""

    started: list["LLM"] = []

    def __init__(self, model: str, **options: Any):
        self.options = options
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, options["dtype"]))
        self.seeds: list[int] = []
        self.asked: list[tuple[list[list[int]], SamplingParams]] = []
        self.is_running = True
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self._shut_down))
        torch.manual_seed(12345)  # as vLLM seeds the process that it runs in
        LLM.started.append(self)

    def _shut_down(self) -> None:
        self.is_running = False

    def collective_rpc(self, method: str, args: tuple = ()) -> None:
        assert method == "reseed"
        self.seeds.append(*args)
        torch.manual_seed(*args)

    def generate(self, prompts: list[dict], sampling: SamplingParams, use_tqdm: bool) -> list[Any]:
        assert self.is_running and not use_tqdm
        self.asked.append(([prompt["prompt_token_ids"] for prompt in prompts], sampling))
        return [self._answer(prompt["prompt_token_ids"], sampling) for prompt in prompts]

    def _answer(self, prompt: list[int], sampling: SamplingParams) -> Any:
        ids: list[int] = []
        with torch.inference_mode():
            while len(ids) < sampling.max_tokens and not (ids and ids[-1] in sampling.stop_token_ids):
                logits = self.model(torch.tensor([prompt + ids])).logits[0, -1]
                if sampling.temperature == 0:
                    ids.append(int(logits.argmax()))
                else:
                    ids.append(int(torch.multinomial((logits / sampling.temperature).softmax(-1), 1)))
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids)])


def module() -> ModuleType:
    """What `import vllm` gives."""
    LLM.started = []
    fake = ModuleType("vllm")
    fake.__spec__ = ModuleSpec("vllm", None)
    fake.LLM, fake.SamplingParams = LLM, SamplingParams
    return fake
