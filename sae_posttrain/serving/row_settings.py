"""What the request of one row says: how far it is pushed and from where, and what it is sampled with."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STEER = "steer"
POSITIONS = "steer_positions"
FEATURES = "steer_features"
"""Names of what a request says, in vLLM's `vllm_xargs` (a server) or `SamplingParams.extra_args` (an engine)."""

SALT_PREFIX = "sae_posttrain"


@dataclass(frozen=True)
class RowSettings:
    """
    How one row is generated, where that differs from the rest of the batch. `RowSettings()` is a plain row.

    Attributes:
        strength (`float` or `Mapping[str, float]`, *optional*, defaults to `0.0`):
            How far the row is pushed, in the unit that the engine was started with: for all features of the set, or
            by feature name. 0 does not push.
        positions (`"generated"` or `"all"`, *optional*, defaults to `"generated"`):
            From the last position of the prompt on, which predicts the first generated token; or the prompt too.
        sampling (`Mapping[str, Any]`, *optional*):
            Sampling parameters of this row, by vLLM's names: `{"temperature": 0.3, "top_p": 1.0}`. They replace those
            of the batch. Log-probabilities that an engine reports are those of this distribution
            (`logprobs_mode="processed_logprobs"`).

    Raises:
        ValueError: If a strength is no finite number, `positions` is unknown, or `sampling` sets `n`, `extra_args` or
            a salt, which belong to the batch.
    """

    strength: float | Mapping[str, float] = 0.0
    positions: str = "generated"
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if isinstance(self.strength, Mapping) and not self.strength:
            raise ValueError("`strength` is an empty mapping: nothing would be steered. Name a feature, or give 0.")
        for value in self._values():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"`strength` must be a finite number, or one for each name, got {self.strength!r}.")
        if self.positions not in ("generated", "all"):
            raise ValueError(f"`positions` must be 'generated' or 'all', got {self.positions!r}.")
        for name in ("n", "extra_args", "vllm_xargs", "cache_salt"):
            if name in self.sampling:
                raise ValueError(f"`sampling` of a row cannot set {name!r}; it belongs to the batch.")

    @property
    def is_steered(self) -> bool:
        """Whether anything is pushed."""
        return any(self._values())

    @property
    def key(self) -> str:
        """Equal for rows of equal settings."""
        return json.dumps([self.spec, self.positions, dict(self.sampling)], sort_keys=True, default=repr)

    @property
    def spec(self) -> str:
        """The strength as a request writes it: a number, or a JSON object with one for each name."""
        if not isinstance(self.strength, Mapping):
            return repr(float(self.strength))
        return json.dumps({name: float(value) for name, value in sorted(self.strength.items())}, ensure_ascii=False)

    def extra_args(self, fingerprint: str) -> dict[str, str]:
        """What the row's request says of steering; `fingerprint` names the feature set. Empty for a plain row."""
        if not self.is_steered:
            return {}
        return {STEER: self.spec, POSITIONS: self.positions, FEATURES: fingerprint}

    def salt(self, fingerprint: str, prompt: int | str) -> str:
        """
        `cache_salt` of the row's request: its cached prefix serves only rows that are pushed in the same way.

        Args:
            fingerprint (`str`):
                Fingerprint of the feature set.
            prompt (`int` or `str`):
                Number of the prompt's tokens, or something that differs between prompts of different length: the
                same tokens with another prompt length are pushed from elsewhere.
        """
        where = str(prompt) if self.positions == "generated" else ""
        return ":".join((SALT_PREFIX, fingerprint, self.positions, self.spec, where))

    def _values(self) -> list[Any]:
        return list(self.strength.values()) if isinstance(self.strength, Mapping) else [self.strength]
