"""What a user of FaultWatchCallback can rely on, with the tiny model and TRL's own trainers."""

import json
import logging
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerState
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from sae_posttrain import FaultWatchCallback
from sae_posttrain.training.watch.rates import add_flags
from sae_posttrain.training.watch.record import WATCH_FILE, read
from sae_posttrain.training.watch.table import marked, print_watch

from ...trained import ON_CPU, logged, weights

PROMPTS = [
    {"lang": "en", "prompt": "Open the file"},
    {"lang": "ko", "prompt": [{"role": "user", "content": "파일"}]},
    {"lang": "en", "prompt": "Save a page"},
]
ROWS = [{"text": f"{word} {i}"} for i in range(4) for word in ("open it", "열기", "打开")]
SHORT = {"max_new_tokens": 8, "batch_size": 2, "num_shown": None}
CHOOSE = {"metric_for_best_model": "watch/long", "load_best_model_at_end": True, "save_strategy": "steps"}


@pytest.fixture
def train(make_model, tokenizer, tmp_path):
    """Train the tiny model with SFT for four steps, evaluated after each second one."""

    def run(
        callback=None, *, resume=None, folder="run", model=None, peft_config=None, fit=True, eval_dataset=None, **kw
    ):
        settings = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "max_length": 32}
        args = SFTConfig(
            str(tmp_path / folder),
            **{**ON_CPU, **settings, "per_device_train_batch_size": 2, "learning_rate": 1e-2, **kw},
        )
        trainer = SFTTrainer(
            model or make_model(),
            args,
            train_dataset=Dataset.from_list(ROWS),
            eval_dataset=eval_dataset or Dataset.from_list(ROWS[:2]),
            processing_class=tokenizer,
            peft_config=peft_config,
        )
        if callback is not None:
            trainer.add_callback(callback)
        if fit:
            trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def watches(trainer):
    return read(Path(trainer.args.output_dir, WATCH_FILE))


def draws(answer):
    """A judge that is random, and disturbs the random states that training uses."""
    return random.random() + np.random.rand() > 1


def test_weights_are_bit_for_bit_those_without_the_callback(train, make_model):
    def with_dropout():
        model = make_model()
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        return model

    plain = train(model=with_dropout(), folder="plain")
    watched = train(FaultWatchCallback(PROMPTS, judges={"drawn": draws}, **SHORT), model=with_dropout())
    assert torch.equal(weights(plain), weights(watched))
    assert plain.state.log_history[0]["loss"] == watched.state.log_history[0]["loss"]
    assert len(watches(watched)) == 2
    assert watched.model.training == plain.model.training


def test_rates_with_intervals_are_logged_and_in_the_metrics_of_the_evaluation(train):
    callback = FaultWatchCallback(PROMPTS, judges={"says_a": lambda answer: answer["lang"] == "ko"}, **SHORT)
    trainer = train(callback)
    # 1 of 3: Wilson's interval from 6.1 % to 79.2 %
    assert logged(trainer, "watch/says_a") == [1 / 3, 1 / 3]
    assert logged(trainer, "watch/says_a_low") == pytest.approx([0.0615, 0.0615], abs=1e-4)
    assert logged(trainer, "watch/says_a_high") == pytest.approx([0.7923, 0.7923], abs=1e-4)
    assert logged(trainer, "watch/num_answers") == [3, 3]
    assert all(tokens > 0 for tokens in logged(trainer, "watch/tokens"))
    assert all(seconds > 0 for seconds in logged(trainer, "watch/seconds"))
    for name in ("switched", "endless", "near_loop"):
        assert len(logged(trainer, f"watch/{name}")) == 2
    assert trainer.evaluate()["eval_watch/says_a"] == 1 / 3


