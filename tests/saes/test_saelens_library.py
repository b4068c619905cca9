"""
The same files read by SAELens and by us give the same numbers.

Needs SAELens, in an environment of its own where its pins clash: `pip install '.[dev,train]'`, then
`pytest -m slow tests/saes/test_saelens_library.py`. No network is used.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_posttrain.saes import FrozenSAE, load_sae

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

D, F, K = 24, 64, 7
METADATA = {"model_name": "Qwen/Qwen3-0.6B", "hook_name": "blocks.4.hook_resid_post"}
SAME = {"rtol": 1e-4, "atol": 1e-4}  # float32, and another order of the same sums

INFERENCE = {
    "standard": "StandardSAE",
    "topk": "TopKSAE",
    "abstopk": "AbsTopKSAE",
    "jumprelu": "JumpReLUSAE",
    "gated": "GatedSAE",
}
TRAINING = {
    "standard": ("StandardTrainingSAE", {}),
    "topk": ("TopKTrainingSAE", {"k": K}),
    "abstopk": ("AbsTopKTrainingSAE", {"k": K}),
    "jumprelu": ("JumpReLUTrainingSAE", {"jumprelu_init_threshold": 0.3}),
    "gated": ("GatedTrainingSAE", {}),
    "batchtopk": ("BatchTopKTrainingSAE", {"k": K}),
    "batchtopk, norms not folded": ("BatchTopKTrainingSAE", {"k": K, "rescale_acts_by_decoder_norm": False}),
    "matryoshka_batchtopk": ("MatryoshkaBatchTopKTrainingSAE", {"k": K, "matryoshka_widths": [16, F]}),
}


@pytest.fixture
def sae_lens():
    return pytest.importorskip("sae_lens", reason="needs SAELens: pip install '.[dev,train]'")


@pytest.fixture
def x():
    return 2 * torch.randn(3, 50, D, generator=torch.Generator().manual_seed(1)) + 0.3


def make(sae_lens, class_name: str, **config):
    """One of SAELens' classes with random weights."""
    sae_class, config_class = getattr(sae_lens, class_name), getattr(sae_lens, f"{class_name}Config")
    metadata = sae_lens.saes.sae.SAEMetadata(**{**METADATA, **config.pop("metadata", {})})
    sae = sae_class(config_class(d_in=D, d_sae=F, metadata=metadata, **config))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.normal_().mul_(1 if parameter.ndim == 1 else 0.2)
            if "threshold" in name:
                parameter.abs_()
    return sae


def compare(theirs, ours: FrozenSAE, x) -> None:
    """Pre-activations, activations and reconstruction."""
    seen = []
    handle = theirs.hook_sae_acts_pre.register_forward_hook(lambda _module, _args, output: seen.append(output))
    with torch.no_grad(), handle:
        their_acts = theirs.encode(x)
        reconstruction = theirs(x)
        if ours.activation == "gated":  # theirs is the magnitude's; that of the gate it keeps to itself
            gate = theirs.process_sae_in(x) @ theirs.W_enc + theirs.b_gate
            torch.testing.assert_close(ours.pre_activations(x), gate, **SAME)
        else:
            torch.testing.assert_close(ours.pre_activations(x), seen[0], **SAME)
    their_acts = their_acts.to_dense() if their_acts.is_sparse else their_acts
    assert 0 < (their_acts != 0).float().mean() < 1
    torch.testing.assert_close(ours.encode(x), their_acts, **SAME)
    torch.testing.assert_close(ours.reconstruct(x), reconstruction, **SAME)


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("architecture", INFERENCE)
def test_every_architecture_encodes_and_decodes_alike(tmp_path, sae_lens, x, architecture, subtract):
    more = {"k": K} if "topk" in architecture else {}
    theirs = make(sae_lens, INFERENCE[architecture], apply_b_dec_to_input=subtract, **more)
    theirs.save_model(tmp_path)
    ours = load_sae(tmp_path, block=4)
    assert (ours.base_model, ours.site) == (METADATA["model_name"], "resid_post")
    compare(theirs, ours, x)
    compare(sae_lens.SAE.load_from_disk(tmp_path), ours, x)


