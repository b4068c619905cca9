from types import SimpleNamespace

import pytest
import torch

from sae_posttrain.sae_training.progress import TrainingBar, describe_step

# x - mean: -1 and 1, in the first dimension. The residual is 0.5 on one token: 0.25 of 2.
OUTPUT = SimpleNamespace(
    sae_in=torch.tensor([[1.0, 3.0], [3.0, 3.0]]),
    sae_out=torch.tensor([[1.0, 3.0], [2.5, 3.0]]),
    feature_acts=torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 3.0]]),
    loss=torch.tensor(0.25),
)


def test_figures_of_a_step_stand_in_order_for_each_sae():
    assert describe_step([OUTPUT]) == "loss 0.25, FVU 0.125, L0 1.5"
    assert describe_step([OUTPUT, OUTPUT]) == "loss 0.25/0.25, FVU 0.125/0.125, L0 1.5/1.5"


def test_sparse_activations_are_counted_too():
    sparse = SimpleNamespace(**{**vars(OUTPUT), "feature_acts": OUTPUT.feature_acts.to_sparse()})
    assert describe_step([sparse]) == describe_step([OUTPUT])


def test_the_first_step_is_shown_and_a_later_run_begins_where_the_earlier_stopped(capsys):
    with TrainingBar(1000, 600, show=True) as bar:
        bar.add(2, [OUTPUT])
    shown = capsys.readouterr().err
    assert "60%" in shown
    assert "FVU 0.125" in shown
    assert "tok/s" in shown


@pytest.mark.parametrize("outputs", [[OUTPUT], []])
def test_other_processes_show_nothing(capsys, outputs):
    with TrainingBar(10, 0, show=False) as bar:
        bar.add(2, outputs)
    assert not capsys.readouterr().err