def test_an_untrained_step_gives_the_same_answers_again(train):
    trainer = train(FaultWatchCallback(PROMPTS, **SHORT), learning_rate=0.0)
    first, second = watches(trainer)
    assert [answer["answer"] for answer in first["answers"]] == [answer["answer"] for answer in second["answers"]]
    assert first["rates"] == second["rates"]
    assert [answer["prompt"] for answer in first["answers"]] == ["Open the file", "파일", "Save a page"]
    assert {"spans", "loop", "flags", "finished"} <= set(first["answers"][0])
    for line in Path(trainer.args.output_dir, WATCH_FILE).read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_the_best_checkpoint_is_chosen_by_a_rate(train):
    steps = iter([False] * 3 + [True] * 3)  # the second watch is worse
    callback = FaultWatchCallback(PROMPTS, judges={"long": lambda answer: next(steps)}, **SHORT)
    trainer = train(callback, **CHOOSE, greater_is_better=False)
    assert trainer.state.best_metric == 0.0
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")


def test_a_later_evaluation_watches_the_best_model_that_was_loaded(train):
    steps = iter([False] * 3 + [True] * 3 + [False] * 3)
    callback = FaultWatchCallback(PROMPTS, judges={"long": lambda answer: next(steps)}, **SHORT)
    trainer = train(callback, **CHOOSE, greater_is_better=False)
    assert trainer.evaluate()["eval_watch/long"] == 0.0
    first, _, third = watches(trainer)
    assert [answer["answer"] for answer in first["answers"]] == [answer["answer"] for answer in third["answers"]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric_for_best_model": "watch/switched"}, "Set `greater_is_better=False`"),
        ({"metric_for_best_model": "watch/endless", "greater_is_better": False}, "No answer of 8 tokens can show"),
        ({"metric_for_best_model": "watch/right_language", "greater_is_better": False}, "`greater_is_better=True`"),
        (
            {"metric_for_best_model": "watch/loops", "greater_is_better": False},
            "Watched: watch/switched, watch/endless",
        ),
        ({"eval_strategy": "no"}, "Set `eval_strategy`, or `every`"),
    ],
)
def test_settings_that_would_undo_the_watch_are_refused(train, settings, message):
    with pytest.raises(ValueError, match=message):
        train(FaultWatchCallback(PROMPTS, **SHORT), **settings)


def test_a_best_rate_that_is_not_watched_at_evaluations_is_refused(train):
    callback = FaultWatchCallback(PROMPTS, every=3, **SHORT)
    with pytest.raises(ValueError, match="Leave out `every`"):
        train(callback, metric_for_best_model="watch/switched", greater_is_better=False)


def test_a_best_rate_that_no_answer_can_show_is_refused(train):
    chinese = [{"lang": "zh", "prompt": "打开"}]
    with pytest.raises(ValueError, match="No answer can show `switched`"):
        train(FaultWatchCallback(chinese, **SHORT), metric_for_best_model="watch/switched", greater_is_better=False)


def test_every_so_many_steps_and_at_the_last_one(train):
    trainer = train(FaultWatchCallback(PROMPTS, every=3, **SHORT), eval_strategy="no")
    assert [watch["step"] for watch in watches(trainer)] == [3, 4]


def test_several_evaluation_sets_are_one_watch(train):
    sets = {"one": Dataset.from_list(ROWS[:2]), "two": Dataset.from_list(ROWS[2:4])}
    trainer = train(FaultWatchCallback(PROMPTS, **SHORT), eval_dataset=sets)
    assert [watch["step"] for watch in watches(trainer)] == [2, 4]


def test_a_resumed_run_goes_on_with_the_file(train):
    whole = watches(train(FaultWatchCallback(PROMPTS, **SHORT), folder="whole", save_strategy="steps"))
    trainer = train(FaultWatchCallback(PROMPTS, **SHORT), save_strategy="steps")
    path = trainer.args.output_dir + "/checkpoint-2"
    with open(trainer.args.output_dir + "/" + WATCH_FILE, "a") as file:
        file.write('{"step": 5, "rates"')  # the line that was being written when the run was killed
    resumed = train(FaultWatchCallback(PROMPTS, **SHORT), save_strategy="steps", resume=path)
    for before, after in zip(whole, watches(resumed), strict=True):
        assert before["step"] == after["step"] and before["answers"] == after["answers"]

    with pytest.raises(ValueError, match="written with other prompts"):
        train(FaultWatchCallback(PROMPTS[:2], **SHORT), save_strategy="steps", resume=path)


