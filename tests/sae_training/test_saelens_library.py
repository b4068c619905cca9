"""Trainings with SAELens itself: `pip install -e '.[dev,train]'`, then `pytest -m slow tests/sae_training`."""

import itertools
import time

import pytest
import torch

from sae_posttrain import find_features, load_sae
from sae_posttrain.features.read.loading import load_model_and_tokenizer
from sae_posttrain.lab.contents import MODEL, read_texts
from sae_posttrain.sae_training.folder import read_report
from sae_posttrain.sae_training.saelens import SPARSITY_OF
from sae_posttrain.sae_training.trainer import train_sae

from .conftest import SENTENCES

pytest.importorskip("sae_lens", reason="needs SAELens: pip install 'sae_posttrain[train]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # SAELens and what it brings warn

ROWS = [{"text": f"{one}, then {other}"} for one, other in itertools.permutations(SENTENCES, 2)]


def train(model, tokenizer, out, **options):
    defaults = {"num_tokens": 20_000, "batch_size": 64, "buffer_tokens": 1000, "num_features": 96, "held_out": 0.2}
    return train_sae(model, ROWS, output_dir=out, tokenizer=tokenizer, **{"blocks": [1], **defaults, **options})


@pytest.mark.parametrize("architecture", sorted(SPARSITY_OF))
def test_each_architecture_reads_raw_activations_as_saelens_does(tmp_path, make_model, tokenizer, architecture):
    from sae_lens import SAE as SAELensSAE

    model = make_model()
    with torch.no_grad():  # a residual stream far from variance 1 and mean 0, as real ones are
        model.model.embed_tokens.weight.mul_(30).add_(20)
    options = {"k": 6} if SPARSITY_OF[architecture] == "k" else {"l1_coefficient": 1.0}
    [folder] = train(model, tokenizer, tmp_path / "saes", architecture=architecture, **options)
    measured = read_report(tmp_path / "saes")[folder.name]["measured"]
    assert measured["fvu"] < 0.1
    assert 1 < measured["l0"] < 24
    ours, theirs = load_sae(folder, block=1), SAELensSAE.load_from_disk(folder)
    assert ours.b_dec.abs().max() > 1  # raw units
    x = ours.b_dec + 30 * torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(x), theirs.encode(x), atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(ours.reconstruct(x), theirs(x), atol=1e-3, rtol=1e-4)
    assert theirs.cfg.metadata.hook_name == "blocks.1.hook_resid_post"


def test_the_same_seed_trains_the_same_saes(tmp_path, make_model, tokenizer):
    weights = []
    for name, seed in {"first": 0, "again": 0, "other": 1}.items():
        torch.rand(len(weights))  # what else draws random numbers does not matter
        folders = train(make_model(), tokenizer, tmp_path / name, blocks=[0, 1], seed=seed, num_tokens=2000)
        weights.append([(folder / "sae_weights.safetensors").read_bytes() for folder in folders])
    first, again, other = weights
    assert first == again
    assert first[0] != other[0]


def test_a_minute_on_the_lab_model_gives_an_sae_that_explains_it_and_finds_its_language_feature(tmp_path):
    model, tokenizer = load_model_and_tokenizer(str(MODEL), None)
    rows = [{"text": tokenizer.apply_chat_template(row["messages"], tokenize=False)} for row in read_texts("train")]
    started = time.process_time()
    [folder] = train_sae(
        model,
        rows[:2000],
        blocks=[2],
        output_dir=tmp_path / "saes",
        tokenizer=tokenizer,
        num_features=1024,
        k=16,
        num_tokens=400_000,
        batch_size=256,
        texts_per_pass=32,
        held_out=0.1,
    )
    seconds = time.process_time() - started
    entry = read_report(tmp_path / "saes")[folder.name]
    print(f"{seconds:.0f} s of processor time: {entry['measured']}")
    assert entry["measured"]["l0"] == 16
    assert entry["measured"]["fvu"] < 0.15
    assert entry["measured"]["dead_features"] < 0.1

    answers = [{"text": row["answer"], "lang": row["lang"]} for row in read_texts("dev")]
    found = find_features(model, tmp_path / "saes", answers, target_group="zh", blocks=[2], tokenizer=tokenizer)
    assert found.scores["auroc"].max() > 0.95
