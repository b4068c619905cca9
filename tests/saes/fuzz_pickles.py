"""Pickles that would run code, take memory without end, or lie about where weights are, opcode by opcode."""

import pickle
import struct
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

NUMBERS = (-1, 0, 1, 2**31, 2**40, 2**62, 2**63 - 1, 2**63, 2**64, -(2**63), 10**4000, "4", None, 1.5, [], True, ())


class Raw(bytes):
    """Opcodes that stand for themselves."""


class Global(NamedTuple):
    """What unpickling imports: `module.name`."""

    module: str
    name: str


class Call(NamedTuple):
    """What unpickling calls."""

    function: Any
    arguments: tuple[Any, ...]


class Persistent(NamedTuple):
    """What `torch.load` resolves: a storage."""

    key: Any


def dump(value: Any) -> bytes:
    """Opcodes (protocol 2) that leave `value` on the stack."""
    if isinstance(value, Raw):
        return bytes(value)
    if isinstance(value, Global):
        return b"c" + value.module.encode() + b"\n" + value.name.encode() + b"\n"
    if isinstance(value, Call):
        return dump(value.function) + dump(value.arguments) + b"R"
    if isinstance(value, Persistent):
        return dump(value.key) + b"Q"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(dump, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(dump, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(dump(key) + dump(item) for key, item in value.items()) + b"u"
    return pickle.dumps(value, protocol=2)[2:-1]  # text, a number or None: between PROTO and STOP


STORAGES = {torch.float32: "FloatStorage", torch.bfloat16: "BFloat16Storage", torch.float16: "HalfStorage"}
STORAGES |= {torch.int32: "IntStorage", torch.int64: "LongStorage", torch.float64: "DoubleStorage"}


def describe(content: Any, storages: list[Tensor]) -> Any:
    """`content` with each tensor as `torch.save` writes it, a call with a persistent storage; fills `storages`."""
    if isinstance(content, dict):
        return {name: describe(value, storages) for name, value in content.items()}
    if not isinstance(content, Tensor):
        return content
    storages.append(content)
    kind = Global("torch", STORAGES[content.dtype])
    storage = Persistent(("storage", kind, str(len(storages) - 1), "cpu", content.numel()))
    no_hooks = Call(Global("collections", "OrderedDict"), ())
    arguments = (storage, 0, tuple(content.shape), content.stride(), False, no_hooks)
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), arguments)


def archive(target: Any, pickled: bytes, storages: list[Tensor]) -> dict[str, Any]:
    """The files of `target` with this pickle in its `torch.save` archive."""
    contents = {"archive/data.pkl": pickled, "archive/byteorder": b"little"}
    contents |= {f"archive/data/{n}": t.view(torch.uint8).numpy().tobytes() for n, t in enumerate(map(flat, storages))}
    return {**target.files, target.weights: target.zipped({**contents, "archive/version": b"3\n"})}


def flat(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1)


def rewritten(random: Random, target: Any) -> dict[str, Any]:
    """The same weights in a pickle written by hand: what the other mutations start from."""
    storages: list[Tensor] = []
    return archive(target, b"\x80\x02" + dump(describe(target.content, storages)) + b".", storages)


def tensors_of(content: Any) -> list[tuple[dict, str]]:
    """Each dict that holds a described tensor, and the tensor's name in it."""
    found = []
    for name, value in content.items():
        if isinstance(value, dict):
            found += tensors_of(value)
        elif isinstance(value, Call):
            found.append((content, name))
    return found


