"""The pickle of an archive is data: what torch writes is understood, all else refused, in little time and memory."""

import pickle
import time
import tracemalloc

import pytest

from sae_posttrain.saes.stored.torch_pickle import MAX_OPCODES, MAX_PICKLE_BYTES, ForeignCode, read_pickle

START = b"\x80\x02"  # protocol 2
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ"


def test_plain_containers_are_read_as_pickle_reads_them():
    content = {"a": [1, -2, 1 << 40, 2.5, True, False, None, "text"], "b": {"c": ((), (1,), (1, 2, 3, 4))}, 7: "seven"}
    assert read_pickle(pickle.dumps(content, protocol=2)) == content


@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_other_protocols_are_refused(protocol):
    with pytest.raises(ValueError, match="not of protocol 2, which torch.save writes by default"):
        read_pickle(pickle.dumps({"a": 1}, protocol=protocol))


@pytest.mark.parametrize(
    "named",
    [
        b"cposix\nsystem\n",
        b"cbuiltins\neval\n",
        b"c__builtin__\ngetattr\n",
        b"ctorch\nload\n",
        b"ctorch.serialization\n_get_layout\n",
        b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n",
        b"ccollections\nOrderedDict.fromkeys\n",
        b"ctorch\nFloatStorage\x1b[2J\n",
    ],
)
def test_names_that_weights_do_not_need_are_refused(named):
    with pytest.raises(ForeignCode) as refused:
        read_pickle(START + named + b")R.")
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("opcodes", "reason"),
    [
        (b"i__builtin__\neval\n.", "INST"),
        (b"(c__builtin__\neval\no.", "__builtin__.eval"),
        (b"\x82\x01.", "EXT1"),
        (b"ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
        (b"ccollections\nOrderedDict\nK\x01\x85R.", "in a way torch does not write"),
        (b"ctorch\nFloatStorage\n)R.", "calls torch.FloatStorage in a way"),
        (b"}}X\x04\x00\x00\x00evilK\x01sb.", "sets attributes"),
        (b"]}b.", "as if it were a dict"),
        (b"K\x01K\x02s.", "index out of range"),
        (b"]K\x01K\x02s.", "as if it were a dict"),
        (b"}K\x01a.", "as if it were a list"),
        (b"(.", "stack is not in order"),
        (b".", "pop from empty list"),
        (b"t.", "pop from empty list"),
        (b"h\x05.", "5"),
        (b"j\xff\xff\xff\xff.", "4294967295"),
        (b"X\xff\xff\xff\x7fa.", "bytes"),
        (b"\x8b\xff\xff\xff\x7f\x01.", "long4"),
        (b"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01.", "more than 64 bits"),
        (b"X\x03\x00\x00\x00\xed\xa0\x80.", "surrogate"),
        (b"}]K\x01s.", "key of kind list"),
        (b"}\x89K\x01s.", "key of kind bool"),
        (b"}J\xff\xff\xff\xffK\x01s.", "key of kind int"),
        (b"}(K\x01u.", "shorter|argument"),
        (b"K\x01Q.", "no storage"),
        (STORAGE.replace(b"FloatStorage", b"float32") + b".", "no storage"),
        (STORAGE.replace(b"K\x06", b"G" + b"\x00" * 8) + b".", "no whole number"),
        (b"}", "does not end|exhausted"),
    ],
)
def test_what_torch_does_not_write_is_refused(opcodes, reason):
    with pytest.raises(ValueError, match=reason):
        read_pickle(START + opcodes)


@pytest.mark.parametrize(
    "flood",
    [
        b"]",
        b"}",
        b"(",
        b"N",
        b"\x85",
        b"]a",
        b"h\x00",
        b"h\x00)R",
        b"}K\x01Ns",
        b"r\xff\xff\xff\xff",
        b"(t",
        b"\x8a\x01a",
    ],
)
def test_floods_and_bombs_end_soon_and_small(flood):
    start = START + b"ccollections\nOrderedDict\nq\x00]"
    pickled = start + flood * ((MAX_PICKLE_BYTES - len(start) - 1) // len(flood)) + b"."
    began = time.process_time()
    with pytest.raises(ValueError, match=f"within {MAX_OPCODES}|stack|bytes"):
        read_pickle(pickled)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("flood", [b"]", b"}", b"}K\x01Ns"])
def test_floods_take_little_memory(flood):
    pickled = START + flood * ((MAX_OPCODES - 2) // len(flood))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="exhausted"):
            read_pickle(pickled)
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


def test_long_pickle_is_refused():
    with pytest.raises(ValueError, match=f"at most {MAX_PICKLE_BYTES} are read"):
        read_pickle(START + b"N" * MAX_PICKLE_BYTES + b".")


def test_containers_may_hold_themselves():
    looped = read_pickle(START + b"]q\x00h\x00a.")
    assert looped[0] is looped
