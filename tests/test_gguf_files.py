import struct
import sys
from contextlib import suppress

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from sae_posttrain.gguf_files import GGUFSource, gguf_source, read_gguf_header
from sae_posttrain.model_source import require_model

from .gguf_writer import tiny_model, write_gguf


@pytest.fixture
def file(tokenizer, tmp_path):
    model = tiny_model(LlamaForCausalLM, LlamaConfig, tokenizer)
    return write_gguf(tmp_path / "tiny.gguf", model, tokenizer, "Q8_0")


def test_names_that_mean_a_gguf_file(tmp_path):
    assert gguf_source("models/tiny.gguf") == GGUFSource("models/tiny.gguf")
    assert gguf_source("tiny.GGUF") == GGUFSource("tiny.GGUF")
    assert gguf_source("owner/repo:tiny.Q8_0.gguf") == GGUFSource("tiny.Q8_0.gguf", "owner/repo")
    assert gguf_source("owner/repo:q8/tiny.gguf") == GGUFSource("q8/tiny.gguf", "owner/repo")
    for drive in ("C:\\models\\tiny.gguf", "C:/models/tiny.gguf", "c:tiny.gguf"):
        assert gguf_source(drive) == GGUFSource(drive)
    assert gguf_source("owner/repo") is None
    assert gguf_source(tmp_path) is None
    assert gguf_source(object()) is None


def test_file_with_a_colon_in_its_name_and_folder_that_ends_in_gguf(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.gguf").mkdir()
    assert gguf_source("run.gguf") is None
    (tmp_path / "run:tiny.gguf").touch()
    assert gguf_source("run:tiny.gguf") == GGUFSource("run:tiny.gguf")


@pytest.mark.parametrize("file", ["../secret.gguf", "a/../../b.gguf", "/etc/x.gguf"])
def test_file_outside_of_a_repository_is_refused(file):
    with pytest.raises(FileNotFoundError, match="names no file inside the Hub repository owner/repo"):
        gguf_source(f"owner/repo:{file}")


def test_header_says_architecture_and_quantisation(file):
    header = read_gguf_header(file)
    assert (header.architecture, header.quantization) == ("llama", "Q8_0")
    assert header.num_tensors == 2 + 2 * 9 + 1


def test_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no GGUF file .*none.gguf"):
        require_model(str(tmp_path / "none.gguf"))
    with pytest.raises(FileNotFoundError, match="tiny.gguf of the Hub repository owner/none is not on this machine"):
        require_model("owner/none:tiny.gguf")


def test_file_that_was_cut_is_refused_wherever_it_was_cut(file):
    content = file.read_bytes()
    cut = file.with_name("cut.gguf")
    for length in [4, 20, 24, 40, 100, *range(200, len(content), len(content) // 40), len(content) - 200]:
        cut.write_bytes(content[:length])
        with pytest.raises(ValueError, match="cut.gguf (ends inside its header|has .* bytes)|is no GGUF file"):
            require_model(str(cut))


def test_other_files_are_refused(tmp_path):
    other = tmp_path / "other.gguf"
    for content, message in [
        (b"PK\x03\x04" + bytes(100), "is no GGUF file: it does not begin with"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "is of version 1 of GGUF"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "claims 1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "claims 0 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**62), "a name in its header has"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"a", 9, 10, 2**62), "ends inside"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"a", 9, 8, 2**62), "ends inside"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sI", 1, b"a", 99), "has type 99"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "does not say its architecture"),
    ]:
        other.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            require_model(str(other))


def test_part_of_a_split_model_is_refused(tokenizer, tmp_path):
    model = tiny_model(LlamaForCausalLM, LlamaConfig, tokenizer)
    part = write_gguf(tmp_path / "tiny-00001-of-00003.gguf", model, tokenizer, metadata={"split.count": 3})
    with pytest.raises(ValueError, match="is one of 3 parts of a model. Join them with .*--merge"):
        require_model(str(part))


def test_damaged_bytes_are_refused_or_read_and_nothing_else_happens(file):
    content = bytearray(file.read_bytes())
    damaged = file.with_name("damaged.gguf")
    for place in range(4, 1200, 7):
        changed = bytearray(content)
        changed[place] = 255
        damaged.write_bytes(changed)
        with suppress(ValueError):
            assert read_gguf_header(damaged).num_tensors > 0


def test_missing_package_is_named_with_its_extra(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install 'sae_posttrain\[gguf\]'"):
        require_model(str(file))
