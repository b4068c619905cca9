"""Control vectors and steering vectors: written, and read back as the same push; read by the other libraries."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sae_posttrain import import_directions, steer
from sae_posttrain.steering.export.control_vector import write_control_vector
from sae_posttrain.steering.export.pushes import pushes_of
from sae_posttrain.steering.export.steering_vector import write_steering_vector

IDS = torch.tensor([[5, 6, 7, 8]])
STRENGTH = {"1.3": -0.8, "1.13": 0.5, "2.23": 1.5}


@pytest.fixture
def features(make_features):
    return make_features(blocks=(1, 2))


@pytest.fixture
def model(make_model):
    return make_model(num_blocks=3).eval()


def steered(model, features, strength, **options):
    with torch.no_grad(), steer(model, features, strength, positions="all", **options):
        return model(IDS).logits


def test_a_control_vector_comes_back_as_the_same_push(features, model, tmp_path):
    pytest.importorskip("gguf")
    path = write_control_vector(features, STRENGTH, tmp_path / "calm.gguf")
    found = import_directions(path)
    pushes = pushes_of(features, STRENGTH)
    assert found.blocks == (1, 2)
    assert torch.equal(found.directions, torch.stack([pushes[1, "resid_post"], pushes[2, "resid_post"]]))
    lengths = dict(zip(found.names, found.directions.norm(dim=1).tolist()))
    torch.testing.assert_close(steered(model, found, lengths, unit="raw"), steered(model, features, STRENGTH))


def test_the_gguf_package_reads_the_fields_of_llama_cpp(features, tmp_path):
    gguf = pytest.importorskip("gguf")
    named = replace(features, fingerprint={"model_type": "qwen3"})
    reader = gguf.GGUFReader(write_control_vector(named, STRENGTH, tmp_path / "calm.gguf"))
    texts = {key: reader.get_field(key).contents() for key in ("general.architecture", "controlvector.model_hint")}
    assert texts == {"general.architecture": "controlvector", "controlvector.model_hint": "qwen3"}
    assert reader.get_field("controlvector.layer_count").contents() == 2
    assert [(tensor.name, tensor.tensor_type.name, tensor.shape.tolist()) for tensor in reader.tensors] == [
        ("direction.1", "F32", [32]),
        ("direction.2", "F32", [32]),
    ]


def test_a_steering_vector_comes_back_as_the_same_push(features, model, tmp_path):
    path = write_steering_vector(features, STRENGTH, tmp_path / "calm.pt")
    found = import_directions(path)
    pushes = pushes_of(features, STRENGTH)
    assert torch.equal(found.directions, torch.stack([pushes[1, "resid_post"], pushes[2, "resid_post"]]))
    lengths = dict(zip(found.names, found.directions.norm(dim=1).tolist()))
    torch.testing.assert_close(steered(model, found, lengths, unit="raw"), steered(model, features, STRENGTH))


def test_the_library_steering_vectors_pushes_the_same(features, model, tmp_path):
    library = pytest.importorskip("steering_vectors", reason="the library steering-vectors is not installed")
    vector = library.SteeringVector(**torch.load(write_steering_vector(features, STRENGTH, tmp_path / "calm.pt")))
    with torch.no_grad(), vector.apply(model):
        theirs = model(IDS).logits
    torch.testing.assert_close(theirs, steered(model, features, STRENGTH), atol=1e-5, rtol=1e-5)


def test_the_library_repeng_pushes_the_same(make_features, model, tmp_path, monkeypatch):
    monkeypatch.setattr("numpy.float_", np.float64, raising=False)  # repeng 0.4.0 names it; NumPy 2 removed it
    repeng = pytest.importorskip("repeng", reason="the library repeng is not installed")
    features = make_features(blocks=(0, 2))  # repeng reads block 0 too
    path = write_control_vector(features, -0.8, tmp_path / "calm.gguf", reader="repeng")
    vector = repeng.ControlVector.import_gguf(path)
    expected = steered(model, features, -0.8)
    controlled = repeng.ControlModel(model, [0, 2])
    controlled.set_control(vector)
    with torch.no_grad():
        theirs = controlled(IDS).logits
    controlled.unwrap()
    torch.testing.assert_close(theirs, expected, atol=1e-5, rtol=1e-5)
    vector.export_gguf(tmp_path / "theirs.gguf")
    assert torch.equal(import_directions(tmp_path / "theirs.gguf").directions, import_directions(path).directions)


def test_sites_that_a_file_cannot_hold_are_refused(features, make_features, tmp_path):
    pytest.importorskip("gguf")
    mixed = replace(features, sites=("mlp_out", "resid_post", "resid_post", "resid_post"))
    with pytest.raises(ValueError, match="features at mlp_out of block 1. Export those at 'resid_post' only"):
        write_control_vector(mixed, 1.0, tmp_path / "x.gguf")
    with pytest.raises(ValueError, match="one kind of site, .* these features are at mlp_out, resid_post"):
        write_steering_vector(mixed, 1.0, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="llama.cpp cannot push the output of block 0"):
        write_control_vector(make_features(blocks=(0,)), 1.0, tmp_path / "x.gguf")
    with pytest.raises(ValueError, match="ends in .gguf"):
        write_control_vector(features, 1.0, tmp_path / "x.bin")
    with pytest.raises(ValueError, match="ends in .pt"):
        write_steering_vector(features, 1.0, tmp_path / "x.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_only_when_asked(features, tmp_path):
    path = write_steering_vector(features, 1.0, tmp_path / "x.pt")
    with pytest.raises(FileExistsError, match="exists already"):
        write_steering_vector(features, 2.0, path)
    write_steering_vector(features, 2.0, path, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt"]
