"""Damaged or hostile files are refused with a message; nothing in them runs, no memory is taken for them."""

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_posttrain.saes.stored.safe_files import open_tensors


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_every_dtype_of_weights_is_read(tmp_path, name, write_tensors):
    tensors = {str(d): torch.tensor([[1.5, -2]], dtype=d) for d in (torch.bfloat16, torch.float16, torch.float64)}
    for key, stored in open_tensors(write_tensors(tmp_path / name, tensors)).items():
        assert stored.columns([1]).equal(tensors[key][:, [1]])


def test_views_of_one_storage_are_read_alike(tmp_path, matrix, write_tensors):
    tensors = {"a": matrix, "transposed": matrix.T, "part": matrix[3:]}
    for name, stored in open_tensors(write_tensors(tmp_path / "w.pt", tensors)).items():
        assert stored.read().equal(tensors[name])
    torch.save({"gaps": matrix[:, ::2]}, tmp_path / "gaps.pt")
    with pytest.raises(ValueError, match=r"gaps .* is stored with gaps"):
        open_tensors(tmp_path / "gaps.pt")


def test_storages_are_told_apart_by_where_they_lie(tmp_path, matrix):
    """An archive whose records stand in another order than in the pickle: equal sizes must not be mixed up."""
    torch.save({"a": matrix, "b": -matrix}, tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as saved, zipfile.ZipFile(tmp_path / "x.pt", "w") as shuffled:
        for entry in reversed(saved.infolist()):
            shuffled.writestr(entry.filename, saved.read(entry))
    tensors = open_tensors(tmp_path / "x.pt")
    assert tensors["a"].read().equal(matrix)
    assert tensors["b"].rows([5]).equal(-matrix[[5]])


def test_missing_file_is_an_error(container):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        open_tensors(container)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999])
def test_truncated_file_is_an_error(container, matrix, keep, write_tensors):
    content = write_tensors(container, {"m": matrix, "n": matrix + 1}).read_bytes()
    container.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match=r"truncated or damaged.*Download it again"):
        open_tensors(container)


def test_file_of_another_kind_is_an_error(tmp_path, container):
    container.write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(ValueError, match="truncated or damaged"):
        open_tensors(container)
    (tmp_path / "w.gguf").touch()
    with pytest.raises(ValueError, match=r"no known kind of weight file. Known: .safetensors"):
        open_tensors(tmp_path / "w.gguf")


class Gadget:
    """Pickles to a call of `open(marker, "w")`."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path, matrix):
    marker = tmp_path / "it ran"
    torch.save({"W_enc": matrix, "extra": Gadget(marker)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"would run foreign code when loaded: _?io.open.*refused"):
        open_tensors(tmp_path / "w.pt")
    torch.save({"W_enc": matrix, "extra": Gadget(marker)}, tmp_path / "new.pt", pickle_protocol=4)
    with pytest.raises(ValueError, match="is refused: its pickle cannot be checked for code"):
        open_tensors(tmp_path / "new.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Gadget(marker)))  # a bare pickle, as before torch 1.6
    with pytest.raises(ValueError, match="not a zip archive"):
        open_tensors(tmp_path / "old.pt")
    np.savez(tmp_path / "w.npz", allow_pickle=True, W_enc=np.array([Gadget(marker)], dtype=object))
    with pytest.raises(ValueError, match=r"W_enc .* pickled Python objects"):
        open_tensors(tmp_path / "w.npz")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([torch.zeros(2)], "must hold a dict of tensors; it holds a list"),
        (torch.zeros(2), "must hold a dict of tensors; it holds a Tensor"),
        ({"W_enc": torch.eye(2).to_sparse()}, "foreign code when loaded: torch._utils._rebuild_sparse_tensor"),
        ({"W_enc": torch.zeros(2), "other": bytearray(9)}, "foreign code .* __builtin__.bytearray"),  # of any size
        ({"W_enc": torch.zeros(2), "other": {1, 2}}, "foreign code .* __builtin__.set"),
        ({"W_enc": torch.zeros(2), "other": b"bytes"}, "foreign code .* _codecs.encode"),
        ({"W_enc": torch.zeros(2), "device": torch.device("cpu")}, "foreign code .* torch.device"),
    ],
)
def test_anything_but_tensors_and_plain_values_is_refused(tmp_path, content, found):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=found):
        open_tensors(tmp_path / "w.pt")


def test_ordered_state_dict_is_accepted(tmp_path, matrix):
    torch.save(OrderedDict(W_enc=torch.nn.Parameter(matrix)), tmp_path / "w.pt")
    assert open_tensors(tmp_path / "w.pt")["W_enc"].read().equal(matrix)


def test_nested_containers_are_read_with_their_plain_values_apart(tmp_path, matrix):
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    torch.save(
        {
            "ae": model.state_dict(),  # its `_metadata` is an attribute of the dict
            "steps": [matrix, (7, -8)],
            "config": {
                "dict_class": "AutoEncoder",
                "lr": 1e-3,
                "layer": None,
                "seed": 1 << 40,
                "dtype": torch.bfloat16,
            },
            "optimizer": optimizer.state_dict(),
        },
        tmp_path / "w.pt",
    )
    tensors = open_tensors(tmp_path / "w.pt")
    assert tensors["ae/weight"].read().equal(model.weight)
    assert tensors["steps/0"].rows([3]).equal(matrix[[3]])
    assert tensors["optimizer/state/0/exp_avg"].shape == (4, 3)
    assert {name: value for name, value in tensors.plain.items() if not name.startswith("optimizer")} == {
        "steps/1/0": 7,
        "steps/1/1": -8,
        "config/dict_class": "AutoEncoder",
        "config/lr": 1e-3,
        "config/layer": None,
        "config/seed": 1 << 40,
        "config/dtype": "torch.bfloat16",
    }
    inner = tensors.below("ae")
    assert list(inner) == ["weight", "bias"]
    assert inner.plain == {}
    assert tensors.below("config").plain["lr"] == 1e-3


def rewrite(path: Path, change) -> None:
    """Pass every member of an archive through `change(name, content)`."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))


