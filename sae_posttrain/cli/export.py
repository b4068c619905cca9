"""The command `export`: a push as a file for other programs."""

import argparse
from pathlib import Path
from typing import Any

from .generate import add_strength
from .options import add_overwrite, say_written

_FORMS = {
    "gguf": "control vector of llama.cpp: a .gguf file",
    "repeng": "control vector of repeng: a .gguf file",
    "steering-vectors": "vector of the library steering-vectors: a .pt file",
    "bias": "copy of --model with the push in its biases: a folder",
}


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write features and their strengths for other programs: "
        + "; ".join(f"{name}, a {what}" for name, what in _FORMS.items())
        + ". They push at every position, the prompt included. import-directions reads the files back."
    )
    parser.add_argument("features", metavar="FEATURES", help="feature set: file, folder or Hub repository")
    parser.add_argument("--to", required=True, choices=list(_FORMS), help="what is written")
    add_strength(parser, required=True)
    parser.add_argument("--out", required=True, type=Path, help="file or folder to write")
    add_overwrite(parser)
    parser.add_argument(
        "--unit",
        choices=["norm", "raw"],
        default="norm",
        help="unit of the strengths: median residual norms, or raw lengths (default: norm)",
    )
    parser.add_argument("--model", help="with --to bias: causal language model, folder or Hub id")
    parser.add_argument(
        "--allow-base-model", help="with --to bias: name of another model that these features may steer"
    )
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> None:
    is_bias = arguments.to == "bias"
    if is_bias and arguments.model is None:
        raise ValueError("--to bias needs --model, whose copy is written.")
    for name in ("model", "allow_base_model"):
        if not is_bias and getattr(arguments, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} belongs to --to bias.")
    if is_bias and arguments.overwrite:
        raise ValueError("--overwrite replaces files; with --to bias, name a new or empty folder.")
    from ..features.set.feature_set import FeatureSet
    from ..steering.strengths import parse_strengths

    feature_set = FeatureSet.from_pretrained(arguments.features)
    strengths = parse_strengths(arguments.strength, feature_set)
    options: dict[str, Any] = {"unit": arguments.unit}
    if is_bias:
        from ..model_source import require_model
        from ..steering.export.bias import write_biased_model

        require_model(arguments.model)
        options["allow_base_model"] = arguments.allow_base_model
        say_written([write_biased_model(arguments.model, feature_set, strengths, arguments.out, **options)])
        return
    options["overwrite"] = arguments.overwrite
    if arguments.to == "steering-vectors":
        from ..steering.export.steering_vector import write_steering_vector

        say_written([write_steering_vector(feature_set, strengths, arguments.out, **options)])
        return
    from ..steering.export.control_vector import write_control_vector

    reader = "repeng" if arguments.to == "repeng" else "llama.cpp"
    say_written([write_control_vector(feature_set, strengths, arguments.out, reader=reader, **options)])
    if reader == "llama.cpp":
        print(f"Use: llama-cli -m MODEL.gguf --control-vector {arguments.out}")
