"""Read the configuration of an SAE of llamascopium (lm-saes until 2026); what is not supported is refused."""

import math
import re
from typing import Any, NamedTuple

import torch

from ...shown import shown
from ...sites import parse_hook
from ..stored.files import SAEFile, SAEFiles, Wanted
from .checks import agreed_k, flag, short_text
from .weights import Names

DEFAULTS = {
    "sae_type": "sae",
    "act_fn": "relu",
    "norm_activation": "dataset-wise",
    "sparsity_include_decoder_norm": True,
    "use_decoder_bias": True,
}
"""The library's defaults for what a configuration leaves out."""

ACTIVATIONS = ("relu", "topk", "jumprelu")
ACROSS_TOKENS = ("batchtopk", "batchlayertopk", "layertopk")
"""Activations in which a token's features compete with those of other tokens or blocks."""

EARLY_NAMES = Names("encoder.weight", "FD", "encoder.bias", "decoder.weight", "DF", "decoder.bias")
"""Names of the tensors until early 2025, as in Llama Scope R1 (`fnlp/Llama-Scope-R1-Distill`)."""

NORMALISATIONS = ("dataset-wise", "token-wise", "inference")

FOLDER_SITES = {"R": "resid_post", "A": "attn_out", "M": "mlp_out"}
"""Site by the letter in a folder's name, such as `R` in `Llama3_1-8B-Base-L15R-8x` or `L15R`."""

SMALLEST, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max

NAMED_MODELS = {
    "Llama3_1-8B-Base": "meta-llama/Llama-3.1-8B",
    "Llama-Scope-R1-Distill": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
}
"""Model of the published SAEs, by a part of the repository's name."""


class LlamascopiumConfig(NamedTuple):
    """
    The settings that determine the arithmetic of an SAE; `k` is `top_k`, not checked yet, because only TopK uses it.

    `use_decoder_norm`: the activation sees `pre · ‖W_dec‖`; `use_decoder_bias`: there is a `b_dec`; `subtract_b_dec`:
    it is subtracted from the (scaled) input, as the library could until June 2025. `normalisation`: inputs are scaled
    by `√D / (mean norm in a data set)`, or each token by `√D / ‖x‖`, or not at all because the scale is in the
    weights.
    """

    activation: str
    k: Any
    use_decoder_norm: bool
    use_decoder_bias: bool
    subtract_b_dec: bool
    normalisation: str
    hook: str
    path: str

    def require_place(self, found: SAEFile) -> None:
        """Check that the hook point is a site of a block, and is the site in the folder's name."""
        place = parse_hook(self.hook)
        if place is None:
            raise ValueError(f"{self.path}: the SAE reads {shown(self.hook)}, which is no site of a decoder block.")
        if place != (found.block, found.site):
            raise ValueError(
                f"{self.path}: the SAE reads {shown(self.hook)}, but by its folder's name it is {found.site} "
                f"of block {found.block}. Download both again, or rename the folder."
            )

    def layout(self, names: Names) -> dict[str, str]:
        """The dimensions of the tensors that hold the weights."""
        return {name: dims for name, dims in names.layout.items() if name != names.b_dec or self.use_decoder_bias}

    def agreed_k(self, wanted: Wanted, num_features: int) -> int | None:
        """Active features per token of a TopK SAE."""
        return agreed_k({self.path: self.k}, wanted, num_features) if self.activation == "topk" else wanted.k

    def mean_norm_ratio(self, mean_norm: float | None, width: int, wanted: Wanted) -> float:
        """
        Mean norm of the site in a data set, divided by `√D`.

        The SAE reads activations divided by this ratio; the ratio is 1 if the SAE reads unscaled activations.

        Args:
            mean_norm: Mean norm from the files; `None` if they do not give it.
            width: `D`.
            wanted: Holds the user's `input_scale`, the inverse of the ratio, for files that do not give the mean norm.
        """
        if self.normalisation != "dataset-wise":
            if wanted.input_scale is not None:
                raise ValueError(
                    f"{self.path} says norm_activation = {self.normalisation!r}: the SAE reads no activations scaled "
                    "by a constant. Leave `input_scale` out."
                )
            return 1.0
        if mean_norm is not None:
            scale = math.sqrt(width) / mean_norm
        elif wanted.input_scale is not None:
            scale = wanted.input_scale
        else:
            raise ValueError(
                f"{self.path}: the SAE reads scaled activations, and its files do not say their mean norm. Give "
                "`input_scale`: the square root of the width, divided by the mean norm of the site."
            )
        if not SMALLEST <= scale <= LARGEST:
            raise ValueError(f"{self.path}: the SAE's scale is {scale:.6g}, by which nothing can be multiplied.")
        if wanted.input_scale is not None and not math.isclose(scale, wanted.input_scale, rel_tol=1e-3):
            raise ValueError(
                f"The files of {self.path} say a scale of {scale:.6g}, but input_scale={wanted.input_scale} was "
                "given. Leave it out."
            )
        return 1 / scale


