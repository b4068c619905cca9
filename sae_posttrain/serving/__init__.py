"""Steer single requests inside vLLM. The names load on first use; only `vllm_worker` and `vllm_names` import vLLM."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .engine import check_server as check_server
    from .engine import engine_arguments as engine_arguments
    from .engine import server_command as server_command
    from .row_settings import RowSettings as RowSettings
    from .steered_client import SteeredClient as SteeredClient
    from .steered_llm import SteeredLLM as SteeredLLM
    from .token_table import TokenTable as TokenTable

_MODULES = {
    "RowSettings": "row_settings",
    "SteeredClient": "steered_client",
    "SteeredLLM": "steered_llm",
    "TokenTable": "token_table",
    "check_server": "engine",
    "engine_arguments": "engine",
    "server_command": "engine",
}

__all__ = sorted(_MODULES)

__getattr__ = lazy_names(__name__, _MODULES)
