"""SAELens (https://github.com/jbloomAus/SAELens) as the trainer. The only file that imports it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..hooks.sites import Place
from .activations import mean_and_scale

SPARSITY_OF = {
    "topk": "k",
    "batchtopk": "k",
    "matryoshka_batchtopk": "k",
    "jumprelu": "k",
    "standard": "l1_coefficient",
    "gated": "l1_coefficient",
}
"""Architectures of SAELens that can be trained, with the setting of [`Recipe`] that controls their sparsity."""

DEFAULT_SPARSITY: dict[str, float] = {"k": 32, "l1_coefficient": 5.0}

_BATCHES_FOR_SCALE = 4


def require_saelens() -> None:
    """
    Check that SAELens is installed, before any long work.

    Raises:
        ImportError: If SAELens is missing.
    """
    if find_spec("sae_lens") is None:
        raise ImportError("Training an SAE needs SAELens: pip install 'sae_posttrain[train]'.")


@dataclass(frozen=True)
class Recipe:
    """
    What to train, and how long.

    Args:
        architecture (`str`):
            Name of the architecture: one of `SPARSITY_OF`.
        num_features (`int`, *optional*):
            Features of the SAE; by default `expansion` times the width of what it reads.
        expansion (`int`):
            Features per dimension.
        k (`int`, *optional*):
            Active features per token: exactly (topk), on average over a batch (batchtopk, matryoshka_batchtopk), or
            as the target of the sparsity loss (jumprelu). 32 by default.
        l1_coefficient (`float`, *optional*):
            Weight of the L1 loss of standard and gated, for activations of variance 1. 5 by default.
        num_tokens (`int`):
            Tokens to train on; a token counts each time that it is seen.
        batch_size (`int`):
            Tokens in a step.
        learning_rate (`float`):
            Peak learning rate of Adam, after a warm-up over 5 % of the steps. It falls to 0 over the last 20 %.
        seed (`int`):
            Seed of the initial weights.

    Raises:
        ValueError: If a number is out of range, or a setting does not belong to the architecture.
    """

    architecture: str
    num_features: int | None
    expansion: int
    k: int | None
    l1_coefficient: float | None
    num_tokens: int
    batch_size: int
    learning_rate: float
    seed: int

    def __post_init__(self) -> None:
        if self.architecture not in SPARSITY_OF:
            raise ValueError(f"Unknown architecture {self.architecture!r}. Known: {', '.join(SPARSITY_OF)}.")
        for name in ("num_features", "expansion", "k", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {value}.")
        for name in ("l1_coefficient", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"`{name}` must be above 0 and finite, got {value}.")
        if self.num_tokens < self.batch_size:
            raise ValueError(f"`num_tokens` is {self.num_tokens}, less than a batch of {self.batch_size}.")
        sparsity = SPARSITY_OF[self.architecture]
        for name in DEFAULT_SPARSITY:
            if name != sparsity and getattr(self, name) is not None:
                takers = [taker for taker, taken in SPARSITY_OF.items() if taken == name]
                raise ValueError(
                    f"`{name}` makes {', '.join(takers)} sparse; {self.architecture} takes `{sparsity}` instead."
                )

    @property
    def num_steps(self) -> int:
        """Training steps: whole batches in `num_tokens`."""
        return self.num_tokens // self.batch_size

    @property
    def sparsity(self) -> float:
        """The value of the setting that makes this architecture sparse."""
        name = SPARSITY_OF[self.architecture]
        value = getattr(self, name)
        return DEFAULT_SPARSITY[name] if value is None else value

    def features_of(self, width: int) -> int:
        """
        Number of features of an SAE that reads this width.

        Raises:
            ValueError: If there are fewer than `k`.
        """
        num_features = self.num_features or self.expansion * width
        if SPARSITY_OF[self.architecture] == "k" and self.sparsity > num_features:
            raise ValueError(f"`k` is {self.sparsity}, but an SAE has only {num_features} features.")
        return num_features


def fit(
    recipe: Recipe,
    batches: Iterator[dict[Place, Tensor]],
    hook_names: Mapping[Place, str],
    metadata: Mapping[str, Any],
) -> dict[Place, Any]:
    """
    Train an SAE of each place, all on the same tokens, with SAELens' trainer.

    SAELens trains on scaled activations and folds the scale in at the end (`expected_average_only_in`), so the saved
    SAE reads raw activations. The scale brings the variance of a dimension to 1, so that the learning rate has the
    same effect at every site. The decoder's bias starts at the mean, because a short training would otherwise spend
    its steps on a large mean.

    Args:
        recipe ([`Recipe`]):
            What to train.
        batches (`Iterator[dict[Place, torch.Tensor]]`):
            Activations in raw units, `(recipe.batch_size, D)` for each place, on the device to train on; endless.
        hook_names (`Mapping[Place, str]`):
            SAELens' name for each place.
        metadata (`Mapping`):
            Metadata that is saved with the SAEs.

    Returns:
        `dict[Place, sae_lens.TrainingSAE]`: the trained SAEs; [`save`] writes them.
    """
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.multi_sae_trainer import MultiSAETrainer

    first = list(islice(batches, _BATCHES_FOR_SCALE))
    device = next(iter(first[0].values())).device
    statistics = {place: mean_and_scale(first, place) for place in hook_names}
    saes = {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(recipe.seed)
        for place, (mean_D, scale) in statistics.items():
            about = {**metadata, "hook_name": hook_names[place]}
            saes[place] = _new_sae(recipe, len(mean_D), about, device)
            saes[place].b_dec.data.copy_(mean_D * scale)
    trainer = MultiSAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=recipe.num_steps * recipe.batch_size,
            train_batch_size_samples=recipe.batch_size,
            lr=recipe.learning_rate,
            lr_end=recipe.learning_rate,  # rate before the decay, which goes down to 0
            lr_warm_up_steps=recipe.num_steps // 20,
            lr_decay_steps=recipe.num_steps // 5,
            dead_feature_window=_dead_after(recipe),
            device=str(device),
            logger=LoggingConfig(log_to_wandb=False),
        ),
        saes={hook_names[place]: sae for place, sae in saes.items()},
        hook_names={hook: hook for hook in hook_names.values()},
        data_provider=({hook_names[place]: x for place, x in batch.items()} for batch in chain(first, batches)),
    )
    for place, (_, scale) in statistics.items():
        # SAELens keeps a scale that is there, and folds it in at the end; its own would take the mean for variance.
        trainer.trainers[hook_names[place]].activation_scaler.scaling_factor = scale
    trainer.fit()
    return saes


def save(sae: Any, folder: Path) -> None:
    """Write a trained SAE in SAELens' layout: `cfg.json` and `sae_weights.safetensors`."""
    sae.save_inference_model(folder)


