"""
Push what passes at sites of decoder blocks along some directions, for chosen rows and positions.

Nothing is written in place.

Legend of the shapes: B rows, T positions of one forward pass, D width, F features.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .blocks import find_blocks, unwrap
from .sites import Place, describe_place, hook_sites, require_width

MODES = ("add", "clamp")
UNITS = ("norm", "raw")
POSITIONS = ("generated", "all")


class Directions(Protocol):
    """What steering reads of a `FeatureSet`: any directions will do, an SAE's or not."""

    @property
    def directions(self) -> Tensor: ...
    @property
    def encoder_rows(self) -> Tensor: ...
    @property
    def encoder_bias(self) -> Tensor: ...
    @property
    def residual_norms(self) -> Tensor: ...
    @property
    def blocks(self) -> tuple[int, ...]: ...
    @property
    def sites(self) -> tuple[str, ...]: ...
    @property
    def names(self) -> tuple[str, ...]: ...


Strength = float | Tensor | Sequence[float] | Mapping[str, float]


@contextmanager
def steer(
    model: nn.Module,
    feature_set: Directions,
    *,
    strength: Strength,
    rows: Tensor | Sequence[bool] | None = None,
    positions: str | Tensor = "generated",
    mode: str = "add",
    unit: str = "norm",
) -> Iterator[None]:
    """
    Push what passes at the features' sites along their directions, in every forward pass made inside the context.

    ```python
    with steer(model, features, strength=1.5, rows=[False, True]):
        model.generate(**inputs)  # of the two prompts the second is answered under steering
    ```

    Additive steering writes `h + strength · norm · d / ‖d‖`, with the median residual norm of the site, as
    Qwen-Scope (https://huggingface.co/papers/2605.11887, section 3) up to the unit. Pushes of several features at one
    site are summed, from its value as the model computed it, before they are added.

    Args:
        model (`torch.nn.Module`):
            A causal language model, wrapped by PEFT or not.
        feature_set ([`FeatureSet`]):
            Directions with their blocks and sites. Any direction goes this way: see `FeatureSet.from_directions`.
        strength (`float`, `torch.Tensor` of shape `(B,)` or `(B, F)`, or `Mapping[str, float]`):
            How far, for all rows and features, per row, per row and feature, or by feature name.
        rows (`Sequence[bool]` or `torch.Tensor` of shape `(B,)`, *optional*):
            Rows of the batch to push; all by default.
        positions (`"generated"`, `"all"` or `torch.Tensor` of shape `(B, T)`, *optional*, defaults to `"generated"`):
            `"generated"`: from the last position of the prompt on, which predicts the first generated token; prompts
            are padded on the left. `"all"`: the prompt too. A mask: those positions, in passes of that length.
        mode (`"add"` or `"clamp"`, *optional*, defaults to `"add"`):
            `"clamp"` moves a feature's pre-activation to `strength` (raw units) along its direction:
            `h + (strength − pre(h)) · d`. That is exact where `W_enc · d = 1`, and for one feature at a site.
        unit (`"norm"` or `"raw"`, *optional*, defaults to `"norm"`):
            Of additive strength: median residual norms of the site, or lengths in what passes there as it is.

    Raises:
        ValueError: If the features do not fit the model, a shape does not fit the batch, a norm is missing, or no
            forward pass touched the rows that were to be pushed.
    """
    steerer = Steerer(model, feature_set, mode=mode, unit=unit)
    try:
        with steerer.armed(strength, rows=rows, positions=positions):
            yield
    finally:
        steerer.remove()


