"""Damage that any file can take: bits, ends, and something else where a file should be."""

import os
from enum import Enum
from pathlib import Path, PurePosixPath
from random import Random
from typing import Any

Place = bytes | PurePosixPath | Enum
"""What lies under a name: a file of these bytes, a link to that path, or a `Special`."""


class Special(Enum):
    """What is neither a file nor a link."""

    FOLDER = "a folder"
    PIPE = "a named pipe, which blocks whoever opens it"


def write(folder: Path, files: dict[str, Place]) -> int:
    """Put `files` into `folder`; their size in bytes, without what links lead to."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, PurePosixPath):
            path.symlink_to(content)
        elif content is Special.PIPE:
            os.mkfifo(path)
        else:
            path.mkdir()
    return sum(len(content) for content in files.values() if isinstance(content, bytes))


def some_file(random: Random, target: Any) -> str:
    """The weights, or in a third of the cases another file (the configuration)."""
    others = [name for name in target.files if name != target.weights]
    return random.choice(others) if others and random.random() < 1 / 3 else target.weights


def flip_bits(random: Random, content: bytes, start: int = 0, end: int | None = None) -> bytes:
    """1 to 64 bits flipped, from byte `start` to byte `end`."""
    changed = bytearray(content)
    end = len(content) if end is None else min(end, len(content))
    for _ in range(random.choice((1, 1, 2, 4, 16, 64))):
        changed[random.randrange(start, end)] ^= 1 << random.randrange(8)
    return bytes(changed)


def flip_anywhere(random: Random, target: Any) -> dict[str, Place]:
    name = some_file(random, target)
    return {**target.files, name: flip_bits(random, target.files[name])}


def flip_contents(random: Random, target: Any) -> dict[str, Place]:
    """Bits of the header, of the table of contents, of the pickle: whatever is not weights."""
    content = target.files[target.weights]
    start, end = random.choice(regions(content))
    return {**target.files, target.weights: flip_bits(random, content, start, end)}


def regions(content: bytes) -> list[tuple[int, int]]:
    """Where a weight file keeps what is not weights."""
    if not content.startswith(b"PK"):
        return [(0, 8), (8, 8 + int.from_bytes(content[:8], "little"))]
    directory, end = content.index(b"PK\x01\x02"), content.rindex(b"PK\x05\x06")
    found = [(0, 64), (directory, end), (end, len(content))]
    if (pickled := content.find(b"\x80\x02}")) >= 0:  # protocol 2 and a dict, as torch.save begins
        found += [(pickled, content.index(b"PK\x03\x04", pickled))] * 3
    place = content.find(b"\x93NUMPY")
    while place >= 0:
        found.append((place, place + 128))
        place = content.find(b"\x93NUMPY", place + 1)
    return found


def truncate(random: Random, target: Any) -> dict[str, Place]:
    name = some_file(random, target)
    content = target.files[name]
    keep = random.choice((0, 1, 7, 8, 9, len(content) - 1, len(content) - 22, random.randrange(len(content))))
    return {**target.files, name: content[: max(keep, 0)]}


def extend(random: Random, target: Any) -> dict[str, Place]:
    name = some_file(random, target)
    garbage = random.choice((b"\x00", b"\n", b"}", b"PK\x05\x06", random.randbytes(random.randrange(1, 70_000))))
    return {**target.files, name: target.files[name] + garbage}


def prepend(random: Random, target: Any) -> dict[str, Place]:
    garbage = random.choice((b"\x00", b"\xef\xbb\xbf", b"#!/bin/sh\n", random.randbytes(random.randrange(1, 5_000))))
    return {**target.files, target.weights: garbage + target.files[target.weights]}


def overwrite(random: Random, target: Any) -> dict[str, Place]:
    """A stretch of zeros, ones or noise."""
    name = some_file(random, target)
    content = bytearray(target.files[name])
    start = random.randrange(len(content))
    length = min(random.choice((4, 64, 1024)), len(content) - start)
    content[start : start + length] = random.choice((bytes(length), b"\xff" * length, random.randbytes(length)))
    return {**target.files, name: bytes(content)}


def cut_out(random: Random, target: Any) -> dict[str, Place]:
    """A stretch that is gone, or stands twice."""
    name = some_file(random, target)
    content = target.files[name]
    start = random.randrange(len(content))
    end = min(len(content), start + random.choice((1, 8, 100)))
    middle = random.choice((b"", content[start:end] * 2))
    return {**target.files, name: content[:start] + middle + content[end:]}


def miss(random: Random, target: Any) -> dict[str, Place]:
    gone = some_file(random, target)
    return {name: content for name, content in target.files.items() if name != gone}


def other_content(random: Random, target: Any) -> dict[str, Place]:
    """What a failed download or a wrong name leaves: a page, text, noise, a git LFS pointer, the other file."""
    name = some_file(random, target)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 2147483648\n"
    contents = [b"", b"<html>404</html>", pointer, random.randbytes(5_000), bytes(5_000), *target.files.values()]
    contents += [b"PK\x05\x06" + bytes(18), b"PK\x03\x04", b"\x80\x04.", b"\x08" + bytes(7) + b"{}      "]
    return {**target.files, name: random.choice([content for content in contents if content != target.files[name]])}


def something_else(random: Random, target: Any) -> dict[str, Place]:
    """A folder, a pipe, or a link: to a device, a foreign file, nothing, itself, a folder."""
    name = some_file(random, target)
    links = ("/dev/zero", "/dev/urandom", "/dev/null", "/etc/passwd", "nowhere", PurePosixPath(name).name, ".", "..")
    things = [Special.FOLDER, Special.PIPE, Special.PIPE, *(PurePosixPath(link) for link in links)]
    return {**target.files, name: random.choice(things)}


def links_to_the_folder(random: Random, target: Any) -> dict[str, Place]:
    """Links that lead back: whoever follows them all visits 20 folders, in each of them 20, and so on."""
    return {**target.files, **{f"link{number}": PurePosixPath(".") for number in range(20)}}


def strange_neighbours(random: Random, target: Any) -> dict[str, Place]:
    """Further files with names that nobody gave in good faith."""
    names = ["a" * 250, "new\n\nline", "tab\t\x1b[2J", "..\\..\\x", "layer" + "9" * 200 + ".sae.pt", "\udcff\udcfe"]
    names += ["$(touch x)", "-rf", "params.npz.bak", " ", "cfg.json ", "nul\u2028line"]
    chosen = random.sample(names, 4)
    return {**target.files, **{name: random.choice((b"", b"x" * 100, Special.FOLDER)) for name in chosen}}


MUTATIONS = {
    "untouched": (lambda random, target: dict(target.files), "accepted", "all"),
    "bits flipped anywhere": (flip_anywhere, "anything", "all"),
    "bits flipped in the header": (flip_contents, "anything", "all"),
    "bits flipped in the pickle or directory": (flip_contents, "anything", "all"),
    "truncated": (truncate, "unchanged", "all"),
    "garbage behind": (extend, "unchanged", "all"),
    "garbage before": (prepend, "unchanged", "all"),
    "stretch overwritten": (overwrite, "anything", "all"),
    "stretch missing or doubled": (cut_out, "anything", "all"),
    "file missing": (miss, "unchanged", "all"),
    "other content": (other_content, "refused", "all"),
    "no file but something else": (something_else, "unchanged", "all"),
    "links to the folder": (links_to_the_folder, "unchanged", "sae"),
    "strange neighbours": (strange_neighbours, "unchanged", "sae"),
}
"""Name: the mutation, what must come of it (see `fuzz.EXPECTED`), and the kind of target it applies to."""
