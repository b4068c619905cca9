"""llama.cpp reads an exported control vector and writes the tokens that steering at all positions writes."""

import json
import os
import subprocess

import pytest
import torch

from sae_posttrain import steer
from sae_posttrain.steering.export.control_vector import write_control_vector

pytestmark = pytest.mark.slow

NUM_TOKENS = 24

IN_LLAMA_CPP = r"""
import ctypes, json, sys
import numpy as np
import llama_cpp as lib
from gguf import GGUFReader

model_path, vector_path, prompt, num_tokens = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
lib.llama_backend_init()
params = lib.llama_model_default_params()
params.n_gpu_layers = 0
model = lib.llama_model_load_from_file(model_path.encode(), params)
assert model
width = lib.llama_model_n_embd(model)
num_layers = lib.llama_model_n_layer(model)


def answer(data):
    options = lib.llama_context_default_params()
    options.n_ctx = 256
    options.n_threads = options.n_threads_batch = 1
    options.type_k = options.type_v = 0  # float32
    options.flash_attn_type = 0  # off
    context = lib.llama_init_from_model(model, options)
    assert context
    if data is not None:
        apply = getattr(lib, "llama_set_adapter_cvec", None) or lib.llama_apply_adapter_cvec
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        # what llama-cli does with --control-vector: layers 1 to the last
        assert apply(context, pointer, data.size, width, 1, num_layers) == 0
    ids, logits = list(prompt), []
    pending = list(prompt)
    for _ in range(num_tokens):
        array = (lib.llama_token * len(pending))(*pending)
        assert lib.llama_decode(context, lib.llama_batch_get_one(array, len(pending))) == 0
        row = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (lib.llama_vocab_n_tokens(
            lib.llama_model_get_vocab(model)),)).copy()
        logits.append(row.tolist())
        pending = [int(row.argmax())]
        ids += pending
    lib.llama_free(context)
    return {"ids": ids[len(prompt):], "logits": logits}


# As common_control_vector_load reads the file: direction.N, N from 1, goes to place N - 1, missing ones are zero.
directions = {}
for tensor in GGUFReader(vector_path).tensors:
    directions[int(tensor.name.split(".")[1])] = np.array(tensor.data, dtype=np.float32)
data = np.zeros(width * max(directions), dtype=np.float32)
for number, direction in directions.items():
    assert number >= 1
    data[width * (number - 1) : width * number] += direction
print(json.dumps({"plain": answer(None), "steered": answer(data), "version": lib.__version__}))
"""


def write_qwen3(model, path):
    """A tiny Qwen3 as llama.cpp takes it, in float32 and without a vocabulary."""
    gguf = pytest.importorskip("gguf")
    config = model.config
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    ends = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, weight in model.state_dict().items():
        module = name.removesuffix(".weight")
        if module in ends:
            theirs = ends[module]
        else:
            _, _, block, inside = module.split(".", 3)
            theirs = f"blk.{block}.{names[inside]}"
        writer.add_tensor(f"{theirs}.weight", weight.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_greedy_tokens_of_llama_cpp_are_those_of_steering_at_all_positions(make_model, make_features, tmp_path):
    python = os.environ.get("SAE_POSTTRAIN_LLAMA_PYTHON")
    if not python:
        pytest.skip("SAE_POSTTRAIN_LLAMA_PYTHON is not set: it names a Python that has llama-cpp-python and gguf")
    model, features = make_model(num_blocks=4).eval(), make_features(blocks=(1, 3))
    prompt, strength = [5, 60, 70, 80, 90], {"1.3": 0.8, "1.13": -0.5, "3.23": 0.6}
    write_qwen3(model, tmp_path / "tiny.gguf")
    vector = write_control_vector(features, strength, tmp_path / "push.gguf")
    words = [str(tmp_path / "tiny.gguf"), str(vector), json.dumps(prompt), str(NUM_TOKENS)]
    ran = subprocess.run([python, "-c", IN_LLAMA_CPP, *words], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    theirs = json.loads(ran.stdout.splitlines()[-1])

    def ours(**steering):
        ids, logits = list(prompt), []
        for _ in range(NUM_TOKENS):
            with torch.no_grad():
                if steering:
                    with steer(model, features, strength, **steering):
                        row = model(torch.tensor([ids])).logits[0, -1]
                else:
                    row = model(torch.tensor([ids])).logits[0, -1]
            logits.append(row)
            ids.append(int(row.argmax()))
        return ids[len(prompt) :], torch.stack(logits)

    plain, plain_logits = ours()
    steered, steered_logits = ours(positions="all")
    assert theirs["plain"]["ids"] == plain
    assert theirs["steered"]["ids"] == steered
    assert steered != plain
    away = (steered_logits[0] - plain_logits[0]).abs().max()
    for found, expected in ((theirs["plain"], plain_logits), (theirs["steered"], steered_logits)):
        # the same distance without a push: llama.cpp approximates exponentials
        assert (torch.tensor(found["logits"]) - expected).abs().max() < 0.02 < away / 20
