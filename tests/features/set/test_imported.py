"""Directions of other tools: control vectors, steering vectors, vectors of Neuronpedia."""

import http.server
import json
import struct
import sys
import threading
import types
from dataclasses import dataclass

import pytest
import torch

from sae_posttrain import FeatureSet, import_directions, steer
from sae_posttrain.cli import main
from sae_posttrain.features.set import imported


def gguf_text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf(
    tensors: dict[str, torch.Tensor], *, kind: int = 0, version: int = 3, num_tensors: int | None = None
) -> bytes:
    """As llama.cpp's `GGUFWriter` writes a control vector, with a list among the metadata."""
    entries = [
        gguf_text("general.architecture") + struct.pack("<I", 8) + gguf_text("controlvector"),
        gguf_text("controlvector.model_hint") + struct.pack("<I", 8) + gguf_text("qwen3"),
        gguf_text("controlvector.layer_count") + struct.pack("<II", 4, len(tensors)),
        gguf_text("some.list") + struct.pack("<IIQ3i", 9, 5, 3, 1, 2, 3),
        gguf_text("some.texts") + struct.pack("<IIQ", 9, 8, 1) + gguf_text("x"),
    ]
    table, data = b"", b""
    for name, tensor in tensors.items():
        sizes = tensor.shape[::-1]
        table += gguf_text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, len(data))
        data += tensor.numpy().tobytes()
        data += b"\0" * (-len(data) % 32)
    declared = len(tensors) if num_tensors is None else num_tensors
    head = b"GGUF" + struct.pack("<IQQ", version, declared, len(entries)) + b"".join(entries) + table
    return head + b"\0" * (-len(head) % 32) + data


def vectors(num: int = 2) -> torch.Tensor:
    return torch.randn(num, 32, generator=torch.Generator().manual_seed(0))


def test_control_vector_pushes_the_output_of_the_block_in_its_name(tmp_path, make_model):
    first, second = vectors()
    (tmp_path / "calm.gguf").write_bytes(gguf({"direction.1": first, "direction.0": second}))
    found = import_directions(tmp_path / "calm.gguf", base_model="org/base")
    assert (found.blocks, found.names, found.base_model) == ((0, 1), ("calm.0", "calm.1"), "org/base")
    assert torch.equal(found.directions, torch.stack([second, first]))
    assert found.notes["controlvector.model_hint"] == "qwen3"
    loaded = FeatureSet.load(found.save(tmp_path))
    assert [source.file for source in loaded.sources] == ["calm.gguf"] * 2
    model = make_model().eval()
    ids = torch.tensor([[5, 6, 7]])
    with steer(model, found[1], strength=3.0, unit="raw", positions="all"):
        steered = model(ids).logits
    push = 3.0 * first / first.norm()
    with model.model.layers[1].register_forward_hook(
        lambda block, args, out: (out[0] + push, *out[1:]) if isinstance(out, tuple) else out + push
    ):
        torch.testing.assert_close(model(ids).logits, steered)


def test_control_vector_that_the_gguf_package_wrote(tmp_path):
    package = pytest.importorskip("gguf", reason="the package `gguf` is not installed")
    writer = package.GGUFWriter(tmp_path / "x.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "qwen3")
    writer.add_uint32("controlvector.layer_count", 2)
    for block, vector in zip((3, 7), vectors()):
        writer.add_tensor(f"direction.{block}", vector.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = import_directions(tmp_path / "x.gguf")
    assert found.blocks == (3, 7) and torch.equal(found.directions, vectors())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gguf({"direction.1": vectors(1)[0]})[:-40], "truncated or damaged: direction.1 .* lies outside"),
        (gguf({"direction.1": vectors(1)[0]})[:60], "truncated or damaged"),
        (gguf({"blk.0.weight": vectors(1)[0]}), "is no control vector: it holds blk.0.weight"),
        (gguf({"direction.1": vectors(2)}), r"has shape \(2, 32\), a direction is one vector"),
        (gguf({"direction.1": vectors(1)[0]}, kind=12), "ggml's type 12, which is quantised"),
        (gguf({"direction.1": vectors(1)[0]}, version=1), "GGUF file of version 1"),
        (gguf({"direction.1": vectors(1)[0]}, num_tensors=1 << 60), "declares 1152921504606846976 tensors"),
        (gguf({"direction.1": vectors(1)[0], "direction.2": vectors(1)[0, :8]}), r"of the widths \[8, 32\]"),
        (gguf({}), "holds no direction"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 60), "declares a text of"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"hello", "is no GGUF file"),
        (b"", "is no GGUF file"),
    ],
)
def test_damaged_and_hostile_control_vectors_are_refused(tmp_path, content, message):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        import_directions(tmp_path / "x.gguf")


