"""[`FrozenSAE`]: a published sparse autoencoder as plain tensors, the same for every file format."""

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import linear

from .largest import largest
from .stored.source import SAESource

ACTIVATIONS = ("topk", "abstopk", "groupmax", "relu", "jumprelu", "gated")
COMPARING = ("topk", "abstopk", "groupmax")
"""Activations in which the features of a token compete: computing them needs all features."""

INPUT_NORMS = ("layer_norm", "constant_norm")
LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True, eq=False)
class FrozenSAE:
    """
    A sparse autoencoder of one site of a model, as float32 tensors in raw units of that site.

    `pre = x · W_enc + b_enc`, then an activation, then `acts · W_dec + b_dec`. What a file format does differently
    (orientation, subtracting `b_dec` from the input, scaled inputs) is folded into the tensors by its reader. The
    activations are:

    - `"relu"`: `relu(pre)`
    - `"jumprelu"`: `relu(pre)` where `pre > threshold`, else 0
    - `"gated"`: `relu(pre · magnitude_scale + magnitude_shift)` where `pre > 0`, else 0; `pre` belongs to the gate
      (https://huggingface.co/papers/2404.16014)
    - `"topk"`: the `k` largest values of `pre`, followed by a ReLU if `relu_after_topk`
    - `"abstopk"`: the `k` values of largest magnitude, with their sign
    - `"groupmax"`: the features form `k` groups of neighbours; the largest `relu(pre)` of each group is kept

    With `decoder_norm`, the activation function sees `pre · decoder_norm`. With `norm_in_acts` (as in SAELens), its
    result is the activation, and decoding divides by the norm. Without (as in llamascopium), the result is divided by
    the norm at once.

    With `input_norm`, each token is normalised first, so that pre-activations are not an affine function of `x`. Such
    an SAE encodes and reconstructs, but [`FeatureSet`] refuses its features.

    - `"layer_norm"`: `(x - mean) / (std + 1e-5)`, the std with `D - 1` in the denominator
    - `"constant_norm"`: `x · √D / ‖x‖`

    Made by [`load_sae`]. With `features`, it holds only those: their pre-activations, directions and (unless
    features compete, as in TopK) activations are the same as in the full SAE.

    Args:
        W_enc (`torch.Tensor` of shape `(D, F)`):
            Encoder, one column per feature; may be a transposed view.
        b_enc (`torch.Tensor` of shape `(F,)`):
            Encoder bias.
        W_dec (`torch.Tensor` of shape `(F, D)` or `None`):
            Decoder, one direction per row; may be a transposed view. `None` if it was left in the file.
        b_dec (`torch.Tensor` of shape `(D,)`):
            Decoder bias.
        activation (`str`):
            Name of the activation: one of those above.
        block (`int`):
            Decoder block, from 0, in which the SAE's site lies.
        source (`SAESource`):
            Where the weights came from.
        site (`str`, *optional*, defaults to `"resid_post"`):
            What the SAE reads in that block, as in `sae_posttrain.sites`: `"resid_post"` is the block's output.
        base_model (`str`, *optional*, defaults to `""`):
            The model that the SAE was trained on, if its files name it.
        k (`int`, *optional*):
            Active features per token of a TopK SAE; `None` if unknown (only `encode` needs it).
        relu_after_topk (`bool`, *optional*, defaults to `True`):
            Whether negative values among the `k` largest become 0.
        decoder_norm (`torch.Tensor` of shape `(F,)`, *optional*):
            Factor on the pre-activations before the activation.
        norm_in_acts (`bool`, *optional*, defaults to `True`):
            Whether activations keep that factor.
        threshold (`torch.Tensor` of shape `(F,)`, *optional*):
            Thresholds of a JumpReLU SAE.
        magnitude_scale (`torch.Tensor` of shape `(F,)`, *optional*):
            Factors on the pre-activations of a gated SAE.
        magnitude_shift (`torch.Tensor` of shape `(F,)`, *optional*):
            Shifts added to the scaled pre-activations of a gated SAE.
        input_norm (`str`, *optional*):
            Normalisation of each token: `"layer_norm"` or `"constant_norm"`.
        features (`tuple[int, ...]`, *optional*):
            Original indices of the features held; `None` for all.

    Raises:
        ValueError: If the tensors do not fit together or the activation lacks its parameters.
    """

    W_enc: Tensor = field(repr=False)
    b_enc: Tensor = field(repr=False)
    W_dec: Tensor | None = field(repr=False)
    b_dec: Tensor = field(repr=False)
    activation: str
    block: int
    source: SAESource
    site: str = "resid_post"
    base_model: str = ""
    k: int | None = None
    relu_after_topk: bool = True
    decoder_norm: Tensor | None = field(default=None, repr=False)
    norm_in_acts: bool = True
    threshold: Tensor | None = field(default=None, repr=False)
    magnitude_scale: Tensor | None = field(default=None, repr=False)
    magnitude_shift: Tensor | None = field(default=None, repr=False)
    input_norm: str | None = None
    features: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"Unknown activation {self.activation!r}. Known: {', '.join(ACTIVATIONS)}.")
        if self.input_norm not in (None, *INPUT_NORMS):
            raise ValueError(f"Unknown input norm {self.input_norm!r}. Known: {', '.join(INPUT_NORMS)}.")
        D, F = self.W_enc.shape
        for name in ("b_enc", "W_dec", "b_dec", "decoder_norm", "threshold", "magnitude_scale", "magnitude_shift"):
            shape = {"W_dec": (F, D), "b_dec": (D,)}.get(name, (F,))
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape != shape:
                raise ValueError(f"`{name}` has shape {tuple(tensor.shape)}, `W_enc` {(D, F)} asks for {shape}.")
        needed = {"jumprelu": ["threshold"], "gated": ["magnitude_scale", "magnitude_shift"]}
        for name in needed.get(self.activation, []):
            if getattr(self, name) is None:
                raise ValueError(f"A {self.activation} SAE needs `{name}`.")
        if self.features is not None and len(self.features) != F:
            raise ValueError(f"`features` names {len(self.features)} features, `W_enc` holds {F}.")
        if self.k is not None:
            if self.activation not in COMPARING:
                raise ValueError(f"`k` belongs to TopK SAEs; this one is a {self.activation} SAE. Leave it out.")
            if self.k < 1 or (self.features is None and self.k > F):
                raise ValueError(f"`k` must be from 1 to the number of features, {F}; got {self.k}.")
            if self.activation == "groupmax" and self.features is None and F % self.k:
                raise ValueError(f"groupmax needs groups of equal size; {F} features do not divide into {self.k}.")

    @property
    def d_model(self) -> int:
        """Width of what the SAE reads."""
        return self.W_enc.shape[0]

    @property
    def num_features(self) -> int:
        """Number of features held: all features of the SAE, or those that were chosen."""
        return self.W_enc.shape[1]

    def pre_activations(self, x: Tensor) -> Tensor:
        """
        `x · W_enc + b_enc` in float32, also under autocast; with `input_norm`, `x` is normalised first.

        Args:
            x (`torch.Tensor` of shape `(..., D)`):
                What the SAE's site holds, in any dtype.

        Returns:
            `torch.Tensor` of shape `(..., F)`, float32.

        Raises:
            ValueError: If `x` is not `D` wide.
        """
        self._require_width(x)
        with torch.autocast(x.device.type, enabled=False):
            x_in, _, _ = self._normalise(x.float())
            return linear(x_in, self.W_enc.T, self.b_enc)

    def encode(self, x: Tensor) -> Tensor:
        """
        Activations of the features.

        Args:
            x (`torch.Tensor` of shape `(..., D)`):
                What the SAE's site holds.

        Returns:
            `torch.Tensor` of shape `(..., F)`, float32: 0 where a feature is not active.

        Raises:
            ValueError: If `x` is not `D` wide; for a TopK SAE also if `k` is unknown or only some features are held.
        """
        return self.activate(self.pre_activations(x))

    def encode_topk(self, x: Tensor, *, features_per_chunk: int = 8192) -> tuple[Tensor, Tensor]:
        """
        The active features of each token, as in [`encode`], without holding the pre-activations of all features.

        Features are taken a chunk at a time, and the best so far are kept. The result is exact and needs
        `features_per_chunk / F` of the memory. For SAEs whose features compete for `k` places (`"topk"`, `"abstopk"`).

        Args:
            x (`torch.Tensor` of shape `(..., D)`):
                What the SAE's site holds.
            features_per_chunk (`int`, *optional*, defaults to `8192`):
                Features whose pre-activations are held at once.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: activations, float32, and indices of their features, int64, both of
            shape `(..., k)`, the strongest first. Where fewer than `k` features are active, the rest have activation
            0.

        Raises:
            ValueError: If `x` is not `D` wide, `k` is unknown, only some features are held, or the SAE has another
                activation.
        """
        k = self._require_largest()
        self._require_width(x)
        size = max(k, features_per_chunk)
        with torch.autocast(x.device.type, enabled=False):
            x_in, _, _ = self._normalise(x.float())
            values = x_in.new_empty((*x_in.shape[:-1], 0))
            ids = torch.empty(values.shape, dtype=torch.int64, device=x.device)
            for start in range(0, self.num_features, size):
                part = slice(start, start + size)
                seen = linear(x_in, self.W_enc[:, part].T, self.b_enc[part])
                if self.decoder_norm is not None:
                    seen = seen * self.decoder_norm[part]
                own, own_ids = self._largest(seen, sort=False)
                values = torch.cat([values, own], dim=-1)
                ids = torch.cat([ids, own_ids + start], dim=-1)
                values, best = self._largest(values)
                ids = ids.gather(-1, best)
            return self._activate_largest(values, ids), ids

    def activate_topk(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """
        The active features of each token from pre-activations: those that [`activate`] leaves above 0.

        Args:
            pre (`torch.Tensor` of shape `(..., F)`):
                What `pre_activations` returned; it is not changed.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: as [`encode_topk`] returns, but in no particular order.

        Raises:
            ValueError: If `k` is unknown, only some features are held, or the SAE has another activation.
        """
        self._require_largest()
        seen = pre if self.decoder_norm is None else pre * self.decoder_norm
        values, ids = self._largest(seen, sort=False)
        return self._activate_largest(values, ids), ids

    def activate(self, pre: Tensor) -> Tensor:
        """
        Activations from pre-activations: the second half of [`encode`].

        Args:
            pre (`torch.Tensor` of shape `(..., F)`):
                What `pre_activations` returned; it is not changed.

        Returns:
            `torch.Tensor` of shape `(..., F)`, float32.

        Raises:
            ValueError: For a TopK SAE, if `k` is unknown or only some features are held.
        """
        seen = pre if self.decoder_norm is None else pre * self.decoder_norm
        if self.activation in COMPARING:
            acts = self._keep_largest(seen)
        elif self.threshold is not None:
            acts = torch.relu(seen) * (seen > self.threshold)
        elif self.magnitude_scale is not None and self.magnitude_shift is not None:
            acts = torch.relu(seen * self.magnitude_scale + self.magnitude_shift) * (seen > 0)
        else:
            acts = torch.relu(seen)
        return acts if self.norm_in_acts else self._without_norm(acts)

    def _require_k(self) -> int:
        if self.features is not None:
            raise ValueError(
                f"{self.activation} compares all features of a token, and only {self.num_features} were loaded. Load "
                "the SAE without `features` to encode, or use `pre_activations`."
            )
        if self.k is None:
            raise ValueError(
                "The file does not say how many features are active per token. Give it: `load_sae(..., k=50)`."
            )
        return self.k

    def _keep_largest(self, pre: Tensor) -> Tensor:
        k = self._require_k()
        if self.activation == "groupmax":
            grouped = torch.relu(pre).unflatten(-1, (k, -1))
            values, indices = grouped.max(dim=-1, keepdim=True)
            return torch.zeros_like(grouped).scatter_(-1, indices, values).flatten(-2)
        values, indices = self._largest(pre, sort=False)
        if self.activation == "topk" and self.relu_after_topk:
            values = torch.relu(values)
        return torch.zeros_like(pre).scatter_(-1, indices, values)

    @property
    def keeps_largest(self) -> bool:
        """Whether the `k` largest pre-activations of a token are its active features, as `activate_topk` needs."""
        return self.activation in ("topk", "abstopk")

    def _require_largest(self) -> int:
        if not self.keeps_largest:
            raise ValueError(f"The SAE has no k largest features: its activation is {self.activation}. Use `encode`.")
        return self._require_k()

    def _largest(self, seen: Tensor, *, sort: bool = True) -> tuple[Tensor, Tensor]:
        """Values and places of the `k` largest (for `"abstopk"`: by magnitude), or of all if there are fewer."""
        k = min(self._require_k(), seen.shape[-1])
        if self.activation == "abstopk":
            ids = largest(seen.abs(), k, sort=sort)[1]
            return seen.gather(-1, ids), ids
        return largest(seen, k, sort=sort)

    def _activate_largest(self, values: Tensor, ids: Tensor) -> Tensor:
        """Activations of the features that were kept."""
        if self.activation == "topk" and self.relu_after_topk:
            values = torch.relu(values)
        if self.decoder_norm is None or self.norm_in_acts:
            return values
        return values / self.decoder_norm.clamp_min(torch.finfo(torch.float32).tiny)[ids]

    def _without_norm(self, acts: Tensor) -> Tensor:
        if self.decoder_norm is None:
            return acts
        return acts / self.decoder_norm.clamp_min(torch.finfo(torch.float32).tiny)  # norm 0: act is 0 too

    def decode(self, acts: Tensor) -> Tensor:
        """
        `acts · W_dec + b_dec`: the value at the SAE's site that the given activations describe.

        Args:
            acts (`torch.Tensor` of shape `(..., F)`):
                Activations, as `encode` returns them.

        Returns:
            `torch.Tensor` of shape `(..., D)`, float32; with `input_norm`, in units of the normalised token.

        Raises:
            ValueError: If `acts` does not hold one value per feature, or the decoder was left in its file.
        """
        if acts.shape[-1] != self.num_features:
            raise ValueError(f"The SAE holds {self.num_features} features, `acts` has {acts.shape[-1]}.")
        directions = self.directions
        with torch.autocast(acts.device.type, enabled=False):
            acts = self._without_norm(acts.float()) if self.norm_in_acts else acts.float()
            return linear(acts, directions.T, self.b_dec)

    def reconstruct(self, x: Tensor) -> Tensor:
        """
        The SAE's reconstruction of `x`: `decode(encode(x))`, with the normalisation of each token undone.

        Args:
            x (`torch.Tensor` of shape `(..., D)`):
                What the SAE's site holds.

        Returns:
            `torch.Tensor` of shape `(..., D)`, float32.

        Raises:
            ValueError: As `encode` and `decode` do.
        """
        self._require_width(x)
        _, scale, shift = self._normalise(x.float())
        return self.decode(self.encode(x)) * scale + shift

    def _require_width(self, x: Tensor) -> None:
        if x.shape[-1] != self.d_model:
            raise ValueError(
                f"The SAE reads width {self.d_model}, {self.site} of block {self.block} has {x.shape[-1]}; was it "
                "trained on this model?"
            )

    def _normalise(self, x: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """What the encoder reads, and the scale and shift that undo the normalisation."""
        if self.input_norm == "layer_norm":
            shift = x.mean(dim=-1, keepdim=True)
            scale = x.std(dim=-1, keepdim=True)
            return (x - shift) / (scale + LAYER_NORM_EPS), scale, shift
        if self.input_norm == "constant_norm":
            scale = x.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / x.shape[-1] ** 0.5
            return x / scale, scale, 0.0
        return x, 1.0, 0.0

    def require_affine(self) -> None:
        """
        Check that pre-activations are an affine function of what the site holds, as a [`FeatureSet`] needs.

        Raises:
            ValueError: If the SAE normalises each token first.
        """
        if self.input_norm is not None:
            raise ValueError(
                f"The SAE {self.source.file} normalises each token before it reads it ({self.input_norm}): its "
                "pre-activations are no affine function of the residual stream, so its features cannot be found, "
                "penalised or clamped. It can encode and reconstruct, and its directions can be steered along: "
                "`FeatureSet.from_directions(sae.directions[ids], ...)`."
            )

    @property
    def directions(self) -> Tensor:
        """
        The decoder directions, `W_dec` of shape `(F, D)`.

        Raises:
            ValueError: If the decoder was left in the file.
        """
        if self.W_dec is None:
            raise ValueError(
                f"The directions of {self.source.file} were left where they are: reading some of them means to fetch "
                "the whole matrix, once. Ask for them: `load_sae(..., directions=True)`."
            )
        return self.W_dec

    def direction(self, feature: int) -> Tensor:
        """
        Decoder direction of a feature, as stored (not normalised).

        Args:
            feature (`int`):
                Index of the feature in the published SAE, also if only some features were loaded.

        Returns:
            `torch.Tensor` of shape `(D,)`.

        Raises:
            ValueError: If the feature is not held.
        """
        if self.features is not None:
            if feature not in self.features:
                raise ValueError(f"Feature {feature} was not loaded; loaded are {', '.join(map(str, self.features))}.")
            return self.directions[self.features.index(feature)]
        if not 0 <= feature < self.num_features:
            raise ValueError(f"Feature {feature} does not exist: the SAE has features 0 to {self.num_features - 1}.")
        return self.directions[feature]

    def to(self, device: torch.device | str) -> "FrozenSAE":
        """The same SAE with its tensors on `device`."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})
