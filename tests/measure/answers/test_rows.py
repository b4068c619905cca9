import gzip
import json

import datasets
import pytest

from sae_posttrain.measure.answers.rows import read_rows

ROWS = [{"id": 0, "text": "저장"}, {"id": 1, "text": "보존"}]


CUT_SHORT = gzip.compress(b'{"id": 0}' * 99, mtime=0)[:-9]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.jsonl.gz", "rows.json.gz"])
def test_rows_of_every_kind_of_file(name, tmp_path):
    text = json.dumps(ROWS) if ".jsonl" not in name else "\n\n".join(map(json.dumps, ROWS))
    opener = gzip.open if name.endswith(".gz") else open
    with opener(tmp_path / name, "wt", encoding="utf-8") as file:
        file.write(text)
    assert list(read_rows(tmp_path / name)) == ROWS
    assert list(read_rows(str(tmp_path / name))) == ROWS


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.jsonl.gz", "rows.csv"])
def test_a_byte_order_mark_is_no_part_of_the_first_row(name, tmp_path):
    text = "id,text\n0,저장\n" if name == "rows.csv" else json.dumps(ROWS[:1] if name == "rows.json" else ROWS[0])
    opener = gzip.open if name.endswith(".gz") else open
    with opener(tmp_path / name, "wt", encoding="utf-8-sig") as file:
        file.write(text)
    (row,) = read_rows(tmp_path / name)
    assert (int(row["id"]), row["text"], list(row)) == (0, "저장", ["id", "text"])


def test_rows_of_csv_and_parquet(tmp_path):
    (tmp_path / "rows.csv").write_text('id,text\n0,"a, ""b""\nc"\n1,저장\n', encoding="utf-8")
    assert list(read_rows(tmp_path / "rows.csv")) == [{"id": "0", "text": 'a, "b"\nc'}, {"id": "1", "text": "저장"}]
    rows = [{"id": i, "messages": [{"role": "user", "content": f"{i}"}]} for i in range(3)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    assert list(read_rows(tmp_path / "rows.parquet")) == rows


def test_rows_before_a_broken_line_can_be_read(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": 0}\n{"id": ', encoding="utf-8")
    assert next(read_rows(tmp_path / "rows.jsonl")) == {"id": 0}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "rows.jsonl",
            b'{"id": 0}\n\n{"id": ',
            r"Row 2 of .*rows\.jsonl \(line 3\): not JSON \(Exp.* character 8",
        ),
        ("rows.jsonl", b'{"id": 0}\n[1]', r"Row 2 of .*rows\.jsonl must be a JSON object, got list"),
        ("rows.jsonl", b"[" * 100_000, r"Row 1 of .*rows\.jsonl: not JSON \("),
        ("rows.jsonl", b"9" * 5_000, r"Row 1 of .*rows\.jsonl: not JSON \(Exceeds the limit"),
        ("rows.jsonl", b'{"text": "\xff"}', r"rows\.jsonl is not readable as UTF-8 text"),
        ("rows.jsonl.gz", b'{"id": 0}', r"rows\.jsonl\.gz is not readable as gzipped UTF-8 text"),
        ("rows.jsonl.gz", CUT_SHORT, r"rows\.jsonl\.gz is not readable as gzipped"),
        ("rows.json", b'{"id": 0}\n{"id": 1}', r"rows\.json: not JSON .* one object a line ends in \.jsonl"),
        ("rows.json", b"[" * 100_000, r"rows\.json: not JSON \("),
        ("rows.json", b'{"id": 0}', r"rows\.json holds a dict, not a list of rows"),
        ("rows.json", b'[{"id": 0}, "text"]', r"Row 2 of .*rows\.json must be a JSON object, got str"),
        (
            "rows.csv",
            b"id,text\n1,a,b",
            r"Row 1 of .*rows\.csv has more values than .* columns \(id, text",
        ),
        ("rows.csv", b"id,text\n1,a\n2", r"Row 2 of .*rows\.csv has fewer values"),
        ("rows.csv", b'id,text\n1,"a', r"Row 1 of .*rows\.csv: not CSV"),
        ("rows.parquet", b"PAR1 no", r"rows\.parquet is not readable as Parquet"),
        ("rows.xlsx", b"", r"rows\.xlsx is not a \.json, \.jsonl, \.csv.* or \.parquet file"),
    ],
)
def test_broken_file_is_refused_with_the_place(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_rows(tmp_path / name))


def test_missing_file_is_refused():
    with pytest.raises(ValueError, match="no data file missing.jsonl"):
        read_rows("missing.jsonl")
