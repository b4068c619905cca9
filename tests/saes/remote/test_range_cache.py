"""Fetched parts of a file are found again, in this process or the next, and never if they were damaged."""

import pytest

from sae_posttrain.saes.remote.range_cache import RangeCache

CONTENT = bytes(range(200))


@pytest.fixture
def cache(tmp_path) -> RangeCache:
    cache = RangeCache(tmp_path / "file")
    for start, end in ((10, 50), (40, 60), (100, 200)):
        cache.write(start, CONTENT[start:end])
    return cache


@pytest.mark.parametrize("again", [False, True])
def test_ranges_inside_one_that_was_kept_are_there(cache, again):
    cache = RangeCache(cache.folder) if again else cache
    for start, end in ((10, 50), (20, 30), (45, 60), (199, 200), (100, 100)):
        assert cache.covers(start, end)
        assert cache.read(start, end) == CONTENT[start:end]
    for start, end in ((9, 11), (30, 55), (59, 61), (0, 200)):
        assert not cache.covers(start, end)
        assert cache.read(start, end) is None


@pytest.mark.parametrize(
    "damage", [lambda held: held[:-1], lambda held: held[:-1] + b"x", lambda held: held + b"x", lambda held: b""]
)
def test_damaged_range_counts_as_missing(cache, damage):
    path = cache.folder / "100-200"
    path.write_bytes(damage(path.read_bytes()))
    cache = RangeCache(cache.folder)
    assert cache.read(120, 130) is None
    assert not cache.covers(120, 130)
    cache.write(100, CONTENT[100:])
    assert cache.read(120, 130) == CONTENT[120:130]


def test_range_that_was_deleted_counts_as_missing(cache):
    (cache.folder / "100-200").unlink()
    assert cache.read(120, 130) is None


def test_columns_are_kept_by_matrix_and_number(cache):
    cache.write_column(64, (2, 9), 5, b"12345678")
    cache = RangeCache(cache.folder)
    assert cache.read_column(64, (2, 9), 5, 8) == b"12345678"
    assert cache.read_column(64, (2, 9), 4, 8) is None
    assert cache.read_column(0, (2, 9), 5, 8) is None
    assert cache.read_column(64, (2, 9), 5, 16) is None


def test_other_files_in_the_folder_are_left_alone(cache):
    for name in ("0-", ".unfinished", "notes.txt", "-5-7"):
        (cache.folder / name).write_bytes(b"")
    assert RangeCache(cache.folder).read(20, 30) == CONTENT[20:30]
