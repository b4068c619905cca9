"""Damage to safetensors, npz and `torch.save` files that knows how they are built: sizes, shapes, dtypes, names."""

import ast
import io
import json
import struct
import zipfile
import zlib
from functools import cache
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch

NUMBERS = (-1, 0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), 10**300)
CLIMBING = ("../../x", "/etc/passwd", "..\\..\\x", "a/../../b", "nul\x00.npy", "x" * 60_000, "", ".", "\u202eW_enc")
CLIMBING += ("$(touch x)", "new\n\nline", "\x1b[2J", "%s%s%n", "{0.__class__}", "__class__", "W_enc/..")


# Tensors


def wrong_shape(random: Random, target: Any) -> dict[str, Any]:
    tensors = dict(target.tensors)
    name = random.choice([name for name, tensor in tensors.items() if tensor.ndim])
    tensor = tensors[name]
    shapes = [tensor[1:], tensor[:0], tensor[None], tensor[..., None], tensor.reshape(-1), tensor.reshape(-1)[0]]
    shapes += [torch.cat([tensor, tensor]), torch.zeros(0, 1 << 40), torch.zeros([1] * 60)]
    if tensor.ndim == 2:
        shapes.append(tensor.T)
    others = [other for other in shapes if other.shape != tensor.shape]
    tensors[name] = random.choice(others).clone().contiguous()
    return target.saved(tensors)


def wrong_dtype(random: Random, target: Any) -> dict[str, Any]:
    """Integers, booleans, complex numbers, 8-bit floats; in an npz also texts, records, times, other byte orders."""
    tensors: dict[str, Any] = dict(target.tensors)
    name = random.choice([name for name, tensor in tensors.items() if tensor.ndim and tensor.is_floating_point()])
    if target.kind == "npz":
        dtypes = ("i4", "i1", "?", "c8", ">f4", ">f8", "U3", "S4", "M8[s]", "m8[s]", "V3", "f4,f4", "O", "g", "(2,)f4")
        with np.errstate(all="ignore"):
            try:
                tensors[name] = np.zeros(tensors[name].shape, dtype=random.choice(dtypes))
            except TypeError:
                tensors[name] = np.zeros(tensors[name].shape, dtype="V1")
    else:
        dtypes = (torch.int8, torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn)
        tensors[name] = tensors[name].to(random.choice((*dtypes, torch.float8_e5m2, torch.uint16)))
    return target.saved(tensors)


def other_float(random: Random, target: Any) -> dict[str, Any]:
    """Another precision: those are read."""
    dtypes = (torch.float64, torch.float16) if target.kind == "npz" else (torch.float64, torch.float16, torch.bfloat16)
    dtype = random.choice(dtypes)
    tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in target.tensors.items()}
    return target.saved(tensors)


def not_finite(random: Random, target: Any) -> dict[str, Any]:
    """NaN and infinities, in one place or all over."""
    tensors = dict(target.tensors)
    name = random.choice([name for name, tensor in tensors.items() if tensor.is_floating_point()])
    values = tensors[name].clone()
    worst = random.choice((float("nan"), float("inf"), float("-inf")))
    if random.random() < 0.5 or not values.ndim:
        values.fill_(worst)
    else:
        values.view(-1)[random.randrange(values.numel())] = worst
    return target.saved({**tensors, name: values})


def too_large(random: Random, target: Any) -> dict[str, Any]:
    """Finite values whose products, norms and exponentials are not; in float64, beyond float32."""
    tensors = dict(target.tensors)
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    for name in random.sample(names, random.randrange(1, len(names) + 1)):
        value = random.choice((3e38, -3e38, 1e30, 1e300))
        tensors[name] = torch.full(tensors[name].shape, value, dtype=torch.float64 if value > 1e40 else torch.float32)
    return target.saved(tensors)


def missing_or_more(random: Random, target: Any) -> dict[str, Any]:
    """A tensor too few, too many, or under a name that climbs."""
    tensors = dict(target.tensors)
    name = random.choice(list(tensors))
    more = random.choice(("optimizer", "W_enc2", *CLIMBING))
    if random.random() < 1 / 3:
        return target.saved({**tensors, more: torch.zeros(3)})
    moved = tensors.pop(name)
    return target.saved(tensors if random.random() < 0.5 else {more: moved, **tensors})


# safetensors


