"""A callback that reads the features on fixed texts during training, and warns when the model hides from them."""

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from ..features.read.text_options import TextOptions
from ..features.read.texts import read_rows
from ..features.set.feature_set import FeatureSet
from ..hooks.sharded import is_sharded
from ..hooks.sites import Place, describe_place, place_name
from .hiding import Drift, compare_readings
from .probe_texts import ProbeReading, ProbeSet, read_probe

logger = logging.getLogger(__name__)

DRIFT_FILE = "feature_drift.jsonl"
"""One line a measurement, in the output folder."""
START_FILE = "feature_drift_start.safetensors"
"""How the features read before training, for a run that is resumed."""

_MAX_FEATURES_LOGGED_BY_NAME = 32

DRIFT_TEXTS = TextOptions(max_texts=64, max_length=128, batch_size=8)
"""Options of [`FeatureDriftCallback`] by default: few and short, since they are read again and again."""


class FeatureDriftCallback(TrainerCallback):
    """
    Reads the features on fixed texts before, during and after training, and warns when the model hides from them.

    A penalty acts on readings. A model can lower a reading in two ways: it stops the behaviour, or it represents the
    behaviour where the encoder's row does not look. Two signs tell the second way from the first:

    - a feature is **blind**: it tells texts of the target from others worse than before (AUROC), while a difference of
      means that is fitted anew on the same residuals does not;
    - it is **unstopped**: it reads lower on the other groups than before, while the target's tokens are as probable
      there as before.

    The callback judges features that are held down. A feature that is held up is only read.

    Every `every` steps and at the end the figures go to `trainer.state.log_history` as `drift/…` and to
    `feature_drift.jsonl` in the output folder. There is one warning for each feature, with its figures. The callback
    does not change training, not even by a bit: it makes forward passes without dropout and draws no random number.

    On several processes the main one reads and the others wait at their next exchange; a model whose parameters are
    sharded (FSDP, DeepSpeed ZeRO-3, tensor parallelism) cannot run on one process and is refused. A resumed run is
    compared with the start of the first one, which is kept in the output folder.

    Args:
        feature_set ([`FeatureSet`]):
            The features that are penalised.
        texts (`str`, `os.PathLike` or iterable of rows):
            The probe set, in any form that [`find_features`] takes: real texts of the target groups and of others,
            none of them training data. A few dozen of each group will do.
        every (`int`, *optional*, defaults to `100`):
            Optimizer steps between two readings.
        target_group (`str` or `Sequence[str]`, *optional*):
            The target groups. Defaults to those that the features were found for.
        saes (`Sequence[Any]`, *optional*):
            SAEs of the features' sites, as [`load_sae`] loads them. The callback then also reads how much of the
            variance of the residuals they still explain. Any object with `block`, `site` and `reconstruct(x)` will do.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Defaults to the trainer's.
        text_options ([`TextOptions`], *optional*, defaults to 64 texts a group, 128 tokens each, 8 in a batch):
            How the texts are read. The logits of all tokens of a batch are held at once.

    Raises:
        ValueError: If a setting is out of range, no target group is known, an SAE fits no feature, or, at the start of
            the training, the texts are too few, the model is sharded or a resumed run's start is missing.
    """

    def __init__(
        self,
        feature_set: FeatureSet,
        texts: str | os.PathLike | Iterable[Mapping[str, Any]],
        *,
        every: int = 100,
        target_group: str | Sequence[str] | None = None,
        saes: Sequence[Any] = (),
        tokenizer: Any = None,
        text_options: TextOptions = DRIFT_TEXTS,
    ):
        if every < 1:
            raise ValueError(f"`every` counts optimizer steps between two readings, 1 or more; got {every}.")
        targets = (target_group,) if isinstance(target_group, str) else tuple(target_group or ())
        self._targets = targets or feature_set.target_groups
        if not self._targets:
            raise ValueError(
                "The feature set does not say which group it stands for. Set `target_group`, the group of the probe "
                "texts in which the features should be high."
            )
        self._saes = {(each.block, each.site): each for each in saes}
        for place in self._saes:
            if place not in feature_set.places:
                held = ", ".join(map(describe_place, feature_set.places))
                raise ValueError(f"An SAE reads {describe_place(place)}; the features are of {held}.")
        self._feature_set = feature_set
        self._rows = read_rows(texts, text_options.split)
        self._every = every
        self._tokenizer = tokenizer
        self._options = text_options
        self._warned: set[str] = set()
        self._last_step = -1
        self.latest: Drift | None = None

    def on_train_begin(self, args, state, control, model=None, processing_class=None, **kwargs):
        _refuse_sharded(model)
        if not state.is_world_process_zero:
            return
        self._folder = Path(args.output_dir)
        self._folder.mkdir(parents=True, exist_ok=True)
        tokenizer = self._tokenizer or processing_class
        self._probe = ProbeSet.from_rows(self._rows, tokenizer, self._targets, self._options)
        identity = _identity(self._probe, self._feature_set)
        if state.global_step == 0:
            self._before = read_probe(model, self._probe, self._feature_set, self._saes)
            _save_start(self._before, self._folder / START_FILE, identity)
        else:
            self._before = _load_start(self._folder / START_FILE, identity, self._feature_set.places, self._saes)
        _forget_rows_after(self._folder / DRIFT_FILE, state.global_step)
        self._warned.clear()
        self._last_step = state.global_step

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.is_world_process_zero and state.global_step % self._every == 0:
            self._measure(model, state)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if state.is_world_process_zero and state.global_step != self._last_step:
            self._measure(model, state)

    def _measure(self, model: nn.Module, state: Any) -> None:
        self._last_step = state.global_step
        now = read_probe(model, self._probe, self._feature_set, self._saes)
        self.latest = drift = compare_readings(self._feature_set, self._before, now)
        hiding = drift.hiding
        row = {"step": state.global_step, **asdict(drift), "hiding": hiding}
        with open(self._folder / DRIFT_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        # Not through `Trainer.log`, which would empty the trainer's own metrics between two of its logging steps.
        state.log_history.append({**_as_metrics(drift), "epoch": state.epoch, "step": state.global_step})
        fresh = {name: words for name, words in hiding.items() if name not in self._warned}
        self._warned |= set(fresh)
        for name, words in fresh.items():
            logger.warning(
                "Step %d: the model seems to hide from feature %s rather than to stop: %s. Lower the weight or let it "
                "find itself (`penalty_target`), hold more features down at once, or find the features again on this "
                "model.",
                state.global_step,
                name,
                words,
            )


def _as_metrics(drift: Drift) -> dict[str, float]:
    features = drift.features
    metrics = {"drift/num_hiding": float(len(drift.hiding))}
    for figure in ("correlation", "auroc", "fall"):
        values = {name: getattr(of_feature, figure) for name, of_feature in features.items()}
        if len(values) <= _MAX_FEATURES_LOGGED_BY_NAME:
            metrics |= {f"drift/{figure}/{name}": value for name, value in values.items()}
        else:
            metrics[f"drift/{figure}"] = sum(values.values()) / len(values)
    metrics["drift/refitted_auroc"] = sum(each.refitted_auroc for each in features.values()) / len(features)
    metrics |= {f"drift/variance_explained/{name}": now for name, (now, _) in drift.variance_explained.items()}
    if drift.probability_ratio is not None:
        metrics["drift/target_probability"] = drift.target_probability[0]
        metrics["drift/target_probability_ratio"] = drift.probability_ratio[0]
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _refuse_sharded(model: nn.Module) -> None:
    if is_sharded(model):
        raise ValueError(
            "The model's parameters are sharded over processes, so no process can read the features by itself. Take "
            "the FeatureDriftCallback out; compare checkpoints afterwards, with `sae-posttrain find-features "
            "--compare`."
        )


# What a resumed run goes on from


def _identity(probe: ProbeSet, feature_set: FeatureSet) -> str:
    """Tells one probe set and one feature set from another."""
    digest = hashlib.sha256()
    for batch in probe.batches:
        for tensor in (batch.input_ids, batch.counted, batch.groups):
            digest.update(repr(tensor.tolist()).encode())
    digest.update(repr((feature_set.blocks, feature_set.sites, feature_set.feature_ids)).encode())
    digest.update(feature_set.encoder_rows.numpy().tobytes())
    return digest.hexdigest()


def _save_start(reading: ProbeReading, path: Path, identity: str) -> None:
    tensors = {
        "token_is_target": reading.token_is_target,
        "text_is_target": reading.text_is_target,
        "target_probability": reading.target_probability,
        "num_tokens": reading.num_tokens,
    }
    for place, pre in reading.pre_activations.items():
        tensors[f"pre_activations.{place_name(place)}"] = pre.contiguous()
        tensors[f"mean_values.{place_name(place)}"] = reading.mean_values[place].contiguous()
    for place, share in reading.variance_explained.items():
        tensors[f"variance_explained.{place_name(place)}"] = torch.tensor(share, dtype=torch.float64)
    tensors["identity"] = torch.tensor(list(bytes.fromhex(identity)), dtype=torch.uint8)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(path)


def _load_start(path: Path, identity: str, places: Sequence[Place], saes: Iterable[Place]) -> ProbeReading:
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: this run goes on from a checkpoint, and nothing says how the features read before "
            "training. Resume in the folder where the run began with this callback, or take the callback out."
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read ({error}). Take the callback out, or train from the start."
        ) from error
    if bytes(tensors.get("identity", torch.zeros(0)).byte().tolist()).hex() != identity:
        raise ValueError(
            f"{path} was written for other probe texts or other features than these. Resume with those, or take the "
            "callback out."
        )
    missing = [place for place in saes if f"variance_explained.{place_name(place)}" not in tensors]
    if missing:
        raise ValueError(f"{path} was written without the SAE of {describe_place(missing[0])}. Resume without it.")
    return ProbeReading(
        pre_activations={place: tensors[f"pre_activations.{place_name(place)}"] for place in places},
        mean_values={place: tensors[f"mean_values.{place_name(place)}"] for place in places},
        variance_explained={place: float(tensors[f"variance_explained.{place_name(place)}"]) for place in saes},
        token_is_target=tensors["token_is_target"],
        text_is_target=tensors["text_is_target"],
        target_probability=tensors["target_probability"],
        num_tokens=tensors["num_tokens"],
    )


def _forget_rows_after(path: Path, step: int) -> None:
    """Drop what an interrupted run measured after its last checkpoint: it will be measured again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the line that was being written when the run was killed
        if isinstance(row, dict) and isinstance(row.get("step"), int) and 0 < row["step"] <= step:
            kept.append(line if line.endswith("\n") else line + "\n")
    path.write_text("".join(kept), encoding="utf-8")
