"""
Which tokens a feature's direction promotes and suppresses: the logit lens.

Shape suffixes: F features, D width of the residual stream, V tokens of the vocabulary, K tokens that are kept.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..features.set.feature_set import FeatureSet
from ..hooks.blocks import unwrap

_WRITTEN = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
_LOGITS_AT_ONCE = 1 << 25  # 128 MB
_ROWS_AT_ONCE = 8192  # of the head, which may be in half precision


@dataclass(frozen=True)
class Promoted:
    """Tokens that a direction promotes and suppresses the most, each with its logit in standard deviations."""

    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]


def logit_lens(model: nn.Module, feature_set: FeatureSet, tokenizer: Any, *, num_tokens: int = 10) -> list[Promoted]:
    """
    The direct effect of each feature's direction on the logits: `W_U (γ ⊙ d)`, without the blocks in between.

    `W_U` is the output head and `γ` the weight of the final norm. The scores of a feature are centred and divided by
    their standard deviation over the vocabulary, so that features compare. The earlier a block, the less of its effect
    is direct (https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru).

    Args:
        model (`torch.nn.Module`):
            A causal language model.
        feature_set ([`FeatureSet`]):
            The features; of sites that are no part of the residual stream, the result is empty.
        tokenizer (`PreTrainedTokenizerBase`):
            Writes the tokens.
        num_tokens (`int`, *optional*, defaults to `10`):
            Tokens of each kind.
    """
    found = [Promoted((), ())] * len(feature_set)
    rows = [row for row, site in enumerate(feature_set.sites) if reaches_logits(model, site, feature_set.d_model)]
    if not rows:
        return found
    strongest = lens_tokens(model, feature_set.directions[rows], tokenizer, num_tokens=num_tokens)
    texts = {token: tokenizer.decode([token]) for token in set(strongest.promoted_FK.flatten().tolist())}
    texts |= {token: tokenizer.decode([token]) for token in set(strongest.suppressed_FK.flatten().tolist())}
    for number, row in enumerate(rows):
        found[row] = Promoted(*(
            tuple((texts[token], score) for token, score in zip(ids_FK[number].tolist(), scores_FK[number].tolist()))
            for ids_FK, scores_FK in strongest.of_each_kind
        ))  # fmt: skip
    return found


@dataclass(frozen=True)
class LensTokens:
    """Ids and scores, in standard deviations, of the tokens that directions promote and suppress, each `(F, K)`."""

    promoted_FK: Tensor
    promoted_scores_FK: Tensor
    suppressed_FK: Tensor
    suppressed_scores_FK: Tensor

    @property
    def of_each_kind(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Ids and scores of what is promoted, and of what is suppressed."""
        return (self.promoted_FK, self.promoted_scores_FK), (self.suppressed_FK, self.suppressed_scores_FK)


def reaches_logits(model: nn.Module, site: str, width: int) -> bool:
    """Whether what a site writes is added to the residual stream, so that it has a direct effect on the logits."""
    head = unwrap(model).get_output_embeddings().weight
    return site in _WRITTEN and width == head.shape[1]


def lens_tokens(model: nn.Module, directions_FD: Tensor, tokenizer: Any, *, num_tokens: int = 10) -> LensTokens:
    """
    The logit lens of any number of directions, a part of them at a time; the most promoted and suppressed come first.

    Special tokens are left out. [`logit_lens`] has the formula.
    """
    inner = unwrap(model)
    head_VD = inner.get_output_embeddings().weight
    norm = _final_norm_weight(inner)
    size = min(len(tokenizer), len(head_VD))
    unwanted = [i for i in tokenizer.all_special_ids if i < size]
    specials = torch.tensor(unwanted, dtype=torch.long, device=head_VD.device)
    most = min(num_tokens, size - len(specials))
    per_part = max(16, _LOGITS_AT_ONCE // size)
    parts = []
    with torch.inference_mode():
        for part_FD in directions_FD.split(per_part):
            pushed_FD = part_FD.to(head_VD.device).float() * (1.0 if norm is None else norm.float())
            logits_FV = torch.cat([pushed_FD @ rows.float().T for rows in head_VD[:size].split(_ROWS_AT_ONCE)], dim=1)
            spread_F = logits_FV.std(dim=1, keepdim=True).clamp_min(1e-12)
            logits_FV -= logits_FV.mean(dim=1, keepdim=True)
            logits_FV[:, specials] = -torch.inf
            scores_FK, ids_FK = logits_FV.topk(most, dim=1)
            logits_FV[:, specials] = torch.inf
            worst_FK, worst_ids_FK = logits_FV.topk(most, dim=1, largest=False)
            parts.append([each.cpu() for each in (ids_FK, scores_FK / spread_F, worst_ids_FK, worst_FK / spread_F)])
    return LensTokens(*(torch.cat(each) for each in zip(*parts)))


def _final_norm_weight(model: nn.Module) -> torch.Tensor | None:
    decoder: Any = model.get_decoder() if hasattr(model, "get_decoder") else None  # type: ignore[operator]
    norm = next(
        (getattr(decoder, name) for name in ("norm", "ln_f", "final_layernorm") if hasattr(decoder, name)), None
    )
    weight = getattr(norm, "weight", None)
    if weight is None:
        return None
    return weight + 1 if "Gemma" in type(norm).__name__ else weight  # Gemma keeps γ − 1