@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
def test_activations_rescaled_by_the_decoders_norm(tmp_path, sae_lens, x, architecture):
    theirs = make(sae_lens, INFERENCE[architecture], k=K, rescale_acts_by_decoder_norm=True)
    theirs.save_model(tmp_path)
    compare(theirs, load_sae(tmp_path, block=4), x)


@pytest.mark.parametrize("kind", TRAINING)
def test_trained_saes_as_saelens_saves_them(tmp_path, sae_lens, x, kind):
    class_name, more = TRAINING[kind]
    training = make(sae_lens, class_name, **more)
    step = sae_lens.saes.sae.TrainStepInput
    coefficients = dict.fromkeys(training.get_coefficients(), 1e-3)
    optimizer = torch.optim.Adam(training.parameters(), lr=1e-3)
    for n in range(150):  # a BatchTopK SAE learns its threshold on the way
        training.training_forward_pass(step(x.flatten(0, 1), coefficients, None, n, False)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    training.save_inference_model(tmp_path)
    ours = load_sae(tmp_path, block=4)
    if "batchtopk" in kind:
        assert ours.activation == "jumprelu"
        assert (ours.threshold > 0).all()
    compare(sae_lens.SAE.load_from_disk(tmp_path), ours, x)


def test_sae_of_saelens_own_trainer(tmp_path, sae_lens, x):
    training = make(sae_lens, "BatchTopKTrainingSAE", k=K, normalize_activations="expected_average_only_in")
    config = sae_lens.config.SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=6400,
        device="cpu",
        autocast=False,
        lr=1e-3,
        lr_end=1e-4,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=64,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        logger=sae_lens.LoggingConfig(log_to_wandb=False),
    )
    batches = iter(lambda: 2 * torch.randn(64, D) + 0.3, None)
    trained = sae_lens.SAETrainer(config, training, batches).fit()
    trained.save_inference_model(tmp_path)
    ours = load_sae(tmp_path, block=4)  # the factor of the input was folded when the training ended
    assert ours.activation == "jumprelu"
    assert (ours.threshold > 0).all()
    compare(sae_lens.SAE.load_from_disk(tmp_path), ours, x)


