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
    **dict.fromkeys(
        (
            "assistant_early_exit bad_words_ids begin_suppress_tokens constraints dola_layers "
            "exponential_decay_length_penalty force_words_ids forced_bos_token_id forced_eos_token_id "
            "guidance_scale max_time min_new_tokens penalty_alpha prefill_chunk_size prompt_lookup_num_tokens "
            "sequence_bias stop_strings suppress_tokens top_h use_mtp watermarking_config"
        ).split()
    ),
    **dict.fromkeys("diversity_penalty epsilon_cutoff eta_cutoff".split(), 0.0),
    **dict.fromkeys(
        "early_stopping remove_invalid_values renormalize_logits return_dict_in_generate token_healing".split(), False
    ),
    **dict.fromkeys("encoder_no_repeat_ngram_size min_length".split(), 0),
    **dict.fromkeys("encoder_repetition_penalty length_penalty typical_p".split(), 1.0),
    **dict.fromkeys("num_beam_groups num_return_sequences".split(), 1),
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
