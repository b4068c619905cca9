"""Stand-ins for vLLM's engine and for a server, which answer with a copy of the model and push as requests say."""

import copy
import json
import threading
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from sae_posttrain import FeatureSet, steer
from sae_posttrain.serving.engine import CONFIG, WORKER


class FakeParams:
    """vLLM's `SamplingParams`."""

    def __init__(self, **given: Any):
        self.extra_args: Any = None
        for name, value in given.items():
            setattr(self, name, value)

    def __replace__(self, **changes: Any) -> "FakeParams":
        return FakeParams(**{**vars(self), **changes})


class Engine:
    """
    What both have in common.

    Attributes:
        behaviour (`str`):
            `"right"`; `"never pushes"`: counts and pushes nothing; `"another block"`, `"half as far"`,
            `"from the start"`: pushes wrongly, and counts as if it were right.
        told (`list`):
            What each row asked for: its strength, positions and sampling parameters.
    """

    def __init__(self, model: nn.Module, config: dict[str, Any] | None, behaviour: str):
        self.model, self.behaviour = copy.deepcopy(model).eval(), behaviour
        self.features = None
        if config is not None:
            (given,) = config["features"].values()
            self.features, self.fingerprint = FeatureSet.load(given["path"]), given["fingerprint"]
        self.count = 0
        self.lock = threading.Lock()
        self.told: list[dict[str, Any]] = []
        self.num_syncs = 0

    def answer(self, prompt: list[int], params: dict[str, Any], extra: dict[str, Any] | None, salt: str | None):
        """Token ids and the log-probability of each."""
        asked = float(json.loads((extra or {}).get("steer", "0")))
        self.told.append({"asked": asked, "salt": salt, **params})
        strength, positions, features = asked, (extra or {}).get("steer_positions", "generated"), self.features
        if self.behaviour == "half as far":
            strength /= 2
        if self.behaviour == "from the start":
            positions = "all" if positions == "generated" else "generated"
        if self.behaviour == "another block" and features is not None:
            features = FeatureSet.from_directions(
                features.directions,
                blocks=[block - 1 for block in features.blocks],
                names=features.names,
                residual_norms=features.residual_norms,
            )
        with self.lock:  # a server's requests come from several threads
            return self._answered(prompt, params, features, strength, positions, bool(asked))

    def _answered(self, prompt, params, features, strength, positions, is_asked):
        pushes = is_asked and self.behaviour != "never pushes"
        ids = torch.tensor([prompt])
        sampling = {"do_sample": False}  # whose log-probabilities are told at temperature 1
        if params["temperature"]:
            cuts = {"top_k": params["top_k"] or None, "top_p": params["top_p"]}
            sampling = {"do_sample": True, "temperature": params["temperature"], **cuts}
        steering = nullcontext()
        if features is not None:
            steering = steer(self.model, features, strength=strength, rows=[pushes], positions=positions)
        assert features is not None or not is_asked
        with steering:
            out = self.model.generate(
                ids,
                **sampling,
                max_new_tokens=params["max_tokens"],
                pad_token_id=0,
                output_scores=True,
                return_dict_in_generate=True,
            )
        tokens = out.sequences[0, len(prompt) :].tolist()
        logps = [scores.log_softmax(-1)[0, token].item() for scores, token in zip(out.scores, tokens)]
        self.count += len(tokens) if pushes else 0
        return tokens, logps

    def report(self) -> list[dict[str, Any]]:
        assert self.features is not None, "a plain worker has no report"
        places = zip(self.features.blocks, self.features.names)
        counts = [{"features": self.fingerprint, "block": b, "name": n, "count": self.count} for b, n in places]
        return [{"counts": counts, "errors": [], "num_errors": 0}]

    def load(self, weights: Any) -> None:
        own = self.model.state_dict()
        for name, value in weights:
            own[name].copy_(value)
        self.num_syncs += 1


