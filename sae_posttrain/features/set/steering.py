"""`steer` as users call it: the features by their file or Hub repository, checked against the model they are for."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...hooks.steer import steer as push_along
from ...hooks.strength import Strength
from ...sites import parse_hook
from .feature_set import FeatureSet


@contextmanager
def steer(
    model: nn.Module,
    features: FeatureSet | str | os.PathLike,
    strength: Strength,
    *,
    rows: Tensor | Sequence[bool] | None = None,
    positions: str | Tensor = "generated",
    mode: str = "add",
    unit: str = "norm",
    allow_base_model: str | None = None,
) -> Iterator[None]:
    """
    Push what passes at the features' sites along their directions, in every forward pass made inside the context.

    ```python
    with steer(model, "faults.safetensors", {"chinese": -0.8, "loop": -0.5}):
        model.generate(**inputs)
    with steer(model, "zh.safetensors", 1.5, rows=[False, True]):
        model.generate(**inputs)  # of the two prompts the second is answered under steering
    ```

    Additive steering writes `h + strength · norm · d / ‖d‖`, with the median residual norm of the site, as
    Qwen-Scope (https://huggingface.co/papers/2605.11887, section 3) up to the unit. Pushes of several features at one
    site are summed, from its value as the model computed it, before they are added.

    A context may hold several texts and conversations. Each call of `generate` answers a prompt; called again with
    the `past_key_values` of an earlier one, it goes on with that conversation. Outside `generate` each forward pass
    without a cache, or with an empty or new one, reads a text of its own, and passes of one token go on with it.
    `generate_batch` is steered as well: each prompt is a row, and requests added to a manager of continuous batching
    that is made inside the context are rows in their order. The cache then shares no blocks between requests, and no
    CUDA graphs are used. Other ways of generating are refused, because it is not known which positions are generated:
    assisted generation, prompts that `generate` reads in chunks, static caches.

    Args:
        model (`torch.nn.Module`):
            A causal language model, wrapped by PEFT or not.
        features ([`FeatureSet`], `str` or `os.PathLike`):
            Directions with their blocks and sites: a set, its file or folder, or a Hub repository. Any direction goes
            this way: see `FeatureSet.from_directions`.
        strength (`float`, `torch.Tensor` of shape `(B,)` or `(B, F)`, or `Mapping[str, float]`):
            How far, for all rows and features, per row, per row and feature, or by feature name. Features that share
            a name are pushed together; features that are not named are left alone.
        rows (`Sequence[bool]` or `torch.Tensor` of shape `(B,)`, *optional*):
            Rows of the batch to push; all by default.
        positions (`"generated"`, `"all"` or `torch.Tensor` of shape `(B, T)`, *optional*, defaults to `"generated"`):
            `"generated"`: from the last position of the prompt on, which predicts the first generated token. `"all"`:
            the prompt too. Padding is read from the attention mask; prompts of `generate` are padded on the left. A
            mask: those positions, in passes of that length.
        mode (`"add"` or `"clamp"`, *optional*, defaults to `"add"`):
            `"clamp"` moves a feature's pre-activation to `strength` (raw units) along its direction:
            `h + (strength − pre(h)) · d`. That is exact where `W_enc · d = 1`, and for one feature at a site, up to
            the number type of what passes there.
        unit (`"norm"` or `"raw"`, *optional*, defaults to `"norm"`):
            Unit of additive strength: median residual norms of the site, or lengths in the site's own values.
        allow_base_model (`str`, *optional*):
            Name of another model than that on which the features were found, a fine-tuned copy for example.

    Raises:
        FileNotFoundError: If there is no such feature set.
        ValueError: If the features do not fit the model or were found on another, a shape does not fit the batch, a
            norm is missing, it is not known which positions are generated, or no forward pass touched the rows that
            were to be pushed.
    """
    feature_set = _feature_set(features)
    with push_along(model, feature_set, strength=strength, rows=rows, positions=positions, mode=mode, unit=unit):
        feature_set.check_model(model, allow_base_model=allow_base_model)  # what does not fit at all is told before
        yield


def _feature_set(features: Any) -> FeatureSet:
    if isinstance(features, FeatureSet):
        return features
    if isinstance(features, str | os.PathLike):
        place = parse_hook(str(features))
        if place is not None and not Path(features).exists():
            raise ValueError(
                f"`features` is {str(features)!r}, the name of a module, not a feature set. Give a `FeatureSet`, its "
                f"file or its Hub repository; for a vector of your own, `FeatureSet.from_directions(vector[None], "
                f"blocks=[{place[0]}], sites=[{place[1]!r}], names=['mine'], residual_norms=[...])`."
            )
        return FeatureSet.from_pretrained(features)
    how = "Give a `FeatureSet`, its file or its Hub repository."
    if isinstance(features, Tensor):
        given = f"a tensor of shape {tuple(features.shape)}"
        vectors = "vector[None]" if features.ndim < 2 else "vectors"
    else:
        given, vectors = f"a {type(features).__name__}", "torch.tensor(vectors)"
    if isinstance(features, list | tuple) and features and all(isinstance(each, FeatureSet) for each in features):
        how = "Merge the sets into one: `first.merge(second)`."
    elif isinstance(features, Tensor | list | tuple):
        how = (
            f"Of vectors make one first: `FeatureSet.from_directions({vectors}, blocks=[...], names=[...], "
            "residual_norms=[...])`, which says at which blocks they are added and in what unit."
        )
    raise ValueError(f"`features` must be a feature set, got {given}. {how}")
