"""
What the reader makes of SAEs that dictionary_learning itself trained and saved, and of the same files as SAELens reads
them.

Needs environments of their own (dictionary-learning pins nnsight below 0.4 and more that its classes do not use; the
test stands in for what is missing):

    pip install -c constraints.txt -e '.[dev]' einops && pip install --no-deps dictionary-learning==0.1.0
    pip install -c constraints.txt -e '.[dev]' sae-lens==6.54.12

In each: `pytest -m slow tests/saes/test_dictionary_learning_library.py`. What is not installed is skipped.
"""

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from sae_posttrain.saes import load_sae

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

D, F, K = 16, 64, 5
SCALE = 12.0
"""Scale of the activations: training normalises them, so biases and thresholds are saved in this unit."""


class Data:
    """Random activations around a mean, new at every pass, and what the library's buffer says of itself."""

    config = {"d_submodule": D, "io": "out", "ctx_len": 128, "n_ctxs": 9}

    def __iter__(self):
        random = torch.Generator().manual_seed(2)
        while True:
            yield (torch.randn(64, D, generator=random) + 1) * SCALE


@pytest.fixture
def x():
    return next(iter(Data()))[:40]


@pytest.fixture
def library(monkeypatch):
    """The module of this name in dictionary_learning, with empty modules for what only its buffers and plots need."""
    pytest.importorskip("einops")
    for name, contents in {"nnsight": ["LanguageModel"], "wandb": []}.items():
        if importlib.util.find_spec(name) is None:
            module = ModuleType(name)
            for content in contents:
                setattr(module, content, None)
            monkeypatch.setitem(sys.modules, name, module)

    def get(name: str) -> ModuleType:
        pytest.importorskip("dictionary_learning", exc_type=ImportError)
        return importlib.import_module(f"dictionary_learning.{name}")

    return get


COMMON = {"activation_dim": D, "dict_size": F, "layer": 3, "lm_name": "EleutherAI/pythia-70m-deduped"}
COMMON |= {"submodule_name": "resid_post_layer_3", "device": "cpu", "warmup_steps": 1, "steps": 30, "seed": 0}

TRAINERS = {
    # trainer, its module, the class it trains, that class's module, further settings
    "AutoEncoder": ("StandardTrainer", "standard", "dictionary", {}),
    "AutoEncoder of the April update": ("StandardTrainerAprilUpdate", "standard", "dictionary", {}),
    "AutoEncoderTopK": ("TopKTrainer", "top_k", "trainers.top_k", {"k": K, "threshold_start_step": 3}),
    "BatchTopKSAE": ("BatchTopKTrainer", "batch_top_k", "trainers.batch_top_k", {"k": K, "threshold_start_step": 3}),
    "BatchTopKSAE without threshold": ("BatchTopKTrainer", "batch_top_k", "trainers.batch_top_k", {"k": K}),
    "MatryoshkaBatchTopKSAE": (
        "MatryoshkaBatchTopKTrainer",
        "matryoshka_batch_top_k",
        "trainers.matryoshka_batch_top_k",
        {"k": K, "threshold_start_step": 3, "group_fractions": [0.25, 0.75]},
    ),
    "JumpReluAutoEncoder": ("JumpReluTrainer", "jumprelu", "dictionary", {}),
    "GatedAutoEncoder": ("GatedSAETrainer", "gdm", "dictionary", {}),
}


def settings_of(library, kind: str) -> dict:
    """What `trainSAE` and a trainer's constructor take."""
    trainer, module, _, settings = TRAINERS[kind]
    settings = COMMON | settings
    if "k" not in settings:
        settings |= {"sparsity_warmup_steps": 2}
    return {"trainer": getattr(library(f"trainers.{module}"), trainer), **settings}


def train(library, kind: str, folder: Path, normalize: bool) -> Path:
    library("training").trainSAE(
        Data(), [settings_of(library, kind)], steps=30, save_dir=str(folder), normalize_activations=normalize,
        device="cpu",
    )  # fmt: skip
    return folder / "trainer_0"


def load_with_library(library, kind: str, folder: Path):
    name = kind.partition(" ")[0]
    return getattr(library(TRAINERS[kind][2]), name).from_pretrained(str(folder / "ae.pt"))


