"""
Push the values at sites of decoder blocks along some directions, for chosen rows and positions.

Nothing is written in place.

Legend of the shapes: B rows, T positions of one forward pass, D width, F features.
"""

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import find_blocks, unwrap
from .generation import GenerationWatch
from .packed import PackingWatch
from .passes import SteeredPasses
from .sites import Place, hook_sites, require_width
from .strength import Directions, Strength, known_norms, read_strength, require_pushable

MODES = ("add", "clamp")
UNITS = ("norm", "raw")
CACHE_NAMES = ("past_key_values", "cache_params")


@contextmanager
def steer(
    model: nn.Module,
    feature_set: Directions,
    strength: Strength,
    *,
    rows: Tensor | Sequence[bool] | None = None,
    positions: str | Tensor = "generated",
    mode: str = "add",
    unit: str = "norm",
) -> Iterator[None]:
    """
    Push the values at sites along some directions. This does the work of `sae_posttrain.steer`: see its documentation.

    It takes any [`Directions`], and does not check whether they were found on this model.

    Raises:
        ValueError: If the directions do not fit the model, a shape does not fit the batch, a norm is missing, it is
            unknown which positions are generated, or no forward pass touched the rows that should be pushed.
    """
    steerer = Steerer(model, feature_set, mode=mode, unit=unit)
    try:
        with steerer.armed(strength, rows=rows, positions=positions):
            yield
    finally:
        steerer.remove()


