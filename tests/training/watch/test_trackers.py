import sys
from types import SimpleNamespace

import pytest

from sae_posttrain.training.watch.trackers import send_answers

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
