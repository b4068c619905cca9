"""What is read from a stored tensor is what was saved, finite, and takes little memory; whatever the file."""

from pathlib import Path

import pytest
import torch

from sae_posttrain.saes.stored.safe_files import open_tensors
from sae_posttrain.saes.stored.tensor import StoredTensor, StoredTensors, check_tensors


def test_rows_columns_and_whole_tensors_are_read_as_saved(container, matrix, monkeypatch, write_tensors):
    vector = torch.arange(9, dtype=torch.float64)
    tensors = open_tensors(write_tensors(container, {"v": vector, "m": matrix, "empty": torch.zeros(0, 3)}))
    assert tensors["m"].read().equal(matrix)
    assert tensors["v"].read().equal(vector)
    assert tensors["v"].rows([8, 0]).equal(vector[[8, 0]])
    assert tensors["empty"].read().shape == (0, 3)
    # few columns one by one, and blocks of rows: both ways, and with a last block that is not full
    for seek_costs, chunk in ((1, 4 << 20), (1 << 20, 4 << 20), (1 << 20, 3 * 70 * 4)):
        monkeypatch.setattr("sae_posttrain.saes.stored.tensor.SEEK_COSTS_BYTES", seek_costs)
        monkeypatch.setattr("sae_posttrain.saes.stored.tensor.CHUNK_BYTES", chunk)
        assert tensors["m"].rows([39, 0, 7]).equal(matrix[[39, 0, 7]])
        assert tensors["m"].columns([69, 3]).equal(matrix[:, [69, 3]])
        assert tensors["m"].T.rows([69, 3]).equal(matrix.T[[69, 3]])
        assert tensors["m"].T.columns([39, 0]).equal(matrix.T[:, [39, 0]])
        assert tensors["m"].T.read().equal(matrix.T)


def test_reading_a_few_rows_or_columns_takes_little_memory(container, monkeypatch, write_tensors):
    matrix = torch.randn(300, 1000)  # 1.2 MB
    tensor = open_tensors(write_tensors(container, {"m": matrix}))["m"]
    taken = []

    def empty(shape, dtype):
        taken.append(torch.Size(shape).numel() * dtype.itemsize)
        return torch.zeros(shape, dtype=dtype)

    monkeypatch.setattr("sae_posttrain.saes.stored.tensor.CHUNK_BYTES", 40_000)
    monkeypatch.setattr("sae_posttrain.saes.stored.tensor.torch.empty", empty)
    assert tensor.columns([5, 7]).equal(matrix[:, [5, 7]])
    assert tensor.rows([5, 7]).equal(matrix[[5, 7]])
    assert max(taken) <= 40_000


def test_file_that_shrinks_after_opening_is_an_error(container, matrix, write_tensors):
    tensor = open_tensors(write_tensors(container, {"m": matrix}))["m"]
    container.write_bytes(container.read_bytes()[:2000])
    with pytest.raises(ValueError, match="truncated or damaged"):
        tensor.rows([39])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_an_error(container, matrix, bad, write_tensors):
    matrix[7, 3] = bad
    tensor = open_tensors(write_tensors(container, {"W_enc": matrix}))["W_enc"]
    for read in (tensor.read, lambda: tensor.rows([7]), lambda: tensor.columns([3])):
        with pytest.raises(ValueError, match=r"W_enc in .* holds NaN, infinite"):
            read()
    assert tensor.rows([6]).isfinite().all()  # what is not read is not judged


def test_values_that_overflow_float32_are_an_error(tmp_path, write_tensors):
    tensor = open_tensors(write_tensors(tmp_path / "w.pt", {"W": torch.tensor([1e300], dtype=torch.float64)}))["W"]
    with pytest.raises(ValueError, match="too large"):
        tensor.read()


LAYOUT = {"W_enc": "FD", "b_enc": "F"}


