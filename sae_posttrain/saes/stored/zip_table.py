"""The table of contents of a zip archive, checked against the file before anything is unpacked."""

import struct
import zipfile
from typing import IO, NamedTuple

MAX_TABLE_BYTES = 256 << 10
"""Largest table of contents that is read; weight files have tens of records of 60 to 100 bytes each."""

MAX_NAME_CHARACTERS = 300

LOCAL_HEADER_BYTES = 30


class ZipRecord(NamedTuple):
    """
    A record of a zip archive: its name with `/`, the position of its first byte, its bytes in the file and after
    unpacking, and whether they are stored uncompressed; otherwise they are deflated.
    """

    name: str
    offset: int
    size: int
    unpacked: int
    stored: bool


def zip_records(file: IO[bytes]) -> list[ZipRecord]:
    """The records of the archive in `file`, stored or deflated."""
    file_bytes = file.seek(0, 2)
    table = _Bounded(file)
    try:
        records = [_record(table, entry) for entry in zipfile.ZipFile(table).infolist()]  # type: ignore[call-overload]
    except Exception as error:  # zipfile raises many kinds of errors for damaged or newer archives
        if table.failure is not None:
            raise table.failure from None
        raise zipfile.BadZipFile(str(error)) from error
    names = {record.name for record in records}
    if len(names) < len(records):
        raise zipfile.BadZipFile("it holds several records of one name")
    for record in records:
        if record.offset + record.size > file_bytes:
            raise zipfile.BadZipFile(f"{record.name} ends after the end of the file")
    return records


class _Bounded:
    """
    A file that limits the size of each read, because zipfile reads a table of contents of any size at once.

    It also remembers why a read failed, because zipfile reports a broken network connection as a damaged archive.
    """

    def __init__(self, file: IO[bytes]):
        self.seek, self.tell = file.seek, file.tell
        self.failure: Exception | None = None
        self._read = file.read

    def read(self, size: int = -1) -> bytes:
        try:
            content = self._read(min(size, MAX_TABLE_BYTES + 1) if size >= 0 else MAX_TABLE_BYTES + 1)
        except Exception as error:
            self.failure = error
            raise
        if len(content) > MAX_TABLE_BYTES:
            raise zipfile.BadZipFile(f"its table of contents has more than {MAX_TABLE_BYTES} bytes")
        return content


def _record(file: _Bounded, entry: zipfile.ZipInfo) -> ZipRecord:
    """A record of the table, checked against the header in front of the record's first byte."""
    if not entry.filename.isprintable() or len(entry.filename) > MAX_NAME_CHARACTERS:
        raise zipfile.BadZipFile(f"it holds a record named {entry.filename[:100]!r}")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
        raise zipfile.BadZipFile(f"{entry.filename} is encrypted or compressed in a way that is not supported")
    stored = entry.compress_type == zipfile.ZIP_STORED
    if stored and entry.compress_size != entry.file_size:
        raise zipfile.BadZipFile(f"{entry.filename} has two sizes, {entry.compress_size} and {entry.file_size}")
    file.seek(entry.header_offset)
    header = file.read(LOCAL_HEADER_BYTES)
    if len(header) < LOCAL_HEADER_BYTES or header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"{entry.filename} has no local header")
    method, name_bytes, extra_bytes = struct.unpack_from("<8xH16xHH", header)
    if method != entry.compress_type or file.read(name_bytes) != entry.orig_filename.encode("utf-8"):
        raise zipfile.BadZipFile(f"{entry.filename} has another local header")
    offset = entry.header_offset + LOCAL_HEADER_BYTES + name_bytes + extra_bytes
    return ZipRecord(entry.filename, offset, entry.compress_size, entry.file_size, stored)