def compare(sae, reference, x):
    with torch.no_grad():
        acts = reference.encode(x)
        reconstruction = reference.decode(acts)
    assert (acts > 0).any() and (acts == 0).any()
    torch.testing.assert_close(sae.encode(x), acts, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.reconstruct(x), reconstruction, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", TRAINERS)
def test_reader_agrees_with_what_the_library_trained_and_saved(tmp_path, library, x, kind, normalize):
    folder = train(library, kind, tmp_path, normalize)
    sae = load_sae(tmp_path, block=3)
    compare(sae, load_with_library(library, kind, folder), x)
    assert (sae.site, sae.base_model) == ("resid_post", "EleutherAI/pythia-70m-deduped")
    assert sae.k == (K if kind == "AutoEncoderTopK" else None)
    if kind != "AutoEncoderTopK":
        some = load_sae(tmp_path, block=3, features=[50, 3])
        torch.testing.assert_close(some.encode(x), sae.encode(x)[:, [50, 3]])


def test_april_updates_directions_are_normalised_as_the_library_does_by_default(tmp_path, library):
    kind = "AutoEncoder of the April update"
    folder = train(library, kind, tmp_path, normalize=True)
    stored = torch.load(folder / "ae.pt", weights_only=True)["decoder.weight"]
    assert not torch.allclose(stored.norm(dim=0), torch.ones(F), atol=0.1)
    reference = load_with_library(library, kind, folder)
    torch.testing.assert_close(load_sae(tmp_path, block=3).W_dec, reference.decoder.weight.T.detach())


def test_class_that_no_trainer_makes_is_read_too(tmp_path, library, x):
    torch.manual_seed(0)
    reference = library("dictionary").AutoEncoderNew(D, F)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.normal_(std=0.3)
    torch.save(reference.state_dict(), tmp_path / "ae.pt")
    compare(load_sae(tmp_path, block=3), reference, x)


@pytest.mark.parametrize("kind", [kind for kind in TRAINERS if "without" not in kind])
def test_interrupted_training_reads_as_the_finished_one_would(tmp_path, library, x, kind):
    """The checkpoint is what later versions of `trainSAE` write; the reference is what they do before a final save."""
    settings = settings_of(library, kind)
    trainer = settings.pop("trainer")(**settings)
    for step, batch in zip(range(10), Data()):
        trainer.update(step, batch / SCALE)
    torch.save(
        {
            "step": 10,
            "ae": trainer.ae.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "config": trainer.config,
            "norm_factor": SCALE,
        },
        tmp_path / "ae.pt",
    )
    sae = load_sae(tmp_path, block=3)
    trainer.ae.scale_biases(SCALE)
    if kind.startswith("AutoEncoder ") or kind == "AutoEncoder":
        trainer.ae.normalize_decoder()
    compare(sae, trainer.ae, x)


def stored_as(kind: str) -> dict[str, torch.Tensor]:
    """Random weights of this class, with directions of norm 1."""
    random = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(F, D, generator=random), dim=1)
    W_enc, b_dec = W_dec.T.clone(), torch.randn(D, generator=random)
    b_enc, thresholds = torch.randn(F, generator=random), torch.rand(F, generator=random) * 5
    linear = {"encoder.weight": W_enc.T.contiguous(), "decoder.weight": W_dec.T.contiguous()}
    topk = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(2.5)}
    matrices = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    gates = {"gate_bias": b_enc, "mag_bias": b_enc.flip(0), "r_mag": b_enc / 5}
    return {
        "AutoEncoder": {**linear, "encoder.bias": b_enc, "bias": b_dec},
        "AutoEncoderTopK": {**linear, "encoder.bias": b_enc, "b_dec": b_dec, **topk},
        "BatchTopKSAE": {**linear, "encoder.bias": b_enc, "b_dec": b_dec, **topk},
        "MatryoshkaBatchTopKSAE": {**matrices, **topk, "group_sizes": torch.tensor([4, 60])},
        "JumpReluAutoEncoder": {**matrices, "threshold": thresholds},
        "GatedAutoEncoder": {**linear, "decoder_bias": b_dec, **gates},
    }[kind]


@pytest.mark.parametrize("kind", [kind for kind in TRAINERS if " " not in kind])
def test_reader_agrees_with_saelens(tmp_path, monkeypatch, x, kind):
    """On directions of norm 1: SAELens does not do what dictionary_learning does to others."""
    loaders = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders", exc_type=ImportError)
    from sae_lens import SAE

    torch.save(stored_as(kind), tmp_path / "ae.pt")
    trainer = {name: COMMON[name] for name in ("activation_dim", "dict_size", "layer", "lm_name", "submodule_name")}
    config = {"trainer": {**trainer, "dict_class": kind, "k": K}, "buffer": Data.config}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(loaders, "hf_hub_download", lambda repo_id, filename, **_: tmp_path / Path(filename).name)

    cfg, weights, _ = loaders.dictionary_learning_sae_huggingface_loader_1("owner/name", "trainer_0")
    theirs = SAE.from_dict({**loaders.handle_config_defaulting(cfg), "device": "cpu"})
    theirs.process_state_dict_for_loading(weights)
    theirs.load_state_dict(weights)
    compare(load_sae(tmp_path, block=3), theirs, x)
