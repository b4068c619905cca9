"""Answers sampled from a model, in batches that can be repeated. torch and transformers load on first use."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...eval_mode import eval_mode
from .end_of_turn import answer_end_ids
from .generation_settings import own_settings_aside
from .positions import check_length

if TYPE_CHECKING:
    from transformers import LogitsProcessorList, PreTrainedTokenizerBase


def generate_answers(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 512,
    temperature: float = 1.0,
    top_p: float = 0.8,
    seed: int = 0,
    repetition_penalty: float = 1.0,
    logits_processor: "LogitsProcessorList | None" = None,
    streamer: Any = None,
) -> tuple[list[list[int]], list[bool]]:
    """
    Samples one answer to each prompt (token ids, of any lengths from 1 up), all in one batch; greedily at temperature
    0.

    The same batch and seed give the same answers on the same hardware and versions. The random state of the caller,
    the model's mode and its generation settings are left as they were. Of the latter only the end tokens are used,
    together with that of the tokenizer and the one that closes a turn in the chat template.

    Returns the token ids of each answer up to its end token, without it, and whether there was one. `False` means that
    the answer was cut at `max_new_tokens`. A `streamer` of transformers is given the tokens of a single prompt as they
    come.
    """
    import torch
    from transformers import GenerationConfig

    from ...cpu_logits import contiguous_states

    if not prompts:
        return [], []
    if any(len(ids) == 0 for ids in prompts):
        raise ValueError("A prompt has no tokens; a model needs at least one to begin from.")
    longest = max(map(len, prompts))
    check_length(model, longest, max_new_tokens)

    end_ids = answer_end_ids(getattr(model, "generation_config", None), tokenizer)
    pad_id = tokenizer.pad_token_id
    if pad_id is None:
        pad_id = end_ids[0] if end_ids else 0
    sampling = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0, "min_p": 0.0}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        num_beams=1,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram_size=0,
        use_cache=True,
        eos_token_id=end_ids or None,
        pad_token_id=pad_id,
        **sampling,
    )

    device = model.device
    input_ids = torch.full((len(prompts), longest), pad_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(prompts):
        input_ids[row, longest - len(ids) :] = torch.tensor(ids, dtype=torch.long)
        attention_mask[row, longest - len(ids) :] = 1
    quick = contiguous_states(model)
    with eval_mode(model), own_settings_aside(model), seeded(seed), quick, torch.inference_mode():
        output = model.generate(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            generation_config=config,
            logits_processor=logits_processor,
            **({} if streamer is None else {"streamer": streamer}),
        )

    answers, finished = [], []
    for ids in output[:, longest:].tolist():
        end = next((position for position, token in enumerate(ids) if token in end_ids), None)
        answers.append(ids if end is None else ids[:end])
        finished.append(end is not None)
    return answers, finished


def batch_seed(seed: int, batch: int) -> int:
    """The seed of a batch, from that of the whole sampling and the number of the batch."""
    import numpy as np

    return int(np.random.SeedSequence([seed % 2**32, batch]).generate_state(1)[0])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch on every device; its random state is restored when the context exits."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kind = accelerator.type if accelerator is not None else "cuda"
    keeps_state = accelerator is not None and hasattr(getattr(torch, kind), "get_rng_state_all")
    devices = range(torch.accelerator.device_count()) if keeps_state else ()
    with torch.random.fork_rng(devices=devices, device_type=kind):
        torch.manual_seed(seed)  # seeds every device
        yield