def _new_sae(recipe: Recipe, width: int, metadata: dict[str, Any], device: torch.device) -> Any:
    from sae_lens.registry import get_sae_training_class
    from sae_lens.saes.sae import SAEMetadata

    sae_class, config_class = get_sae_training_class(recipe.architecture)
    config = config_class(
        d_in=width,
        d_sae=recipe.features_of(width),
        device=str(device),
        normalize_activations="expected_average_only_in",
        metadata=SAEMetadata(**metadata),
        **_options(recipe, recipe.features_of(width)),
    )
    return sae_class(config)


def _options(recipe: Recipe, num_features: int) -> dict[str, Any]:
    """Settings that only SAELens' configuration of this architecture has."""
    warm_up = recipe.num_steps // 20
    match recipe.architecture:
        case "standard" | "gated":
            return {"l1_coefficient": recipe.sparsity, "l1_warm_up_steps": warm_up}
        case "jumprelu":  # the loss of Gemma Scope 2, which has a target
            return {
                "jumprelu_sparsity_loss_mode": "quadratic",
                "target_l0": recipe.sparsity,
                "l0_warm_up_steps": warm_up,
            }
        case "matryoshka_batchtopk":  # nested SAEs of a sixteenth, an eighth, ... of the features
            widths = sorted({num_features >> halvings for halvings in range(5)} - {0})
            return {"k": recipe.sparsity, "matryoshka_widths": widths}
        case _:
            return {"k": recipe.sparsity}


def _dead_after(recipe: Recipe) -> int:
    """Steps without activity after which a feature is dead and revived: a tenth of a short training, at most 1000."""
    return max(1, min(1000, recipe.num_steps // 10))
