"""The factors of Smoothie-Qwen (https://huggingface.co/papers/2507.05686) for the rows of the LM head."""

import math
from typing import Any

import torch

from sae_posttrain.measure.faults.script_tokens import script_tokens
from sae_posttrain.measure.faults.scripts import count_scripts, target_scripts_of


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