def test_training_stops_when_the_rate_gets_no_better(train):
    callback = FaultWatchCallback(PROMPTS, judges={"bad": lambda answer: True}, patience=2, stop_on="bad", **SHORT)
    trainer = train(callback, max_steps=20, eval_steps=1)
    assert trainer.state.global_step == 3  # the first watch is the best, the second and third no better


def test_a_resumed_run_remembers_how_long_it_has_waited(train):
    def callback():
        return FaultWatchCallback(PROMPTS, judges={"bad": lambda answer: True}, patience=3, stop_on="bad", **SHORT)

    train(callback(), max_steps=2, eval_steps=1, save_strategy="steps")
    trainer = train(callback(), max_steps=20, eval_steps=1, resume=True)
    assert trainer.state.global_step == 4


def test_figures_go_to_the_trackers_if_the_trainer_is_known(train):
    trainer = train(fit=False)
    seen = []

    class Tracker(type(trainer.callback_handler.callbacks[0])):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append((state.global_step, logs))

    trainer.add_callback(Tracker())
    trainer.add_callback(FaultWatchCallback(PROMPTS, every=2, trainer=trainer, **SHORT))
    trainer.train()
    assert [step for step, logs in seen if "watch/endless" in logs] == [2, 4]
    assert [step for step, logs in seen if "loss" in logs] == [1, 2, 3, 4]  # the step's own figures are logged too


def test_a_tracker_that_gets_nothing_is_said(train, caplog):
    trainer = train(fit=False)
    trainer.args.report_to = ["tensorboard"]
    with caplog.at_level(logging.WARNING):
        trainer.add_callback(FaultWatchCallback(PROMPTS, **SHORT))
        trainer.train()
    assert "not to tensorboard" in caplog.text


@pytest.mark.parametrize("num_shown", [0, 1])
def test_the_terminal_shows_rates_and_faulty_answers_first(capsys, num_shown):
    pytest.importorskip("rich")
    fine = {"prompt": "Open", "answer": "the file", "spans": [], "flags": {"switched": False, "right_language": True}}
    span = {"start": 4, "text": "文件", "excused": None}
    bad = {"prompt": "Save", "answer": "the 文件", "spans": [span], "loop_text": [0, 3]}
    bad["flags"] = {"switched": True, "right_language": False}
    rates = {"switched": {"rate": 0.5, "low": 0.1, "high": 0.9}}
    print_watch({"step": 2, "rates": rates, "answers": [fine, bad]}, num_shown)
    shown = capsys.readouterr().out
    assert "Watch at step 2" in shown and "switched 50.0 % [10.0, 90.0]" in shown
    assert ("the 文件" in shown) == ("Save" in shown) == ("not right" in shown) == (num_shown == 1)
    assert "Open" not in shown
    marks = {(mark.start, mark.end) for mark in marked(bad).spans}
    assert marks == {(4, 6), (0, 3)}


def test_an_adapter_is_watched_with_gradient_checkpointing(train):
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    settings = {"peft_config": lora, "gradient_checkpointing": True}
    plain = train(folder="plain", **settings)
    torch.manual_seed(0)
    watched = train(FaultWatchCallback(PROMPTS, **SHORT), **settings)
    assert len(watches(watched)) == 2
    assert watched.model.is_gradient_checkpointing == plain.model.is_gradient_checkpointing


