"""A zip archive's table of contents is checked against the file before anything is unpacked."""

import io
import struct
import tracemalloc
import zipfile

import pytest

from sae_posttrain.saes.stored.zip_table import MAX_TABLE_BYTES, zip_records


def archive(**members: bytes) -> bytearray:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as made:
        for name, content in members.items():
            made.writestr(name, content)
    return bytearray(written.getvalue())


def test_records_are_found_where_they_lie():
    content = archive(one=b"first", two=b"second!")
    records = zip_records(io.BytesIO(content))
    assert [(record.name, record.stored) for record in records] == [("one", True), ("two", True)]
    assert [bytes(content[r.offset : r.offset + r.size]) for r in records] == [b"first", b"second!"]


def test_zip64_records_are_read():
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as made, made.open("large", "w", force_zip64=True) as member:
        member.write(b"12345")  # as numpy writes all of its arrays
    record = zip_records(written)[0]
    assert written.getvalue()[record.offset : record.offset + record.size] == b"12345"


def patched(content: bytearray, signature: bytes, position: int, form: str, value: int | bytes) -> bytearray:
    struct.pack_into(form, content, content.rindex(signature) + position, value)
    return content


DIRECTORY, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ((DIRECTORY, 20, "<I", 1 << 30), "has two sizes"),
        ((DIRECTORY, 42, "<I", 1 << 30), "no local header"),
        ((DIRECTORY, 42, "<I", 0), "another local header"),
        ((DIRECTORY, 8, "<H", 1), "encrypted"),
        ((DIRECTORY, 10, "<H", 12), "compressed in a way"),
        ((DIRECTORY, 46, "<3s", b"a\x1b]"), "holds a record named"),
        ((LOCAL, 30, "<3s", b"oth"), "another local header"),
        ((LOCAL, 26, "<H", 9), "another local header"),
        ((LOCAL, 8, "<H", 8), "another local header"),
        ((LOCAL, 28, "<H", 60000), "ends after the end"),
        ((END, 16, "<I", 1 << 31), "directory|offset|negative|Bad"),
        ((END, 12, "<I", 1 << 31), "directory|offset|negative|Bad"),
    ],
)
def test_table_that_does_not_fit_the_file_is_refused(change, reason):
    with pytest.raises(zipfile.BadZipFile, match=reason):
        zip_records(io.BytesIO(patched(archive(one=b"first", two=b"second!"), *change)))


def test_two_records_of_one_name_are_refused():
    content = archive(one=b"first", two=b"second!")
    with pytest.raises(zipfile.BadZipFile, match="several records of one name"):
        zip_records(io.BytesIO(content.replace(b"two", b"one")))


def test_table_of_any_size_takes_little_memory():
    content = archive(one=b"first")
    entry = bytes(content[content.rindex(DIRECTORY) : content.rindex(END)])
    flood = bytes(content[: content.rindex(DIRECTORY)]) + entry * 200_000  # 10 MB
    end = struct.pack("<4s4H2IH", END, 0, 0, 65535, 65535, len(entry) * 200_000, content.rindex(DIRECTORY), 0)
    file = io.BytesIO(flood + end)
    tracemalloc.start()
    try:
        with pytest.raises(zipfile.BadZipFile, match=f"more than {MAX_TABLE_BYTES} bytes"):
            zip_records(file)
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_TABLE_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content", [b"", b"PK", b"<html>404</html>", END, END + b"\xff" * 18, DIRECTORY * 20])
def test_what_is_no_archive_is_refused(content):
    with pytest.raises(zipfile.BadZipFile):
        zip_records(io.BytesIO(content))