class Steerer:
    """
    The hooks of [`steer`], registered once and armed when they shall push.

    A trainer builds it before the first forward: a hook that is added after `torch.compile` has seen the graph never
    fires. Disarmed, the hooks change nothing.

    Args:
        model, feature_set, mode, unit:
            As in [`steer`].

    Raises:
        ValueError: As [`steer`] does for what does not depend on the batch.
    """

    def __init__(self, model: nn.Module, feature_set: Directions, *, mode: str = "add", unit: str = "norm"):
        _require_choice("mode", mode, MODES)
        _require_choice("unit", unit, UNITS)
        self._of_place = _features_of_places(feature_set)
        for place in self._of_place:
            width = feature_set.directions.shape[1]
            require_width(model, place, width, "The directions have", "were they found on this model?")
        lengths = feature_set.directions.norm(dim=1)
        if mode == "add":
            _require_pushable(feature_set, lengths, unit)
            scale = feature_set.residual_norms if unit == "norm" else torch.ones_like(lengths)
            self._vectors_FD = feature_set.directions.float() * (scale / lengths)[:, None]
        else:
            self._vectors_FD = feature_set.directions.float()
        self._features = feature_set
        self._mode = mode
        self._pass: _SteeredPasses | None = None
        self._blocks = find_blocks(model)
        self._hooks = hook_sites(model, self._of_place, lambda site: site.on_write(self._push(site.place)))
        decoder = unwrap(model).get_decoder()
        self._hooks.enter_context(decoder.register_forward_pre_hook(self._before_forward, with_kwargs=True))

    @contextmanager
    def armed(
        self,
        strength: Strength,
        *,
        rows: Tensor | Sequence[bool] | None = None,
        positions: str | Tensor = "generated",
    ) -> Iterator[None]:
        """
        Push in every forward made inside; arguments and errors as those of [`steer`].

        A context in which no row is asked for (`rows` all false) is left without a word: a rank may have none.
        """
        if self._pass is not None:
            raise ValueError("This steerer is armed already. Leave the context before it is entered again.")
        current = _SteeredPasses(strength, rows, positions, self._features, set(self._of_place))
        self._pass = current
        try:
            yield
        finally:
            self._pass = None
        current.require_touched()

    def remove(self) -> None:
        """Take the hooks off the model."""
        self._hooks.close()

    def _before_forward(self, _decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._pass is None:
            return
        self._refuse_recomputed_blocks()
        given = kwargs.get("input_ids", args[0] if args else None)
        given = kwargs.get("inputs_embeds") if given is None else given
        if given is None:
            raise ValueError("Steering needs a forward pass with `input_ids` or `inputs_embeds`.")
        self._pass.begin(given.shape[0], given.shape[1], kwargs.get("past_key_values"))

    def _refuse_recomputed_blocks(self) -> None:
        if not torch.is_grad_enabled():
            return
        for block, site in self._of_place:
            module = self._blocks[block]
            if site not in ("resid_pre", "resid_post") and module.training and _checkpoints(module):
                raise ValueError(
                    f"Gradient checkpointing runs block {block} again in the backward pass, where it is not steered "
                    f"at {site}. Switch it off, or steer at the block's 'resid_pre' or 'resid_post'."
                )

    def _push(self, place: Place):
        features = self._of_place[place]

        def push(hidden: Tensor) -> Tensor | None:
            if self._pass is None or not self._pass.wants_any:
                return None
            self._pass.reach(place)
            if self._mode == "clamp":
                return self._clamp_push(features, hidden).to(hidden.dtype)
            key = (place, hidden.shape[1], hidden.device, hidden.dtype)
            if hidden.shape[1] > 1 or key not in self._pass.pushes:  # every decoding step adds the same
                strength_BF, mask_BT = self._pass.strength_and_mask(hidden)
                vectors_FD = self._vectors_FD[features].to(hidden.device)
                push_BTD = (strength_BF[:, features] @ vectors_FD)[:, None, :] * mask_BT[:, :, None]
                self._pass.pushes[key] = push_BTD.to(hidden.dtype)
            return self._pass.pushes[key]

        return push

    def _clamp_push(self, features: list[int], hidden: Tensor) -> Tensor:
        assert self._pass is not None
        strength_BF, mask_BT = self._pass.strength_and_mask(hidden)
        rows_FD = self._features.encoder_rows[features].to(hidden.device)
        bias_F = self._features.encoder_bias[features].to(hidden.device)
        pre_BTF = hidden.float() @ rows_FD.T + bias_F
        push_BTD = (strength_BF[:, None, features] - pre_BTF) @ self._vectors_FD[features].to(hidden.device)
        return push_BTD * mask_BT[:, :, None]


class _SteeredPasses:
    """State of one armed context: who is to be pushed, where each pass stands in its text, and what was reached."""

    def __init__(
        self,
        strength: Strength,
        rows: Tensor | Sequence[bool] | None,
        positions: str | Tensor,
        features: Directions,
        places: set[Place],
    ):
        self._rows = None if rows is None else torch.as_tensor(rows).bool().flatten().cpu()
        self._mask = positions.bool().cpu() if isinstance(positions, Tensor) else None
        if isinstance(positions, str):
            _require_choice("positions", positions, POSITIONS)
        elif self._mask is None or self._mask.ndim != 2:
            raise ValueError(
                f"`positions` must be {', '.join(map(repr, POSITIONS))} or a mask of rows and positions, "
                f"got {type(positions).__name__}."
            )
        self._positions = positions
        self._strength = _as_strength(strength, features)
        self._num_features = len(features.names)
        self._places = places
        self._reached: set[Place] = set()
        self._touched: Tensor | None = None
        self._prompt_length = 0
        self._num_seen = 0  # tokens before the end of the latest pass
        self._num_passes = 0
        self._from = 0  # first position of the running pass that is generated, or predicts what is
        self.pushes: dict[tuple, Tensor] = {}
        """Latest push at each place `(B, T, D)`, by place, length, device and dtype."""
        self.wants_any = self._rows is None or bool(self._rows.any())

    def begin(self, num_rows: int, num_tokens: int, cache: Any) -> None:
        """Before a forward pass: from which of its positions on are tokens predicted?"""
        if not self.wants_any:
            return
        if self._rows is not None and len(self._rows) != num_rows:
            raise ValueError(
                f"`rows` names {len(self._rows)} rows, the batch has {num_rows}. Does `generate` repeat each prompt "
                "(beams, `num_return_sequences`)? Repeat the prompts yourself."
            )
        if self._mask is not None:
            if tuple(self._mask.shape) != (num_rows, num_tokens):
                raise ValueError(
                    f"`positions` has shape {tuple(self._mask.shape)}, the batch ({num_rows}, {num_tokens}). "
                    "While generating, use 'generated' or 'all'."
                )
            return
        if getattr(cache, "is_compileable", False):
            raise ValueError(
                "Steering needs a dynamic cache: with a static one decoding may be compiled, and hooks would not fire."
                " Leave `cache_implementation` out, or set it to 'dynamic'."
            )
        num_cached = int(cache.get_seq_length()) if cache is not None else 0
        if num_cached:
            if num_tokens > 1 and self._num_passes and num_cached == self._num_seen:
                raise ValueError(
                    "A prompt read in chunks, or tokens drafted by an assistant, cannot be steered: it is not told "
                    "which positions are generated. Switch off `prefill_chunk_size` and assisted generation."
                )
            self._from = num_tokens - 1
            self._num_seen = num_cached + num_tokens
        elif self._num_passes and num_tokens == self._num_seen + 1:  # without a cache the text is read anew each step
            self._from = self._prompt_length - 1
            self._num_seen = num_tokens
        else:
            self._prompt_length = self._num_seen = num_tokens
            self._from = num_tokens - 1
            self._touched = None  # another batch, perhaps of another size
            self.pushes.clear()
        self._num_passes += 1

    def reach(self, place: Place) -> None:
        self._reached.add(place)

    def strength_and_mask(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Strength `(B, F)` and mask `(B, T)` for what passes at a site, `(B, T, D)`."""
        num_rows, num_tokens = hidden.shape[:2]
        rows = torch.ones(num_rows, dtype=torch.bool) if self._rows is None else self._rows
        if self._mask is not None:
            mask_BT = self._mask & rows[:, None]
        else:
            mask_BT = rows[:, None].repeat(1, num_tokens)
            if self._positions == "generated":
                mask_BT[:, : self._from] = False
        touched = mask_BT.any(dim=1)
        self._touched = touched if self._touched is None else self._touched | touched
        if self._strength.shape[0] not in (1, num_rows):
            raise ValueError(f"`strength` is given for {self._strength.shape[0]} rows, the batch has {num_rows}.")
        strength_BF = self._strength.expand(num_rows, self._num_features)
        return strength_BF.to(hidden.device), mask_BT.to(hidden.device)

    def require_touched(self) -> None:
        """Raises a `ValueError` if a row was asked for and not pushed, or a site was not reached."""
        if not self.wants_any:
            return
        missed = sorted(self._places - self._reached)
        if missed:
            raise ValueError(
                f"No forward pass of this model reached {describe_place(missed[0])}: nothing was steered."
            )
        assert self._touched is not None
        asked = torch.ones_like(self._touched) if self._rows is None else self._rows
        untouched = (asked & ~self._touched).nonzero().flatten().tolist()
        if untouched:
            raise ValueError(f"Row {untouched[0]} was to be steered, but no position of it was touched.")


def _features_of_places(features: Directions) -> dict[Place, list[int]]:
    of_place: dict[Place, list[int]] = {}
    for i, place in enumerate(zip(features.blocks, features.sites)):
        of_place.setdefault(place, []).append(i)
    return of_place


def _checkpoints(module: nn.Module) -> bool:
    return bool(getattr(module, "gradient_checkpointing", False))


def _as_strength(strength: Strength, features: Directions) -> Tensor:
    """Strength as `(1, F)`, `(B, 1)` or `(B, F)`."""
    num_features = len(features.names)
    if isinstance(strength, Mapping):
        unknown, missing = sorted(set(strength) - set(features.names)), sorted(set(features.names) - set(strength))
        if unknown or missing:
            raise ValueError(
                f"`strength` names {unknown[0]!r}, which is not in the feature set."
                if unknown
                else f"`strength` says nothing of the feature {missing[0]!r}. Set it to 0 to leave it alone."
            )
        values = torch.tensor([[float(strength[name]) for name in features.names]])
    else:
        values = torch.as_tensor(strength, dtype=torch.float32).detach().cpu()
        if values.ndim == 0:
            values = values.reshape(1, 1)
        elif values.ndim == 1:
            values = values[:, None]
        if values.ndim != 2 or values.shape[1] not in (1, num_features):
            raise ValueError(
                f"`strength` has shape {tuple(values.shape)}; give a number, one per row, or one per row and feature "
                f"({num_features})."
            )
    if not bool(values.isfinite().all()):
        raise ValueError("`strength` must be finite.")
    return values.float()


def _require_pushable(features: Directions, lengths: Tensor, unit: str) -> None:
    for name, length, norm in zip(features.names, lengths.tolist(), features.residual_norms.tolist()):
        if length == 0:
            raise ValueError(f"The direction of {name!r} is zero: nothing can be pushed along it.")
        if unit == "norm" and not norm > 0:
            raise ValueError(
                f"The residual norm at the site of {name!r} is not known, so a strength in norms means nothing. "
                "Find the features with `find-features`, or give the strength in raw units: `unit='raw'`."
            )


def _require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")