class Steerer:
    """
    The hooks of [`steer`], registered once and armed when they should push.

    A trainer creates the steerer before the first forward pass, because a hook that is added after `torch.compile` has
    seen the graph never fires. While they are not armed, the hooks change nothing.

    Args:
        model, feature_set, mode, unit:
            As in [`steer`].

    Raises:
        ValueError: As in [`steer`], for everything that does not depend on the batch.
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
            norms = known_norms(feature_set)
            require_pushable(feature_set, lengths, norms, unit)
            scale = norms if unit == "norm" else torch.ones_like(lengths)
            self._vectors_FD = feature_set.directions.float() * (scale / lengths)[:, None]
        else:
            self._vectors_FD = feature_set.directions.float()
        self._features = feature_set
        self._mode = mode
        self._pass: SteeredPasses | None = None
        self._blocks = find_blocks(model)
        self._watch = GenerationWatch(model)
        self._packing = PackingWatch(model)
        self._config = unwrap(model).config
        self._hooks = hook_sites(model, self._of_place, lambda site: site.on_write(self._push(site.place)))
        whole, decoder = unwrap(model), unwrap(model).get_decoder()
        self._whole_masks: dict[int, Tensor] = {}  # by thread
        if decoder is not whole:
            self._hooks.enter_context(whole.register_forward_pre_hook(self._before_whole, with_kwargs=True))
            self._hooks.enter_context(whole.register_forward_hook(self._after_whole, always_call=True))
        self._argument_names = tuple(inspect.signature(decoder.forward).parameters)
        self._hooks.enter_context(decoder.register_forward_pre_hook(self._before_forward, with_kwargs=True))
        self._hooks.enter_context(decoder.register_forward_hook(self._after_forward))

    @contextmanager
    def armed(
        self,
        strength: Strength,
        *,
        rows: Tensor | Sequence[bool] | None = None,
        positions: str | Tensor = "generated",
    ) -> Iterator[None]:
        """
        Push in every forward pass inside the context. Arguments and errors are those of [`steer`].

        If no row is selected (`rows` all false), the context does nothing and raises no error: a rank may have no
        rows to steer.
        """
        if self._pass is not None:
            raise ValueError("This steerer is armed already. Leave the context before you enter it again.")
        current = SteeredPasses(read_strength(strength, self._features), rows, positions, set(self._of_place))
        self._pass = current
        try:
            with self._watching(current) if current.wants_any else nullcontext():
                yield
        finally:
            self._pass = None
            self._whole_masks.clear()
        if current.wants_any:
            current.require_no_refusal()
            self._packing.require_served()
            current.require_touched()
            self._packing.require_pushed(current.places, current.rows)

    def remove(self) -> None:
        """Remove the hooks from the model."""
        self._hooks.close()

    @contextmanager
    def _watching(self, current: SteeredPasses) -> Iterator[None]:
        with self._watch.watching(), self._packing.watching(current.positions, current.require_rows):
            yield

    def _before_forward(self, _decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._pass is None:
            return
        self._refuse_recomputed_blocks()
        if self._is_packed():
            return
        given = dict(zip(self._argument_names, args)) | kwargs
        tokens = given.get("input_ids")
        tokens = given.get("inputs_embeds") if tokens is None else tokens
        if tokens is None:
            raise ValueError("Steering needs a forward pass with `input_ids` or `inputs_embeds`.")
        whole_mask = self._whole_masks.get(threading.get_ident())
        if whole_mask is not None:  # the decoder's own mask may be derived from it
            given["attention_mask"] = whole_mask
        cache = next((given[name] for name in CACHE_NAMES if given.get(name) is not None), None)
        attention = str(getattr(self._config, "_attn_implementation", ""))
        self._pass.begin(given, tokens, cache, self._watch.turn(), attention)

    def _is_packed(self) -> bool:
        """Whether the pass belongs to a known manager of continuous batching. Its tokens are then found as well."""
        assert self._pass is not None
        try:
            batch = self._packing.batch() if self._pass.wants_any else None
        except ValueError as error:
            self._pass.refuse(error)  # the manager only logs what its thread raises
            raise
        if batch is not None:
            self._pass.begin_packed(batch)
        return batch is not None

    def _before_whole(self, _model: nn.Module, _args: tuple, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        if self._pass is not None and isinstance(mask, Tensor) and mask.ndim == 2:
            self._whole_masks[threading.get_ident()] = mask

    def _after_whole(self, *_passed: Any) -> None:
        if self._pass is not None:
            self._whole_masks.pop(threading.get_ident(), None)

    def _after_forward(self, _decoder: nn.Module, _args: tuple, output: Any) -> None:
        if self._pass is not None:
            for name in CACHE_NAMES:
                self._pass.see_cache(getattr(output, name, None))

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
            asked = [i for i in features if self._pass.strengths.asked[i]]
            if not asked:
                return None
            current = self._pass.here()
            key = (place, hidden.device, hidden.dtype)
            if key in current.pushes:
                return current.pushes[key]
            strength_BTF, mask_BT = current.on(hidden.device)
            with torch.autocast(hidden.device.type, enabled=False):  # sums in autocast's dtype are not exact
                push_BTD = self._push_along(asked, strength_BTF[:, :, asked], hidden)
                push_BTD = (push_BTD * mask_BT[:, :, None]).to(hidden.dtype)
            if self._mode == "add":  # independent of the values, so all decoding steps add the same
                current.pushes[key] = push_BTD
            return push_BTD

        return push

    def _push_along(self, features: list[int], strength_BTF: Tensor, hidden: Tensor) -> Tensor:
        """What is added to the values, `(B, T or 1, D)`, before positions are masked."""
        vectors_FD = self._vectors_FD[features].to(hidden.device)
        if self._mode == "add":
            return strength_BTF @ vectors_FD
        rows_FD = self._features.encoder_rows[features].to(hidden.device)
        bias_F = self._features.encoder_bias[features].to(hidden.device)
        pre_BTF = hidden.float() @ rows_FD.float().T + bias_F
        return (strength_BTF - pre_BTF) @ vectors_FD


def _features_of_places(features: Directions) -> dict[Place, list[int]]:
    of_place: dict[Place, list[int]] = {}
    for i, place in enumerate(zip(features.blocks, features.sites)):
        of_place.setdefault(place, []).append(i)
    return of_place


def _checkpoints(module: nn.Module) -> bool:
    return bool(getattr(module, "gradient_checkpointing", False))


def _require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")
