"""A safetensors header that does not fit its file byte by byte is refused, also where the library cannot check it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sae_posttrain.saes.stored.safetensors_file import MAX_HEADER_BYTES, open_safetensors


def test_tensors_are_found_where_they_lie(tmp_path, matrix):
    save_file(
        {"a": matrix, "b": matrix[0].clone(), "empty": matrix[:0].clone()},
        tmp_path / "w.safetensors",
        {"format": "pt"},
    )
    tensors = open_safetensors(tmp_path / "w.safetensors")
    assert tensors["a"].rows([7]).equal(matrix[[7]])
    assert tensors["b"].read().equal(matrix[0])
    assert tensors["empty"].read().shape == (0, 70)


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def text(header) -> str:
    return header if isinstance(header, str) else json.dumps(header)


def save(path: Path, header, num_bytes: int = 16) -> Path:
    content = text(header).encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content + bytes(num_bytes))
    return path


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"a": entry([4], 0, 20)}, "but 20 bytes"),
        ({"a": entry([4], 0, 16), "b": entry([4], 0, 16)}, "overlaps another tensor"),
        ({"a": entry([3], 4, 16)}, "leaves a gap before it"),
        ({"a": entry([3], 0, 12)}, "its tensors end at byte"),
        ({"a": entry([5], 0, 20)}, "its tensors end at byte"),
        ({"a": entry([1 << 40, 1 << 40], 0, 1 << 61)}, "but"),
        ({"a": entry([10**30], 0, 16)}, "no usable shape"),
        ({"a": entry([2] * 100, 0, 16)}, "no usable shape"),
        ({"a": entry([-4], 0, 16)}, "no usable shape"),
        ({"a": entry([4.0], 0, 16)}, "no usable shape"),
        ({"a": entry([True], 0, 4)}, "no usable shape"),
        ({"a": entry({}, 0, 16)}, "no usable shape"),
        ({"a": entry([4], -16, 0)}, "no usable shape"),
        ({"a": entry([4], 0, 16, "F8_E4M3")}, "a is stored as 'F8_E4M3', which is not supported"),
        ({"a": entry([4], 0, 16, ["F32"])}, "not supported"),
        ({"a": {"dtype": "F32", "shape": [4]}}, "not dtype, shape and data_offsets"),
        ({"a": 3}, "not dtype, shape and data_offsets"),
        ({"a\n": entry([4], 0, 16)}, "holds a tensor named"),
        ('{"a\\ud800": 1}', "holds a tensor named"),
        ([1], "header is a list"),
        ('{"a": 1, "a": 2}', "a name occurs twice"),
        ("[" * 10_000, "recursion|Expecting"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
        ("{]", "truncated or damaged"),
    ],
)
def test_header_that_does_not_fit_is_refused(tmp_path, header, reason):
    with pytest.raises(ValueError, match=reason):
        open_safetensors(save(tmp_path / "w.safetensors", header))


def test_long_header_is_refused_unread(tmp_path):
    header = json.dumps({"a": entry([4], 0, 16)}) + " " * MAX_HEADER_BYTES
    with pytest.raises(ValueError, match=f"announces a header of {len(header)} bytes"):
        open_safetensors(save(tmp_path / "w.safetensors", header))


def test_library_has_the_last_word_on_this_machine(tmp_path):
    file = save(tmp_path / "w.safetensors", {"__metadata__": {"a": 1}, "a": entry([4], 0, 16)})  # must be text
    with pytest.raises(ValueError, match="truncated or damaged"):
        open_safetensors(file)


def test_integers_and_booleans_are_read(tmp_path):
    tensors = {
        "k": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "sizes": torch.tensor([1, 2], dtype=torch.int32),
    }
    save_file(tensors, tmp_path / "w.safetensors")
    for name, stored in open_safetensors(tmp_path / "w.safetensors").items():
        assert stored.read().equal(tensors[name])