@pytest.fixture
def steering_vector(monkeypatch):
    """The class of the library steering-vectors, by the name under which it is pickled."""

    @dataclass
    class SteeringVector:
        layer_activations: dict
        layer_type: str = "decoder_block"

    module = types.ModuleType("steering_vectors.steering_vector")
    SteeringVector.__module__, SteeringVector.__qualname__ = module.__name__, "SteeringVector"
    module.SteeringVector = SteeringVector
    monkeypatch.setitem(sys.modules, "steering_vectors", types.ModuleType("steering_vectors"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return SteeringVector


@pytest.mark.parametrize(
    ("layer_type", "site"), [("decoder_block", "resid_post"), ("mlp", "mlp_out"), ("self_attn", "attn_out")]
)
def test_steering_vector_is_read_without_its_library(tmp_path, steering_vector, monkeypatch, layer_type, site):
    made = steering_vector({5: vectors()[0].bfloat16(), 3: vectors()[1:].bfloat16()}, layer_type)
    torch.save(made, tmp_path / "truth.pt")
    for name in ("steering_vectors", "steering_vectors.steering_vector"):
        monkeypatch.delitem(sys.modules, name)
    found = import_directions(tmp_path / "truth.pt", name="true")
    where = (3, 5) if site == "resid_post" else (f"3.{site}", f"5.{site}")
    assert found.names == tuple(f"true.{place}" for place in where) and set(found.sites) == {site}
    assert torch.equal(found.directions, vectors().flip(0).bfloat16().float())


def test_dict_of_layers_is_a_steering_vector_and_other_things_are_not(tmp_path, steering_vector):
    torch.save({2: vectors()[0]}, tmp_path / "x.pt")
    assert import_directions(tmp_path / "x.pt", site="mlp_out").places == ((2, "mlp_out"),)
    torch.save({"W_enc": vectors()}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="is no steering vector: it holds W_enc"):
        import_directions(tmp_path / "x.pt")
    torch.save(steering_vector({2: vectors()}), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"layer 2 has shape \(2, 32\), a direction is one vector"):
        import_directions(tmp_path / "x.pt")
    torch.save(steering_vector({2: vectors()[0]}, "input_layernorm"), tmp_path / "x.pt")
    with pytest.raises(ValueError, match="directions for 'input_layernorm', which is no one site here"):
        import_directions(tmp_path / "x.pt")
    torch.save(steering_vector({2: print}), tmp_path / "x.pt")
    with pytest.raises(ValueError, match="would run foreign code when loaded"):
        import_directions(tmp_path / "x.pt")


def neuronpedia(**changes) -> dict:
    row = {"modelId": "gemma-2-2b", "layer": "3-mine", "index": "7", "vector": vectors(1)[0].tolist()}
    return row | {"hookName": "blocks.3.hook_resid_pre", "vectorLabel": "cats", "hasVector": True} | changes


def test_vector_of_neuronpedia_is_read_from_its_json(tmp_path):
    file = tmp_path / "v.json"
    file.write_text(json.dumps(neuronpedia()))
    found = import_directions(file)
    assert (found.places, found.names) == (((2, "resid_post"),), ("cats.2",))  # the input of block 3
    torch.testing.assert_close(found.directions, vectors(1))
    assert import_directions(file, name="mine").names == ("mine.2",)
    upload = {"modelId": "m", "layerNumber": 4, "hookType": "resid-post", "vector": [1.0, 2], "vectorLabel": "a"}
    file.write_text(json.dumps([upload, upload | {"layerNumber": 5, "vectorLabel": "b"}]))
    assert import_directions(file).names == ("a.4", "b.5")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (neuronpedia(vector=[]), r"has no vector of its own: .*'3-mine'.*`FeatureSet.from_sae.load_sae.*, \[7\]"),
        (neuronpedia(hookName=None), "does not say where its vector belongs: .*Say it with `site`"),
        (neuronpedia(vector=["x"]), "its `vector` is no list of numbers"),
        (neuronpedia(vector=[0.0, 0.0]), "A direction is zero"),
        (neuronpedia(vector=[float("nan")]), "NaN"),
        ([], "holds no vector"),
        ("text", "holds no vector"),
    ],
)
def test_json_without_a_vector_or_place_is_an_error(tmp_path, row, message):
    (tmp_path / "v.json").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=message):
        import_directions(tmp_path / "v.json")


