"""
How a feature reads where the model itself is about to switch: on texts of other groups, at the positions where it
would sample a token of the target.

Shape suffixes: N tokens, F features, V vocabulary.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..hooks.record import record_blocks
from ..saes.frozen import FrozenSAE
from .statistics import GroupSums
from .texts import Text, batches

_LOGITS_AT_ONCE = 1 << 26  # rows × tokens × vocabulary of one forward pass: 256 MB in float32
_WORTH_SORTING = 0.02  # with less probability than this, a target token is hardly ever in the nucleus


def nucleus_share(probs: Tensor, tokens: Tensor, top_p: float) -> Tensor:
    """
    Chance that top-p sampling picks one of some tokens.

    Args:
        probs (`torch.Tensor` of shape `(N, V)`):
            Next-token probabilities.
        tokens (`torch.Tensor` of shape `(V,)`, bool):
            The tokens in question.
        top_p (`float`):
            Probability mass that sampling keeps.

    Returns:
        `torch.Tensor` of shape `(N,)`; 0 where the tokens have less than 2 % together.
    """
    share_N = torch.zeros_like(probs[:, 0])
    likely_N = probs[:, tokens].sum(dim=-1) > _WORTH_SORTING
    if likely_N.any():
        ordered, order = probs[likely_N].sort(dim=-1, descending=True)
        kept = ordered * (ordered.cumsum(dim=-1) - ordered < top_p)
        share_N[likely_N] = (kept * tokens[order]).sum(dim=-1) / kept.sum(dim=-1)
    return share_N


def switching_scores(
    model: nn.Module,
    texts: Sequence[Text],
    groups: Sequence[str],
    saes: Sequence[FrozenSAE],
    candidates: Mapping[int, Tensor],
    sums: Mapping[int, GroupSums],
    tokens: Tensor,
    *,
    pad_token_id: int,
    margin: float = 2.0,
    top_p: float = 0.8,
) -> dict[int, Tensor]:
    """
    Switching score of each candidate: does it rise where, and only where, the model is about to switch?

    With `r` the height of the feature above its group's mean plus `margin` standard deviations, and `P` the chance
    that sampling at that position picks a target token, over the tokens of the other groups' texts:
    `score = Σ r·P / Σ r · sqrt(Σ r·P / Σ P)`, precision times the root of the reach. A penalty with that margin falls
    on such a feature when a switch is near, and leaves the rest of the text alone.

    Args:
        model (`torch.nn.Module`):
            A causal language model.
        texts (`Sequence[Text]`):
            Texts of the other groups.
        groups (`Sequence[str]`):
            Names of the groups, in the order of the sums.
        saes (`Sequence[FrozenSAE]`):
            One SAE per block.
        candidates (`Mapping[int, torch.Tensor]`):
            Features to score, by block.
        sums (`Mapping[int, GroupSums]`):
            Their statistics, by block.
        tokens (`torch.Tensor` of shape `(V,)`, bool):
            The target's tokens.
        pad_token_id (`int`):
            Fills up shorter texts.
        margin (`float`, *optional*, defaults to `2.0`):
            In standard deviations of the pre-activation on the group.
        top_p (`float`, *optional*, defaults to `0.8`):
            Nucleus of the sampling whose switches count.

    Returns:
        `dict[int, torch.Tensor]`: by block, a score for each candidate, 0 or more.
    """
    device = next(model.parameters()).device
    tokens = tokens.to(device)
    encoders = {}
    for sae in saes:
        ids = candidates[sae.block].to(sums[sae.block].pre.device)
        encoders[sae.block] = (
            sae.W_enc[:, ids.to(sae.W_enc.device)].to(device),
            sae.b_enc[ids.to(sae.b_enc.device)].to(device),
            sums[sae.block].mean_pre[:, ids].float().to(device),
            sums[sae.block].std_pre[:, ids].float().clamp(min=1e-6).to(device),
        )
    height = {block: torch.zeros(len(ids), dtype=torch.float64, device=device) for block, ids in candidates.items()}
    at_switch = {block: torch.zeros_like(total) for block, total in height.items()}
    chance_sum = torch.zeros((), dtype=torch.float64, device=device)
    longest = max((len(text.ids) for text in texts), default=1)
    rows = max(1, min(16, _LOGITS_AT_ONCE // (longest * len(tokens))))
    with torch.inference_mode():
        for batch in tqdm(list(batches(texts, groups, rows, pad_token_id)), desc="Where it would switch", leave=False):
            batch = batch.to(device)
            with record_blocks(model, list(encoders)) as outputs:
                logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
            chance_N = nucleus_share(logits[batch.counted].float().softmax(dim=-1), tokens, top_p)
            chance_sum += chance_N.sum()
            groups_N = batch.groups[:, None].expand_as(batch.counted)[batch.counted]
            for block, (W_enc, b_enc, mean_GF, std_GF) in encoders.items():
                pre_NF = outputs[block][0][batch.counted].float() @ W_enc + b_enc
                above_NF = torch.relu((pre_NF - mean_GF[groups_N]) / std_GF[groups_N] - margin)
                height[block] += above_NF.sum(dim=0)
                at_switch[block] += chance_N @ above_NF
    scores = {}
    for block in encoders:
        precision = at_switch[block] / height[block].clamp(min=1e-9)
        reach = at_switch[block] / chance_sum.clamp(min=1e-9)
        scores[block] = (precision * reach.sqrt()).float().cpu()
    return scores
