"""The LM head of a model: what goes into it, recorded by a hook, and the logits that the model makes of that."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..eval_mode import eval_mode
from ..hooks.blocks import unwrap

_NUM_CHECKED = 8
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}
_TOLERANCE_OF_HALF_TYPES = 0.05


class OutputHead:
    """
    Input of a model's LM head, and the logits that the model makes of it; for models that are not sharded.

    TRL computes its losses without logits: it takes the hidden states behind the last norm and multiplies them with
    the head's weight tile by tile. A hook on the decoder sees the same hidden states, whoever asks for them. It only
    stores them, and is registered once by `listen`, before the first forward.
    """

    def __init__(self, model: nn.Module):
        self._inner = unwrap(model)
        self._captures: list[Tensor] | None = None
        decoder = self._inner.get_decoder() if hasattr(self._inner, "get_decoder") else None
        if not isinstance(self._find(), nn.Module) or not isinstance(decoder, nn.Module) or decoder is self._inner:
            raise ValueError(
                f"{type(self._inner).__name__} has no LM head, so it gives tokens no probability that could be "
                "penalised. Leave `penalised_tokens` out, or train a causal language model."
            )
        if any(isinstance(module, nn.Dropout) and module.p > 0 for module in self._find().modules()):
            raise ValueError(
                "The LM head has dropout, and the probability of the penalised tokens would be another at each look. "
                "Set `lora_dropout=0`, or leave the LM head out of the adapter."
            )
        self._scale, self._softcap = _logit_scale(self._inner.config), _softcap(self._inner.config)
        self._decoder = decoder
        with decoder.register_forward_hook(self._store):
            self._require_the_models_own_logits(model)

    def _find(self) -> Any:
        # Looked up at each use: PEFT and others replace it.
        return self._inner.get_output_embeddings() if hasattr(self._inner, "get_output_embeddings") else None

    def _store(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if self._captures is not None:
            self._captures.append(output[0])  # `last_hidden_state` of a `ModelOutput` comes first

    def listen(self) -> None:
        """Register the hook on the decoder, for good."""
        self._decoder.register_forward_hook(self._store)

    @property
    def vocab_size(self) -> int:
        """Tokens that the head gives a logit."""
        return self._find().weight.shape[0]

    @property
    def is_trained(self) -> bool:
        """Whether a parameter of the head is trained: its own, an adapter's, or the embeddings' that it shares."""
        return any(parameter.requires_grad for parameter in self._find().parameters())

    @contextmanager
    def armed(self) -> Iterator[list[Tensor]]:
        """Record the head's input, `(B, T, D)`, of every forward made inside."""
        captures: list[Tensor] = []
        self._captures = captures
        try:
            yield captures
        finally:
            self._captures = None

    def training_input(self, captures: list[Tensor]) -> Tensor:
        """
        The head's input in the forward of the loss: with gradients enabled the first that requires grad, else the
        first.
        """
        if not captures:
            raise ValueError(
                "The forward pass of the loss did not reach the model's decoder, so the probability of tokens cannot "
                "be read. Was the model replaced after the trainer was built?"
            )
        attached = [value for value in captures if value.requires_grad]
        if torch.is_grad_enabled() and not attached and not self.is_trained:
            raise ValueError(
                "The probability of the penalised tokens does not depend on a trainable parameter, so a penalty on it "
                "would change nothing. Train some layer of the model."
            )
        return attached[0] if torch.is_grad_enabled() and attached else captures[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's logits `(N, V)` of the head's input `(N, D)`, in the type of the head's weight."""
        head = self._find()
        if head.weight.is_floating_point():
            hidden = hidden.to(head.weight.dtype)
        logits_NV = head(hidden.to(head.weight.device))
        if self._scale != 1.0:
            logits_NV = logits_NV * self._scale
        if self._softcap is not None:
            logits_NV = torch.tanh(logits_NV / self._softcap) * self._softcap
        return logits_NV

    def _require_the_models_own_logits(self, model: nn.Module) -> None:
        """Compare with a forward of the model on a few tokens: it may scale its logits in a way unknown here."""
        embeddings = self._inner.get_input_embeddings()
        tokens = torch.linspace(0, min(self.vocab_size, embeddings.weight.shape[0]) - 1, _NUM_CHECKED).long()
        tokens = tokens[None].to(embeddings.weight.device)
        with torch.no_grad(), eval_mode(model), self.armed() as captures:
            own_NV = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, -_NUM_CHECKED:]
            made_NV = self.logits(self.training_input(captures)[0, -_NUM_CHECKED:])
        tolerance = _TOLERANCE.get(made_NV.dtype, _TOLERANCE_OF_HALF_TYPES)
        own_NV, made_NV = (each.cpu().double() for each in (own_NV, made_NV))
        own_NV, made_NV = (each - each.mean(dim=-1, keepdim=True) for each in (own_NV, made_NV))
        difference = float((made_NV - own_NV).norm() / own_NV.norm().clamp(min=torch.finfo(torch.float64).tiny))
        if not difference <= tolerance:  # not a number too
            raise ValueError(
                f"The logits of {type(self._inner).__name__} are not those that its LM head makes of its decoder's "
                f"output (they differ by {difference:.1%}): it changes one or the other in a way that is not known "
                "here, and the penalty would train on wrong probabilities. Leave `penalised_tokens` out."
            )


def _logit_scale(config: Any) -> float:
    """Factor on the logits, by the names of the architectures that have one."""
    config = config.get_text_config()
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):  # Cohere, Muse Glimmer, Falcon-H1
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return float(scaling) if config.model_type == "hyperclovax" else 1.0 / scaling  # Granite and MiniCPM3 divide


def _softcap(config: Any) -> float | None:
    """Height that logits cannot exceed, as in Gemma 2; applied after the factor."""
    return getattr(config.get_text_config(), "final_logit_softcapping", None)
