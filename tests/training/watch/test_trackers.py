import sys
from types import SimpleNamespace

import pytest
from transformers.integrations import TensorBoardCallback

from sae_posttrain.training.watch.trackers import markdown_table, send_answers

SPANS = [{"text": "文件", "excused": None}, {"text": "打开", "excused": "quote"}]
ANSWER = {"lang": "en", "prompt": "Open", "answer": "the 文件", "flags": {"switched": True}, "spans": SPANS}


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_answers_are_sent_as_a_table(monkeypatch, name):
    sent = []
    table = lambda dataframe: dataframe.to_dict("records")  # noqa: E731
    tracker = SimpleNamespace(run=object(), log=sent.append, Table=table)
    monkeypatch.setitem(sys.modules, name, tracker)
    send_answers(["tensorboard", name], {"step": 3, "answers": [ANSWER]})
    row = {"step": 3, "lang": "en", "prompt": "Open", "answer": "the 文件", "switched": True, "unexpected": "文件"}
    assert sent == [{"watch/answers": [row]}]


def test_a_tracker_that_is_not_reported_to_gets_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=None, log=pytest.fail))
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(log=pytest.fail))
    send_answers(["wandb"], {"step": 3, "answers": [ANSWER]})  # its run is closed
    send_answers([], {"step": 3, "answers": [ANSWER]})


def test_tensorboard_gets_a_text_that_it_shows_as_a_table():
    callback = TensorBoardCallback.__new__(TensorBoardCallback)  # to make one, tensorboard must be installed
    texts = []
    callback.tb_writer = SimpleNamespace(add_text=lambda *given: texts.append(given))
    trainer = SimpleNamespace(callback_handler=SimpleNamespace(callbacks=[object(), callback]))
    send_answers(["tensorboard"], {"step": 3, "answers": [ANSWER]}, trainer)
    ((name, text, step),) = texts
    assert (name, step) == ("watch/answers", 3)
    assert text.splitlines()[0] == "| step | lang | prompt | answer | switched | unexpected |"
    assert text.splitlines()[2] == "| 3 | en | Open | the 文件 | True | 文件 |"
    send_answers(["wandb_"], {"step": 3, "answers": [ANSWER]}, trainer)
    callback.tb_writer = None  # its run is closed
    send_answers(["tensorboard"], {"step": 4, "answers": [ANSWER]}, trainer)
    assert len(texts) == 1


def test_a_table_in_markdown_keeps_what_a_model_writes_as_text():
    table = markdown_table([{"answer": "a | *b*\n<b>&", "near_loop": None}])
    assert table.splitlines() == [
        r"| answer | near\_loop |",
        "| --- | --- |",
        r"| a \| \*b\*<br>&lt;b&gt;&amp; | None |",
    ]
