"""Feature sets as files, and stand-ins for the parts of vLLM that steering touches."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sae_posttrain import FeatureSet
from sae_posttrain.serving.engine import engine_arguments
from sae_posttrain.serving.worker_mixin import SteersRequests

WIDTH = 8


@pytest.fixture
def make_set() -> Callable[..., FeatureSet]:
    """Builds a set of random directions of width 8."""

    def make(names=("loop", "zh"), blocks=(0, 1), sites=None, seed=0, norm=2.0) -> FeatureSet:
        directions = torch.randn(len(names), WIDTH, generator=torch.Generator().manual_seed(seed))
        norms = [norm] * len(names)
        return FeatureSet.from_directions(directions, blocks=blocks, names=names, sites=sites, residual_norms=norms)

    return make


@dataclass
class Params:
    """Sampling parameters, as far as steering uses vLLM's."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 4
    n: int = 1
    extra_args: dict[str, Any] | None = None

    def __replace__(self, **changes: Any) -> "Params":
        return replace(self, **changes)


@dataclass
class Batch:
    """A step's batch: requests with the number of their tokens."""

    req_ids: list[str] = field(default_factory=list)
    num_computed: list[int] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)


def make_config(arguments: dict[str, Any] | None = None, **model: Any) -> Any:
    """A `VllmConfig` in which everything is allowed."""
    text = SimpleNamespace(hidden_size=WIDTH, num_hidden_layers=2, model_type="qwen3")
    text.get_text_config = lambda: text
    return SimpleNamespace(
        additional_config=(arguments or {}).get("additional_config", {}),
        speculative_config=None,
        kv_transfer_config=None,
        scheduler_config=SimpleNamespace(max_num_batched_tokens=64),
        cache_config=SimpleNamespace(kv_sharing_fast_prefill=False),
        compilation_config=SimpleNamespace(pass_config=SimpleNamespace(enable_sp=False)),
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=1,
            prefill_context_parallel_size=1,
            decode_context_parallel_size=1,
            use_ubatching=False,
        ),
        model_config=SimpleNamespace(
            hf_config=text,
            hf_text_config=text,
            dtype=torch.float32,
            using_transformers_backend=lambda: False,
            **model,
        ),
    )


class Block(nn.Module):
    """Returns what it adds last and the stream before it, as most of vLLM's decoder layers."""

    def forward(self, hidden, residual):
        return hidden * 0.5, residual + hidden


class PlainBlock(nn.Module):
    """Returns the stream."""

    def forward(self, hidden, residual):
        return hidden * 2, None


class Model(nn.Module):
    def __init__(self, of=Block):
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([of(), of()])

    def forward(self, hidden):
        residual = torch.zeros_like(hidden)
        for layer in self.model.layers:
            hidden, residual = layer(hidden, residual)
            residual = torch.zeros_like(hidden) if residual is None else residual
        return hidden + residual


class RunnerV1:
    """Orders a batch as vLLM's first runner does: it keeps the order to itself."""

    def __init__(self, model):
        self.model, self.batch = model, Batch()

    def get_model(self):
        return self.model

    def _prepare_inputs(self, scheduler_output, num_scheduled_tokens):
        import numpy as np

        batch = self.batch
        starts = np.concatenate([[0], np.cumsum(batch.num_tokens)])
        room = np.full(16, -1)  # buffers are longer than the batch
        room[: len(starts)] = starts
        self.query_start_loc = SimpleNamespace(np=room)
        computed = np.full(15, -1)
        computed[: len(batch.num_computed)] = batch.num_computed
        self.input_batch = SimpleNamespace(
            req_ids=batch.req_ids, num_reqs=len(batch.req_ids), num_computed_tokens_cpu=computed
        )
        return "prepared"

    def step(self, scheduler_output):
        assert self._prepare_inputs(scheduler_output, None) == "prepared"


class RunnerV2:
    """Returns the batch, as vLLM's second runner does."""

    def __init__(self, model):
        self.model, self.batch = model, Batch()

    def get_model(self):
        return self.model

    def prepare_inputs(self, scheduler_output):
        import numpy as np

        return SimpleNamespace(
            req_ids=self.batch.req_ids,
            query_start_loc_np=np.concatenate([[0], np.cumsum(self.batch.num_tokens)]),
            num_computed_tokens_np=np.array(self.batch.num_computed),
            num_tokens=sum(self.batch.num_tokens),
        )

    def step(self, scheduler_output):
        self.prepare_inputs(scheduler_output)


class PlainWorker:
    """The worker under ours: loads a model and runs steps of it."""

    def __init__(self, config, runner=RunnerV1, model=Model):
        self.vllm_config, self.device = config, "cpu"
        self._make = lambda: runner(model())

    def load_model(self, *, load_dummy_weights=False):
        self.model_runner = self._make()

    def execute_model(self, scheduler_output):
        self.model_runner.step(scheduler_output)
        hidden = torch.ones(scheduler_output.total_num_scheduled_tokens, WIDTH)
        return self.model_runner.model(hidden)

    def execute_dummy_batch(self):
        return self.model_runner.model(torch.ones(4, WIDTH))


class Worker(SteersRequests, PlainWorker):
    """Ours in front of it, with a call for a whole step."""

    def run(self, requests, new=(), finished=()):
        """One step. `requests`: `(id, computed before, tokens)`; `new`: `(id, extra, prompt length)`."""
        batch = self.model_runner.batch
        batch.req_ids = [each[0] for each in requests]
        batch.num_computed = [each[1] for each in requests]
        batch.num_tokens = [each[2] for each in requests]
        output = SimpleNamespace(
            scheduled_new_reqs=[
                SimpleNamespace(
                    req_id=name,
                    sampling_params=Params(extra_args=extra),
                    prompt_token_ids=None if length is None else [1] * length,
                    prompt_embeds=None,
                )
                for name, extra, length in new
            ],
            finished_req_ids=set(finished),
            total_num_scheduled_tokens=sum(batch.num_tokens),
        )
        return self.execute_model(output)


@pytest.fixture
def make_worker(make_set, tmp_path) -> Callable[..., Worker]:
    """Builds a worker that has loaded the small model, with the sets by name (one: `loop` at 0, `zh` at 1)."""

    def make(sets=None, **options) -> Worker:
        sets = {"mine": make_set()} if sets is None else sets
        paths = {name: each.save(tmp_path / f"{name}.safetensors", overwrite=True) for name, each in sets.items()}
        worker = Worker(make_config(engine_arguments(paths)), **options)
        worker.load_model()
        return worker

    return make
