import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sae_posttrain.saes import FrozenSAE, SAESource


@pytest.fixture
def sae(weights) -> FrozenSAE:
    source = SAESource(repository="", revision=None, file="f", format="qwen_scope", path=Path("f"))
    tensors = {name: weights[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    return FrozenSAE(**tensors, activation="topk", k=3, relu_after_topk=False, block=20, source=source)


def test_wrong_width_is_an_error_that_names_both_widths(sae):
    with pytest.raises(
        ValueError, match=r"The SAE reads width 6, resid_post of block 20 has 7; was it trained on this model?"
    ):
        sae.pre_activations(torch.zeros(2, 7))
    with pytest.raises(ValueError, match="holds 16 features, `acts` has 6"):
        sae.decode(torch.zeros(2, 6))


@pytest.mark.parametrize("feature", [-1, 16])
def test_direction_of_a_feature_that_does_not_exist_is_an_error(sae, feature):
    with pytest.raises(ValueError, match=f"Feature {feature} does not exist: the SAE has features 0 to 15"):
        sae.direction(feature)


def test_arithmetic_is_float32_also_for_bfloat16_and_under_autocast(sae, x):
    exact = sae.pre_activations(x.bfloat16().float())
    assert sae.pre_activations(x.bfloat16()).equal(exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sae.pre_activations(x.bfloat16()).equal(exact)


@pytest.mark.parametrize("chunk", [1, 5, 16, 100])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"relu_after_topk": True},
        {"activation": "abstopk"},
        {"decoder_norm": torch.linspace(0.05, 2, 16)},
        {"decoder_norm": torch.linspace(0.1, 2, 16), "norm_in_acts": False},
        {"input_norm": "layer_norm"},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_topk_in_chunks_of_features_is_topk_of_all(sae, x, changes, chunk):
    sae = replace(sae, **changes)
    values, ids = sae.encode_topk(x, features_per_chunk=chunk)
    dense = sae.encode(x)
    assert values.shape == ids.shape == (2, 5, 3)
    torch.testing.assert_close(torch.zeros_like(dense).scatter_(-1, ids, values), dense)
    assert all(len(set(row)) == 3 for row in ids.flatten(0, 1).tolist())
    values, ids = sae.activate_topk(sae.pre_activations(x))
    torch.testing.assert_close(torch.zeros_like(dense).scatter_(-1, ids, values), dense)


def test_topk_in_chunks_never_holds_the_pre_activations_of_all_features(sae, x):
    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func.overloadpacket.__name__ in ("addmm", "mm"):
                self.seen = max(self.seen, result.shape[-1])
            return result

    with Largest() as largest:
        sae.encode_topk(x, features_per_chunk=4)
    assert largest.seen == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "relu", "k": None}, "no k largest features: its activation is relu"),
        ({"k": None}, "does not say how many"),
        ({"features": tuple(range(16))}, "only 16 were loaded"),
    ],
)
def test_topk_in_chunks_says_what_it_cannot_do(sae, x, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(sae, **changes).encode_topk(x)
    with pytest.raises(ValueError, match=message):
        replace(sae, **changes).activate_topk(torch.zeros(2, 16))
    with pytest.raises(ValueError, match="reads width 6"):
        sae.encode_topk(torch.zeros(2, 7))


def test_topk_keeps_exactly_k_and_passes_gradients_to_them(sae, x):
    x.requires_grad_()
    acts = sae.encode(x)
    assert ((acts != 0).sum(-1) == 3).all()
    acts.sum().backward()
    active = (acts != 0).float()
    torch.testing.assert_close(x.grad, active @ sae.W_enc.T)  # d sum(acts) / dx: the active features' encoders


def test_parameters_that_do_not_fit_are_refused(sae):
    with pytest.raises(ValueError, match=r"Unknown activation 'softmax'. Known: topk"):
        replace(sae, activation="softmax")
    with pytest.raises(ValueError, match="A jumprelu SAE needs `threshold`"):
        replace(sae, activation="jumprelu", k=None)
    with pytest.raises(ValueError, match=r"`b_enc` has shape \(3,\)"):
        replace(sae, b_enc=torch.zeros(3))
    for k in (0, 17):
        with pytest.raises(ValueError, match="`k` must be from 1"):
            replace(sae, k=k)


def test_repr_shows_no_weights(sae):
    assert "tensor" not in repr(sae)
    assert "block=20" in repr(sae)


def test_moved_sae_keeps_everything_else(sae):
    moved = sae.to("meta")
    assert moved.W_enc.is_meta
    assert moved.b_dec.is_meta
    assert (moved.k, moved.block) == (3, 20)


def test_sha256_of_a_local_file_is_computed_once_and_only_when_asked(tmp_path):
    file = tmp_path / "layer0.sae.pt"
    file.write_bytes(b"weights")
    source = SAESource(repository="", revision=None, file=file.name, format="qwen_scope", path=file)
    digest = source.sha256()
    assert digest == hashlib.sha256(b"weights").hexdigest()
    file.unlink()
    assert source.sha256() == digest
    with pytest.raises(FileNotFoundError, match="is gone"):
        replace(source).sha256()


def test_sha256_of_a_hub_file_is_the_name_of_its_blob(tmp_path):
    (tmp_path / "blobs").mkdir()
    blob = tmp_path / "blobs" / ("a" * 64)
    blob.write_bytes(b"anything")
    link = tmp_path / "layer0.sae.pt"
    link.symlink_to(blob)
    source = SAESource(repository="o/n", revision="c", file=link.name, format="qwen_scope", path=link)
    assert source.sha256() == "a" * 64