def lying_storage(random: Random, target: Any) -> dict[str, Any]:
    """A tensor whose storage, size, stride or offset is not what the archive holds."""
    storages: list[Tensor] = []
    content = describe(target.content, storages)
    held, name = random.choice(tensors_of(content))
    function, (storage, offset, size, stride, grad, hooks) = held[name]
    _, kind, key, location, numel = storage.key
    number = random.choice(NUMBERS)
    what = random.choice(("numel", "key", "kind", "location", "offset", "size", "stride", "flags", "function", "id"))
    if what == "numel":
        numel = number
    elif what == "key":
        key = random.choice(("../../x", "/etc/passwd", "0", "1", "99", "", "data.pkl", 0, None, "x" * 60_000, "0\x00"))
    elif what == "kind":
        names = ("UntypedStorage", "ByteStorage", "ComplexFloatStorage", "QInt8Storage", "DoubleStorage", "nothing")
        kind = random.choice((*(Global("torch", name) for name in names), Global("os", "system"), "text", None))
    elif what == "location":
        location = random.choice(("cuda:0", "meta", "mps", "cpu:99", "../../x", "", None, "xla:0", 3, "hpu"))
    elif what == "offset":
        offset = number
    elif what == "size":
        size = random.choice(((number,), (number,) * 2, (2**32, 2**32), (1 << 20, 1 << 20), number, (1,) * 3000, ()))
    elif what == "stride":
        stride = random.choice(((number,), (number, 1), (0,) * len(size), (0, 0), number, stride[::-1], (2, 2)))
    elif what == "flags":
        grad, hooks = random.choice(((number, hooks), (False, number), (True, hooks), (False, Global("os", "system"))))
    elif what == "function":
        names = ("_rebuild_tensor", "_rebuild_parameter", "_rebuild_sparse_tensor", "_rebuild_meta_tensor_no_storage")
        names += ("_rebuild_wrapper_subclass", "_rebuild_qtensor", "_rebuild_device_tensor_from_numpy", "nothing")
        function = Global("torch._utils", random.choice(names))
    key_tuple: Any = ("storage", kind, key, location, numel)
    if what == "id":
        wrong = (("module", kind, key, location, numel), key_tuple[:3], key_tuple * 2, "storage", number, [key_tuple])
        key_tuple = random.choice(wrong)
    held[name] = Call(function, (Persistent(key_tuple), offset, size, stride, grad, hooks))
    return archive(target, b"\x80\x02" + dump(content) + b".", storages)


# Code

CANARY = "touch canary"
GADGETS: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("os", "system", (CANARY,)),
    ("posix", "system", (CANARY,)),
    ("nt", "system", (CANARY,)),
    ("os", "_exit", (3,)),
    ("os", "popen", (CANARY,)),
    ("os", "open", ("canary", 65)),
    ("os", "mkdir", ("canary",)),
    ("sys", "exit", ()),
    ("subprocess", "call", (["touch", "canary"],)),
    ("subprocess", "Popen", (["touch", "canary"],)),
    ("pty", "spawn", (["touch", "canary"],)),
    ("builtins", "eval", ("open('canary', 'w')",)),
    ("builtins", "exec", ("open('canary', 'w')",)),
    ("builtins", "open", ("canary", "w")),
    ("builtins", "__import__", ("fuzz_canary",)),
    ("builtins", "getattr", (Global("os", "path"), "join")),
    ("builtins", "bytearray", (1 << 33,)),
    ("builtins", "print", ("canary",)),
    ("__builtin__", "eval", ("open('canary', 'w')",)),
    ("io", "open", ("canary", "w")),
    ("_io", "FileIO", ("canary", "w")),
    ("importlib", "import_module", ("fuzz_canary",)),
    ("fuzz_canary", "touch", ()),
    ("runpy", "run_module", ("fuzz_canary",)),
    ("timeit", "timeit", ("open('canary', 'w')",)),
    ("shutil", "rmtree", ("canary",)),
    ("pickle", "loads", (b"cos\nsystem\n(S'touch canary'\ntR.",)),
    ("_pickle", "loads", (b"cos\nsystem\n(S'touch canary'\ntR.",)),
    ("codecs", "encode", ("x", "utf-8")),
    ("_codecs", "encode", ("x" * 100_000, "utf-16")),
    ("socket", "create_connection", (("127.0.0.1", 9),)),
    ("torch", "load", ("canary",)),
    ("torch.hub", "load", ("canary", "canary")),
    ("torch.serialization", "load", ("canary",)),
    ("torch.serialization", "os.system", (CANARY,)),
    ("torch", "os.system", (CANARY,)),
    ("torch", "empty", ((1 << 34,),)),
    ("torch", "zeros", ((1 << 34,),)),
    ("torch", "Tensor", (1 << 34,)),
    ("torch", "FloatStorage", (1 << 34,)),
    ("torch.storage", "UntypedStorage", (1 << 34,)),
    ("torch.nn.modules.linear", "Linear", (1 << 17, 1 << 17)),
    ("torch._C", "_cuda_init", ()),
    ("torch.jit", "load", ("canary",)),
    ("torch.distributed.rpc.internal", "_run_function", ()),
    ("torch._utils", "_rebuild_parameter_with_state", ("x", True, {}, {})),
    ("numpy", "load", ("canary",)),
    ("numpy.core.multiarray", "_reconstruct", (Global("numpy", "ndarray"), (0,), b"b")),
    ("numpy", "fromfile", ("/dev/zero",)),
    ("collections", "Counter", ("x" * 9_999,)),
    ("collections", "defaultdict", (Global("os", "getcwd"),)),
)


