"""
A push as a control vector: the GGUF file of llama.cpp (and of Ollama and LM Studio, which run it) and of repeng.

`direction.N` is added to the output of decoder block N, counted from 0, at every position. llama.cpp reads the tensors
`direction.N` with N of 1 or more (`common_control_vector_load` in its `common/common.cpp`; `llama_adapter_cvec::apply`
in `src/llama-adapter.cpp` keeps nothing for block 0). repeng reads block 0 too (`ControlVector.import_gguf`).
"""

import os
from collections.abc import Mapping
from pathlib import Path

from ...features.set.feature_set import FeatureSet
from .new_file import new_file
from .pushes import pushes_of

READERS = ("llama.cpp", "repeng")


def write_control_vector(
    feature_set: FeatureSet,
    strength: float | Mapping[str, float],
    path: str | os.PathLike,
    *,
    unit: str = "norm",
    reader: str = "llama.cpp",
    overwrite: bool = False,
) -> Path:
    """
    Write the push as a control vector in float32, with the strength in it: load it with the scale 1.

    Both programs push at every position, the prompt included, as `steer(..., positions="all")` does.

    ```python
    write_control_vector(features, {"loop": -0.8}, "calm.gguf")  # llama-cli -m model.gguf --control-vector calm.gguf
    ```

    Args:
        feature_set ([`FeatureSet`]):
            Features at outputs of blocks.
        strength (`float` or `Mapping[str, float]`):
            One strength for all features, or strengths by name.
        path (`str` or `os.PathLike`):
            File to write, ending in `.gguf`.
        unit (`"norm"` or `"raw"`, *optional*, defaults to `"norm"`):
            Unit of the strengths, as in [`steer`].
        reader (`"llama.cpp"` or `"repeng"`, *optional*, defaults to `"llama.cpp"`):
            The program that will read it. llama.cpp cannot push the output of block 0, which is refused then.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether a file that is there may be replaced.

    Returns:
        `Path`: the file.

    Raises:
        ValueError: If a feature is not at the output of a block, or the program cannot push that block; if a strength
            is not usable.
        FileExistsError: If the file exists and `overwrite` is not set.
        ImportError: If the package `gguf` is missing.
    """
    if reader not in READERS:
        raise ValueError(f"`reader` must be one of {', '.join(map(repr, READERS))}, got {reader!r}.")
    path = Path(path)
    if path.suffix != ".gguf":
        raise ValueError(f"A control vector is a file that ends in .gguf, got {path}.")
    pushes = pushes_of(feature_set, strength, unit=unit)
    for block, site in pushes:
        if site != "resid_post":
            raise ValueError(
                f"A control vector is added to outputs of blocks; the set has features at {site} of block {block}. "
                "Export those at 'resid_post' only: `feature_set.select(site='resid_post')`."
            )
        if block == 0 and reader == "llama.cpp":
            raise ValueError(
                "llama.cpp cannot push the output of block 0: its control vectors begin with block 1. Choose features "
                "of a later block."
            )
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        raise ImportError(
            "A control vector is written with the package gguf: pip install 'sae_posttrain[gguf]'."
        ) from error
    with new_file(path, overwrite) as part:
        writer = GGUFWriter(part, "controlvector")
        writer.add_string("controlvector.model_hint", str(feature_set.fingerprint.get("model_type") or "unknown"))
        writer.add_uint32("controlvector.layer_count", len(pushes))
        for (block, _), push in pushes.items():
            writer.add_tensor(f"direction.{block}", push.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path
