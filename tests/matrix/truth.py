"""
The gradient of each trainer, from a few lines of its own: single process, float32, one document at a time, no batch,
no padding, none of the library's code for losses and hooks.
"""

from typing import Any

import torch
from data import MAX_LENGTH, NUM_GENERATIONS, NUM_PROCESSES, PROMPTS, TEMPERATURE, completions, documents, reward
from torch import Tensor

from sae_posttrain import FeatureSet

WEIGHT = 3.0
IGNORED = -100


def gradients(case: dict[str, str], model: Any, tokenizer: Any, features: FeatureSet) -> dict[str, Tensor]:
    """Gradient of each trainable parameter, by its name."""
    model.train()
    if case["batches"] == "rollouts":
        _policy_loss(model, tokenizer, NUM_PROCESSES[case["processes"]]).backward()
    else:
        penalised = features if case["trainer"] == "SASFT" else None
        _sft_loss(model, rows_of(case["batches"], tokenizer), case["loss"], penalised).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


Row = tuple[list[int], list[int], list[str]]
"""Token ids, labels and groups."""


def rows_of(batches: str, tokenizer: Any) -> list[Row]:
    """What reads what: the documents, or the pieces of them, that attend to nothing outside."""
    whole: list[Row] = []
    for document in documents():
        prompt = tokenizer(document["prompt"])["input_ids"]
        answer = [*tokenizer(document["completion"])["input_ids"], tokenizer.eos_token_id]
        labels = [IGNORED] * len(prompt) + answer
        whole.append((prompt + answer, labels, [document["lang"]] * len(labels)))
    if batches == "padding-free":  # TRL cuts nothing there
        return whole
    if batches in ("padded", "bfd"):
        return [_piece(row, 0) for row in whole]
    if batches == "bfd_split":
        return [_piece(row, start) for row in whole for start in range(0, len(row[0]), MAX_LENGTH)]
    stream: Row = ([], [], [])
    for row in whole:
        for column, more in zip(stream, row):
            column.extend(more)  # type: ignore[arg-type]
    return [_piece(stream, start) for start in range(0, len(stream[0]), MAX_LENGTH)]


def _piece(row: Row, start: int) -> Row:
    return tuple(column[start : start + MAX_LENGTH] for column in row)  # type: ignore[return-value]


def _sft_loss(model: Any, rows: list[Row], loss_type: str, features: FeatureSet | None) -> Tensor:
    total, num_tokens = torch.zeros(()), 0
    for ids, labels, groups in rows:
        logits, residuals = _forward(model, ids)
        log_probs = logits.log_softmax(dim=-1)
        num_virtual = len(logits) - len(ids)
        for t in range(len(ids)):
            if labels[t] == IGNORED or t + num_virtual == 0:
                continue
            log_prob = log_probs[num_virtual + t - 1, labels[t]]
            total = total - log_prob * (log_prob.exp().detach() if loss_type == "dft" else 1)
            num_tokens += t > 0  # prompt tuning predicts the first token of a row too, but TRL does not count it
            if features is not None and t > 0 and groups[t] not in features.target_groups:
                total = total + WEIGHT * _excess(residuals, len(ids), t, groups[t], features)
    return total / num_tokens


def _forward(model: Any, ids: list[int]) -> tuple[Tensor, dict[int, Tensor]]:
    """Logits, and the output of each block."""
    residuals: dict[int, Tensor] = {}

    def keep(block: int) -> Any:
        return lambda _module, _args, output: residuals.update({block: output})

    base = model.get_base_model() if hasattr(model, "peft_config") else model
    hooks = [layer.register_forward_hook(keep(block)) for block, layer in enumerate(base.get_decoder().layers)]
    logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    for hook in hooks:
        hook.remove()
    return logits, residuals


def _excess(residuals: dict[int, Tensor], length: int, t: int, group: str, features: FeatureSet) -> Tensor:
    """SASFT (https://huggingface.co/papers/2507.14894), in standard deviations."""
    column, total = features.groups.index(group), torch.zeros(())
    for block in sorted(set(features.blocks)):
        chosen = [i for i, number in enumerate(features.blocks) if number == block]
        residual = residuals[block][0, -length:][t]  # virtual tokens stand in front
        pre = features.encoder_rows[chosen] @ residual + features.encoder_bias[chosen]
        height = (pre - features.mean[chosen, column]) / features.std[chosen, column]
        total = total + height.clamp(min=0).mean()
    return total


def _policy_loss(model: Any, tokenizer: Any, num_processes: int) -> Tensor:
    """DAPO (https://huggingface.co/papers/2503.14476) at the first step, where the probability ratio is 1."""
    rows = completions()
    rewards = torch.tensor([reward(ids) for ids in rows]).view(-1, NUM_GENERATIONS)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    advantages = (centred / (rewards.std(dim=1, keepdim=True) + 1e-4)).flatten()
    virtual = hasattr(model, "peft_config") and model.active_peft_config.is_prompt_learning
    prompts = [tokenizer(PROMPTS[i // NUM_GENERATIONS])["input_ids"] for i in range(len(rows))]
    num_rows = len(rows) // num_processes
    total = torch.zeros(())
    for i, (prompt, ids) in enumerate(zip(prompts, rows)):
        # Each process pads its prompts on the left, and virtual tokens stand in front of the padding, which therefore
        # counts in their distance. Nothing else sees it.
        beside = prompts[i // num_rows * num_rows :][:num_rows]
        num_padding = max(map(len, beside)) - len(prompt) if virtual else 0
        tokens = torch.tensor([[tokenizer.pad_token_id] * num_padding + prompt + ids])
        mask = (torch.arange(tokens.shape[1]) >= num_padding)[None].long()
        logits = model(tokens, attention_mask=mask, use_cache=False).logits[0, -len(ids) - 1 : -1] / TEMPERATURE
        log_probs = logits.log_softmax(dim=-1)[torch.arange(len(ids)), ids]
        total = total - advantages[i] * log_probs.sum()
    return total / sum(len(ids) for ids in rows)
