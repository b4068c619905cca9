import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_posttrain import FeatureSet
from sae_posttrain.features.feature_set import FeatureSource


def assert_same(one: FeatureSet, other: FeatureSet) -> None:
    for name in ("encoder_rows", "encoder_bias", "directions", "mean", "std", "residual_norms"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for name in (
        "blocks",
        "feature_ids",
        "names",
        "sites",
        "groups",
        "target_groups",
        "base_model",
        "notes",
        "sources",
    ):
        assert getattr(one, name) == getattr(other, name), name
    assert one.scores.keys() == other.scores.keys()


def test_saved_set_loads_as_it_was(make_features, tmp_path):
    features = make_features(base_model="owner/model")
    file = features.save(tmp_path / "zh.features.safetensors")
    assert_same(features, FeatureSet.load(file))
    folder_file = features.save(tmp_path / "folder")
    assert folder_file.name == "features.safetensors"
    assert_same(features, FeatureSet.from_pretrained(tmp_path / "folder"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "zh.features.safetensors"]  # no temporary file


def test_pre_activation_is_the_affine_value_in_raw_units(make_features):
    features = make_features(blocks=(1,))
    x = torch.randn(3, 4, 32)
    assert torch.allclose(features.pre_activations(x), x @ features.encoder_rows.T + features.encoder_bias, atol=1e-6)


def test_pre_activation_over_several_blocks_is_an_error(make_features):
    with pytest.raises(ValueError, match=r"select\(block=…\)"):
        make_features().pre_activations(torch.randn(1, 1, 32))


def test_residual_of_another_width_is_an_error(make_features):
    with pytest.raises(ValueError, match="The features read width 32, the residual has 16"):
        make_features(blocks=(0,)).pre_activations(torch.randn(1, 1, 16))


def test_slices_keep_everything_of_the_features(make_features):
    features = make_features()
    block = features.select(block=1)
    assert block.blocks == (1, 1)
    assert torch.equal(block.mean, features.mean[2:])
    assert torch.equal(features[1:3].encoder_rows, features.encoder_rows[1:3])
    assert features[-1].names == features.names[-1:]
    assert features.select(names=[features.names[2]]).feature_ids == (23,)
    with pytest.raises(ValueError, match="Unknown feature 'x'. Known"):
        features.select(names=["x"])
    with pytest.raises(ValueError, match="No feature of block 5"):
        features.select(block=5)


def test_merge_joins_features_and_matches_groups_by_name(make_features):
    first, second = make_features(blocks=(0,)), make_features(blocks=(1,), groups=("en", "zh", "ko"), targets=("ko",))
    merged = first.merge(second)
    assert merged.blocks == (0, 0, 1, 1)
    assert merged.groups == ("zh", "ko", "en")
    assert torch.equal(merged.mean[2:, 0], second.mean[:, 1])  # zh is second's second group
    assert merged.target_groups == ("zh", "ko")


def test_merge_refuses_what_does_not_belong_together(make_features):
    features = make_features(blocks=(0,))
    with pytest.raises(ValueError, match="stands twice"):
        features.merge(features)
    with pytest.raises(ValueError, match="Cannot merge features of"):
        features.merge(make_features(blocks=(1,), base_model="other"))
    with pytest.raises(ValueError, match="Cannot merge statistics"):
        features.merge(make_features(blocks=(1,), groups=("zh", "en")))


def test_print_shows_features_scores_and_groups(make_features):
    text = str(make_features(base_model="owner/model"))
    assert "4 features for zh, found on owner/model (width 32)" in text
    assert "monolinguality" in text
    assert "mean[ko]" in text
    assert len(text.splitlines()) == 6


def test_another_width_or_base_model_is_refused(make_features, make_model):
    model = make_model()
    make_features().check_model(model)
    with pytest.raises(ValueError, match="the model has blocks 0 to 1"):
        make_features(blocks=(0, 2)).check_model(model)
    model.config._name_or_path = "runs/mine"
    features = make_features(base_model="owner/base")
    with pytest.raises(ValueError, match="allow_base_model='mine'"):
        features.check_model(model)
    features.check_model(model, allow_base_model="mine")
    model.config._name_or_path = "/somewhere/else/base"
    features.check_model(model)
    model.config.hidden_size = 64
    with pytest.raises(ValueError, match="The features read width 32, the model writes 64"):
        features.check_model(model)


def test_file_hash_is_taken_once_when_the_set_is_saved(make_features, tmp_path):
    calls = []

    def sha256() -> str:
        calls.append(1)
        return "c" * 64

    features = make_features()
    source = FeatureSource("folder", "layer0.sae.pt", "qwen_scope", compute_sha256=sha256)
    object.__setattr__(features, "sources", (source,) * 4)
    assert not calls
    loaded = FeatureSet.load(features.save(tmp_path))
    assert len(calls) == 1
    assert loaded.sources[0].sha256 == "c" * 64


def test_set_from_known_features_of_an_sae(make_features):
    from sae_posttrain.saes.frozen import FrozenSAE, SAESource

    sae = FrozenSAE(
        W_enc=torch.randn(32, 8),
        b_enc=torch.randn(8),
        W_dec=torch.randn(8, 32),
        b_dec=torch.zeros(32),
        activation="topk",
        block=1,
        source=SAESource("owner/sae", None, "layer1.sae.pt", "qwen_scope", Path("layer1.sae.pt")),
    )
    features = FeatureSet.from_sae(sae, [5, 2], target_groups=["zh"])
    x = torch.randn(4, 32)
    assert torch.allclose(features.pre_activations(x), sae.pre_activations(x)[:, [5, 2]], atol=1e-5)
    assert torch.equal(features.directions[1], sae.direction(2))
    assert features.names == ("1.5", "1.2")
    with pytest.raises(ValueError, match="8"):
        FeatureSet.from_sae(sae, [8])


def test_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="sae-posttrain find-features"):
        FeatureSet.load(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="sae-posttrain find-features"):
        FeatureSet.from_pretrained("none.safetensors")


def test_missing_hub_repository_is_reported_with_what_the_hub_said(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def refuse(repo_id, filename, revision):
        asked.append((repo_id, filename, revision))
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(FileNotFoundError, match="the Hub says: offline"):
        FeatureSet.from_pretrained("owner/features", revision="main")
    with pytest.raises(FileNotFoundError, match="the Hub says: offline"):
        FeatureSet.from_pretrained("owner/features/sub/zh.safetensors")
    assert asked == [
        ("owner/features", "features.safetensors", "main"),
        ("owner/features", "sub/zh.safetensors", None),
    ]


def test_set_travels_through_a_hub_repository(make_features, monkeypatch, tmp_path):
    import huggingface_hub

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, private, exist_ok):
            (tmp_path / repo_id).mkdir(parents=True)

        def upload_file(self, path_or_fileobj, path_in_repo, repo_id):
            (tmp_path / repo_id / path_in_repo).write_bytes(path_or_fileobj.read_bytes())
            return f"commit of {repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repo_id, filename, revision: str(tmp_path / repo_id / filename)
    )
    features = make_features()
    assert features.push_to_hub("owner/zh-features") == "commit of owner/zh-features"
    assert_same(features, FeatureSet.from_pretrained("owner/zh-features"))


