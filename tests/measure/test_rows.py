import gzip
import json

import pytest

from sae_posttrain.measure.rows import read_rows

ROWS = [{"id": 0, "text": "저장"}, {"id": 1, "text": "보존"}]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.jsonl.gz", "rows.json.gz"])
def test_rows_of_every_kind_of_file(name, tmp_path):
    text = json.dumps(ROWS) if ".jsonl" not in name else "\n\n".join(map(json.dumps, ROWS))
    opener = gzip.open if name.endswith(".gz") else open
    with opener(tmp_path / name, "wt", encoding="utf-8") as file:
        file.write(text)
    assert list(read_rows(tmp_path / name)) == ROWS
    assert list(read_rows(str(tmp_path / name))) == ROWS


def test_rows_before_a_broken_line_can_be_read(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": 0}\n{"id": ', encoding="utf-8")
    assert next(read_rows(tmp_path / "rows.jsonl")) == {"id": 0}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b'{"id": 0}\n\n{"id": ', r"rows\.jsonl, line 3: not JSON \(Expecting value"),
        ("rows.jsonl", b'{"id": 0}\n[1]', r"rows\.jsonl, line 2: a row must be a JSON object, got list"),
        ("rows.jsonl", b"[" * 100_000, r"rows\.jsonl, line 1: not JSON \("),
        ("rows.jsonl", b"9" * 5_000, r"rows\.jsonl, line 1: not JSON \(Exceeds the limit"),
        ("rows.jsonl", b'{"text": "\xff"}', r"rows\.jsonl is not readable as UTF-8 text"),
        ("rows.jsonl.gz", b'{"id": 0}', r"rows\.jsonl\.gz is not readable as gzipped UTF-8 text"),
        ("rows.jsonl.gz", gzip.compress(b'{"id": 0}' * 99)[:-9], r"rows\.jsonl\.gz is not readable as gzipped"),
        ("rows.json", b'{"id": 0}\n{"id": 1}', r"rows\.json: not JSON .* one object a line ends in \.jsonl"),
        ("rows.json", b"[" * 100_000, r"rows\.json: not JSON \("),
        ("rows.json", b'{"id": 0}', r"rows\.json holds a dict, not a list of rows"),
        ("rows.json", b'[{"id": 0}, "text"]', r"rows\.json, row 1: a row must be a JSON object, got str"),
        ("rows.csv", b"id,text", r"rows\.csv is not a \.json, \.jsonl.*load_dataset"),
    ],
)
def test_broken_file_is_refused_with_the_place(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_rows(tmp_path / name))


def test_missing_file_is_refused():
    with pytest.raises(ValueError, match="no data file missing.jsonl"):
        read_rows("missing.jsonl")
