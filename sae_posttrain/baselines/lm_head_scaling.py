"""
Hold a set of tokens down without training: by their rows of the LM head, or by a constant on their logits.

```python
tokens = script_tokens(tokenizer, "zh")
scale_lm_head(model, tokens.ids, 0.5)
```
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..hooks.blocks import unwrap
from ..measure.answers.generation_settings import SCALED
from ..measure.faults.script_tokens import script_tokens
from ..measure.faults.scripts import count_scripts, target_scripts_of

logger = logging.getLogger(__name__)


def scale_lm_head(model: Any, token_ids: Sequence[int], factor: float | Sequence[float]) -> None:
    """
    Multiply the rows of some tokens in the LM head by a factor, for good: their logits are multiplied by it.

    The idea of Smoothie-Qwen (https://huggingface.co/papers/2507.05686), whose own factors [`smoothie_factors`]
    gives. It moves logits towards 0: a token is held down where its logit is above 0, and *raised* where it is below.
    [`scale_probabilities`] has no such side. A head that is tied to the input embeddings is untied first, which adds
    its size to the model. Works on the weights alone; a bias of the head stays as it is.

    Args:
        model (`PreTrainedModel`):
            A causal language model, changed in place. `save_pretrained` keeps the change.
        token_ids (`Sequence[int]`):
            Rows to scale: `script_tokens(tokenizer, "zh").ids`, say.
        factor (`float` or `Sequence[float]`):
            One factor for all, or one for each token, from 0 to 1.

    Raises:
        ValueError: If the model is wrapped or has no LM head to change, a token is not in it, or nothing would change.
    """
    head = _find_head(model)
    ids = _checked_ids(head, token_ids)
    factors = torch.as_tensor(factor, dtype=torch.float32)
    if factors.ndim > 1 or (factors.ndim == 1 and len(factors) != len(ids)):
        raise ValueError(
            f"`factor` is one number, or one for each of the {len(ids)} tokens, got {tuple(factors.shape)}."
        )
    if not bool(((factors >= 0) & (factors <= 1)).all()) or bool((factors == 1).all()):
        raise ValueError(f"`factor` is from 0 to 1, and below 1 for some token, got {_shown(factors)}.")
    _untie(model, head)
    with torch.no_grad():
        rows = head.weight[ids].float() * factors.to(head.weight.device).reshape(-1, 1)
        head.weight[ids] = rows.to(head.weight.dtype)


def scale_probabilities(model: Any, token_ids: Sequence[int], factor: float) -> None:
    """
    Multiply the probabilities of some tokens by a factor before they are normalised: `log(factor)` on their logits.

    A head with a bias carries it there, in every forward pass. Most have none, and one that is added is not saved:
    the architecture would be built without it. Then it goes into `model.generation_config.sequence_bias`, which
    `save_pretrained` keeps and `generate` (so [`evaluate`] too) applies, but nothing else: the loss of a forward pass
    does not show it, and engines that do not read that setting ignore it. A warning says so. Logits that the model
    caps (Gemma 2) are lowered before the cap by a bias, behind it by `generate`.

    Args:
        model (`PreTrainedModel`):
            A causal language model, changed in place.
        token_ids (`Sequence[int]`):
            Tokens to hold down: `script_tokens(tokenizer, "zh").ids`, say.
        factor (`float`):
            Between 0 and 1, both excluded. Applied again, it multiplies with the earlier one.

    Raises:
        ValueError: If the model is wrapped or has no LM head, a token is not in it, or the factor is out of range.
    """
    head = _find_head(model)
    ids = _checked_ids(head, token_ids)
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1:
        raise ValueError(f"`factor` is a number between 0 and 1, both excluded, got {factor!r}.")
    shift = math.log(factor)
    if head.bias is not None:
        with torch.no_grad():
            head.bias[ids] += shift
        return
    config = model.generation_config
    biases = _as_dict(config.sequence_bias)
    for token in ids.tolist():
        biases[(token,)] = biases.get((token,), 0.0) + shift
    config.sequence_bias = [[list(tokens), bias] for tokens, bias in biases.items()]
    setattr(model.config, SCALED, True)
    logger.warning(
        "The LM head of %s has no bias, and one that is added would not be saved. %d tokens are lowered by `generate` "
        "alone, through `generation_config.sequence_bias`: the loss of a forward pass does not show it.",
        type(model).__name__,
        len(ids),
    )


def smoothie_factors(
    tokenizer: Any,
    lang: str,
    *,
    min_scale: float = 0.5,
    smoothness: float = 10.0,
    sample_size: int = 1000,
    seed: int = 0,
) -> tuple[list[int], list[float]]:
    """
    The factors of Smoothie-Qwen, one per token: `scale_lm_head(model, *smoothie_factors(tokenizer, "zh"))`.

    Whole tokens of the language's script get `min_scale`. A token that is no text by itself gets
    `1 - (1 - min_scale) · log(1 + (smoothness - 1) · p) / log(smoothness)`, where `p` is the share of such tokens
    behind it with which it decodes to a character of the script (`adjust.py` and `analyze.py` of
    `dnotitia/smoothie-qwen`, window 2, its default). Those with `p = 0` are left out. The script is Unicode's; the
    published ranges for Chinese hold punctuation too.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The model's.
        lang (`str`):
            Language to hold down, as an ISO 639 code.
        min_scale (`float`, *optional*, defaults to `0.5`):
            Smallest factor.
        smoothness (`float`, *optional*, defaults to `10.0`):
            Above 1; the larger, the nearer a small `p` comes to `min_scale`.
        sample_size (`int`, *optional*, defaults to `1000`):
            Tokens tried behind each broken one; all of them if there are no more.
        seed (`int`, *optional*, defaults to `0`):
            Draws them.

    Returns:
        `tuple[list[int], list[float]]`: token ids, and the factor of each.

    Raises:
        ValueError: If a setting is out of range, or no character of the script is written in one or two tokens.
    """
    if not 0 <= min_scale < 1 or not smoothness > 1 or sample_size < 1:
        raise ValueError(
            "`min_scale` is from 0 to below 1, `smoothness` above 1 and `sample_size` 1 or more, got "
            f"{min_scale!r}, {smoothness!r} and {sample_size!r}."
        )
    scripts = target_scripts_of(lang)
    factors = dict.fromkeys(script_tokens(tokenizer, lang).whole, min_scale)
    special = set(tokenizer.all_special_ids)
    ids = [token for token in range(len(tokenizer)) if token not in special and token not in factors]
    broken = [token for token, text in zip(ids, _decoded(tokenizer, [[token] for token in ids])) if "\ufffd" in text]
    generator = torch.Generator().manual_seed(seed)
    for token in broken:
        behind = [broken[i] for i in torch.randperm(len(broken), generator=generator)[:sample_size].tolist()]
        texts = _decoded(tokenizer, [[token, other] for other in behind])
        share = sum(not scripts.isdisjoint(count_scripts(text)) for text in texts) / len(texts)
        if share > 0:
            smoothed = math.log(1 + (smoothness - 1) * share) / math.log(smoothness)
            factors[token] = 1 - (1 - min_scale) * smoothed
    if not factors:
        raise ValueError(
            f"No character of {', '.join(sorted(scripts))} is one or two tokens of this tokenizer, and longer ones "
            "are not looked at. Scale all tokens of the script alike: "
            "`scale_lm_head(model, script_tokens(…).ids, 0.5)`."
        )
    return list(factors), list(factors.values())


def _decoded(tokenizer: Any, sequences: list[list[int]]) -> list[str]:
    return tokenizer.batch_decode(sequences, clean_up_tokenization_spaces=False) if sequences else []


def _find_head(model: Any) -> nn.Linear:
    if unwrap(model) is not model:
        raise ValueError(
            f"The LM head of a wrapped model ({type(model).__name__}) would not be saved with it. Pass the plain "
            "transformers model; of an adapter, `model.merge_and_unload()`."
        )
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not isinstance(head, nn.Linear) or not head.weight.is_floating_point():
        raise ValueError(
            f"{type(model).__name__} has no LM head with a row of floating-point weights per token "
            f"(`get_output_embeddings()` is a {type(head).__name__}). Load the model unquantized and without adapters."
        )
    return head


def _checked_ids(head: nn.Linear, token_ids: Sequence[int]) -> Tensor:
    ids = torch.as_tensor(list(token_ids), dtype=torch.long)
    if len(ids) == 0:
        raise ValueError("`token_ids` is empty: there is no token to hold down. Is it the right tokenizer?")
    if int(ids.min()) < 0 or int(ids.max()) >= len(head.weight):
        outside = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise ValueError(f"The LM head has tokens 0 to {len(head.weight) - 1}, `token_ids` names {outside}.")
    if len(ids.unique()) != len(ids):
        raise ValueError("`token_ids` names a token twice.")
    return ids.to(head.weight.device)


def _untie(model: Any, head: nn.Linear) -> None:
    """Give the head weights of its own, in memory and in what `from_pretrained` will build."""
    if head.weight is model.get_input_embeddings().weight:
        name = next(name for name, module in model.named_modules() if module is head)
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        model.all_tied_weights_keys.pop(f"{name}.weight", None)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def _as_dict(sequence_bias: Any) -> dict[tuple[int, ...], float]:
    """`GenerationConfig.sequence_bias` in either of its forms."""
    pairs = sequence_bias.items() if isinstance(sequence_bias, dict) else sequence_bias or []
    return {tuple(tokens): float(bias) for tokens, bias in pairs}


def _shown(factors: Tensor) -> str:
    return f"{factors.item():g}" if factors.ndim == 0 else f"{factors.min():g} to {factors.max():g}"
