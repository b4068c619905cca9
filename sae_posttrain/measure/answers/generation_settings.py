"""
Keep a model's own generation settings out of a measurement.

`generate` takes every setting that a caller leaves out from the model's `generation_config`. So that two models are
sampled in the same way, their own settings are removed while answers are sampled, and those that would have had an
effect are named.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SET = frozenset(
    "do_sample eos_token_id max_new_tokens min_p no_repeat_ngram_size num_beams pad_token_id repetition_penalty "
    "temperature top_k top_p use_cache".split()
)
"""Settings that [`generate_answers`] sets itself."""

USUAL = frozenset("do_sample max_length max_new_tokens repetition_penalty temperature top_k top_p min_p".split())
"""Settings that most chat models have and that callers choose. They are recorded without a warning."""

NEUTRAL: dict[str, Any] = {
    "assistant_early_exit": None,
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "constraints": None,
    "diversity_penalty": 0.0,
    "dola_layers": None,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": None,
    "force_words_ids": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": None,
    "length_penalty": 1.0,
    "max_time": None,
    "min_length": 0,
    "min_new_tokens": None,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "penalty_alpha": None,
    "prefill_chunk_size": None,
    "prompt_lookup_num_tokens": None,
    "remove_invalid_values": False,
    "renormalize_logits": False,
    "return_dict_in_generate": False,
    "sequence_bias": None,
    "stop_strings": None,
    "suppress_tokens": None,
    "token_healing": False,
    "top_h": None,
    "typical_p": 1.0,
    "use_mtp": None,
    "watermarking_config": None,
}
"""Every other setting of transformers that changes the sampled tokens, with the value that has no effect."""

HARMLESS = frozenset(
    (
        "_from_model_config transformers_version bos_token_id decoder_start_token_id max_length "
        # how the cache is kept, and whether code is compiled
        "cache_config cache_implementation compile_config continuous_batching_config disable_compile low_memory "
        "max_cache_len "
        # what is returned in addition to the tokens
        "output_attentions output_hidden_states output_logits output_scores "
        # how an assistant drafts tokens; no assistant is used here
        "assistant_confidence_threshold assistant_ensemble_weight assistant_lookbehind is_assistant "
        "max_matching_ngram_size num_assistant_tokens num_assistant_tokens_schedule speculation_type target_lookbehind"
    ).split()
)
"""Settings that do not change answers. A test compares these four lists with the installed transformers."""


@contextmanager
def own_settings_aside(model: Any) -> Iterator[None]:
    """Hide all of the model's own generation settings from `generate`; they are restored when the context exits."""
    from transformers import GenerationConfig

    holders = [
        module for module in model.modules() if isinstance(vars(module).get("generation_config"), GenerationConfig)
    ]
    own = [module.generation_config for module in holders]
    try:
        for module in holders:
            module.generation_config = GenerationConfig()
        yield
    finally:
        for module, config in zip(holders, own):
            module.generation_config = config


def unused_settings(model: Any) -> dict[str, Any]:
    """
    The model's own generation settings that would change answers and are not used, also those that no list here
    contains. End and padding tokens are not included, because they are used.
    """
    config = getattr(model, "generation_config", None)
    values = config.to_dict() if config is not None else {}
    skipped = HARMLESS | {"eos_token_id", "pad_token_id", "use_cache"}
    defaults = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, **NEUTRAL}
    return {
        name: value
        for name, value in sorted(values.items())
        if name not in skipped and value is not None and value != [] and value != defaults.get(name)
    }


def describe_unused(unused: dict[str, Any]) -> str:
    """A sentence for the user about the unusual settings; empty if there are none."""
    named = [f"{name}={value!r}"[:60] for name, value in unused.items() if name not in USUAL]
    if not named:
        return ""
    return (
        f"The model's own generation settings are not used. The model may need {', '.join(named)} to answer as its "
        "makers intended."
    )