def damaged(features: FeatureSet, tmp_path, change_header=None, change_tensors=None):
    file = features.save(tmp_path / "set.safetensors")
    tensors = load_file(file)
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        header = json.loads(opened.metadata()["sae_posttrain"])
    if change_header:
        change_header(header)
    if change_tensors:
        change_tensors(tensors)
    save_file(tensors, file, metadata={"sae_posttrain": json.dumps(header)})
    return file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(version=9), "feature set of version 9"),
        (lambda h: h.update(blocks=["0", "0", "1", "1"]), "`blocks` in the header must be a list of int"),
        (lambda h: h.update(blocks=[0]), "`blocks` has 1 entries for 4 features"),
        (lambda h: h.update(names=["a", "a", "b", "c"]), "'a' stands twice"),
        (lambda h: h.update(source_of_feature=[0, 0, 0, 7]), "a source that the header does not hold"),
        (lambda h: h.update(sources=[{"file": "x"}]), "a source in the header must hold"),
        (lambda h: h.update(feature_ids=[-1, 2, 3, 4]), "count from 0"),
        (lambda h: h.update(groups=["zh"]), "`mean` of a feature set has shape"),
        (lambda h: h.pop("notes"), "`notes` or `base_model` is missing"),
    ],
)
def test_damaged_header_is_an_error_that_says_what_is_wrong(make_features, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        FeatureSet.load(damaged(make_features(), tmp_path, change_header=change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(mean=t["mean"] * float("nan")), "`mean` of a feature set holds NaN"),
        (lambda t: t.update(encoder_rows=t["encoder_rows"] / 0), "must hold finite"),
        (
            lambda t: t.update(directions=t["directions"][:, :5].contiguous()),
            "`directions` of a feature set has shape",
        ),
        (lambda t: t.update(std=-t["std"]), "`std` of a feature set is negative"),
        (lambda t: t.pop("std"), "expected"),
    ],
)
def test_damaged_tensors_are_an_error_that_says_what_is_wrong(make_features, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        FeatureSet.load(damaged(make_features(), tmp_path, change_tensors=change))


def test_truncated_or_foreign_file_is_an_error(make_features, tmp_path):
    file = make_features().save(tmp_path / "set.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged or not a safetensors file"):
        FeatureSet.load(file)
    save_file({"x": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match="but no feature set"):
        FeatureSet.load(file)
