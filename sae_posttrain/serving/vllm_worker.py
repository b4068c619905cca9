"""The worker that vLLM is started with: `--worker-cls sae_posttrain.serving.vllm_worker.SteeringWorker`."""

from .vllm_names import base_worker
from .worker_mixin import SteersRequests


class SteeringWorker(SteersRequests, base_worker()):  # type: ignore[misc]
    """vLLM's worker of this platform, whose requests can be steered. See `engine_arguments`."""
