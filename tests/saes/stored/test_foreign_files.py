"""Files that are whole, but no weight files, are named as what they are and not as damaged."""

import pickle
import tarfile

import pytest
import torch

from sae_posttrain import FeatureSet, load_sae
from sae_posttrain.saes.stored.safe_files import open_tensors

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 132121\n"


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.pth", "x.bin", "x.npz"])
def test_git_lfs_pointer_in_place_of_weights(tmp_path, name):
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(ValueError, match=rf"{name} is a Git LFS pointer, .* Fetch them with `git lfs pull`"):
        open_tensors(tmp_path / name)


def test_git_lfs_pointer_in_a_folder_of_saes_and_in_place_of_a_feature_set(tmp_path):
    (tmp_path / "layer3.sae.pt").write_bytes(POINTER)
    with pytest.raises(ValueError, match="layer3.sae.pt is a Git LFS pointer"):
        load_sae(tmp_path, block=3, k=8)
    (tmp_path / "features.safetensors").write_bytes(POINTER)
    with pytest.raises(ValueError, match="features.safetensors is a Git LFS pointer"):
        FeatureSet.load(tmp_path)


def test_git_lfs_pointer_in_place_of_a_configuration(tmp_path):
    (tmp_path / "cfg.json").write_bytes(POINTER)
    (tmp_path / "sae.safetensors").write_bytes(POINTER)
    with pytest.raises(ValueError, match="cfg.json is a Git LFS pointer"):
        load_sae(tmp_path, block=0)


def test_old_file_of_torch_save_is_called_old(tmp_path):
    file = tmp_path / "layer0.sae.pt"
    torch.save({"W_enc": torch.zeros(2, 2)}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="old form of torch.save .before torch 1.6.*The file is not damaged. Save it"):
        open_tensors(file)
    torch.save(torch.load(file, weights_only=True), file)  # as the message says
    assert set(open_tensors(file)) == {"W_enc"}


def test_tar_of_the_first_torch_is_called_old(tmp_path):
    with tarfile.open(tmp_path / "x.pth", "w") as archive:
        archive.add(__file__, "tensors")
    with pytest.raises(ValueError, match="old form of torch.save"):
        open_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_pickle_is_named_and_not_loaded(tmp_path, protocol):
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"W_enc": [1.0]}, protocol=protocol))
    with pytest.raises(ValueError, match="is a plain pickle, which can run code when it is loaded"):
        open_tensors(tmp_path / "x.pt")
