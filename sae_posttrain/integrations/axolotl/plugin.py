"""
The axolotl plugin: SASFT, and with `rl: grpo` steered GRPO.

    plugins:
      - sae_posttrain.integrations.axolotl.plugin.FeaturePlugin
    sae_posttrain:
      features: zh.safetensors
      penalty_weight: 1.0

The section `sae_posttrain` holds the fields that [`SASFTConfig`] or [`SteeredGRPOConfig`] add to TRL's. The plugin is
written for axolotl 0.19.0; `docs/integrations.md` says what it supports.
"""

from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import version
from inspect import get_annotations
from typing import Any

from axolotl.integrations.base import BasePlugin
from packaging.version import Version
from pydantic import BaseModel, model_validator

from ...penalty.arguments import FeaturePenaltyArguments
from ...rl.config import SteeredGRPOConfig

SECTION = "sae_posttrain"
PLUGIN = f"{__name__}.FeaturePlugin"
OLDEST_TRL_THAT_STEERS = "1.15"


class FeatureInput(BaseModel):
    """The plugin's section of axolotl's configuration. It is checked before anything is loaded."""

    sae_posttrain: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def check_settings(cls, config: Any) -> Any:
        """Refuse settings with which the penalty or the steering would have no effect."""
        if isinstance(config, Mapping) and PLUGIN in (config.get("plugins") or []):
            section = config.get(SECTION)
            if not isinstance(section, Mapping) or not section:
                raise ValueError(
                    f"The plugin {PLUGIN} is listed, and there are no settings under `{SECTION}`. Write "
                    f"`{SECTION}:` with `features: FILE` below it, or take the plugin out."
                )
            _require_known(section, config)
            _refuse(config)
            if not config.get("rl"):
                FeaturePenaltyArguments(**section)
        return config


class FeaturePlugin(BasePlugin):
    """Trains with features held down, or with `rl: grpo` with rollouts steered along them."""

    def __init__(self) -> None:
        super().__init__()
        self._generates = False
        self._model: Any = None

    def register(self, cfg: Mapping[str, Any]) -> None:
        """Before axolotl's classes of arguments are put together."""
        self._generates = bool(cfg.get("rl"))

    def get_input_args(self) -> str:
        """The section of the configuration."""
        return f"{__name__}.FeatureInput"

    def get_training_args_mixin(self) -> str:
        """The fields that the trainer's arguments get."""
        mixin: type = SteeredGRPOConfig if self._generates else FeaturePenaltyArguments
        return f"{mixin.__module__}.{mixin.__qualname__}"

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        """Their values."""
        return _plain(cfg[SECTION])

    def post_model_load(self, cfg: Any, model: Any) -> None:
        """axolotl's builder for RL gives a plugin's trainer no model."""
        self._model = model

    def get_trainer_cls(self, cfg: Any) -> type:
        """axolotl's own trainer, with ours in front."""
        from .trainer import AxolotlSASFTTrainer, AxolotlSteeredGRPOTrainer

        if not self._generates:
            return AxolotlSASFTTrainer
        from axolotl.core.trainers.grpo import GRPOStrategy

        given = (self._model, *GRPOStrategy.set_trainer_args(cfg))
        named = GRPOStrategy.set_trainer_kwargs(cfg)

        class BuiltSteeredGRPOTrainer(AxolotlSteeredGRPOTrainer):
            """With the model and the rewards that axolotl's builder gives only to its own."""

            def __init__(self, **kwargs: Any):
                super().__init__(*given, **{**named, **kwargs})

        return BuiltSteeredGRPOTrainer

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """axolotl takes the first plugin's trainer."""
        from .trainer import AxolotlSASFTTrainer, AxolotlSteeredGRPOTrainer

        if not isinstance(trainer, AxolotlSASFTTrainer | AxolotlSteeredGRPOTrainer):
            raise ValueError(
                f"axolotl took the trainer of another plugin, {type(trainer).__name__}, and nothing would be held "
                f"down or steered. Take that plugin out, or list {PLUGIN} first."
            )


def _plain(value: Any) -> Any:
    """Plain dictionaries with the content of axolotl's, which return a value for every key."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _require_known(section: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    if config.get("rl"):
        known = sorted(get_annotations(SteeredGRPOConfig))
    else:
        known = sorted(field.name for field in fields(FeaturePenaltyArguments))
    unknown = [name for name in section if name not in known]
    if unknown:
        raise ValueError(
            f"Unknown setting `{unknown[0]}` under `{SECTION}`. Known {'with `rl`' if config.get('rl') else 'here'}: "
            f"{', '.join(known)}."
        )


def _read(value: Any, name: str) -> Any:
    """A setting from a part of the configuration, which is a dictionary or, after the check, an object."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _trains_on_users(config: Mapping[str, Any]) -> bool:
    roles = [role for each in config.get("datasets") or [] for role in _read(each, "roles_to_train") or []]
    return bool(config.get("train_on_inputs")) or not set(roles) <= {"assistant", "gpt", "model"}


def _refuse(config: Mapping[str, Any]) -> None:
    rl, trl = getattr(config.get("rl"), "value", config.get("rl")), config.get("trl")
    parallel = max(config.get(name) or 1 for name in ("context_parallel_size", "sequence_parallel_degree"))
    elsewhere = ("use_vllm", "async_prefetch", "use_data_producer")
    refused = [
        (rl not in (None, "grpo"), f"`rl: {rl}` is not supported", "Leave `rl` out for SASFT, or set `rl: grpo`"),
        (
            any(config.get(name) for name in ("reward_model", "process_reward_model")),
            "Reward models are not supported",
            "Leave `reward_model` and `process_reward_model` out",
        ),
        (
            any(config.get(name) for name in ("pretraining_dataset", "streaming")),
            "In a stream, the groups of the answers are not known in advance",
            "Use `datasets`, with `streaming: false`",
        ),
        (bool(config.get("processor_type")), "Only text is supported", "Leave `processor_type` out"),
        (
            rl is None and _trains_on_users(config),
            "The penalty would fall on the user's words",
            "Set `train_on_inputs: false` and `roles_to_train: [assistant]`",
        ),
        (
            parallel > 1,
            "With context parallelism the groups of the tokens would not be divided with them",
            "Set `context_parallel_size: 1`",
        ),
        (
            any(_read(trl, name) for name in elsewhere),
            "Rollouts that are generated elsewhere, or beforehand, cannot be steered",
            "Set `trl.use_vllm`, `trl.async_prefetch` and `trl.use_data_producer` to false",
        ),
        (
            rl == "grpo" and Version(version("trl")) < Version(OLDEST_TRL_THAT_STEERS),
            f"Steered GRPO extends TRL {OLDEST_TRL_THAT_STEERS} and newer, and this is TRL {version('trl')}",
            "Use an axolotl that comes with it, or train by `sae-posttrain grpo`",
        ),
        (
            rl == "grpo" and not _read(trl, "reward_funcs"),
            "There is no reward, and one must score the fault lower",
            "Name functions in `trl.reward_funcs`",
        ),
    ]
    for is_set, reason, remedy in refused:
        if is_set:
            raise ValueError(f"{reason}. {remedy}, or take the plugin {PLUGIN} out.")
