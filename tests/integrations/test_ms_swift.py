"""The file that ms-swift is given as `--external_plugins`."""

import re
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from . import ms_swift_stub

ROOT = Path(__file__).parents[2]
TEXTS = {"en": "press the key", "ko": "키를 눌러", "zh": "按下按键"}


@pytest.fixture(autouse=True)
def swift(monkeypatch):
    ms_swift_stub.install(monkeypatch)


@pytest.fixture
def write_plugin(make_features, tmp_path):
    """The shipped file, with features and settings of the test's own."""
    features = make_features().save(tmp_path / "zh.safetensors")

    def write(settings="penalty_weight=2.0"):
        shipped = (ROOT / "recipes" / "ms_swift" / "plugin.py").read_text(encoding="utf-8")
        call = f"hold_features(features={str(features)!r}, {settings})"
        changed, count = re.subn(r"^hold_features\(.*\)$", lambda _: call, shipped, flags=re.MULTILINE)
        assert count == 1
        file = tmp_path / "plugin.py"
        file.write_text(changed, encoding="utf-8")
        return str(file)

    return write


def rows(channel=False):
    made = []
    for i in range(4):
        for group, text in TEXTS.items():
            messages = [{"role": "user", "content": "Write."}, {"role": "assistant", "content": f"{text} {i}"}]
            made.append({"messages": messages} | ({"channel": group} if channel else {}))
    return Dataset.from_list(made)


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_sft_takes_two_steps_with_features_held_down(write_plugin, make_model, tokenizer, tmp_path):
    runs = {"channel": (True, None), "script": (False, None), "logits of whole rows": (True, False)}
    penalties = {}
    for name, (channel, kept) in runs.items():
        args = ms_swift_stub.SftArguments(str(tmp_path / "out"), write_plugin(), use_logits_to_keep=kept)
        trainer = ms_swift_stub.sft(args, make_model(), ms_swift_stub.Template(tokenizer), rows(channel))
        assert isinstance(trainer, ms_swift_stub.Seq2SeqTrainer)
        assert trainer.args.penalty_weight == 2.0
        penalties[name] = logged(trainer, "sae/penalty")
    assert len(penalties["channel"]) == 2
    assert all(value > 0 for value in penalties["channel"])
    assert penalties["script"] == penalties["channel"]
    assert penalties["logits of whole rows"] == pytest.approx(penalties["channel"], rel=1e-5)


def test_weight_zero_trains_as_ms_swift_does(write_plugin, make_model, tokenizer, tmp_path):
    args = ms_swift_stub.SftArguments(str(tmp_path / "out"), write_plugin("penalty_weight=0.0"))
    template = ms_swift_stub.Template(tokenizer)
    ours = ms_swift_stub.sft(args, make_model(), template, rows())
    data = ms_swift_stub.LazyLLMDataset(rows(), template.encode)
    theirs = ms_swift_stub.Seq2SeqTrainer(make_model(), args.training_args, template, data)
    theirs.train()
    for a, b in zip(ours.model.parameters(), theirs.model.parameters()):
        assert torch.equal(a, b)


def test_other_methods_are_refused(write_plugin, tmp_path):
    with pytest.raises(ValueError, match="sae-posttrain grpo"):
        ms_swift_stub.RLHFArguments(str(tmp_path / "out"), write_plugin())


def test_megatron_is_refused(write_plugin, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "swift.megatron", sys.modules["swift"])
    with pytest.raises(ValueError, match="Use `swift sft`"):
        ms_swift_stub.SftArguments(str(tmp_path / "out"), write_plugin())


def test_tokens_are_penalised_where_all_logits_are_there(write_plugin, make_model, tokenizer, tmp_path):
    plugin = write_plugin("penalty_weight=0.0, penalised_tokens='zh', token_penalty_weight=1.0")
    args = ms_swift_stub.SftArguments(str(tmp_path / "out"), plugin)
    with pytest.raises(ValueError, match="use_logits_to_keep false"):
        ms_swift_stub.sft(args, make_model(), ms_swift_stub.Template(tokenizer), rows())
    args = ms_swift_stub.SftArguments(str(tmp_path / "out"), plugin, use_logits_to_keep=False)
    trainer = ms_swift_stub.sft(args, make_model(), ms_swift_stub.Template(tokenizer), rows())
    assert len(logged(trainer, "tokens/mass")) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("penalty_wait=1.0", "no setting `penalty_wait`. Known: allow_base_model"),
        ("group_column='lang'", "no setting `group_column`"),
        ("penalty_weight=-1.0", "0 or more"),
    ],
)
def test_settings_that_are_none_are_refused(settings, message, write_plugin, tmp_path):
    with pytest.raises(ValueError, match=message):
        ms_swift_stub.SftArguments(str(tmp_path / "out"), write_plugin(settings))


def refused(write_plugin, make_model, tokenizer, tmp_path, data=None, padding_free=False, parallel=1, **own):
    args = ms_swift_stub.SftArguments(str(tmp_path / "out"), write_plugin(), **own)
    template = ms_swift_stub.Template(tokenizer, padding_free)
    template.sequence_parallel_size = parallel
    ms_swift_stub.sft(args, make_model(), template, data if data is not None else rows(channel=True))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"padding_free": True}, "--packing"),
        ({"parallel": 2}, "sequence_parallel_size 1"),
        ({"enable_channel_loss": True}, "enable_channel_loss false"),
        ({"data": rows(channel=True).map(lambda row: {"channel": row["channel"].replace("ko", "ja")})}, "'ja'"),
    ],
    ids=["padding_free", "parallel", "channel_loss", "group"],
)
def test_settings_that_undo_the_method_are_refused(own, message, write_plugin, make_model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=message):
        refused(write_plugin, make_model, tokenizer, tmp_path, **own)