@pytest.mark.parametrize("longer", [b"M\x00\x10", b"M\xff\xff"])
def test_torch_archive_that_declares_more_than_it_holds_is_refused(tmp_path, longer):
    torch.save({"W": torch.zeros(16, 4), "other": torch.zeros(9000)}, tmp_path / "w.pt")

    def declare(name, content):  # the pickle's 16 becomes 4096 or 65535; its 64, the storage's size, as well
        return content.replace(b"K\x10", longer, 1).replace(b"K\x40", longer, 1) if "data.pkl" in name else content

    rewrite(tmp_path / "w.pt", declare)
    with pytest.raises(ValueError, match="damaged or hostile"):
        open_tensors(tmp_path / "w.pt")


def test_compressed_torch_archive_is_refused(tmp_path, matrix):
    torch.save({"W": matrix}, tmp_path / "w.pt")
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as saved,
        zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in saved.namelist():
            packed.writestr(name, saved.read(name))
    with pytest.raises(ValueError, match="compressed records"):
        open_tensors(tmp_path / "x.pt")


def npy_header(shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return header.getvalue()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_npz_that_declares_more_than_it_holds_is_refused(tmp_path, compression):
    with zipfile.ZipFile(tmp_path / "w.npz", "w", compression) as archive:
        archive.writestr("W.npy", npy_header((1 << 30, 1 << 10)) + b"1234")
    with pytest.raises(ValueError, match=r"has shape .1073741824, 1024. in torch.float32 but 4 bytes"):
        open_tensors(tmp_path / "w.npz")


def test_npz_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("W.npy", npy_header((4096, 4096)) + bytes(4 * 4096 * 4096))  # 64 MB of zeros: 65 kB
    with pytest.raises(ValueError, match=r"declares .* bytes of weights in a file of"):
        open_tensors(tmp_path / "w.npz")


def test_safetensors_that_declares_more_than_it_holds_is_refused(tmp_path):
    header = {"W": {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}}
    text = json.dumps(header).encode()
    (tmp_path / "w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
    with pytest.raises(ValueError, match="truncated or damaged"):
        open_tensors(tmp_path / "w.safetensors")


def test_npz_of_a_later_zip_version_is_refused(tmp_path):
    np.savez(tmp_path / "w.npz", W_enc=np.zeros((2, 3), dtype=np.float32))
    content = bytearray((tmp_path / "w.npz").read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[directory + 6] = 99  # version needed to extract, which zipfile does not implement
    (tmp_path / "w.npz").write_bytes(content)
    with pytest.raises(ValueError, match="version"):
        open_tensors(tmp_path / "w.npz")
