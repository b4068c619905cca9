"""Sequence-level unlikelihood on TRL's `SFTTrainer`: marked tokens cost `-log(1 - p)` in place of `-log(p)`."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from transformers import TrainingArguments
from trl import SFTConfig, SFTTrainer

from ...precision import widest_float
from .config import UnlikelihoodConfig
from .loss import log_one_minus
from .rows import UNLIKELY

logger = logging.getLogger(__name__)


class UnlikelihoodTrainer(SFTTrainer):
    """
    [`~trl.SFTTrainer`] that also makes the repetitions of a model less likely (Welleck et al. 2019,
    https://huggingface.co/papers/1908.04319, sequence level).

    `loss = (sum of -log p over ordinary tokens + weight · sum of -log(1 - p) over marked ones) / tokens of both`, all
    counted as TRL counts, over the accumulation window and all processes. The rows of `unlikely_dataset` are mixed
    with those of `train_dataset` as they are drawn; their other tokens are context. The evaluation loss is TRL's. The
    published code decodes continuations anew for each update, spends every second update on them, and divides by all
    of their tokens.

    The token-level variant of the paper is not here: it takes the probabilities of the tokens of the context at every
    position, and TRL's fused LM head computes that of the label alone.

    ```python
    rows = sample_unlikely_rows(model, tokenizer, prompts)
    UnlikelihoodTrainer(model, UnlikelihoodConfig("out"), train_dataset=data, unlikely_dataset=rows).train()
    ```

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`):
            As in [`~trl.SFTTrainer`].
        args ([`UnlikelihoodConfig`], *optional*):
            Settings.
        unlikely_dataset (`datasets.Dataset`, *optional*):
            Rows of [`sample_unlikely_rows`]: `input_ids`, and `unlikely` with a 1 for each marked token. Cut at the
            end to `max_length`.
        **kwargs:
            Everything else [`~trl.SFTTrainer`] takes.

    Raises:
        ValueError: If there are no marked tokens to train against, or a setting or kind of data cannot be used.
    """

    _tag_names = ["trl", "sft", "unlikelihood"]
    _name = "Unlikelihood"
    _paper = {"title": "Neural Text Generation with Unlikelihood Training", "id": "1908.04319"}

    def __init__(
        self,
        model: Any,
        args: UnlikelihoodConfig | SFTConfig | TrainingArguments | None = None,
        *,
        unlikely_dataset: Dataset | None = None,
        **kwargs: Any,
    ):
        if args is None:
            name = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "")
            args = UnlikelihoodConfig(f"{str(name).split('/')[-1] or 'model'}-Unlikelihood")
        self._weight = _weight(args, unlikely_dataset)
        self._sums: Tensor | None = None
        if self._weight > 0:
            if kwargs.get("compute_loss_func") is not None:
                raise ValueError("`compute_loss_func` would train towards the repeated tokens. Leave it out.")
            if not isinstance(kwargs.get("train_dataset"), Dataset):
                raise ValueError(
                    "The marked rows are mixed with a `datasets.Dataset`, got `train_dataset` of "
                    f"{type(kwargs.get('train_dataset')).__name__}."
                )
        super().__init__(model, args, **kwargs)
        if self._weight > 0:
            assert unlikely_dataset is not None and isinstance(args, UnlikelihoodConfig)
            self._refuse_what_cannot_work()
            self.train_dataset = _mixed(self.train_dataset, unlikely_dataset, args.max_length)
            self.data_collator = _MarkingCollator(self.data_collator)

    def _refuse_what_cannot_work(self) -> None:
        parallelism = getattr(self.accelerator, "parallelism_config", None)
        if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
            raise ValueError(
                "Under context or sequence parallelism the marks of the tokens would not be sharded with them. Set "
                "`cp_size=1` and `sp_size=1`."
            )
        if self._is_vision_dataset:
            raise ValueError("Repetition is marked in text; vision datasets are not supported.")

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        if UNLIKELY not in columns:
            columns.append(UNLIKELY)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self._weight == 0:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        marked, training = inputs[UNLIKELY], self.model.training  # type: ignore[union-attr]
        inputs = {name: value for name, value in inputs.items() if name != UNLIKELY}  # the model must not see it

        was_turned = False

        def with_marked_tokens_turned(*args, **kwargs):
            nonlocal was_turned
            outputs = model(*args, **kwargs)
            if kwargs.get("fused_lm_head") and training:
                self._turn(outputs, marked, counted_before=num_items_in_batch is not None)
                was_turned = True
            return outputs

        result = super().compute_loss(with_marked_tokens_turned, inputs, return_outputs, num_items_in_batch)
        if training and not was_turned:  # the loss would train towards the repetitions
            raise ValueError("TRL did not use its fused LM head, on which this trainer rests. Use TRL 1.15 or later.")
        return result

    def _turn(self, outputs: Any, marked: Tensor, *, counted_before: bool) -> None:
        """
        Write `weight · log(1 - p)` in place of `log p` at the marked tokens, which TRL then sums and divides.

        Its entropy and accuracy are left to the ordinary tokens.
        """
        log_probs, mask = outputs.log_probs, outputs.label_mask
        num_virtual = log_probs.shape[1] + 1 - marked.shape[1]  # prompt tuning puts virtual tokens in front
        turned = F.pad(marked.bool(), (num_virtual, 0))[:, 1:] & mask
        # Elsewhere a finite stand-in: what is computed at tokens that are not taken must not make their gradient NaN.
        unlikelihood = -log_one_minus(log_probs.float().masked_fill(~turned, -1.0)).masked_fill(~turned, 0.0)
        likelihood = -log_probs.masked_fill(turned, 0.0)
        outputs.log_probs = -(likelihood + self._weight * unlikelihood)
        outputs.entropy = outputs.entropy.masked_fill(turned, 0)
        outputs.is_top1 = outputs.is_top1.masked_fill(turned, 0)
        if counted_before:  # else TRL takes the number of tokens that it divides by from this mask
            outputs.label_mask = mask & ~turned
        with torch.no_grad():
            probability = log_probs.float().exp().masked_fill(~turned, 0.0)
            sums = [likelihood, mask & ~turned, unlikelihood, probability, turned]
            wide = widest_float(log_probs.device)
            added = torch.stack([values.sum().to(wide) for values in sums])
            self._sums = added if self._sums is None else self._sums + added

    # Metrics stay tensors on the device until the logging step, where they are reduced once.

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._sums is not None and self.model.training:  # type: ignore[union-attr]
            sums = self.accelerator.reduce(self._sums, reduction="sum")
            likelihood, num_ordinary, unlikelihood, probability, num_turned = sums.tolist()
            self._sums = None
            logs["unlikelihood/share"] = num_turned / max(num_ordinary + num_turned, 1)
            if num_ordinary:
                logs["unlikelihood/nll"] = likelihood / num_ordinary
            if num_turned:
                logs["unlikelihood/loss"] = unlikelihood / num_turned
                logs["unlikelihood/probability"] = probability / num_turned
        super().log(logs, start_time)


class _MarkingCollator:
    """TRL's collator, and [`UNLIKELY`] padded beside it; rows without the column have no marked token."""

    def __init__(self, collator: Callable[[list[dict[str, Any]]], dict[str, Any]]):
        self.collator = collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator([{name: row[name] for name in row if name != UNLIKELY} for row in examples])
        marks = torch.zeros_like(batch["labels"])
        for i, row in enumerate(examples):
            marked = row.get(UNLIKELY)
            if marked is not None:
                marks[i, : len(marked)] = torch.as_tensor(marked)
        return {**batch, UNLIKELY: marks}


def _weight(args: Any, unlikely_dataset: Dataset | None) -> float:
    """The weight of the marked rows, after a check that there are some if it is above 0."""
    if not isinstance(args, UnlikelihoodConfig):
        if unlikely_dataset is not None:
            raise ValueError(
                f"An `unlikely_dataset` was passed with a plain `{type(args).__name__}`, which has no weight for it. "
                "Use `UnlikelihoodConfig`."
            )
        logger.warning(
            "UnlikelihoodTrainer got a plain `%s`: it trains like `SFTTrainer`. Use `UnlikelihoodConfig` and pass "
            "`unlikely_dataset`.",
            type(args).__name__,
        )
        return 0.0
    if args.unlikelihood_weight > 0 and unlikely_dataset is None:
        raise ValueError(
            f"`unlikelihood_weight` is {args.unlikelihood_weight}, but there is no `unlikely_dataset` to train "
            "against: `sample_unlikely_rows` makes one. Or set `unlikelihood_weight=0` for plain SFT."
        )
    if args.unlikelihood_weight == 0 and unlikely_dataset is not None:
        logger.warning("`unlikelihood_weight` is 0: the rows of `unlikely_dataset` are left out.")
    return args.unlikelihood_weight


def _mixed(prepared: Dataset, unlikely_dataset: Dataset, max_length: int | None) -> Dataset:
    """The prepared rows, and behind them the marked ones with their marked tokens as labels."""
    prepared = prepared.select_columns(["input_ids", "labels"])
    rows = []
    for index, row in enumerate(unlikely_dataset):
        rows.append(_marked_row(row, index, max_length))
    marked = [row for row in rows if any(row[UNLIKELY])]
    if not marked:
        within = f" within `max_length={max_length}`" if max_length is not None else ""
        raise ValueError(f"No token of {len(rows)} rows of `unlikely_dataset` is marked{within}: nothing to unlearn.")
    if len(marked) < len(rows):
        logger.warning("%d of %d rows of `unlikely_dataset` have no marked token.", len(rows) - len(marked), len(rows))
    dataset = Dataset.from_list(marked)
    for column in ("input_ids", "labels"):
        dataset = dataset.cast_column(column, prepared.features[column])
    return concatenate_datasets([prepared, dataset])


def _marked_row(row: Mapping[str, Any], index: int, max_length: int | None) -> dict[str, list[int]]:
    if "input_ids" not in row or UNLIKELY not in row or len(row["input_ids"]) != len(row[UNLIKELY]):
        has = ", ".join(f"{name} ({len(value)})" for name, value in sorted(row.items()) if hasattr(value, "__len__"))
        raise ValueError(
            f"Row {index} of `unlikely_dataset` needs `input_ids` and as many numbers in `{UNLIKELY}`; it has {has}. "
            "`sample_unlikely_rows` makes such rows."
        )
    ids, marked = list(row["input_ids"])[:max_length], [int(mark) for mark in row[UNLIKELY]][:max_length]
    if marked:
        marked[0] = 0  # nothing predicts the first token
    return {
        "input_ids": ids,
        "labels": [token if mark else -100 for token, mark in zip(ids, marked)],
        UNLIKELY: marked,
    }
