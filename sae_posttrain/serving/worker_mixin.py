"""What steering adds to a worker of vLLM, in front of any worker class."""

from types import SimpleNamespace
from typing import Any

import torch

from ..features.set.feature_set import FeatureSet
from ..features.set.model_identity import require_same_model
from .engine import CONFIG
from .engine_steering import EngineSteering
from .pushes import Pushes, fingerprint, pushes_of
from .refusals import refuse_engine
from .vllm_names import decoder_blocks, finished_requests, new_requests, watch_runner

PADDING = 4096
"""Rows of the buffer beyond the largest step: an engine pads steps to the size of a captured graph."""


class SteersRequests:
    """
    A worker whose requests can be steered. It goes before vLLM's worker class.

    Hooks and buffers are made right after the model is loaded: before memory is profiled, before a graph is traced or
    captured, and outside the memory that the engine discards when it sleeps. What is wrong with a request is kept for
    [`steering_report`], since an exception in a worker would end the engine.
    """

    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        refuse_engine(self.vllm_config)
        pushes = read_pushes(self.vllm_config)
        loaded = super().load_model(*args, **kwargs)  # type: ignore[misc]
        max_tokens = self.vllm_config.scheduler_config.max_num_batched_tokens + PADDING
        self._steering = EngineSteering(pushes, max_tokens, torch.device(self.device))
        text = self.vllm_config.model_config.hf_text_config
        self._steering.attach(decoder_blocks(self.model_runner.get_model(), text.num_hidden_layers))
        watch_runner(self.model_runner, self._steering.fill)
        return loaded

    def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        self._steering.begin(new_requests(scheduler_output), finished_requests(scheduler_output))
        return super().execute_model(scheduler_output, *args, **kwargs)  # type: ignore[misc]

    def execute_dummy_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._steering.clear()
        return super().execute_dummy_batch(*args, **kwargs)  # type: ignore[misc]

    def steering_report(self: Any) -> dict[str, Any]:
        """What this worker has pushed, and what was wrong with requests; called by name through `collective_rpc`."""
        return self._steering.report()


def read_pushes(config: Any) -> Pushes:
    """
    The pushes that an engine's `additional_config` names, checked against its model.

    Args:
        config (`vllm.config.VllmConfig`):
            The engine's configuration.

    Raises:
        ValueError: If it names none, a file has changed, or the features do not fit the model.
    """
    given = (config.additional_config or {}).get(CONFIG)
    if not given or not given.get("features"):
        raise ValueError(
            f"The engine's `additional_config` names no features under {CONFIG!r}. Use "
            "`LLM(model, **sae_posttrain.serving.engine_arguments(features))`, or `sae-posttrain vllm-serve`."
        )
    unit = given.get("unit", "norm")
    hf_config = config.model_config.hf_config
    text = config.model_config.hf_text_config
    sets = {}
    for name, each in given["features"].items():
        features = sets[name] = FeatureSet.from_pretrained(each["path"])
        if fingerprint(features, unit) != each["fingerprint"]:
            raise ValueError(f"{each['path']} has changed since the engine's arguments were made. Make them again.")
        require_fit(name, features, hf_config, text, given.get("allow_base_model"))
    return pushes_of(sets, unit)


def require_fit(name: str, features: FeatureSet, config: Any, text_config: Any, allow_base_model: str | None) -> None:
    """
    Refuse features that the model of this configuration cannot be pushed along, or that were found on another.

    Args:
        name (`str`):
            What requests call them.
        features ([`FeatureSet`]):
            The features.
        config, text_config (`transformers.PreTrainedConfig`):
            The model's configuration, and that of its language model.
        allow_base_model (`str`, *optional*):
            Name of a model that is allowed, although the features were found on another.

    Raises:
        ValueError: If the width, the blocks or the model do not fit.
    """
    if features.d_model != text_config.hidden_size:
        raise ValueError(
            f"The features {name!r} have width {features.d_model}, the model's blocks write "
            f"{text_config.hidden_size}: they were found on {features.base_model or 'another model'}."
        )
    if max(features.blocks) >= text_config.num_hidden_layers:
        raise ValueError(
            f"The features {name!r} are for block {max(features.blocks)}, the model has blocks 0 to "
            f"{text_config.num_hidden_layers - 1}."
        )
    model: Any = SimpleNamespace(config=config)
    require_same_model(features.base_model, features.fingerprint, model, allow_base_model=allow_base_model)
