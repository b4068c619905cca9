"""
What the reader makes of SAEs that sparsify itself made and saved.

Needs an environment with it: `pip install -c constraints.txt -e '.[dev]' eai-sparsify==1.3.3`, then
`pytest -m slow tests/saes/test_sparsify_library.py`. SAELens is no second witness here: version 6.54 cannot load what
sparsify 1.3 writes.
"""

import warnings

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sae_posttrain.saes import load_sae

pytestmark = pytest.mark.slow

D = 32


@pytest.fixture
def sparsify():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sparsify", exc_type=ImportError)


@pytest.fixture
def x():
    return torch.randn(40, D, generator=torch.Generator().manual_seed(1))


def compare(reference, folder, x, block):
    """Activations and reconstruction, of the library's own object and of ours."""
    sae = load_sae(folder, block=block)
    with torch.no_grad():
        values, indices, positive = reference.encode(x)
        reconstruction = reference.decode(values, indices)
    acts = torch.zeros_like(positive).scatter_(-1, indices, values)
    torch.testing.assert_close(torch.relu(sae.pre_activations(x)), positive)
    torch.testing.assert_close(sae.encode(x), acts)
    torch.testing.assert_close(sae.reconstruct(x), reconstruction)
    some = load_sae(folder, block=block, features=[70, 3])
    torch.testing.assert_close(torch.relu(some.pre_activations(x)), positive[:, [70, 3]])
    torch.testing.assert_close(some.direction(3), reference.W_dec[3].detach())


@pytest.mark.parametrize(
    "settings",
    [
        {"k": 8, "expansion_factor": 4},
        {"k": 100, "expansion_factor": 4},  # more than there are positive values
        {"k": 8, "num_latents": 96},
        {"k": 8, "expansion_factor": 4, "activation": "groupmax"},
        {"k": 8, "expansion_factor": 4, "normalize_decoder": False, "multi_topk": True},
    ],
)
def test_reader_agrees_with_what_sparsify_saved(tmp_path, sparsify, x, settings):
    torch.manual_seed(0)
    reference = sparsify.SparseCoder(D, sparsify.SparseCoderConfig(**settings))
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.normal_(std=0.3)
    reference.save_to_disk(tmp_path / "layers.3")
    compare(sparsify.SparseCoder.load_from_disk(tmp_path / "layers.3"), tmp_path, x, block=3)


def test_transcoders_that_sparsify_saved_are_refused(tmp_path, sparsify):
    for settings in ({"transcode": True}, {"skip_connection": True}):
        sparsify.SparseCoder(D, sparsify.SparseCoderConfig(**settings)).save_to_disk(tmp_path / "layers.3.mlp")
        with pytest.raises(ValueError, match="is a transcoder"):
            load_sae(tmp_path, block=3)


@pytest.mark.filterwarnings("ignore")
def test_run_of_sparsifys_trainer_is_read_with_its_hookpoints(tmp_path, sparsify, x):
    """Trained on a tiny random model: the folders that the trainer names, the run's configuration beside them."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=D,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )
    from datasets import Dataset

    texts = Dataset.from_dict({"input_ids": torch.randint(0, 50, (16, 12)).tolist()}).with_format("torch")
    config = sparsify.TrainConfig(
        sparsify.SparseCoderConfig(expansion_factor=4, k=8),
        batch_size=4,
        hookpoints=["layers.1", "layers.1.mlp"],
        log_to_wandb=False,
        save_dir=str(tmp_path),
        run_name="run",
    )
    sparsify.Trainer(config, texts, model).fit()
    for hookpoint, site in (("layers.1", "resid_post"), ("layers.1.mlp", "mlp.output")):
        folder = tmp_path / "run" / hookpoint
        compare(sparsify.SparseCoder.load_from_disk(folder), folder, x, block=1)
        assert load_sae(tmp_path / "run", block=1, site=site).source.file == f"{hookpoint}/sae.safetensors"
