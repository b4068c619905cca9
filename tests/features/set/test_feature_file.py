import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sae_posttrain import FeatureSet
from sae_posttrain.features.set.feature_file import MAX_HEADER_BYTES
from sae_posttrain.features.set.source import FeatureSource


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
            (tmp_path / repo_id).mkdir(parents=True, exist_ok=True)

        def file_exists(self, repo_id, filename):
            return (tmp_path / repo_id / filename).exists()

        def upload_folder(self, folder_path, repo_id):
            shutil.copytree(folder_path, tmp_path / repo_id, dirs_exist_ok=True)
            return f"commit of {repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repo_id, filename, revision: str(tmp_path / repo_id / filename)
    )
    features = make_features()
    assert features.push_to_hub("owner/zh-features") == "commit of owner/zh-features"
    assert_same(features, FeatureSet.from_pretrained("owner/zh-features"))
    card = tmp_path / "owner/zh-features/README.md"
    assert "# zh-features" in card.read_text() and (card.parent / "features.png").is_file()
    card.write_text("mine")
    features.push_to_hub("owner/zh-features")
    assert card.read_text() == "mine"


def damaged(features: FeatureSet, tmp_path, change_header=None, change_tensors=None):
    file = features.save(tmp_path / "set.safetensors")
    tensors = load_file(file)
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
        (lambda h: h.update(names=["a", "b", "c"]), "`names` has 3 entries for 4 features"),
        (lambda h: h.update(groups=["zh", "zh", "ko"]), "The group 'zh' stands twice"),
        (lambda h: h.update(fingerprint=["qwen3"]), "`fingerprint` in the header must hold numbers and texts"),
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


def test_header_beyond_all_bounds_is_neither_written_nor_read(make_features, tmp_path):
    features = make_features()
    features.notes["text"] = "x" * MAX_HEADER_BYTES
    with pytest.raises(ValueError, match=r"names and notes of the feature set take \d+ bytes, at most 524288"):
        features.save(tmp_path)
    assert not list(tmp_path.iterdir())
    file = tmp_path / "large.safetensors"
    file.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="is no feature set: its header declares 4611686018427387904 bytes"):
        FeatureSet.load(file)


def test_tensors_of_another_precision_are_refused(make_features, tmp_path):
    file = make_features().save(tmp_path)
    with safe_open(file, framework="pt") as saved:
        metadata = saved.metadata()
    for dtype in (torch.float16, torch.float8_e4m3fn):
        save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, tmp_path / "x", metadata)
        with pytest.raises(ValueError, match="its tensors must be float32"):
            FeatureSet.load(tmp_path / "x")
