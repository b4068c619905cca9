"""Whether a prompt and its answer fit the positions of a model."""

from typing import Any


def check_length(model: Any, num_prompt_tokens: int, max_new_tokens: int) -> None:
    """Raises a `ValueError` if a prompt and an answer of so many tokens do not fit the positions of the model."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and num_prompt_tokens + max_new_tokens > longest:
        advice = "Shorten the prompt, or leave it out"
        if num_prompt_tokens < longest:
            advice = f"Set `max_new_tokens` to {longest - num_prompt_tokens} or less, or shorten the prompt"
        raise ValueError(
            f"A prompt of {num_prompt_tokens} tokens and an answer of {max_new_tokens} do not fit the {longest} "
            f"positions of the model. {advice}."
        )
