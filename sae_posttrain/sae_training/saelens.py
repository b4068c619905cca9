"""SAELens (https://github.com/jbloomAus/SAELens) as the trainer. The only file that imports it."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..hooks.sites import Place
from .activations import mean_and_scale
from .buffer import ActivationBuffer
from .checkpoint import Checkpoints, damaged, read_record
from .processes import Processes
from .progress import TrainingBar
from .trainer_state import read_state, set_state, write_state

logger = logging.getLogger(__name__)

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

BATCHES_FOR_SCALE = 4
"""Batches that give the scale and the mean; the first checkpoint comes after them."""

_SHARED = "shared.safetensors"


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
    batches: ActivationBuffer,
    hook_names: Mapping[Place, str],
    metadata: Mapping[str, Any],
    checkpoints: Checkpoints,
    processes: Processes,
) -> tuple[dict[Place, Any], float]:
    """
    Train an SAE of each place, all on the same tokens, with SAELens' trainer; go on from the last checkpoint if there
    is one.

    SAELens trains on scaled activations and folds the scale in at the end (`expected_average_only_in`), so the saved
    SAE reads raw activations. The scale brings the variance of a dimension to 1, so that the learning rate has the
    same effect at every site. The decoder's bias starts at the mean, because a short training would otherwise spend
    its steps on a large mean.

    Args:
        recipe ([`Recipe`]):
            What to train.
        batches ([`ActivationBuffer`]):
            Activations in raw units, on the device to train on. Each process trains the SAEs of its places.
        hook_names (`Mapping[Place, str]`):
            SAELens' name for each place.
        metadata (`Mapping`):
            Metadata that is saved with the SAEs.
        checkpoints ([`Checkpoints`]):
            Where checkpoints are kept.
        processes ([`Processes`]):
            This process and the others.

    Returns:
        `tuple[dict[Place, sae_lens.TrainingSAE], float]`: the trained SAEs of this process, for [`save`]; and the
        seconds that the training took, with those of earlier runs.

    Raises:
        ValueError: If a checkpoint cannot be read.
    """
    device = batches.device
    hooks = {place: hook_names[place] for place in batches.places}
    found = checkpoints.newest()
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if found is None:
            first = list(islice(batches, BATCHES_FOR_SCALE))
            trainers = {place: _begin(recipe, first, place, hook, metadata, device) for place, hook in hooks.items()}
            stream: Iterator[dict[Place, Tensor]] = chain(first, batches)
            step = 0
        else:
            trainers, step, seconds = _go_on(recipe, batches, hooks, metadata, found)
            stream, started = batches, started - seconds
            if processes.is_main:
                logger.warning("Going on from step %d of %d: %s", step, recipe.num_steps, found)
        tokens = recipe.num_steps * recipe.batch_size, step * recipe.batch_size
        with TrainingBar(*tokens, show=processes.is_main) as progress:
            while step < recipe.num_steps:
                batch = next(stream)
                outputs = []
                for place, trainer in trainers.items():
                    trainer.maybe_reset_sparsity()
                    outputs.append(trainer.step(batch[place]))
                    trainer.n_training_steps += 1
                step += 1
                progress.add(recipe.batch_size, outputs)
                if BATCHES_FOR_SCALE <= step < recipe.num_steps and checkpoints.due():
                    record = {"seconds": time.perf_counter() - started, "position": batches.position()}
                    write = partial(_write_state, batches, trainers, hooks, processes)
                    checkpoints.save_step(step, record, write)
    for trainer in trainers.values():
        trainer.sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
        trainer.set_final_sae_metadata()
    return {place: trainer.sae for place, trainer in trainers.items()}, time.perf_counter() - started


def _begin(
    recipe: Recipe,
    first: Sequence[Mapping[Place, Tensor]],
    place: Place,
    hook: str,
    metadata: Mapping[str, Any],
    device: torch.device,
) -> Any:
    mean_D, scale = mean_and_scale(first, place)
    torch.manual_seed(recipe.seed)  # for each SAE: the same, whichever others are trained with it
    trainer = _new_trainer(recipe, len(mean_D), {**metadata, "hook_name": hook}, device)
    trainer.sae.b_dec.data.copy_(mean_D * scale)
    # SAELens' own scale would take the mean for variance.
    trainer.activation_scaler.scaling_factor = scale
    return trainer


def _go_on(
    recipe: Recipe, batches: ActivationBuffer, hooks: Mapping[Place, str], metadata: Mapping[str, Any], found: Path
) -> tuple[dict[Place, Any], int, float]:
    """The trainers of a checkpoint, its step, and the seconds up to it."""
    record = read_record(found)
    trainers, values = {}, {}
    try:
        shared = load_file(found / _SHARED)
        for place, hook in hooks.items():
            tensors, numbers = read_state(found / f"{hook}.safetensors", batches.device)
            values[place] = {name: tensors.pop(name) for name in ("buffer", "unread")}
            width = values[place]["buffer"].shape[1]
            trainers[place] = _new_trainer(recipe, width, {**metadata, "hook_name": hook}, batches.device)
            set_state(trainers[place], tensors, numbers)
        random_states = {name: shared.pop(name) for name in list(shared) if name.startswith("random.")}
        batches.restore(record["position"], shared, values)
        torch.set_rng_state(random_states["random.cpu"])
        if batches.device.type == "cuda" and "random.cuda" in random_states:
            torch.cuda.set_rng_state(random_states["random.cuda"], batches.device)
        return trainers, int(record["step"]), float(record["seconds"])
    except torch.OutOfMemoryError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        raise damaged(found, f"{error}" if str(error) else type(error).__name__) from error


def _write_state(
    batches: ActivationBuffer,
    trainers: Mapping[Place, Any],
    hooks: Mapping[Place, str],
    processes: Processes,
    folder: Path,
) -> None:
    for place, trainer in trainers.items():
        write_state(folder / f"{hooks[place]}.safetensors", trainer, batches.values(place))
    if processes.is_main:
        shared = batches.order() | {"random.cpu": torch.get_rng_state()}
        if batches.device.type == "cuda":
            shared["random.cuda"] = torch.cuda.get_rng_state(batches.device)
        save_file(shared, folder / _SHARED)


def _new_trainer(recipe: Recipe, width: int, metadata: dict[str, Any], device: torch.device) -> Any:
    """SAELens' trainer of one SAE; [`fit`] takes its steps one by one."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    return SAETrainer(
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
        sae=_new_sae(recipe, width, metadata, device),
        data_provider=iter(()),  # batches are handed to its steps
    )


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
