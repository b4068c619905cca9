"""
What `convert_sae` writes, loaded by SAELens, gives the numbers that we give.

Needs SAELens, in an environment of its own where its pins clash: `pip install '.[dev,train]'`, then
`pytest -m slow tests/saes/test_convert_library.py`. No network is used.
"""

import pytest
import torch

from sae_posttrain.saes import FrozenSAE, SAESource
from sae_posttrain.saes.convert import write_saelens

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

D, F = 24, 64
SAME = {"rtol": 1e-4, "atol": 1e-4}  # float32, and another order of the same sums


@pytest.fixture
def sae_lens():
    return pytest.importorskip("sae_lens", reason="needs SAELens: pip install '.[dev,train]'")


def values(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def of_norms(factor: float = 1.0) -> dict:
    return {"decoder_norm": factor * values(F, D, seed=2).norm(dim=1)}


KINDS = {
    "relu": {"activation": "relu"},
    "jumprelu": {"activation": "jumprelu", "threshold": values(F, seed=4)},
    "gated": {
        "activation": "gated",
        "magnitude_scale": values(F, seed=5).exp(),
        "magnitude_shift": values(F, seed=6),
    },
    "topk": {"activation": "topk", "k": 7},
    "topk by decoder norm": {"activation": "topk", "k": 7, **of_norms()},
    "topk by one factor": {"activation": "topk", "k": 7, "decoder_norm": torch.full((F,), 3.0), "norm_in_acts": False},
    "topk without ReLU": {"activation": "topk", "k": 40, "relu_after_topk": False},
    "abstopk": {"activation": "abstopk", "k": 7},
    "abstopk by decoder norm": {"activation": "abstopk", "k": 7, **of_norms()},
    "topk of layer norm": {"activation": "topk", "k": 7, "input_norm": "layer_norm"},
    "relu of constant norm": {"activation": "relu", "input_norm": "constant_norm"},
    "attention heads": {"activation": "relu", "site": "attn_z"},
    "module of transformers": {"activation": "relu", "site": "mlp.output"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_saelens_loads_what_is_written_and_agrees(sae_lens, tmp_path, kind):
    file = tmp_path / "w.pt"
    file.write_bytes(b"weights")
    sae = FrozenSAE(
        W_enc=values(D, F, seed=0) / D**0.5,
        b_enc=values(F, seed=1),
        W_dec=values(F, D, seed=2),
        b_dec=values(D, seed=3),
        block=4,
        base_model="Qwen/Qwen3-0.6B",
        source=SAESource("owner/saes", "a" * 40, "w.pt", "qwen_scope", file),
        **KINDS[kind],
    )
    written = write_saelens(sae, tmp_path / "out")
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "out")
    assert theirs.cfg.architecture() == written.architecture
    assert theirs.cfg.metadata.model_name == "Qwen/Qwen3-0.6B"
    assert theirs.cfg.metadata.converted_from["file"] == "w.pt"
    x = 2 * values(3, 50, D, seed=7) + 0.3
    with torch.no_grad():
        acts = theirs.encode(x)
        made = theirs.decode(acts)
    ours = sae.encode(x)
    if kind == "topk without ReLU":
        assert written.notes and (ours < 0).any()
        torch.testing.assert_close(acts, torch.relu(ours), **SAME)
    else:
        assert (acts != 0).any() and (acts == 0).any()
        torch.testing.assert_close(acts, ours, **SAME)
        torch.testing.assert_close(made, sae.reconstruct(x), **SAME)
