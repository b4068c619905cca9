"""Where an SAE is read from: local folders, and the Hub without a network (its cache's layout; a replaced API)."""

import hashlib
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from sae_posttrain.saes import load_sae
from sae_posttrain.saes.stored.files import find_files

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "Qwen/SAE-Res-Tiny-W1K-L0_5"


@pytest.fixture
def cache(tmp_path, monkeypatch, weights) -> Path:
    """A Hub cache that holds one repository with `layer2.sae.pt`, and one more in its folder `sub`."""
    root = tmp_path / "models--Qwen--SAE-Res-Tiny-W1K-L0_5"
    (root / "blobs").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs/main").write_text(COMMIT)
    (root / "snapshots" / COMMIT / "sub").mkdir(parents=True)
    stored = {"W_enc": weights["W_enc"].T.contiguous(), "W_dec": weights["W_dec"].T.contiguous()}
    for file in ("layer2.sae.pt", "sub/layer3.sae.pt"):
        torch.save({**stored, "b_enc": weights["b_enc"], "b_dec": weights["b_dec"]}, root / "saved")
        digest = hashlib.sha256((root / "saved").read_bytes()).hexdigest()
        (root / "saved").rename(root / "blobs" / digest)
        (root / "snapshots" / COMMIT / file).symlink_to(root / "blobs" / digest)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return root


@pytest.fixture
def offline(monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def no_hash(*args) -> None:
    raise AssertionError("the file was hashed")


def test_cached_repository_loads_offline_with_its_provenance(cache, offline, monkeypatch):
    sae = load_sae(REPOSITORY, block=2, features=[1])
    assert sae.k == 5
    assert (sae.source.repository, sae.source.revision) == (REPOSITORY, COMMIT)
    assert (sae.source.file, sae.source.format) == ("layer2.sae.pt", "qwen_scope")
    monkeypatch.setattr(hashlib, "file_digest", no_hash)
    blobs = [blob.name for blob in (cache / "blobs").iterdir()]
    assert sae.source.sha256() in blobs


def test_folder_in_a_repository(cache, offline):
    sae = load_sae(f"{REPOSITORY}/sub", block=3)
    assert sae.k == 5
    assert sae.source.file == "sub/layer3.sae.pt"
    with pytest.raises(FileNotFoundError, match=f"{REPOSITORY}/sub holds no SAE of block 2"):
        load_sae(f"{REPOSITORY}/sub", block=2)


def test_snapshot_given_as_a_local_folder_keeps_its_provenance(cache):
    sae = load_sae(cache / "snapshots" / COMMIT, block=2)
    assert (sae.source.repository, sae.source.revision) == (REPOSITORY, COMMIT)


def test_only_the_blocks_file_is_downloaded_and_at_the_revision(hub, tmp_path, weights):
    folder = tmp_path / "pushed"
    folder.mkdir()
    stored = {"W_enc": weights["W_enc"].T.contiguous(), "W_dec": weights["W_dec"].T.contiguous()}
    for block in range(3):
        torch.save({**stored, "b_enc": weights["b_enc"], "b_dec": weights["b_dec"]}, folder / f"layer{block}.sae.pt")
    commit = hub.push(REPOSITORY, folder, branch="v1")
    sae = load_sae(REPOSITORY, block=2, revision="v1")
    assert sae.source.revision == commit
    asked = [request.path for request in hub.requests if "/resolve/" in request.path or "/cdn/" in request.path]
    assert asked
    assert all(path.endswith(f"{commit}/layer2.sae.pt") for path in asked)
    with pytest.raises(FileNotFoundError, match="no SAE of block 28"):
        load_sae(REPOSITORY, block=28, revision="v1")


def test_links_that_lead_back_are_not_followed(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/cfg.json").touch()
    for number in range(30):
        (tmp_path / f"a/b/{number}").symlink_to(tmp_path)
        (tmp_path / f"{number}").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert find_files(tmp_path).names == ("a/cfg.json", "link/cfg.json")


def test_folder_of_everything_is_refused(tmp_path):
    for first in range(30):
        (tmp_path / f"{first}").mkdir()
        for second in range(30):
            (tmp_path / f"{first}/{second}").symlink_to(tmp_path / f"{second}")
    with pytest.raises(ValueError, match="more than 20000 files. Give the folder"):
        find_files(tmp_path)


def test_configuration_that_is_no_small_json_object_is_an_error(tmp_path):
    (tmp_path / "folder").mkdir()
    for name, content in {
        "long": b"{}" + b" " * (1 << 20),
        "list": b"[]",
        "cut": b'{"a": ',
        "deep": b"[" * 100_000,
        "binary": b"\xff\xfe",
        "half": b'{"a": "\\ud800"}',
        "digits": b'{"a": ' + b"9" * 5000 + b"}",
    }.items():
        (tmp_path / f"{name}.json").write_bytes(content)
        with pytest.raises(ValueError, match="no configuration|truncated or damaged"):
            find_files(tmp_path).read_json(f"{name}.json")
    for name in ("missing.json", "folder"):
        with pytest.raises(FileNotFoundError, match="There is no file"):
            find_files(tmp_path).read_json(name)


def test_name_that_is_neither_folder_nor_repository_is_an_error(cache, offline):
    for name in ("nowhere", "./nowhere", "../some/where", "/some/where", "a b/c"):
        with pytest.raises(FileNotFoundError, match="neither a local folder nor the name of a Hub repository"):
            load_sae(name, block=0)
    with pytest.raises(FileNotFoundError, match="no local folder some/where, and the Hub repository some/where"):
        load_sae("some/where", block=0)


def test_local_file_and_local_revision_are_refused(cache):
    snapshot = cache / "snapshots" / COMMIT
    with pytest.raises(ValueError, match="is a file; give the folder"):
        load_sae(snapshot / "layer2.sae.pt", block=2)
    with pytest.raises(ValueError, match="`revision` is for Hub repositories"):
        load_sae(snapshot, block=2, revision="main")
