"""A trainer with the parts of SAELens' that hold its state; SAELens' own in `test_resume.py`."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim import Adam
from torch.optim.lr_scheduler import ConstantLR, LinearLR, SequentialLR

from sae_posttrain.sae_training.trainer_state import read_state, set_state, write_state


class Coefficient:
    current_step = 0

    def state_dict(self):
        return {"current_step": self.current_step}

    def load_state_dict(self, state):
        self.current_step = state["current_step"]


def new_trainer(width=4):
    torch.manual_seed(0)
    sae = torch.nn.Linear(width, 3)
    sae.register_buffer("threshold", torch.tensor(0.0, dtype=torch.double))
    optimizer = Adam(sae.parameters(), lr=0.1)
    warm_up, then = LinearLR(optimizer, 0.1, 1.0, total_iters=5), ConstantLR(optimizer, 1.0)
    return SimpleNamespace(
        sae=sae,
        optimizer=optimizer,
        lr_scheduler=SequentialLR(optimizer, [warm_up, then], milestones=[5]),
        coefficient_schedulers={"l1": Coefficient()},
        activation_scaler=SimpleNamespace(scaling_factor=None),
        act_freq_scores=torch.zeros(3),
        n_forward_passes_since_fired=torch.zeros(3),
        n_training_samples=0,
        n_training_steps=0,
        n_frac_active_samples=0,
        started_fine_tuning=False,
    )


def train(trainer, steps):
    for step in steps:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        trainer.sae(x).square().sum().backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        trainer.lr_scheduler.step()
        trainer.coefficient_schedulers["l1"].current_step += 1
        trainer.sae.threshold += 1 / 3
        trainer.act_freq_scores += step
        trainer.n_training_steps += 1


@pytest.fixture
def file(tmp_path):
    trainer = new_trainer()
    trainer.activation_scaler.scaling_factor = 1 / 3
    train(trainer, range(3))
    write_state(tmp_path / "state.safetensors", trainer, {"buffer": torch.ones(2)})
    return tmp_path / "state.safetensors"


def test_a_trainer_goes_on_from_its_file_bit_for_bit(file):
    tensors, numbers = read_state(file, torch.device("cpu"))
    assert tensors.pop("buffer").tolist() == [1, 1]
    again = new_trainer()
    set_state(again, tensors, numbers)
    train(again, range(3, 8))
    whole = new_trainer()
    train(whole, range(8))
    for name, tensor in whole.sae.state_dict().items():
        assert torch.equal(again.sae.state_dict()[name], tensor), name
    assert again.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"] == 0.1
    assert again.act_freq_scores.tolist() == whole.act_freq_scores.tolist()
    assert again.n_training_steps == 8
    assert again.coefficient_schedulers["l1"].current_step == 8
    assert again.activation_scaler.scaling_factor == 1 / 3


def test_the_state_of_another_trainer_is_refused(file):
    tensors, numbers = read_state(file, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="size mismatch"):
        set_state(new_trainer(width=5), tensors, numbers)
    with pytest.raises(ValueError, match="adam.0.exp_avg has the shape"):
        set_state(new_trainer(), tensors | {"adam.0.exp_avg": torch.zeros(1)}, numbers)
    without = {name: tensor for name, tensor in tensors.items() if not name.startswith("adam.1.")}
    with pytest.raises(ValueError, match="the state of 1 of 2 parameters"):
        set_state(new_trainer(), without, numbers)
    with pytest.raises(ValueError, match="act_freq_scores has the shape"):
        set_state(new_trainer(), tensors | {"act_freq_scores": torch.zeros(1)}, numbers)


def test_a_file_cut_short_or_without_numbers_is_an_error(file):
    tensors = load_file(file)
    for numbers in (None, {"numbers": "{"}, {"numbers": "[" * 100_000}):
        save_file(tensors, file, metadata=numbers)
        with pytest.raises(ValueError, match="Expecting|nested too deep"):
            read_state(file, torch.device("cpu"))
    save_file(tensors, file, metadata={"numbers": json.dumps({})})
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(SafetensorError):
        read_state(file, torch.device("cpu"))
