"""Where an SAE is read from: local folders, and the Hub without a network (its cache's layout; a replaced API)."""

import hashlib
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from sae_posttrain.saes import load_sae

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


def test_only_the_blocks_file_is_downloaded_and_at_the_revision(cache, monkeypatch):
    asked = []

    def list_files(self, repository, revision=None):
        asked.append((repository, revision))
        return ["README.md", *(f"layer{block}.sae.pt" for block in range(28))]

    def download(repository, file, revision=None):
        asked.append((repository, file, revision))
        return str(cache / "snapshots" / COMMIT / file)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    sae = load_sae(REPOSITORY, block=2, revision="v1")
    assert set(asked) == {(REPOSITORY, "v1"), (REPOSITORY, "layer2.sae.pt", "v1")}
    assert sae.source.revision == COMMIT
    with pytest.raises(FileNotFoundError, match="no SAE of block 28"):
        load_sae(REPOSITORY, block=28, revision="v1")


def test_name_that_is_neither_folder_nor_repository_is_an_error(cache, offline):
    for name in ("nowhere", "./nowhere", "../some/where", "/some/where", "a b/c"):
        with pytest.raises(FileNotFoundError, match="neither a local folder nor the name of a Hub repository"):
            load_sae(name, block=0)
    with pytest.raises(FileNotFoundError, match="no local folder some/where, and no Hub repository some/where"):
        load_sae("some/where", block=0)


def test_local_file_and_local_revision_are_refused(cache):
    snapshot = cache / "snapshots" / COMMIT
    with pytest.raises(ValueError, match="is a file; give the folder"):
        load_sae(snapshot / "layer2.sae.pt", block=2)
    with pytest.raises(ValueError, match="`revision` is for Hub repositories"):
        load_sae(snapshot, block=2, revision="main")
