"""
Hold a set of tokens down without training, by their rows of the LM head.

```python
tokens = script_tokens(tokenizer, "zh")
scale_lm_head(model, tokens.ids, 0.5)
```
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..hooks.blocks import unwrap


def scale_lm_head(model: Any, token_ids: Sequence[int], factor: float | Sequence[float]) -> None:
    """
    Multiply the rows of some tokens in the LM head by a factor, for good: their logits are multiplied by it.

    The idea of Smoothie-Qwen (https://huggingface.co/papers/2507.05686). It moves logits towards 0: a token is held
    down where its logit is above 0, and *raised* where it is below. A head that is tied to the input embeddings is
    untied first, which adds its size to the model. Only the weights are scaled; a bias of the head stays as it is.

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


def _shown(factors: Tensor) -> str:
    return f"{factors.item():g}" if factors.ndim == 0 else f"{factors.min():g} to {factors.max():g}"
