"""
Held-out loss per language, and the low-variance companions of the switching rate: how likely a Han token is where the
true next token is not Han. Sampled answers show a switch in a few of a hundred; these read every position.
"""

from collections.abc import Sequence
from typing import Any

import regex
import torch
from torch import Tensor

from sae_posttrain.eval_mode import eval_mode
from sae_posttrain.features.read.text_options import TextOptions
from sae_posttrain.features.read.texts import batches, tokenize

_HAN = regex.compile(r"\p{Script=Han}")
_WORTH_SORTING = 0.02


def han_tokens(tokenizer: Any, vocab_size: int) -> Tensor:
    """Tokens whose text has a Han character, `(V,)` bool. Partial bytes of one are left out."""
    return torch.tensor([bool(_HAN.search(tokenizer.decode([token]))) for token in range(vocab_size)])


def measure_held_out(
    model: Any,
    tokenizer: Any,
    examples: Sequence[dict[str, Any]],
    *,
    max_length: int,
    top_p: float,
    batch_size: int = 25,
) -> dict[str, dict[str, float]]:
    """
    For each language of the examples, over the tokens of the answers:

    - `loss`: mean negative log-likelihood, nats per token;
    - `han_probability`: mean probability of all Han tokens together, where the true next token is not Han;
    - `han_in_nucleus`: the same after cutting the distribution to its top-p nucleus, as sampling does.
    """
    rows = [{"lang": e["lang"], "messages": [*e["prompt"], *e["completion"]]} for e in examples]
    texts = tokenize(rows, tokenizer, TextOptions(max_length=max_length))
    groups = sorted({text.group for text in texts})
    device = next(model.parameters()).device
    is_han = han_tokens(tokenizer, model.get_output_embeddings().weight.shape[0]).to(device)
    sums = torch.zeros(len(groups), 5, dtype=torch.float64)
    with eval_mode(model), torch.inference_mode():
        for batch in batches(texts, groups, batch_size):
            batch = batch.to(device)
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
            counted = batch.counted[:, 1:]
            group_N = batch.groups[:, None].expand_as(counted)[counted].cpu()
            log_probs = logits[:, :-1][counted].float().log_softmax(dim=-1)
            targets = batch.input_ids[:, 1:][counted]
            loss_N = -log_probs.gather(-1, targets[:, None])[:, 0]
            not_han_N = ~is_han[targets]
            probs = log_probs.exp()
            han_N = probs[:, is_han].sum(dim=-1)
            nucleus_N = nucleus_share(probs, is_han, top_p)
            ones = torch.ones_like(loss_N)
            columns = [loss_N, ones, han_N * not_han_N, nucleus_N * not_han_N, not_han_N.float()]
            sums.index_add_(0, group_N, torch.stack(columns, dim=1).double().cpu())
    loss, num_tokens, han, nucleus, num_not_han = sums.T
    return {
        "loss": dict(zip(groups, (loss / num_tokens).tolist())),
        "han_probability": dict(zip(groups, (han / num_not_han).tolist())),
        "han_in_nucleus": dict(zip(groups, (nucleus / num_not_han).tolist())),
    }


def nucleus_share(probs: Tensor, tokens: Tensor, top_p: float) -> Tensor:
    """Chance that top-p sampling picks one of some tokens, `(N,)`; 0 where they have less than 2 % together."""
    share_N = torch.zeros_like(probs[:, 0])
    likely_N = probs[:, tokens].sum(dim=-1) > _WORTH_SORTING
    if likely_N.any():
        ordered, order = probs[likely_N].sort(dim=-1, descending=True)
        kept = ordered * (ordered.cumsum(dim=-1) - ordered < top_p)
        share_N[likely_N] = (kept * tokens[order]).sum(dim=-1) / kept.sum(dim=-1)
    return share_N
