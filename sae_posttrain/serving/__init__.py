"""
Steer single requests inside vLLM. The names load on first use; only `vllm_worker` and `vllm_names` import vLLM.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import check_server, engine_arguments, server_command
    from .row_settings import RowSettings
    from .steered_client import SteeredClient
    from .steered_llm import SteeredLLM
    from .token_table import TokenTable

__all__ = [
    "RowSettings",
    "SteeredClient",
    "SteeredLLM",
    "TokenTable",
    "check_server",
    "engine_arguments",
    "server_command",
]

_MODULES = {
    "RowSettings": "row_settings",
    "SteeredClient": "steered_client",
    "SteeredLLM": "steered_llm",
    "TokenTable": "token_table",
    "check_server": "engine",
    "engine_arguments": "engine",
    "server_command": "engine",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