def run_code(random: Random, target: Any) -> dict[str, Any]:
    """A call, in each way in which a pickle can call; beside the weights, or in place of them."""
    module, name, arguments = random.choice(GADGETS)
    function, given = Global(module, name), dump(arguments)
    texts = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in function)
    ways = (
        dump(function) + given + b"R",
        texts + b"\x93" + given + b"R",  # STACK_GLOBAL
        b"(" + given[1:-1] + b"i" + module.encode() + b"\n" + name.encode() + b"\n",  # INST
        b"(" + dump(function) + given[1:-1] + b"o",  # OBJ
        dump(function) + given + b"\x81",  # NEWOBJ
        dump(function) + given + b"}\x92",  # NEWOBJ_EX
        dump(Call(Global("collections", "OrderedDict"), ())) + dump({"__setstate__": function}) + b"b" + given + b"b",
        dump(Call(Global("torch._utils", "_rebuild_tensor_v2"), ())) + dump((None, {"__reduce__": function})) + b"b",
        random.choice((b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00")) + given + b"R",  # EXT1, EXT2, EXT4
        dump(Persistent(("storage", function, "0", "cpu", 1))),
        dump(Persistent(Call(function, arguments))),
        b"P" + b"cos\nsystem\n",  # PERSID
        dump(function) + b"0" + dump(Call(Global("builtins", "eval"), ("1",))),
    )
    return beside(random, target, random.choice(ways))


def beside(random: Random, target: Any, gadget: bytes) -> dict[str, Any]:
    """The weights in a pickle with `gadget` before them, behind them, among them or in place of them."""
    storages: list[Tensor] = []
    content = describe(target.content, storages)
    weights = dump(content)
    protocol = random.choice((b"\x80\x02", b"\x80\x04", b"\x80\x05", b""))
    places = (
        gadget + b"0" + weights,
        weights + gadget + b"0",
        dump({**content, "more": Raw(gadget)}),
        dump({Raw(gadget): 1, **content}),
        gadget,
    )
    return archive(target, protocol + random.choice(places) + b".", storages)


# Structures

EMPTY_LIST, APPEND, DUP = b"]", b"a", b"2"
NESTING = 100_000


def doubling(seed: bytes, join: bytes, times: int) -> bytes:
    """A value that holds the one before twice, `times` over: 2 ** times leaves in a few bytes each."""
    return seed + (DUP + join) * times


STRUCTURES = (
    EMPTY_LIST * NESTING + APPEND * (NESTING - 1),
    b"N" + b"\x85" * NESTING,  # a tuple in a tuple in a …
    doubling(b")", b"\x86", 40),
    b"}" + doubling(b")", b"\x86", 40) + b"Ns",  # as a key: who hashes it never ends
    b"}" + doubling(b")", b"\x86", 40) + doubling(b")", b"\x86", 40) + b"\x86" + b"Ns",
    b"}(" + (doubling(b")", b"\x86", 26) + b"N") * 2 + b"u",
    doubling(b"]", b"\x86", 40),
    b"\x8f(" + doubling(b")", b"\x86", 40) + b"\x90",  # in a set
    b"]q\x00h\x00a",  # a list in itself
    b"}q\x00X\x01\x00\x00\x00ah\x00s",  # a dict in itself
    b"]q\x00h\x00\x85a",
    b"r\xff\xff\xff\xff",
    b"Nr\xff\xff\xff\xff",  # LONG_BINPUT: place 4294967295 of the memo
    b"Np9223372036854775807\n",
    b"Np-1\n",
    b"h\x63",  # BINGET of what was never put
    b"g-1\n",
    b"j\xff\xff\xff\xff",
    b"\x94" * 100,
    b"N" + b"\x94" * 100_000,
    b"(" * 200_000,
    b"(" * 200_000 + b"t" * 200_000,
    b"N0" * 300_000,
    b"0" * 10,
    b"1",
    b"2",
    b"t",
    b"e",
    b"R",
    b"b",
    b"",
    b".",
    b"\x80\xff",
    b"\x95" + struct.pack("<Q", 2**63) + b"N",  # FRAME
    b"X" + struct.pack("<I", 2**32 - 1) + b"x",  # BINUNICODE
    b"\x8d" + struct.pack("<Q", 2**63 - 1) + b"x",  # BINUNICODE8
    b"\x8e" + struct.pack("<Q", 2**40) + b"x",  # BINBYTES8
    b"\x96" + struct.pack("<Q", 2**40) + b"x",  # BYTEARRAY8
    b"\x96" + struct.pack("<Q", 2**64 - 1) + b"x",
    b"T" + struct.pack("<i", -1) + b"x",
    b"B" + struct.pack("<I", 2**31) + b"x",
    b"\x97",  # NEXT_BUFFER
    b"N\x98",
    b"\x8b" + struct.pack("<i", 2**31 - 1) + b"\xff",  # LONG4
    b"\x8b" + struct.pack("<i", -1),
    b"\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000,
    b"\x8a\xff" + b"\x7f" * 255,  # LONG1
    b"L" + b"9" * 9_999 + b"L\n",
    b"I" + b"9" * 9_999 + b"\n",
    b"Inot a number\n",
    b"Fnan\n",
    b"F1e400\n",
    b"S'not closed\n",
    b"V\\ud800\n",
    b"X\x03\x00\x00\x00\xed\xa0\x80",
    b"U\xff" + b"x" * 255,
    b"c\n\n",
    b"c" + b"x" * 100_000 + b"\ny\n",
    b"ccollections\nOrderedDict\n)R" * 20_000,
    b"\xff",
)
"""Opcodes that leave something no weight file holds: endless, self-containing, of absurd size, or broken."""


def structure(random: Random, target: Any) -> dict[str, Any]:
    return beside(random, target, random.choice(STRUCTURES))


def other_content(random: Random, target: Any) -> dict[str, Any]:
    """A whole pickle of something else, or a legal one with more in it than weights."""
    storages: list[Tensor] = []
    content = describe(target.content, storages)
    nested: Any = {}
    for _ in range(random.choice((10, 900, 3_000))):
        nested = Raw(dump({"x": nested}) if len(nested) < 50 else b"}X\x01\x00\x00\x00x" + bytes(nested) + b"s")
    mores = (
        nested,
        10**4000,
        "x" * 100_000,
        float("nan"),
        [[[[]]]],
        (None,) * 50_000,
        {1: 2},
        {None: 3},
        b"x" * 99,
        True,
    )
    choices = (
        {**content, "more": random.choice(mores)},
        {"a": content},
        [content],
        (content, content),
        list(content.values()),
        {"model": {"sae": {"ae": content}}},
        dict(enumerate(content.values())),
        {**content, "k": random.choice(NUMBERS)},
        random.choice(mores),
    )
    return archive(target, b"\x80\x02" + dump(random.choice(choices)) + b".", storages)


MUTATIONS = {
    "pickle written by hand": (rewritten, "accepted", "pt"),
    "pickle that lies about a storage": (lying_storage, "anything", "pt"),
    "pickle that runs code": (run_code, "refused", "pt"),
    "pickle that runs code in another way": (run_code, "refused", "pt"),
    "pickle of a strange structure": (structure, "unchanged", "pt"),
    "pickle of another strange structure": (structure, "unchanged", "pt"),
    "pickle of something else": (other_content, "unchanged", "pt"),
}
"""Name: the mutation, what must come of it (see `fuzz.EXPECTED`), and the kind of target it applies to."""


def long_pickle(random: Random, target: Any) -> dict[str, Any]:
    """Millions of opcodes that do nothing."""
    return beside(random, target, random.choice((b"N0", b"](e0", b"}q\x000", b"(0", b"N2t0")) * (1 << 20))


HUGE = {"pickle of millions of opcodes": (long_pickle, "unchanged", "pt")}
"""The same, too large for a quick test."""
