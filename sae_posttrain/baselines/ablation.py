"""Take directions out of what passes while a model answers, without training: what training has to add to."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..features.set.feature_set import FeatureSet
from ..hooks.sites import describe_place, place_name
from ..hooks.steer import steer


@contextmanager
def ablate(
    model: nn.Module,
    feature_set: FeatureSet,
    *,
    rows: Tensor | Sequence[bool] | None = None,
    positions: str | Tensor = "generated",
) -> Iterator[None]:
    """
    Project the features' directions out at their sites, in every forward pass made inside the context.

    `x' = x - P x`, with the orthogonal projection `P` onto the span of all directions at the site: afterwards none of
    them has a component there, up to the rounding of the model's number type. Encoders and biases are not used.

    ```python
    with ablate(model, features, rows=[lang != "zh" for lang in langs]):
        model.generate(**inputs)
    ```

    The milder check of SASFT (https://huggingface.co/papers/2507.14894), `x' = x - strength · d`, is
    `steer(model, features, strength=-1.0, rows=...)`, in residual norms; `unit="raw"` for lengths as they are.

    Args:
        model (`torch.nn.Module`):
            A causal language model, wrapped by PEFT or not.
        feature_set ([`FeatureSet`]):
            The directions, with their blocks and sites.
        rows (`Sequence[bool]` or `torch.Tensor` of shape `(B,)`, *optional*):
            Rows of the batch to change; all by default. Leave out those that shall answer in the target language.
        positions (`"generated"`, `"all"` or `torch.Tensor` of shape `(B, T)`, *optional*, defaults to `"generated"`):
            As in [`steer`]: from the last position of the prompt on, the prompt too, or a mask.

    Raises:
        ValueError: If a direction is zero, the features do not fit the model, or no forward pass touched the rows.
    """
    with steer(model, _orthonormal(feature_set), strength=0.0, rows=rows, positions=positions, mode="clamp"):
        yield


def _orthonormal(feature_set: FeatureSet) -> FeatureSet:
    """Unit directions at right angles that span what the set's own do: clamped to 0, they are projected out."""
    place_of_feature = list(zip(feature_set.blocks, feature_set.sites))
    bases, places = [], []
    for place in feature_set.places:
        own = feature_set.directions[[other == place for other in place_of_feature]].double()
        lengths = own.norm(dim=1, keepdim=True)
        if bool((lengths == 0).any()):
            raise ValueError(f"A direction at {describe_place(place)} is zero: there is nothing to take out.")
        _, sizes, basis = torch.linalg.svd(own / lengths, full_matrices=False)
        basis = basis[sizes > 1e-6 * sizes[0]]  # directions may lie in one plane
        bases.append(basis)
        places += [place] * len(basis)
    return FeatureSet.from_directions(
        torch.cat(bases).float(),
        blocks=[block for block, _ in places],
        sites=[site for _, site in places],
        names=[f"span.{place_name(place)}.{i}" for i, place in enumerate(places)],
        base_model=feature_set.base_model,
    )