def stored(**tensors: tuple[tuple[int, ...], torch.dtype]) -> StoredTensors:
    return StoredTensors(
        {name: StoredTensor(name, shape, dtype, Path("w.pt"), 0) for name, (shape, dtype) in tensors.items()}
    )


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (stored(W_enc=((4, 3), torch.float32)), "expected are exactly W_enc .F, D., b_enc .F."),
        (stored(W_enc=((4, 3), torch.float32), b_enc=((4,), torch.int64)), "b_enc .* stored as torch.int64"),
        (stored(W_enc=((4, 3), torch.float32), b_enc=((3,), torch.float32)), r"b_enc .* has shape \(3,\), expected"),
        (stored(W_enc=((4, 3, 1), torch.float32), b_enc=((4,), torch.float32)), r"W_enc .* has shape \(4, 3, 1\)"),
        (stored(W_enc=((0, 3), torch.float32), b_enc=((0,), torch.float32)), r"W_enc .* has shape \(0, 3\)"),
        (
            stored(W_enc=((4, 3), torch.float32), b_enc=((4,), torch.float32), W_skip=((3, 3), torch.float32)),
            r"holds W_enc \(4, 3\), b_enc \(4,\), W_skip \(3, 3\)",
        ),
    ],
)
def test_names_shapes_and_dtypes_are_checked_before_reading(tensors, message):
    with pytest.raises(ValueError, match=message):
        check_tensors(Path("w.pt"), tensors, LAYOUT)


WHOLE = {"W_enc": ((4, 3), torch.float32), "b_enc": ((4,), torch.float32)}
MORE = LAYOUT | {"k": "", "sizes": "G", "W_skip": "DD?", "scale": "?"}


@pytest.mark.parametrize(
    "others",
    [
        {"k": ((), torch.int32), "sizes": ((2,), torch.int64)},
        {"k": ((), torch.float32), "sizes": ((9,), torch.float32), "scale": ((), torch.uint8)},
        {"k": ((), torch.int64), "sizes": ((1,), torch.int64), "W_skip": ((3, 3), torch.bfloat16)},
    ],
)
def test_scalars_and_counts_may_be_integers_and_some_tensors_may_be_missing(others):
    check_tensors(Path("w.pt"), stored(**WHOLE, **others), MORE)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"k": ((), torch.int32)}, r"expected are exactly W_enc .*W_skip \(D, D\), scale \(\) \(W_skip, scale may be"),
        ({"k": ((1,), torch.int32), "sizes": ((2,), torch.int64)}, r"k .* has shape \(1,\)"),
        ({"k": ((), torch.bool), "sizes": ((2,), torch.int64)}, "k .* stored as torch.bool"),
        (
            {"k": ((), torch.int32), "sizes": ((2,), torch.int64), "W_skip": ((3, 3), torch.int64)},
            "W_skip .* as torch.int64; it must be one of torch.float32",
        ),
        ({"k": ((), torch.int32), "sizes": ((2,), torch.int64), "W_skip": ((3, 4), torch.float32)}, "W_skip .* shape"),
    ],
)
def test_other_scalars_and_optional_tensors_are_refused(others, message):
    with pytest.raises(ValueError, match=message):
        check_tensors(Path("w.pt"), stored(**WHOLE, **others), MORE)


def test_plain_values_must_be_known_to_the_format():
    tensors = StoredTensors(stored(**WHOLE), {"activation": "ReLU", "step": 3})
    check_tensors(Path("w.pt"), tensors, LAYOUT, plain=("activation", "step", "absent"))
    with pytest.raises(ValueError, match="in addition to its tensors it holds step. If it is a training checkpoint"):
        check_tensors(Path("w.pt"), tensors, LAYOUT, plain=("activation",))


def test_messages_name_some_of_many_tensors():
    many = stored(**{f"tensor{number}": ((1,), torch.float32) for number in range(1000)})
    with pytest.raises(ValueError, match=r"tensor19 \(1,\), … \(1000\); expected") as refused:
        check_tensors(Path("w.pt"), many, LAYOUT)
    assert len(str(refused.value)) < 1000