def safetensors_header(random: Random, target: Any) -> dict[str, Any]:
    """A header that declares what is not there, or is no header."""
    content = target.files[target.weights]
    size = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    entry = header[random.choice([name for name in header if name != "__metadata__"])]
    number = random.choice((*NUMBERS, 1.5, "1", None, True, [], 1e300))
    what = random.randrange(8)
    if what == 0:
        entry["shape"] = random.choice(([number], [number, number], number, [[1]], [2**32, 2**32], [1] * 1000, []))
    elif what == 1:
        entry["data_offsets"] = random.choice(([number, 4], [0, number], [number], number, [8, 0], [0, 0], [0] * 9))
    elif what == 2:
        entry["dtype"] = random.choice(("F33", "f32", "O", "", "F8_E4M3", "I32", "C64", "x" * 9999, number, "F4"))
    elif what == 3:
        entry["more"] = number
        del entry[random.choice(("shape", "dtype", "data_offsets"))]
    elif what == 4:
        entry["data_offsets"] = header[next(name for name in header if name != "__metadata__")]["data_offsets"]
    elif what == 5:
        header["__metadata__"] = random.choice(({"a": number}, [], "text", {"a": {"b": "c"}}, {"x" * 9999: "y"}))
    elif what == 6:
        text = json.dumps(header)
        doubled = text[:-1] + ", " + json.dumps({"W_enc": entry, "b_enc": entry})[1:]
        broken = (
            doubled,
            text[:-1],
            f"[{text}]",
            "[" * 10_000,
            '{"a":' * 10_000,
            text.replace("shape", "sh\\u0000pe"),
        )
        return {**target.files, target.weights: with_header(random.choice(broken).encode(), body)}
    else:
        length = random.choice((2**63, 2**64 - 1, 2**32, len(content), size - 1, size + 1, 0, 100_000_001))
        return {**target.files, target.weights: length.to_bytes(8, "little") + content[8:]}
    return {**target.files, target.weights: with_header(json.dumps(header).encode(), body)}


