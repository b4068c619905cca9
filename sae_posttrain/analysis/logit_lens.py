"""Which tokens a feature's direction promotes and suppresses: the logit lens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..features.set.feature_set import FeatureSet
from ..hooks.blocks import unwrap


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
    inner = unwrap(model)
    head = inner.get_output_embeddings().weight
    norm = _final_norm_weight(inner)
    written = {"resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"}
    specials = set(tokenizer.all_special_ids)
    found = []
    for direction_D, site in zip(feature_set.directions, feature_set.sites):
        if site not in written or len(direction_D) != head.shape[1]:
            found.append(Promoted((), ()))
            continue
        with torch.inference_mode():
            pushed_D = direction_D.to(head.device).float() * (1.0 if norm is None else norm.float())
            logits_V = (head @ pushed_D.to(head.dtype)).float()[: len(tokenizer)]
            logits_V = (logits_V - logits_V.mean()) / logits_V.std().clamp_min(1e-12)
        order = [token for token in logits_V.argsort(descending=True).tolist() if token not in specials]
        best, worst = order[:num_tokens], order[: -num_tokens - 1 : -1]
        found.append(Promoted(_written(best, logits_V, tokenizer), _written(worst, logits_V, tokenizer)))
    return found


def _written(tokens: Sequence[int], logits_V: torch.Tensor, tokenizer: Any) -> tuple[tuple[str, float], ...]:
    return tuple((tokenizer.decode([token]), float(logits_V[token])) for token in tokens)


def _final_norm_weight(model: nn.Module) -> torch.Tensor | None:
    decoder: Any = model.get_decoder() if hasattr(model, "get_decoder") else None  # type: ignore[operator]
    norm = next(
        (getattr(decoder, name) for name in ("norm", "ln_f", "final_layernorm") if hasattr(decoder, name)), None
    )
    weight = getattr(norm, "weight", None)
    if weight is None:
        return None
    return weight + 1 if "Gemma" in type(norm).__name__ else weight  # Gemma keeps γ − 1