def test_grpo_is_watched_and_trains_as_without(make_model, tokenizer, tmp_path):
    def run(folder, callbacks):
        args = GRPOConfig(
            str(tmp_path / folder), **ON_CPU, max_steps=3, num_generations=2, per_device_train_batch_size=2,
            max_completion_length=6, learning_rate=1e-2,
        )  # fmt: skip
        rewards = lambda completions, **kwargs: [float(len(text)) for text in completions]  # noqa: E731
        data = Dataset.from_list([{"prompt": row["text"]} for row in ROWS])
        trainer = GRPOTrainer(
            make_model(), rewards, args, train_dataset=data, processing_class=tokenizer, callbacks=callbacks
        )
        trainer.train()
        return trainer

    plain = run("plain", [])
    watched = run("run", [FaultWatchCallback(PROMPTS, every=2, **SHORT)])
    assert torch.equal(weights(plain), weights(watched))
    assert logged(plain, "reward") == logged(watched, "reward")
    assert [watch["step"] for watch in watches(watched)] == [2, 3]


def test_dpo_is_watched(make_model, tokenizer, tmp_path):
    args = DPOConfig(str(tmp_path), **ON_CPU, max_steps=1, per_device_train_batch_size=2)
    rows = [{"prompt": "a", "chosen": "yes", "rejected": "no"}] * 2
    callback = FaultWatchCallback(PROMPTS, every=1, **SHORT)
    DPOTrainer(
        make_model(),
        ref_model=make_model(),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[callback],
    ).train()
    assert callback.latest["step"] == 1 and len(callback.latest["answers"]) == 3


def test_processes_divide_the_prompts_and_find_what_one_finds(make_model, tokenizer):
    callback = FaultWatchCallback(PROMPTS, **SHORT)
    prompts = callback._prepare(tokenizer)
    alone = prompts.answer(make_model(), callback._judges, 0, 1)
    parts = [prompts.answer(make_model(), callback._judges, rank, 2) for rank in (0, 1)]
    assert all(parts)
    key = lambda answer: (answer["row"], answer["sample"])  # noqa: E731
    assert sorted(parts[0] + parts[1], key=key) == sorted(alone, key=key)


def test_a_sharded_model_is_refused(make_model, tokenizer, tmp_path):
    model = make_model()
    model.lm_head.weight.ds_id = 0  # as DeepSpeed ZeRO-3 marks it
    args = SFTConfig(str(tmp_path), **ON_CPU, eval_strategy="steps", eval_steps=1)
    with pytest.raises(ValueError, match="sharded over processes"):
        FaultWatchCallback(PROMPTS).on_train_begin(
            args, TrainerState(), SimpleNamespace(), model=model, processing_class=tokenizer
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"faults": ["loops"]}, "Unknown fault 'loops'"),
        ({"faults": "endless"}, "`faults` is a list"),
        ({"faults": []}, "`faults` is empty"),
        ({"judges": {"endless": len}}, "Choose another"),
        ({"judges": {"a b": len}}, "Choose another"),
        ({"judges": {"mine": 3}}, "must be a function"),
        ({"every": 0}, "`every` must be 1 or more"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be 1 or more"),
        ({"temperature": -1}, "`temperature` must be 0 or more"),
        ({"num_shown": -1}, "`num_shown` must be 0 or more"),
        ({"patience": 2}, "`patience` needs `stop_on`, one of switched"),
        ({"stop_on": "endless"}, "need `patience`"),
        ({"patience": 2, "stop_on": "endless", "max_loss_increase": 0.1, "every": 2}, "Leave out `every`"),
        ({"prompts": []}, "No prompts in the watched prompts"),
        ({"prompts": [{"prompt": "a"}]}, "does not say the language"),
    ],
)
def test_wrong_settings_are_refused_before_training(given, message):
    with pytest.raises(ValueError, match=message):
        FaultWatchCallback(**{"prompts": PROMPTS, **given})


def test_a_prompt_longer_than_the_window_is_refused_before_training(train):
    with pytest.raises(ValueError, match="do not fit the 256 positions"):
        train(FaultWatchCallback([{"lang": "en", "prompt": "a" * 250}], **SHORT))


def test_a_judge_that_gives_no_flag_is_named():
    with pytest.raises(ValueError, match="The judge 'word' gave str"):
        add_flags({}, {"word": lambda answer: "yes"})
