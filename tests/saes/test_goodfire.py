from pathlib import Path

import pytest
import torch

from sae_posttrain.saes import load_sae


def save(folder: Path, weights, name: str, linear="_linear") -> Path:
    stored = {
        f"encoder{linear}.weight": weights["W_enc"].T.contiguous(),
        f"encoder{linear}.bias": weights["b_enc"],
        f"decoder{linear}.weight": weights["W_dec"].T.contiguous(),
        f"decoder{linear}.bias": weights["b_dec"],
    }
    torch.save(stored, folder / name)
    return folder


@pytest.mark.parametrize(
    ("name", "linear", "block", "model"),
    [
        ("Llama-3.1-8B-Instruct-SAE-l19.pth", "_linear", 19, "meta-llama/Llama-3.1-8B-Instruct"),
        ("Llama-3.3-70B-Instruct-SAE-l50.pt", "_linear", 50, "meta-llama/Llama-3.3-70B-Instruct"),
        ("DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt", "", 19, "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"),
        ("mine-l3.pt", "", 3, ""),
    ],
)
def test_goodfire_matches_the_published_formula(tmp_path, weights, x, name, linear, block, model):
    save(tmp_path, weights, name, linear)
    sae = load_sae(tmp_path, block=block)
    pre = x @ weights["W_enc"] + weights["b_enc"]  # the decoder's bias is not subtracted
    acts = torch.relu(pre)
    torch.testing.assert_close(sae.pre_activations(x), pre)
    torch.testing.assert_close(sae.encode(x), acts)
    torch.testing.assert_close(sae.reconstruct(x), acts @ weights["W_dec"] + weights["b_dec"])
    assert (sae.block, sae.site, sae.base_model, sae.source.file) == (block, "resid_post", model, name)

    some = load_sae(tmp_path, block=block, features=[11, 4])
    torch.testing.assert_close(some.encode(x), acts[..., [11, 4]])
    assert some.direction(4).equal(weights["W_dec"][4])


def test_block_stands_in_the_files_name(tmp_path, weights):
    save(tmp_path, weights, "Llama-3.1-8B-Instruct-SAE-l19.pth")
    with pytest.raises(FileNotFoundError, match="no SAE of block 20; it has blocks 19"):
        load_sae(tmp_path, block=20)
    torch.save({}, tmp_path / "optimizer.pt")
    assert load_sae(tmp_path, block=19).source.format == "goodfire"


def test_sae_that_picks_features_over_a_whole_batch_is_refused(tmp_path, weights):
    tied = {"W": weights["W_enc"], "b_enc": weights["b_enc"], "b_dec": weights["b_dec"]}
    torch.save(tied, tmp_path / "DeepSeek-R1-SAE-l37.pt")
    with pytest.raises(ValueError, match=r"holds W .6, 16.*expected are exactly encoder.weight"):
        load_sae(tmp_path, block=37)


def test_what_does_not_apply_is_refused(tmp_path, weights):
    save(tmp_path, weights, "mine-l3.pt")
    with pytest.raises(ValueError, match="`k` belongs to TopK SAEs; this one is a relu SAE"):
        load_sae(tmp_path, block=3, k=91)
    with pytest.raises(ValueError, match="`input_scale` does not apply"):
        load_sae(tmp_path, block=3, input_scale=0.5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("repository", "name", "linear", "loader"),
    [
        (
            "Goodfire/Llama-3.1-8B-Instruct-SAE-l19",
            "Llama-3.1-8B-Instruct-SAE-l19.pth",
            "_linear",
            "get_goodfire_huggingface_loader",
        ),
        (
            "qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19",
            "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt",
            "",
            "deepseek_r1_sae_huggingface_loader",
        ),
    ],
)
def test_reader_agrees_with_saelens(tmp_path, weights, x, monkeypatch, repository, name, linear, loader):
    """In an environment with it: `pip install -c constraints.txt -e '.[dev]' sae-lens==6.54.12`."""
    loaders = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders", exc_type=ImportError)
    from sae_lens import SAE

    save(tmp_path, weights, name, linear)
    monkeypatch.setattr(loaders, "hf_hub_download", lambda repo_id, filename, **_: tmp_path / filename)
    sizes = {"d_in": 6, "d_sae": 16, "dtype": "float32"}
    cfg, state, _ = getattr(loaders, loader)(repository, name, cfg_overrides=sizes)
    theirs = SAE.from_dict({**loaders.handle_config_defaulting(cfg), "device": "cpu"})
    theirs.process_state_dict_for_loading(state)
    theirs.load_state_dict(state)
    sae = load_sae(tmp_path, block=19)
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(x), theirs.encode(x))
        torch.testing.assert_close(sae.reconstruct(x), theirs(x))
    assert theirs.cfg.metadata.hook_name == "blocks.19.hook_resid_post"