@pytest.mark.parametrize("normalise", ["layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("architecture", INFERENCE)
def test_input_normalised_per_token(tmp_path, sae_lens, x, architecture, normalise):
    more = {"k": K} if "topk" in architecture else {}
    theirs = make(sae_lens, INFERENCE[architecture], normalize_activations=normalise, **more)
    theirs.save_model(tmp_path)
    compare(theirs, load_sae(tmp_path, block=4), x)


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("architecture", INFERENCE)
def test_scaled_input_is_folded_as_saelens_folds_it(tmp_path, sae_lens, x, architecture, rescale, subtract):
    more = {"k": K, "rescale_acts_by_decoder_norm": rescale} if "topk" in architecture else {}
    normalise = {"normalize_activations": "expected_average_only_in", "apply_b_dec_to_input": subtract}
    theirs = make(sae_lens, INFERENCE[architecture], **normalise, **more)
    theirs.save_model(tmp_path)
    theirs.fold_activation_norm_scaling_factor(0.21381938399317255)  # of gemma-2b-res-jb, block 12
    compare(theirs, load_sae(tmp_path, block=4, input_scale=0.21381938399317255), x)


def test_attention_heads_are_the_same_side_by_side(tmp_path, sae_lens, x):
    theirs = make(
        sae_lens, "StandardSAE", reshape_activations="hook_z", metadata={"hook_name": "blocks.4.attn.hook_z"}
    )
    theirs.save_model(tmp_path)
    ours = load_sae(tmp_path, block=4)
    assert ours.site == "attn_z"
    heads = x.unflatten(-1, (4, D // 4))
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(x), theirs.encode(heads), **SAME)
        torch.testing.assert_close(ours.reconstruct(x), theirs(heads).flatten(-2), **SAME)


TO = {"d_out": D, "apply_b_dec_to_input": False}


@pytest.mark.parametrize(
    ("class_name", "more", "message"),
    [
        ("Transcoder", TO, "transcoder is not supported"),
        ("SkipTranscoder", TO, "skip_transcoder is not supported"),
        ("JumpReLUTranscoder", TO, "jumprelu_transcoder is not supported"),
        ("JumpReLUSkipTranscoder", TO, "jumprelu_skip_transcoder is not supported"),
        ("MatchingPursuitSAE", {}, "matching_pursuit is not supported.*no pre-activation"),
    ],
)
def test_what_is_no_sae_of_one_site_is_refused(tmp_path, sae_lens, class_name, more, message):
    make(sae_lens, class_name, **more).save_model(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_sae(tmp_path, block=4)


@pytest.mark.parametrize(
    ("change", "k"),
    [
        ({}, None),
        ({"apply_b_dec_to_input": False, "normalize_activations": None}, None),
        ({"architecture": "standard", "activation_fn_str": "relu", "normalize_activations": False}, None),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}, K),
        ({"normalize_activations": "layer_norm", "activation_fn": "topk", "activation_fn_kwargs": {"k": K}}, K),
        ({"scaling_factor": True}, None),
    ],
)
def test_configurations_from_before_version_6_mean_the_same(tmp_path, sae_lens, x, change, k):
    make(sae_lens, "StandardSAE").save_model(tmp_path)
    old = {"hook_point": "blocks.4.hook_resid_post", "hook_point_layer": 4, "d_in": D, "d_sae": F, "dtype": "float32"}
    if change.pop("scaling_factor", False):
        weights = load_file(tmp_path / "sae_weights.safetensors")
        save_file({**weights, "scaling_factor": torch.ones(F)}, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({**old, "model_name": "gpt2-small", **change}))
    ours = load_sae(tmp_path, block=4)
    assert ours.k == k
    compare(sae_lens.SAE.load_from_disk(tmp_path), ours, x)


@pytest.mark.parametrize(
    "hook", ["hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out"]
)
def test_what_transformer_lens_centres_is_what_we_centre(tmp_path, sae_lens, hook):
    transformer_lens = pytest.importorskip("transformer_lens")
    torch.manual_seed(0)
    config = transformer_lens.HookedTransformerConfig(
        n_layers=2,
        d_model=D,
        n_ctx=16,
        d_head=6,
        n_heads=4,
        d_vocab=30,
        act_fn="gelu",
        normalization_type="LN",
        seed=0,
    )
    published, changed = (transformer_lens.HookedTransformer(config) for _ in range(2))
    with torch.no_grad():
        for parameter in published.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    changed.load_and_process_state_dict(published.state_dict(), center_writing_weights=True)

    kwargs = {"center_writing_weights": True}
    metadata = {"model_name": "gpt2-small", "hook_name": f"blocks.1.{hook}", "model_from_pretrained_kwargs": kwargs}
    theirs = make(sae_lens, "StandardSAE", metadata=metadata)
    theirs.save_model(tmp_path)
    ours = load_sae(tmp_path, block=0 if hook == "hook_resid_pre" else 1)
    tokens = torch.randint(0, 30, (2, 10))
    with torch.no_grad():
        as_published = published.run_with_cache(tokens)[1][f"blocks.1.{hook}"]
        as_changed = changed.run_with_cache(tokens)[1][f"blocks.1.{hook}"]
        assert as_published.mean(dim=-1).abs().max() > 0.01
        torch.testing.assert_close(as_changed, as_published - as_published.mean(dim=-1, keepdim=True), **SAME)
        torch.testing.assert_close(ours.encode(as_published), theirs.encode(as_changed), **SAME)


def test_published_repositories_that_need_more_than_their_files_are_those_of_saelens_directory(sae_lens):
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    from sae_posttrain.saes.formats.saelens_config import DIRECTORY

    harmless = {"dataset_path", "neuronpedia_id"}
    said = {}
    for release in get_pretrained_saes_directory().values():
        if release.conversion_func in (None, "sae_lens"):
            overrides = {k: v for k, v in (release.config_overrides or {}).items() if k not in harmless}
            if overrides:
                said[release.repo_id] = overrides
    assert said == DIRECTORY


@pytest.fixture
def hub(tmp_path, sae_lens, monkeypatch):
    """SAELens' loaders of other formats, with files of a local folder in place of the Hub's."""
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def download(repo_id, filename, subfolder=None, force_download=False):
        path = tmp_path / repo_id / (subfolder or "") / filename
        if not path.exists():
            raise loaders.EntryNotFoundError(f"{path} is not there")
        return str(path)

    def shapes(repo_id, filename):
        return {name: list(tensor.shape) for name, tensor in load_file(tmp_path / repo_id / filename).items()}

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", shapes)

    def load(loader: str, repo_id: str, folder: str):
        sizes = {"d_in": D, "d_sae": F}  # they know the published ones only
        config, weights, _ = getattr(loaders, loader)(repo_id, folder, "cpu", False, sizes)
        config = loaders.handle_config_defaulting(config)
        sae_class, config_class = sae_lens.registry.get_sae_class(config["architecture"])
        sae = sae_class(config_class.from_dict(config))
        sae.load_state_dict(weights)
        sae.turn_off_forward_pass_hook_z_reshaping()  # we hand in heads side by side
        return sae

    return load


def random_weights() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (D, F), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,), "threshold": (F,)}
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def same_place(theirs, ours: FrozenSAE) -> None:
    from sae_posttrain.sites import parse_hook

    assert parse_hook(theirs.cfg.metadata.hook_name) == (ours.block, ours.site)
    assert theirs.cfg.metadata.model_name.removeprefix("google/") == ours.base_model.removeprefix("google/")


