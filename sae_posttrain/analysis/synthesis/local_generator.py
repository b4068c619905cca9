"""[`LocalGenerator`]: a model on this machine writes the texts, steered along the features if asked."""

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from ...hooks.blocks import unwrap
from ...hooks.steer import steer
from ...measure.answers.generate import generate_answers
from ...measure.answers.prompt_tokens import render_messages
from ...model_loading import load_model, load_tokenizer
from ...model_records import recorded_kwargs, recorded_model, weights_fingerprint
from .generator import Aim, Messages
from .unfinished import STOP, check_unfinished, usable_part


class LocalGenerator:
    """
    A causal language model on this machine. It answers conversations by its chat template, or goes on with a text.

    ```python
    generator = LocalGenerator("HuggingFaceTB/SmolLM2-135M-Instruct", max_new_tokens=96, strength=0.3)
    generator = LocalGenerator("google/gemma-3-270m", max_new_tokens=96, completions=True)
    ```

    Args:
        model (`torch.nn.Module`, `str` or path):
            The model, or its folder or Hub id. It may be the model that the SAE was trained on, or another.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The model's, loaded from its folder if left out.
        max_new_tokens (`int`, *optional*, defaults to `256`):
            Longest answer, in tokens.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature; 0 is greedy.
        top_p (`float`, *optional*, defaults to `0.95`):
            Nucleus of the sampling.
        strength (`float`, *optional*, defaults to `0.0`):
            How far generated tokens are pushed along the target's direction, in median residual norms, as in
            [`steer`]. Above 0 the model must be that of the SAE.
        unfinished (`"drop"` or `"trim"`, *optional*, defaults to `"trim"`):
            What becomes of an answer that reaches `max_new_tokens`: it is cut after its last whole sentence, or
            counts as no answer.
        completions (`bool`, *optional*, defaults to `False`):
            For a base model: it is given a list of examples as plain text, and writes the next one, up to the end of
            the line.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*):
            Further variables of the chat template.
        model_kwargs (`Mapping[str, Any]`, *optional*):
            Arguments of `from_pretrained`, e.g. `{"dtype": "float32"}`.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self,
        model: nn.Module | str | os.PathLike,
        tokenizer: Any = None,
        *,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 0.95,
        strength: float = 0.0,
        unfinished: str = "trim",
        completions: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ):
        if max_new_tokens < 1:
            raise ValueError(f"`max_new_tokens` must be 1 or more, got {max_new_tokens}.")
        if not 0 <= temperature < math.inf or not 0 < top_p <= 1:
            raise ValueError(f"`temperature` must be 0 or more and `top_p` in (0, 1], got {temperature}, {top_p}.")
        if not math.isfinite(strength):
            raise ValueError(f"`strength` must be a finite number, got {strength}.")
        check_unfinished(unfinished)
        if completions and chat_template_kwargs:
            raise ValueError("`completions` goes without a chat template, so `chat_template_kwargs` have no effect.")
        self._model: Any = os.fspath(model) if isinstance(model, os.PathLike) else model
        self._given_tokenizer = tokenizer
        self._loaded: tuple[Any, Any] | None = None
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.top_p = top_p
        self.strength = strength
        self.unfinished = unfinished
        self.completions = completions
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.model_kwargs = dict(model_kwargs or {})

    @property
    def settings(self) -> dict[str, Any]:
        """What the records say of it."""
        model = self._model if isinstance(self._model, str) else unwrap(self._model)
        names = ("max_new_tokens", "temperature", "top_p", "strength", "unfinished", "completions")
        return {
            "model": recorded_model(model),
            "weights": weights_fingerprint(model),
            **{name: getattr(self, name) for name in names},
            "chat_template_kwargs": self.chat_template_kwargs,
            "model_kwargs": recorded_kwargs(self.model_kwargs),
        }

    def prepare(self, path: str | None, model: Any, tokenizer: Any) -> None:
        """Load the model; one that is loaded already is taken if it is that of the same folder, loaded in one way."""
        if self._loaded is None and path is not None and self._model == path and not self.model_kwargs:
            self._loaded = model, self._given_tokenizer or tokenizer
        self._load()

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            network = load_model(self._model, PartialState().device, self.model_kwargs)
            source = self._model if isinstance(self._model, str) else unwrap(self._model)
            self._loaded = network, load_tokenizer(self._given_tokenizer, source)[0]
        return self._loaded

    def __call__(self, conversations: Sequence[Messages], *, seed: int, aim: Aim | None = None) -> list[str | None]:
        """
        Answer conversations, all in one batch. See [`Generator`].

        Raises:
            ValueError: If there is no chat template and `completions` is not set, a conversation does not fit the
                model, or the targets are those of another model.
        """
        model, tokenizer = self._load()
        prompts = [self._prompt(tokenizer, messages) for messages in conversations]
        steering: Any = nullcontext()
        if aim is not None and self.strength:
            aim.features.check_model(model, tokenizer=tokenizer)
            strength_BF = torch.zeros(len(prompts), len(aim.features))
            strength_BF[range(len(prompts)), list(aim.rows)] = self.strength
            steering = steer(model, aim.features, strength_BF)
        with steering:
            answers, finished = generate_answers(
                model,
                tokenizer,
                prompts,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                seed=seed,
            )
        return [
            self._text(tokenizer.decode(ids, skip_special_tokens=True), end) for ids, end in zip(answers, finished)
        ]

    def _prompt(self, tokenizer: Any, messages: Messages) -> list[int]:
        if self.completions:
            return list(tokenizer(messages[-1]["content"])["input_ids"])
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("The generator has no chat template. If it is a base model, set `completions`.")
        return render_messages(
            tokenizer, messages, "A prompt", add_generation_prompt=True, **self.chat_template_kwargs
        )

    def _text(self, text: str, finished: bool) -> str | None:
        if self.completions:
            text, stop, _ = text.lstrip().partition(STOP)
            finished = finished or bool(stop)
        return usable_part(text, finished, self.unfinished)
