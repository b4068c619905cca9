"""npz files: what numpy writes is read, and an array's header is never evaluated."""

import io
import time
import zipfile

import numpy as np
import pytest

from sae_posttrain.saes.stored.npz_archive import open_npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "i8", "u1", "?"])
def test_arrays_are_read_as_numpy_reads_them(tmp_path, save, dtype):
    arrays = {
        "matrix": np.arange(12).reshape(3, 4).astype(dtype),
        "columns": np.asfortranarray(np.arange(12).reshape(3, 4).astype(dtype)),
        "cube": np.ones((2, 3, 4), dtype),
        "vector": np.arange(5).astype(dtype),
        "scalar": np.array(3, dtype),
        "empty": np.zeros((0, 4), dtype),
    }
    save(tmp_path / "w.npz", **arrays)
    tensors = open_npz(tmp_path / "w.npz")
    for name, array in arrays.items():
        assert np.array_equal(tensors[name].read().numpy(), array)
        assert tensors[name].read().numpy().dtype == array.dtype
    assert tensors["columns"].rows([2]).tolist() == arrays["columns"][[2]].tolist()


def npy(header: str, version: bytes = b"\x01\x00", length: int | None = None) -> bytes:
    num_bytes = len(header) if length is None else length
    return b"\x93NUMPY" + version + num_bytes.to_bytes(2 if version[0] == 1 else 4, "little") + header.encode()


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n"


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (npy(GOOD.replace("(2,)", "(3,)")), "but 8 bytes"),
        (npy(GOOD.replace("(2,)", "(2, 9999999999999999999)")), "not supported"),
        (npy(GOOD.replace("(2,)", "(-2,)")), "header of W cannot be read"),
        (npy(GOOD.replace("(2,)", "(2 2,)")), "not supported"),
        (npy(GOOD.replace("(2,)", "(" + "1, " * 20 + "2)")), "not supported"),
        (npy(GOOD.replace("<f4", ">f4")), "not supported"),
        (npy(GOOD.replace("<f4", "<c8")), "not supported"),
        (npy(GOOD.replace("<f4", "|O")), "pickled Python objects"),
        (npy(GOOD.replace("'<f4'", "[('a', '<f4'), ('b', '|O')]")), "pickled Python objects"),
        (npy(GOOD.replace("False", "__import__('os')")), "header of W cannot be read"),
        (npy("(" * 900), "header of W cannot be read"),
        (npy("-" * 900 + "1"), "header of W cannot be read"),
        (npy(GOOD, length=60_000), "header of W cannot be read"),
        (npy(GOOD, version=b"\x02\x00", length=1 << 31), "header of W cannot be read"),
        (npy(GOOD, version=b"\x09\x00"), "header of W cannot be read"),
        (b"", "header of W cannot be read"),
        (b"\x93NUMPY", "header of W cannot be read"),
    ],
)
def test_header_that_numpy_does_not_write_is_refused(tmp_path, array, reason, compression):
    with zipfile.ZipFile(tmp_path / "w.npz", "w", compression) as archive:
        archive.writestr("W.npy", array + bytes(8))
    with pytest.raises(ValueError, match=reason):
        open_npz(tmp_path / "w.npz")


def test_longer_header_versions_are_read(tmp_path):
    written = io.BytesIO()
    np.lib.format.write_array(written, np.arange(3, dtype="<f4"), version=(2, 0))
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("W.npy", written.getvalue())
    assert open_npz(tmp_path / "w.npz")["W"].read().tolist() == [0, 1, 2]


def test_many_arrays_are_opened_in_time(tmp_path):
    began = time.process_time()
    np.savez_compressed(tmp_path / "w.npz", **{f"a{number}": np.zeros(2, "<f4") for number in range(2000)})
    written = time.process_time()
    assert len(open_npz(tmp_path / "w.npz")) == 2000
    assert time.process_time() - written < 2 * (written - began) + 1


def test_other_members_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("run.py", b"print()")
    with pytest.raises(ValueError, match="holds run.py, which is no array"):
        open_npz(tmp_path / "w.npz")