def with_header(header: bytes, body: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + body


# npz and torch.save: zip archives


def members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


class Packed(NamedTuple):
    """A compressed member of a zip archive."""

    data: bytes
    crc: int
    size: int


def packed(content: bytes) -> Packed:
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
    return Packed(compressor.compress(content) + compressor.flush(), zlib.crc32(content), len(content))


def zipped(contents: dict[str, bytes | Packed]) -> bytes:
    """As `torch.save` and `numpy.savez` write archives, but for what is put into them."""
    body, directory = b"", b""
    for name, content in contents.items():
        held = content if isinstance(content, Packed) else Packed(content, zlib.crc32(content), len(content))
        encoded, method = name.encode(), zipfile.ZIP_DEFLATED if held is content else zipfile.ZIP_STORED
        common = struct.pack("<5H3L2H", 20, 0x800, method, 0, 33, held.crc, len(held.data), held.size, len(encoded), 0)
        directory += b"PK\x01\x02\x14\x03" + common + struct.pack("<3H2L", 0, 0, 0, 0, len(body)) + encoded
        body += b"PK\x03\x04" + common + encoded + held.data
    count = len(contents)
    end = struct.pack("<4H2LH", 0, 0, count, count, len(directory), len(body), 0)
    return body + directory + b"PK\x05\x06" + end


def npy_header(random: Random, target: Any) -> dict[str, Any]:
    """The literal in front of an array: huge, negative, of another dtype, code, or nested."""
    contents = members(target.files[target.weights])
    name = random.choice(list(contents))
    content = contents[name]
    size = int.from_bytes(content[8:10], "little")
    header, body = ast.literal_eval(content[10 : 10 + size].decode()), content[10 + size :]
    number = random.choice(NUMBERS)
    shape = ((number,), (number, number), (1 << 32, 1 << 32), (), (1,) * 40, (1.5,), number, None, "24", (True, True))
    descr = ("|O", ">f4", "<U9", "|V2147483647", "<i4", [("a", "<f4")], ("<f4", (9, 9)), "f" * 9999, None, "<c8", "V0")
    code = "{'descr': '<f4', 'fortran_order': False, 'shape': (__import__('os').system('touch canary'),)}"
    what = random.randrange(4)
    if what == 0:
        text = repr({**header, "shape": random.choice(shape)})
    elif what == 1:
        text = repr({**header, "descr": random.choice(descr)})
    elif what == 2:
        text = repr({**header, "fortran_order": random.choice((number, "yes", None)), "more": 1})
    else:
        text = random.choice((code, "(" * 5_000, "[" * 60_000, "9" * 9_000, "{}", "", "\x00" * 99, "-" * 9_000 + "1"))
    version, prefix = random.choice(((1, "<H"), (1, "<H"), (2, "<I"), (3, "<I")))
    length = random.choice((len(text), len(text), len(text), 0xFFFF, 0))
    contents[name] = b"\x93NUMPY" + bytes([version, 0]) + struct.pack(prefix, length) + text.encode() + body
    return {**target.files, target.weights: zipped(contents)}


def zip_directory(random: Random, target: Any) -> dict[str, Any]:
    """A field of the directory, of a local header or of the end record that says something else."""
    content = bytearray(target.files[target.weights])
    marks = {b"PK\x01\x02": 46, b"PK\x03\x04": 30, b"PK\x05\x06": 22, b"PK\x06\x06": 56, b"PK\x06\x07": 20}
    mark = random.choice([mark for mark in marks if mark in content])
    places = [place for place in range(len(content)) if content.startswith(mark, place)]
    start = random.choice(places)
    offset = start + random.randrange(4, marks[mark], 2)
    width = random.choice((2, 4))
    value = random.choice((0, 1, 8, 99, 0xFFFF, len(content), 0x7FFFFFFF, 0xFFFFFFFF, random.randrange(2**32)))
    content[offset : offset + width] = (value % 256**width).to_bytes(width, "little")
    return {**target.files, target.weights: bytes(content)}


def zip_names(random: Random, target: Any) -> dict[str, Any]:
    """Members that climb, that stand twice, or that are no weights."""
    contents = members(target.files[target.weights])
    prefix = next(iter(contents)).partition("/")[0] + "/" if target.kind == "pt" else ""
    name, content = random.choice(list(contents.items()))
    more = prefix * (random.random() < 0.5) + random.choice(CLIMBING[:-1]) + random.choice(("", ".npy"))
    if random.random() < 0.5:
        contents[more] = random.choice((content, b"", bytes(9_000)))
    else:
        contents = {more if other == name else other: held for other, held in contents.items()}
    changed = zipped(contents)
    if random.random() < 0.3:  # the same name twice
        twin = random.choice(list(contents))
        stand_in = twin[:-1] + "~"
        if stand_in not in contents:
            changed = zipped({**contents, stand_in: bytes(len(contents[twin]))}).replace(
                stand_in.encode(), twin.encode()
            )
    return {**target.files, target.weights: changed}


def zip_bomb(random: Random, target: Any) -> dict[str, Any]:
    """Zeros by the dozen of MB in a few kB: as an array, as a record, inside one another, or as the pickle."""
    contents = members(target.files[target.weights])
    bomb = bombs()[random.randrange(3)]
    packs = random.random() < 0.5
    changed = {name: packed(content) if packs else content for name, content in contents.items()}
    return {**target.files, target.weights: zipped({**changed, random.choice((*contents, "x.npy")): bomb})}


@cache
def bombs() -> tuple[Packed, Packed, Packed]:
    zeros = bytes(70 << 20)
    header = io.BytesIO()
    array = {"descr": "<f4", "fortran_order": False, "shape": (len(zeros) // 4,)}
    np.lib.format.write_array_header_1_0(header, array)
    array_of_zeros = packed(header.getvalue() + zeros)
    return packed(zeros), array_of_zeros, packed(zipped({"x.npy": array_of_zeros}))


def deflated(random: Random, target: Any) -> dict[str, Any]:
    """All members compressed: numpy does so, torch does not."""
    contents = members(target.files[target.weights])
    return {**target.files, target.weights: zipped({name: packed(content) for name, content in contents.items()})}


def many_members(target: Any, count: int) -> dict[str, Any]:
    """A directory of so many entries, all for one member."""
    content = target.files[target.weights]
    directory = content.index(b"PK\x01\x02")
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 3, 20, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0)
    entries = b"".join(entry + b"%08d" % number for number in range(count))
    count = min(count, 0xFFFF)
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(entries), directory, 0)
    return {**target.files, target.weights: content[:directory] + entries + tail}


def many_tensors(random: Random, target: Any, count: int) -> dict[str, Any]:
    """A header of so many empty tensors, some 60 bytes each."""
    content = target.files[target.weights]
    size = int.from_bytes(content[:8], "little")
    empty = random.choice(('"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}', '"%07d":{}'))
    header = content[8 : 7 + size] + b"," + ",".join(empty % n for n in range(count)).encode() + b"}"
    return {**target.files, target.weights: with_header(header, content[8 + size :])}


MUTATIONS = {
    "a tensor of another shape": (wrong_shape, "unchanged", "all"),
    "a tensor of another dtype": (wrong_dtype, "refused", "all"),
    "another precision": (other_float, "close", "sae"),
    "NaN or infinite": (not_finite, "anything", "all"),
    "too large numbers": (too_large, "anything", "all"),
    "a tensor missing or more": (missing_or_more, "unchanged", "all"),
    "safetensors header": (safetensors_header, "anything", "safetensors"),
    "npy header": (npy_header, "anything", "npz"),
    "zip directory": (zip_directory, "unchanged", "zip"),
    "zip names": (zip_names, "unchanged", "zip"),
    "zip bomb": (zip_bomb, "refused", "zip"),
    "zip of 4,000 members": (lambda random, target: many_members(target, 4_000), "refused", "zip"),
    "safetensors of 4,000 tensors": (
        lambda random, target: many_tensors(random, target, 4_000),
        "refused",
        "safetensors",
    ),
    "zip compressed": (deflated, "unchanged", "zip"),
}
"""Name: the mutation, what must come of it (see `fuzz.EXPECTED`), and the kind of target it applies to."""

HUGE = {
    "zip of 200,000 members": (lambda random, target: many_members(target, 200_000), "refused", "zip"),
    "safetensors of a million tensors": (
        lambda random, target: many_tensors(random, target, 1_400_000),
        "refused",
        "safetensors",
    ),
}
"""The same, too large for a quick test."""
