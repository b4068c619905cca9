"""The five figures that stand first on the progress bar."""

from types import SimpleNamespace

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState

from sae_posttrain.training.progress import FirstFigures, progress_text, show_first_figures

STATE = TrainerState(max_steps=4)


def test_figures_stand_in_their_order_and_only_those_that_the_run_logs():
    assert progress_text({"weight": 0.5, "loss": 1.8349, "excess": 0.1}) == "excess 0.1, loss 1.83, weight 0.5"
    assert progress_text({}) == ""


def test_bar_keeps_the_last_value_of_each_figure(capsys):
    bar = FirstFigures(0.5)
    bar.on_train_begin(None, STATE, TrainerControl())
    bar.on_log(None, STATE, TrainerControl(), logs={"grad_norm": 3.0, "loss": 2.0, "sae/excess_rate": 0.25})
    bar.on_log(None, STATE, TrainerControl(), logs={"watch/endless": 0.125, "watch/tokens": 9.0})
    bar.on_log(None, STATE, TrainerControl(), logs={"loss": 1.5, "sae/excess_rate": 0.2, "sae/penalty_weight": 0.75})
    assert bar.training_bar.postfix == "excess 0.2, endless 0.125, loss 1.5, weight 0.75"
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert lines[0].startswith("{'sae/excess_rate': '0.25', 'loss': '2', 'grad_norm': '3'")
    bar.on_train_end(None, STATE, TrainerControl())


def test_only_the_bar_of_transformers_itself_is_replaced():
    class Own(ProgressCallback):
        pass

    given = [ProgressCallback(max_str_len=7), Own(), TrainerCallback()]
    trainer = SimpleNamespace(callback_handler=SimpleNamespace(callbacks=list(given)))
    show_first_figures(trainer)
    first, *others = trainer.callback_handler.callbacks
    assert type(first) is FirstFigures and first.max_str_len == 7
    assert others == given[1:]
