"""Write a tiny model as a GGUF file, as llama.cpp's converter does: with the writer of the package `gguf`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor, nn

LLAMA, GEMMA = "llama", "gemma3"


def write_gguf(
    path: Path,
    model: nn.Module,
    tokenizer: Any,
    stored: str = "F32",
    *,
    left_out: str | None = None,
    metadata: Mapping[str, int] | None = None,
) -> Path:
    """
    A Llama or Gemma 3 model and a byte-level tokenizer in one file.

    Args:
        path (`Path`), model (`torch.nn.Module`), tokenizer:
            The file to write, and what to put into it.
        stored (`str`, *optional*):
            Format of the matrices: `F32`, `F16` or `Q8_0`. Vectors are stored in full, as always.
        left_out (`str`, *optional*):
            Beginning of the names of tensors that the file lacks.
        metadata (`Mapping[str, int]`, *optional*):
            Numbers to write beside or in place of the model's own.
    """
    config: Any = model.config
    arch = GEMMA if config.model_type.startswith("gemma3") else LLAMA
    writer = gguf.GGUFWriter(path, arch)
    numbers = {
        f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_attention_heads,
        f"{arch}.attention.head_count_kv": config.num_key_value_heads,
        f"{arch}.attention.key_length": config.head_dim,
        f"{arch}.attention.value_length": config.head_dim,
        f"{arch}.vocab_size": config.vocab_size,
        "general.file_type": int(getattr(gguf.LlamaFileType, f"{'ALL' if stored == 'F32' else 'MOSTLY'}_{stored}")),
        "tokenizer.ggml.bos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_token_id,
    }
    if arch == GEMMA:
        numbers[f"{arch}.attention.sliding_window"] = config.sliding_window
    else:
        numbers[f"{arch}.rope.dimension_count"] = config.head_dim
    for key, value in {**numbers, **(metadata or {})}.items():
        writer.add_uint32(key, value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    base = config.rope_parameters
    writer.add_float32(f"{arch}.rope.freq_base", base.get("full_attention", base)["rope_theta"])
    _add_tokenizer(writer, tokenizer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3 if arch == GEMMA else gguf.MODEL_ARCH.LLAMA, 99)
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = names.get_name(key, try_suffixes=(".weight",))
        assert name is not None, key
        if left_out is not None and name.startswith(left_out):
            continue
        values = _as_stored(tensor.float(), key, arch, config).contiguous().numpy()
        if values.ndim == 1 or stored == "F32":
            writer.add_tensor(name, values)
        elif stored == "F16":
            writer.add_tensor(name, values.astype(np.float16))
        else:
            kind = getattr(gguf.GGMLQuantizationType, stored)
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _as_stored(tensor: Tensor, key: str, arch: str, config: Any) -> Tensor:
    if arch == GEMMA:
        return tensor + 1 if key.endswith("norm.weight") else tensor  # llama.cpp's norms have no `1 +`
    for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
        if key.endswith(f"{part}.weight"):  # rotary pairs lie side by side in llama.cpp
            return (
                tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
                .swapaxes(1, 2)
                .reshape(tensor.shape)
            )
    return tensor


def _add_tokenizer(writer: Any, tokenizer: Any) -> None:
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = set(tokenizer.all_special_tokens) | {"<|user|>", "<|assistant|>"}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([word for word, _ in words])
    writer.add_token_types([gguf.TokenType.CONTROL if word in special else gguf.TokenType.NORMAL for word, _ in words])
    writer.add_token_scores([0.0] * len(words))  # transformers looks for merges here, as there are none
    writer.add_add_bos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def tiny_model(kind: type, config_kind: type, tokenizer: Any, **more: Any) -> nn.Module:
    """A random model of two blocks and width 32 that has the tokenizer's vocabulary."""
    torch.manual_seed(0)
    config = config_kind(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
        **more,
    )
    return kind(config).eval()
