"""
Multiple-choice accuracy by the rule of lm-evaluation-harness: the option with the largest log-likelihood is chosen.

`acc` of https://github.com/EleutherAI/lm-evaluation-harness: each option, after one space, is scored by the sum of the
log-probabilities of its tokens after the question. Tokens are divided as `HFLM._encode_pair` divides them; Gemma gets
its first token as there. Several questions are packed into one forward pass: a question is read once, and its options
see it and themselves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PACKED_TOKENS = 512


@dataclass(frozen=True)
class Question:
    """Token ids of a question and of its options, and which options are right."""

    context: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    right: tuple[bool, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that a packed pass reads: the last of an option predicts nothing that is asked for."""
        return len(self.context) + sum(len(option) - 1 for option in self.options)


def encode_question(row: dict[str, Any], tokenizer: Any, add_bos: bool) -> Question:
    """A row of a task, `input` and `scores`, in tokens."""
    context = row["input"].rstrip()
    context_ids = tokenizer.encode(context, add_special_tokens=add_bos)
    options = []
    for option in row["scores"]:
        whole = tokenizer.encode(f"{context} {option}", add_special_tokens=add_bos)
        options.append(tuple(whole[len(context_ids) :]))
    if not context_ids or not all(options):
        raise ValueError(f"A question or an option has no tokens of its own: {row['input'][:80]!r}.")
    return Question(tuple(context_ids), tuple(options), tuple(score > 0 for score in row["scores"].values()))


@torch.inference_mode()
def log_likelihoods(model: nn.Module, questions: Sequence[Question]) -> list[list[float]]:
    """Log-likelihood of every option of every question, in nats."""
    scored = []
    head_VD = model.get_output_embeddings().weight.float()
    for pack in _packs(questions):
        hidden_TD = _hidden(model, pack)
        first = 0
        for question in pack:
            scores, begin = [], first + len(question.context)
            at = first + len(question.context) - 1
            logp_V = torch.log_softmax(head_VD @ hidden_TD[at].float(), dim=-1)
            for option in question.options:
                score = logp_V[option[0]]
                if len(option) > 1:
                    rows = hidden_TD[begin : begin + len(option) - 1].float()
                    logp_OV = torch.log_softmax(rows @ head_VD.T, dim=-1)
                    score = score + logp_OV.gather(1, torch.tensor(option[1:])[:, None]).sum()
                    begin += len(option) - 1
                scores.append(float(score))
            scored.append(scores)
            first += question.num_tokens
    return scored


def _packs(questions: Sequence[Question]) -> Iterator[list[Question]]:
    pack: list[Question] = []
    for question in questions:
        if pack and sum(each.num_tokens for each in pack) + question.num_tokens > PACKED_TOKENS:
            yield pack
            pack = []
        pack.append(question)
    if pack:
        yield pack


def _hidden(model: nn.Module, pack: Sequence[Question]) -> Tensor:
    """The last hidden states of the packed tokens, `(T, D)`."""
    ids: list[int] = []
    positions: list[int] = []
    total = sum(question.num_tokens for question in pack)
    sees_TT = torch.zeros(total, total, dtype=torch.bool)
    for question in pack:
        first, size = len(ids), len(question.context)
        ids += question.context
        positions += range(size)
        sees_TT[first : first + size, first : first + size] = torch.ones(size, size).tril().bool()
        for option in question.options:
            begin, length = len(ids), len(option) - 1
            ids += option[:-1]
            positions += range(size, size + length)
            sees_TT[begin : begin + length, first : first + size] = True
            sees_TT[begin : begin + length, begin : begin + length] = torch.ones(length, length).tril().bool()
    dtype = next(model.parameters()).dtype
    mask = torch.zeros(1, 1, total, total, dtype=dtype).masked_fill(~sees_TT, torch.finfo(dtype).min)
    decoder = model.get_decoder()
    by_kind = getattr(decoder.config, "layer_types", None)
    kinds = set(by_kind or ())
    sliding = "sliding_attention" in kinds
    if sliding and max(positions) >= decoder.config.sliding_window:
        raise ValueError("A question is longer than the sliding window, which the packed mask does not cut off.")
    out = decoder(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        attention_mask=dict.fromkeys(kinds, mask) if sliding else mask,
        use_cache=False,
    )
    return out.last_hidden_state[0]