@pytest.mark.parametrize("kind", ["res", "att", "mlp"])
def test_gemma_scope_is_read_as_saelens_reads_it(tmp_path, hub, x, kind):
    repository, folder = f"google/gemma-scope-2b-pt-{kind}", "layer_12/width_16k/average_l0_82"
    (tmp_path / repository / folder).mkdir(parents=True)
    weights = random_weights()
    weights["threshold"].abs_()
    np.savez(tmp_path / repository / folder / "params.npz", **{name: w.numpy() for name, w in weights.items()})
    theirs = hub("gemma_2_sae_huggingface_loader", repository, folder)
    ours = load_sae(tmp_path / repository, block=12)
    same_place(theirs, ours)
    compare(theirs, ours, x)


@pytest.mark.parametrize("configured", [True, False])
@pytest.mark.parametrize("model", ["4b-pt", "270m-pt", "1b-it"])
@pytest.mark.parametrize(
    ("kind", "module"),
    [
        ("resid_post", "output"),
        ("attn_out_all", "self_attn.o_proj.input"),
        ("mlp_out", "post_feedforward_layernorm.output"),
    ],
)
def test_gemma_scope_2_is_read_as_saelens_reads_it(tmp_path, hub, x, kind, module, model, configured):
    repository, folder = f"google/gemma-scope-2-{model}", f"{kind}/layer_12_width_16k_l0_small"
    (tmp_path / repository / folder).mkdir(parents=True)
    weights = {name.lower(): w for name, w in random_weights().items()}
    weights["threshold"].abs_()
    save_file(weights, tmp_path / repository / folder / "params.safetensors")
    if configured:
        config = {
            "hf_hook_point_in": f"model.layers.12.{module}",
            "architecture": "jump_relu",
            "width": F,
            "type": "sae",
        }
        config = {**config, "model_name": f"google/gemma-v3-{model}", "l0": 20, "affine_connection": False}
        (tmp_path / repository / folder / "config.json").write_text(json.dumps(config))
    theirs = hub("gemma_3_sae_huggingface_loader", repository, folder)
    ours = load_sae(tmp_path / repository, block=12)
    same_place(theirs, ours)
    compare(theirs, ours, x)


def test_qwen_scope_is_read_as_saelens_reads_it_but_for_a_relu(tmp_path, hub, x):
    repository = "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50"
    (tmp_path / repository).mkdir(parents=True)
    weights = random_weights()
    weights.pop("threshold")
    weights |= {"W_enc": weights["W_enc"].T.contiguous(), "W_dec": weights["W_dec"].T.contiguous()}
    torch.save(weights, Path(tmp_path / repository / "layer3.sae.pt"))
    theirs = hub("qwen_scope_sae_huggingface_loader", repository, "layer3.sae.pt")
    ours = load_sae(tmp_path / repository, block=3)
    same_place(theirs, ours)
    assert ours.k == theirs.cfg.k == 50
    acts = ours.encode(x)
    assert (acts < 0).any()  # the published recipe keeps them, SAELens does not
    with torch.no_grad():
        torch.testing.assert_close(torch.relu(acts), theirs.encode(x), **SAME)
        torch.testing.assert_close(ours.decode(torch.relu(acts)), theirs(x), **SAME)
