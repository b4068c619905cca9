"""`sae-posttrain grpo`: steered GRPO from a YAML file, for one process or under `accelerate launch`."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments
from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment

from ..measure.answers.end_of_turn import answer_end_ids
from ..model_loading import generation_config_of, tokenizer_of
from ..training.gate import require_prompt_rows, rows_of_rewards
from ..training.script import trainer_arguments
from ..training.watch.arguments import WatchArguments, watch_of
from .config import SteeredGRPOConfig
from .rewards import EndlessRepetitionReward, LanguageConsistencyReward
from .trainer import SteeredGRPOTrainer


@dataclass
class SteeredGRPOScriptArguments(WatchArguments, ScriptArguments):
    """
    [`~trl.ScriptArguments`] plus the rewards, and the watched prompts of [`WatchArguments`].

    Parameters:
        reward_funcs (`list[str]`, *optional*, defaults to `["endless_repetition"]`):
            Rewards, by name: `endless_repetition` ([`EndlessRepetitionReward`]), `language_consistency`
            ([`LanguageConsistencyReward`], which needs a column `lang`), `ngram_repetition` and `soft_overlong` (TRL's
            with their own settings; the last fifth of `max_completion_length` is the cache, as in DAPO), or the
            dotted path of a function or a callable object of your own, `my_rewards.shortness`. `reward_weights` sets
            their weights.
    """

    reward_funcs: list[str] = field(
        default_factory=lambda: ["endless_repetition"],
        metadata={
            "help": "Rewards: endless_repetition, language_consistency, ngram_repetition, soft_overlong, or the "
            "dotted path of one of your own, e.g. my_rewards.shortness."
        },
    )

    def __post_init__(self):
        if isinstance(self.reward_funcs, str):  # one name in a YAML file, which the parser does not put in a list
            self.reward_funcs = [self.reward_funcs]


ARGUMENTS: Any = (SteeredGRPOScriptArguments, SteeredGRPOConfig, ModelConfig, DatasetMixtureConfig)
"""What a YAML file may hold: the fields of these four dataclasses."""

REWARDS: dict[str, Callable[[SteeredGRPOConfig, ModelConfig], Callable]] = {
    "endless_repetition": lambda training_args, model_args: EndlessRepetitionReward(
        end_token_ids(training_args, model_args)
    ),
    "language_consistency": lambda training_args, model_args: LanguageConsistencyReward(),
    "ngram_repetition": lambda training_args, model_args: get_repetition_penalty_reward(),
    "soft_overlong": lambda training_args, model_args: _soft_overlong(training_args.max_completion_length),
}
"""How each named reward is made, by the name users write in a recipe."""


def make_trainer(
    script_args: SteeredGRPOScriptArguments,
    training_args: SteeredGRPOConfig,
    model_args: ModelConfig,
    dataset_args: DatasetMixtureConfig,
) -> SteeredGRPOTrainer:
    """Build the trainer of the parsed settings. All rows of the data are checked before the model is loaded."""
    columns, check_language = rows_of_rewards(script_args.reward_funcs)
    check = partial(require_prompt_rows, columns=columns, check_language=check_language)
    watch = watch_of(script_args)
    shared = trainer_arguments(script_args, training_args, model_args, dataset_args, check, ("prompt",))
    rewards = load_rewards(script_args.reward_funcs, training_args, model_args)
    trainer = SteeredGRPOTrainer(reward_funcs=rewards, args=training_args, callbacks=watch, **shared)
    for each in watch:
        each.trainer = trainer
    return trainer


def load_rewards(
    names: Sequence[str], training_args: SteeredGRPOConfig, model_args: ModelConfig
) -> list[Callable[..., list[float | None]]]:
    """The rewards of a recipe, as [`SteeredGRPOScriptArguments`] names them."""
    if not model_args.model_name_or_path:
        raise ValueError("Name the model: `model_name_or_path` (a folder, a GGUF file or a Hub id).")
    if not names:
        raise ValueError(f"`reward_funcs` is empty. {_known()}")
    return [REWARDS[name](training_args, model_args) if name in REWARDS else _import_reward(name) for name in names]


def end_token_ids(training_args: SteeredGRPOConfig, model_args: ModelConfig) -> list[int]:
    """
    Every token id that ends an answer: the tokenizer's, those of the model's generation settings, and the one that
    closes a turn in the chat template. A chat model often ends with several.
    """
    name: Any = model_args.model_name_or_path
    options: dict[str, Any] = {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
    }
    return answer_end_ids(generation_config_of(name, **options), tokenizer_of(name, **options))


def _soft_overlong(max_completion_length: int | None) -> Callable:
    if max_completion_length is None:
        raise ValueError("The reward 'soft_overlong' needs a limit: set `max_completion_length`.")
    # DAPO's cache is 4,096 of 20,480 tokens (https://huggingface.co/papers/2503.14476, section 4.1).
    return get_soft_overlong_punishment(max_completion_length, max_completion_length // 5)


def _import_reward(name: str) -> Callable:
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        raise ValueError(f"Unknown reward {name!r}. {_known()}")
    if os.getcwd() not in sys.path:  # a console script does not look where it was started
        sys.path.insert(0, os.getcwd())
    try:
        reward = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"The reward {name!r} cannot be imported: {error}. {_known()}") from error
    if isinstance(reward, type) or not callable(reward):
        raise ValueError(
            f"The reward {name!r} is a {'class' if isinstance(reward, type) else type(reward).__name__}; name a "
            "function, or an object that can be called like one."
        )
    return reward


def _known() -> str:
    return f"Known: {', '.join(REWARDS)}, or the dotted path of your own, e.g. my_rewards.shortness."