def parse_config(config: dict[str, Any], path: str) -> LlamascopiumConfig:
    """Everything in a configuration that changes the arithmetic, with the library's defaults for missing entries."""
    config = {**DEFAULTS, **config}
    sae_type = config["sae_type"]
    if sae_type != "sae":
        raise ValueError(
            f"{path}: sae_type {shown(sae_type)} is not supported: it does not read and write one site of a "
            "block. Use an SAE of the type 'sae'."
        )
    hook, hook_out = config.get("hook_point_in"), config.get("hook_point_out", config.get("hook_point_in"))
    if not isinstance(hook, str):
        raise ValueError(f"{path}: hook_point_in is {shown(hook)}, expected is the name of what the SAE reads.")
    if hook_out != hook:
        raise ValueError(
            f"{path}: the SAE reads {shown(hook)} and writes {shown(hook_out)}: a transcoder, which is "
            "not supported. Use an SAE that reads and writes the same site."
        )
    if flag(config, "use_glu_encoder", path):
        raise ValueError(
            f"{path}: use_glu_encoder is not supported: pre-activations of such an SAE are no affine function of what "
            "it reads. Use one without."
        )
    normalisation = config["norm_activation"]
    if normalisation == "batch-wise":
        raise ValueError(
            f"{path}: norm_activation 'batch-wise' is not supported: a token's activations depend on the others of "
            "its batch. Use an SAE trained with 'dataset-wise'."
        )
    if normalisation not in NORMALISATIONS:
        raise ValueError(
            f"{path}: unknown norm_activation {shown(normalisation)}. Known: {', '.join(NORMALISATIONS)}."
        )
    return LlamascopiumConfig(
        activation=_activation(config, path),
        k=config.get("top_k"),
        use_decoder_norm=flag(config, "sparsity_include_decoder_norm", path),
        use_decoder_bias=flag(config, "use_decoder_bias", path),
        subtract_b_dec=flag(config, "apply_decoder_bias_to_pre_encoder", path),
        normalisation=normalisation,
        hook=hook,
        path=path,
    )


def place_of(files: SAEFiles, folder: str, config_name: str) -> tuple[int | None, str | None]:
    """Block and site of the SAE in `folder`: from its name if possible (fetches no file), else from its config."""
    named = re.search(r"(?:^|[/-])L(\d{1,4})([RAM])(?:-\d+x)?/$", f"{files.full_name}/{folder}")
    if named:
        return int(named[1]), FOLDER_SITES[named[2]]
    hook = files.read_json(folder + config_name).get("hook_point_in")
    return (parse_hook(hook) if isinstance(hook, str) else None) or (None, None)


def base_model_of(files: SAEFiles, folder: str, config: dict[str, Any]) -> str:
    """The model that the SAE reads, from the model configuration beside the SAE's or from the repository's name."""
    name = config.get("model_name")
    if name is None and f"{folder}lm_config.json" in files.names:
        name = files.read_json(f"{folder}lm_config.json").get("model_name")
    if name is None:
        full_name = f"{files.full_name}/{folder}"
        name = next((model for part, model in NAMED_MODELS.items() if part in full_name), None)
    return short_text(name)


def number(value: Any, name: str, path: str, *, above_zero: bool) -> float:
    """A number from a configuration or a file, finite in float32; with `above_zero`, 0 is refused."""
    known = (
        isinstance(value, (int, float)) and not isinstance(value, bool) and value <= LARGEST
    )  # an integer can have any size
    if not known or not (0 < value if above_zero else 0 <= value):
        least = "a number above 0" if above_zero else "a number, 0 or more"
        raise ValueError(f"{path}: {name} is {shown(value)}, expected is {least}.")
    return float(value)


def check_sizes(config: dict[str, Any], path: str, sizes: dict[str, int]) -> None:
    """Check that the weights have the sizes that the configuration gives, if it gives any."""
    for name, size in sizes.items():
        if config.get(name, size) != size:
            raise ValueError(f"{path} says {name} = {shown(config[name])}, the weights {size}. Download both again.")


def _activation(config: dict[str, Any], path: str) -> str:
    activation = config["act_fn"]
    activation = activation.lower() if isinstance(activation, str) else activation
    if activation in ACROSS_TOKENS:
        raise ValueError(
            f"{path}: act_fn {activation!r} is not supported: which features of a token are active depends on other "
            "tokens or blocks. Save it as 'jumprelu'. As the threshold of every feature, take the smallest value that "
            "the SAE keeps on many tokens of its training data."
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"{path}: unknown act_fn {shown(activation)}. Known: {', '.join(ACTIVATIONS)}.")
    return activation
