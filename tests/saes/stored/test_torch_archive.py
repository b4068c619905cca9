"""`torch.save` archives whose pickle and records do not fit together are refused."""

import zipfile
from pathlib import Path

import pytest
import torch

from sae_posttrain.saes.stored.safe_files import open_tensors


@pytest.fixture
def archive(tmp_path, matrix):
    """Writes an archive whose members went through `change(name, content)`; `None` leaves one out."""

    def write(change, content=None) -> Path:
        torch.save({"W": matrix} if content is None else content, tmp_path / "saved.pt")
        with (
            zipfile.ZipFile(tmp_path / "saved.pt") as saved,
            zipfile.ZipFile(tmp_path / "w.pt", "w") as changed,
        ):
            for name in saved.namelist():
                if (new := change(name.partition("/")[2], saved.read(name))) is not None:
                    changed.writestr(name, new)
        return tmp_path / "w.pt"

    return write


def pickled(replace: bytes, by: bytes):
    """A change of `data.pkl`; it must change something."""

    def change(name: str, content: bytes) -> bytes:
        if name != "data.pkl":
            return content
        assert replace in content
        return content.replace(replace, by, 1)

    return change


SHAPE = b"K(KF\x86"  # (40, 70)
STRIDES = b"KFK\x01\x86"  # (70, 1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (pickled(SHAPE, b"K)KF\x86"), "lies outside of its storage"),
        (pickled(b"K\x00" + SHAPE, b"K\x01" + SHAPE), "lies outside of its storage"),
        (pickled(SHAPE, b"J\xff\xff\xff\xffKF\x86"), "a tensor's size is no whole number"),
        (pickled(SHAPE, b"\x8a\x08\x01\x01\x01\x01\x01\x01\x01\x01KF\x86"), "a tensor's size is no whole number"),
        (pickled(STRIDES, b"KGK\x01\x86"), "stored with gaps"),
        (pickled(STRIDES, b"K\x00K\x00\x86"), "stored with gaps"),
        (pickled(STRIDES, b"K\x01\x85"), "has 2 sizes, 1 strides"),
        (pickled(b"FloatStorage", b"HalfStorage"), "declares 2800 values of torch.float16 and has 11200 bytes"),
        (pickled(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x001"), "does not match its records"),
        (pickled(b"X\x01\x00\x00\x000", b"X\x09\x00\x00\x00../../x/0"), "does not match its records"),
        (lambda name, content: None if name == "data/0" else content, "does not match its records"),
        (lambda name, content: content[:-4] if name == "data/0" else content, "and has 11196 bytes"),
        (lambda name, content: None if name == "data.pkl" else content, "has no data.pkl"),
        (lambda name, content: b"big" if name == "byteorder" else content, "big-endian"),
        (lambda name, content: bytes(300_000) if name == "data.pkl" else content, "300000 bytes of data.pkl"),
    ],
)
def test_archive_that_contradicts_itself_is_refused(archive, change, reason):
    with pytest.raises(ValueError, match=reason):
        open_tensors(archive(change))


def test_record_that_no_tensor_uses_is_refused(archive, matrix):
    content = {"W": matrix, "other": matrix + 1}
    with pytest.raises(ValueError, match="does not match its records"):
        open_tensors(archive(pickled(b"X\x01\x00\x00\x001", b"X\x01\x00\x00\x000"), content))


def test_empty_and_scalar_tensors_are_read(tmp_path):
    tensors = {"empty": torch.zeros(0, 3), "k": torch.tensor(7, dtype=torch.int32), "one": torch.ones(1, 1).T}
    torch.save(tensors, tmp_path / "w.pt")
    for name, stored in open_tensors(tmp_path / "w.pt").items():
        assert stored.read().equal(tensors[name])
        assert (stored.shape, stored.dtype) == (tensors[name].shape, tensors[name].dtype)


def test_two_values_of_one_joined_name_are_refused(tmp_path):
    for content in ({"a": {"b": 1}, "a/b": 2}, {"a": {0: 1, "0": 2}}):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(ValueError, match="two values of the name a/"):
            open_tensors(tmp_path / "w.pt")


def test_containers_that_multiply_or_hold_themselves_are_refused(tmp_path):
    looped: dict = {}
    looped["again"] = looped
    laughs: list = [1.0] * 100
    for _ in range(6):
        laughs = [laughs] * 100  # 10 ** 14 values in 1 kB of pickle
    for content in (looped, {"laughs": laughs}, {"deep": [[[[[[[[[1]]]]]]]]]}):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(ValueError, match="is no file of weights"):
            open_tensors(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["a\x1b[2J", "a\n", "a" * 400])
def test_names_that_cannot_be_shown_are_refused(tmp_path, name):
    torch.save({name: torch.zeros(2)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="is no file of weights"):
        open_tensors(tmp_path / "w.pt")
