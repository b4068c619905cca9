"""What trackers have on the disk after a training with a watch, read back; each needs its package."""

import json
import sqlite3
import struct
from importlib import import_module

import pytest
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from sae_posttrain import FaultWatchCallback
from sae_posttrain.training.watch.trackers import markdown_table

from ...trained import ON_CPU

PROMPTS = [{"lang": "en", "prompt": "Open | the *file*"}, {"lang": "ko", "prompt": "파일"}]
ROWS = [{"text": f"{word} {i}"} for i in range(4) for word in ("open it", "열기", "打开")]
RATES = {"train/watch/endless", "train/watch/endless_low", "train/watch/switched", "train/watch/tokens"}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # trackers warn of their own insides


@pytest.fixture
def answers(make_model, tokenizer, tmp_path, monkeypatch):
    """Train for four steps with two watches and one evaluation after it; the answers of `watch.jsonl`, by watch."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))

    def train(name):
        settings = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no", "max_length": 32}
        args = SFTConfig(str(tmp_path / "run"), **{**ON_CPU, **settings, "report_to": [name], "logging_steps": 1})
        data = {"train_dataset": Dataset.from_list(ROWS), "eval_dataset": Dataset.from_list(ROWS[:2])}
        trainer = SFTTrainer(make_model(), args, **data, processing_class=tokenizer)
        trainer.add_callback(FaultWatchCallback(PROMPTS, trainer=trainer, max_new_tokens=70, num_shown=None))
        trainer.train()
        trainer.evaluate()
        lines = (tmp_path / "run" / "watch.jsonl").read_text(encoding="utf-8").splitlines()
        return [[answer["answer"] for answer in json.loads(line)["answers"]] for line in lines]

    return train


def test_tensorboard_has_rates_and_answers(answers, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugin_util import markdown_to_safe_html

    said = answers("tensorboard")
    rates, texts, tables = {}, {}, {}
    for file in sorted((tmp_path / "run" / "runs").glob("*/*")):
        events = EventAccumulator(str(file))
        events.Reload()
        for name in RATES:
            rates.setdefault(name, set()).update(event.step for event in events.Scalars(name))
        for event in events.Tensors("watch/answers/text_summary"):
            texts[event.step] = event.tensor_proto.string_val[0].decode()
            tables[event.step] = markdown_to_safe_html(texts[event.step])
    assert rates == {name: {2, 4} for name in RATES}
    assert sorted(tables) == [2, 4]
    for step, each in zip((2, 4), said):
        assert tables[step].count("<tr>") == 1 + len(PROMPTS)
        assert "<td>Open | the *file*</td>" in tables[step]
        for answer in each:
            assert markdown_table([{"answer": answer}]).splitlines()[-1].strip("|").strip() in texts[step]


def test_wandb_has_rates_and_answers(answers, tmp_path):
    pytest.importorskip("wandb")
    said = answers("wandb")
    import_module("wandb").finish()
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    names = set()
    for record in wandb_records(next(run.glob("run-*.wandb"))):
        names |= {item.key or ".".join(item.nested_key) for item in record.history.item}
    assert names >= RATES
    tables = [json.loads(file.read_text()) for file in run.glob("files/media/table/watch/answers*.json")]
    assert {row[0] for table in tables for row in table["data"]} == {2, 4}
    column = tables[0]["columns"].index("answer")
    written = {answer for table in tables for answer in (row[column] for row in table["data"])}
    assert written == {answer for each in said for answer in each}


def wandb_records(file):
    """Records of a run's file: LevelDB's log format (https://github.com/google/leveldb/blob/main/doc/log_format.md)."""
    record = import_module("wandb.proto.wandb_internal_pb2").Record
    content, at, whole = file.read_bytes(), 7, b""  # behind the header of Weights & Biases
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield record.FromString(whole)
            whole = b""


def test_trackio_has_rates_and_answers(answers, tmp_path):
    pytest.importorskip("trackio")
    said = answers("trackio")
    import_module("trackio").finish()
    (file,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as database:
        logged = [json.loads(row[0]) for row in database.execute("select metrics from metrics order by id")]
    assert {name for each in logged for name in each} >= RATES
    tables = [each["watch/answers"] for each in logged if "watch/answers" in each]
    assert all(table["_type"] == "trackio.table" for table in tables)
    written = [[row["answer"] for row in table["_value"]] for table in tables]
    assert written[:2] == said[:2] and [table["_value"][0]["step"] for table in tables] == [2, 4, 4]