class FakeLLM:
    """`vllm.LLM`, as TRL's colocate mode builds it. `source` and `behaviour` are set by the fixture."""

    source: nn.Module
    behaviour = "right"
    made: list["FakeLLM"] = []

    def __init__(self, model: str, **given: Any):
        self.given = given
        assert given.get("worker_cls", WORKER) == WORKER
        config = given.get("additional_config", {}).get(CONFIG)
        self.engine = Engine(self.source, config, self.behaviour)
        runner = SimpleNamespace(model=SimpleNamespace(load_weights=self.engine.load))
        worker = SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner))
        self.llm_engine = SimpleNamespace(model_executor=worker, model_config=SimpleNamespace(max_model_len=256))
        self.calls: list[int] = []
        self.asleep = False
        FakeLLM.made.append(self)

    def generate(self, prompts: list[dict], sampling_params: Any, use_tqdm: bool = True) -> list[Any]:
        assert not self.asleep
        self.calls.append(len(prompts))
        params = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(prompts)
        return [self._output(prompt, own) for prompt, own in zip(prompts, params, strict=True)]

    def _output(self, prompt: dict, params: FakeParams) -> Any:
        ids = prompt["prompt_token_ids"]
        given = {name: value for name, value in vars(params).items() if name != "extra_args"}
        tokens, logps = self.engine.answer(ids, given, params.extra_args, prompt.get("cache_salt"))
        told = [{token: SimpleNamespace(logprob=logp, rank=1)} for token, logp in zip(tokens, logps)]
        return SimpleNamespace(prompt_token_ids=ids, outputs=[SimpleNamespace(token_ids=tokens, logprobs=told)])

    def collective_rpc(self, name: str) -> Any:
        assert name == "steering_report"
        return self.engine.report()

    def reset_prefix_cache(self) -> None:
        pass

    def sleep(self, level: int) -> None:
        self.asleep = True

    def wake_up(self, tags: list[str]) -> None:
        self.asleep = self.asleep and tags != ["kv_cache"]


class FakeClient:
    """TRL's `VLLMClient`, with the server behind it. `source`, `config` and `behaviour` are set by the fixture."""

    source: nn.Module
    config: dict[str, Any]
    worker = WORKER
    behaviour = "right"
    made: list["FakeClient"] = []
    base_url = "http://fake"

    def __init__(self, base_url: str, group_port: int, connection_timeout: float):
        self.engine = Engine(self.source, self.config, self.behaviour)
        self.session = SimpleNamespace(post=self._post)
        self.calls: list[tuple[int, int]] = []
        self.has_communicator = False
        FakeClient.made.append(self)

    def _post(self, url: str, json: dict[str, Any]) -> Any:
        assert (url, json) == ("http://fake/collective_rpc", {"method": "steering_report"})
        return SimpleNamespace(status_code=200, json=lambda: {"results": self.engine.report()})

    def init_communicator(self, device: Any) -> None:
        self.has_communicator = True

    def get_server_info(self) -> dict[str, Any]:
        return {
            "parallel_config": {"worker_cls": self.worker},
            "additional_config": {CONFIG: self.config},
            "model_config": {"logprobs_mode": "processed_logprobs"},
        }

    def generate(self, prompts: Any, features: Any = None, n: int = 1, generation_kwargs: Any = None, **params: Any):
        self.calls.append((len(prompts), n))
        given = dict(generation_kwargs or {})
        xargs, salt = given.pop("vllm_xargs", None), given.pop("cache_salt", None)
        answers = [
            self.engine.answer(prompt, {**params, **given}, xargs, salt) for prompt in prompts for _ in range(n)
        ]
        return {
            "prompt_ids": prompts,
            "completion_ids": [tokens for tokens, _ in answers],
            "logprobs": [[[logp] for logp in logps] for _, logps in answers],
            "logprob_token_ids": [[[token] for token in tokens] for tokens, _ in answers],
        }

    def update_named_params(self, metadata: Any, weights: Any) -> None:
        self.engine.load(weights)

    def reset_prefix_cache(self) -> None:
        pass