def test_place_that_the_json_does_not_say_can_be_given(tmp_path):
    (tmp_path / "v.json").write_text(json.dumps(neuronpedia(hookName=None)))
    assert import_directions(tmp_path / "v.json", site="mlp_out").places == ((3, "mlp_out"),)


@pytest.fixture
def site_of_neuronpedia(monkeypatch):
    """A server in the place of Neuronpedia, and what it was asked."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("x-api-key")))
            self.send_response(404 if "missing" in self.path else 200)
            self.end_headers()
            self.wfile.write(json.dumps(neuronpedia()).encode())

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(imported, "NEURONPEDIA", f"http://127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    "source",
    [
        "gemma-2-2b/3-mine/7",
        "https://www.neuronpedia.org/gemma-2-2b/3-mine/7",
        "https://neuronpedia.org/api/feature/gemma-2-2b/3-mine/7",
    ],
)
def test_vector_is_fetched_by_its_id_or_address(site_of_neuronpedia, monkeypatch, source):
    monkeypatch.setenv("NEURONPEDIA_API_KEY", "secret")
    found = import_directions(source)
    assert site_of_neuronpedia == [("/api/feature/gemma-2-2b/3-mine/7", "secret")]
    assert found.names == ("cats.2",) and "secret" not in str(vars(found))


def test_vector_that_cannot_be_fetched_says_what_to_do(site_of_neuronpedia, monkeypatch):
    with pytest.raises(FileNotFoundError, match="cannot be read: HTTP Error 404.*saved as .json is read without it"):
        import_directions("missing/3-mine/7")
    monkeypatch.setattr(imported, "NEURONPEDIA", "http://127.0.0.1:9")
    with pytest.raises(FileNotFoundError, match="cannot be read"):
        import_directions("gemma-2-2b/3-mine/7")


@pytest.mark.parametrize("source", ["none.gguf", "none.pt", "none.json", "none", "owner/name"])
def test_missing_source_is_an_error(source):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        import_directions(source)


def test_command_writes_a_feature_set(tmp_path, capsys):
    (tmp_path / "calm.gguf").write_bytes(gguf({"direction.1": vectors(1)[0]}))
    command = ["import-directions", str(tmp_path / "calm.gguf"), "--out", str(tmp_path / "calm.safetensors")]
    assert main([*command, "--base-model", "org/base"]) == 0
    assert "1 feature, found on org/base (width 32)" in capsys.readouterr().out
    assert FeatureSet.load(tmp_path / "calm.safetensors").names == ("calm.1",)
    assert main(command) == 2
    assert "exists already. Give another --out, or --overwrite" in capsys.readouterr().err


def test_a_feature_set_is_not_imported(make_features, tmp_path):
    file = make_features().save(tmp_path / "mine.safetensors")
    with pytest.raises(ValueError, match="mine.safetensors cannot be imported: it is a feature set"):
        import_directions(file)
