"""
The pickle of a `torch.save` archive, read as data: an interpreter that knows a few opcodes and calls nothing.

`torch.save` describes tensors in the language of the pickle machine (protocol 2). Here tensors and storages become
plain descriptions, the few names that torch writes are recognised by their text, and everything else is refused.
Nothing is imported or called. No opcode takes more memory than a few tens of times its own bytes.
"""

import pickletools
import re
from collections.abc import Collection
from itertools import islice
from typing import Any, NamedTuple

import torch

MAX_PICKLE_BYTES = 256 << 10
"""Largest pickle that is read; a tensor needs about 150 bytes."""

MAX_OPCODES = 20_000
"""Largest number of opcodes that are run; a tensor needs about 30."""

PROTOCOL_2 = b"\x80\x02"

MAX_DIMENSIONS = 8
MAX_ELEMENTS = 1 << 50

STORAGE_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
REBUILD_PARAMETER = "torch._utils._rebuild_parameter"
ORDERED_DICT = "collections.OrderedDict"
DTYPE = re.compile(r"torch\.(float|bfloat|int|uint)\d+|torch\.bool")

PUSHES_ARGUMENT = {"BINUNICODE", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"}
PUSHES_CONSTANT = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
MAKES_TUPLE = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Storage(NamedTuple):
    """A storage, identified by the number of its record in the archive."""

    dtype: torch.dtype
    key: str
    num_elements: int


class View(NamedTuple):
    """A tensor as a view of a storage. Offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Name(NamedTuple):
    """A name of Python code that torch writes, kept as text only."""

    text: str


class ForeignCode(ValueError):
    """The pickle names code that weights do not need. The message is that name."""


class _Mark:
    """Where the items of a list, dict or tuple begin on the stack."""


def read_pickle(pickled: bytes, classes: Collection[str] = ()) -> Any:
    """
    Read what the record `data.pkl` of a `torch.save` archive describes: dicts, lists, tuples, plain values, and a
    [`View`] for each tensor.

    Objects of `classes` (full names) are read as dicts of their attributes; their code is never called. Lists and
    dicts may contain themselves, and may contain each other many times.
    """
    if len(pickled) > MAX_PICKLE_BYTES:
        raise ValueError(f"it has {len(pickled)} bytes, at most {MAX_PICKLE_BYTES} are read")
    if not pickled.startswith(PROTOCOL_2):
        raise ValueError("it is not of protocol 2, which torch.save writes by default")
    try:
        return _run(pickled, classes)
    except ForeignCode:
        raise
    except (LookupError, TypeError, ValueError) as error:  # an empty stack, a key of another kind, cut arguments
        raise ValueError(str(error)) from error


def _run(pickled: bytes, classes: Collection[str]) -> Any:
    stack: list[Any] = []
    made: list[dict] = []  # objects of the classes
    memo: dict[int, Any] = {}
    arg: Any
    for opcode, arg, _ in islice(pickletools.genops(pickled), MAX_OPCODES):
        op = opcode.name
        if op in PUSHES_ARGUMENT:
            stack.append(_argument(arg))
        elif op in ("BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
        elif op in ("BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif op == "MARK":
            stack.append(_Mark)
        elif op in PUSHES_CONSTANT:
            stack.append(PUSHES_CONSTANT[op])
        elif op in MAKES_TUPLE:
            stack.append(tuple([_pop(stack) for _ in range(MAKES_TUPLE[op])][::-1]))
        elif op == "TUPLE":
            stack.append(tuple(_pop_to_mark(stack)))
        elif op == "EMPTY_LIST":
            stack.append([])
        elif op == "EMPTY_DICT":
            stack.append({})
        elif op in ("APPEND", "APPENDS"):
            items = [_pop(stack)] if op == "APPEND" else _pop_to_mark(stack)
            _container(stack, list).extend(items)
        elif op in ("SETITEM", "SETITEMS"):
            items = [_pop(stack), _pop(stack)][::-1] if op == "SETITEM" else _pop_to_mark(stack)
            _set_items(_container(stack, dict), items)
        elif op == "GLOBAL":
            stack.append(_name(arg, classes))
        elif op == "BINPERSID":
            stack.append(_storage(_pop(stack)))
        elif op == "REDUCE":
            args, called = _pop(stack), _pop(stack)
            stack.append(_rebuilt(called, args))
        elif op == "NEWOBJ":
            args, called = _pop(stack), _pop(stack)
            if args != () or not isinstance(called, Name) or called.text not in classes:
                raise ValueError("it uses NEWOBJ, which torch.save does not write for tensors")
            made.append({})
            stack.append(made[-1])
        elif op == "BUILD" and len(stack) > 1 and any(stack[-2] is each for each in made):
            _set_items(stack[-2], [part for item in _attributes(_pop(stack)) for part in item])
        elif op == "BUILD":  # attributes of a state dict: the versions of its modules
            state = _pop(stack)
            _container(stack, dict)
            if not isinstance(state, dict) or not state.keys() <= {"_metadata"}:
                raise ValueError("it sets attributes")
        elif op == "STOP":
            return _pop(stack)
        elif op != "PROTO" or arg != 2:
            raise ValueError(f"it uses {op}, which torch.save does not write by default")
    raise ValueError(f"it does not end within {MAX_OPCODES} opcodes")


def _pop(stack: list[Any]) -> Any:
    value = stack.pop()
    if value is _Mark:
        raise ValueError("its stack is not in order")
    return value


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (value := stack.pop()) is not _Mark:
        items.append(value)
    return items[::-1]


def _container(stack: list[Any], kind: type) -> Any:
    if type(stack[-1]) is not kind:
        raise ValueError(f"it fills a {type(stack[-1]).__name__} as if it were a {kind.__name__}")
    return stack[-1]


def _argument(value: Any) -> Any:
    if isinstance(value, str):
        value.encode()  # refuses halves of surrogate pairs, which cannot be printed or written
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise ValueError("it holds a whole number of more than 64 bits")
    return value


def _set_items(target: dict, items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        # small whole numbers and text: neither has a hash that a file can choose
        if not (isinstance(key, str) or (type(key) is int and 0 <= key < 1 << 31)):
            raise ValueError(f"a dict has a key of kind {type(key).__name__}")
        target[key] = value


def _attributes(state: Any) -> list[tuple[Any, Any]]:
    if not isinstance(state, dict):
        raise ValueError("it sets attributes that are no dict")
    return list(state.items())


def _name(arg: str, classes: Collection[str]) -> Name | str:
    text = arg.replace(" ", ".")
    if text in STORAGE_DTYPES or text in classes or text in (REBUILD_TENSOR, REBUILD_PARAMETER, ORDERED_DICT):
        return Name(text)
    if DTYPE.fullmatch(text):
        return text
    raise ForeignCode(text if text.isprintable() else ascii(text))


def _storage(reference: Any) -> Storage:
    """From `("storage", class, key, location, number of elements)`."""
    if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
        raise ValueError("it refers to something that is no storage")
    _, kind, key, _, num_elements = reference
    if not isinstance(kind, Name) or kind.text not in STORAGE_DTYPES or not isinstance(key, str):
        raise ValueError("it refers to something that is no storage")
    return Storage(STORAGE_DTYPES[kind.text], key, _size(num_elements))


def _rebuilt(called: Any, args: Any) -> Any:
    text = called.text if isinstance(called, Name) else ""
    if text == ORDERED_DICT and args == ():
        return {}
    if text == REBUILD_PARAMETER and isinstance(args, tuple) and len(args) == 3 and isinstance(args[0], View):
        return args[0]
    if text == REBUILD_TENSOR and isinstance(args, tuple) and len(args) in (6, 7):
        storage, offset, shape, strides, _, hooks, *metadata = args
        if isinstance(storage, Storage) and not hooks and not any(metadata):
            return View(storage, _size(offset), _sizes(shape), _sizes(strides))
    raise ValueError(f"it calls {text or type(called).__name__} in a way torch does not write")


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > MAX_DIMENSIONS:
        raise ValueError("a tensor's shape is no short tuple")
    return tuple(_size(value) for value in values)


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_ELEMENTS:
        raise ValueError("a tensor's size is no whole number, or beyond all bounds")
    return value
