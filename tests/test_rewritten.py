"""Where Unsloth has replaced TRL's trainers, ours say so at once."""

import sys
from types import ModuleType

import pytest
from trl import SFTTrainer

from sae_posttrain import SASFTTrainer, SteeredGRPOTrainer
from sae_posttrain.rewritten import refuse_rewritten


@pytest.mark.parametrize("trainer", [SASFTTrainer, SteeredGRPOTrainer])
def test_unsloth_in_the_process_is_refused_before_any_work(trainer, monkeypatch):
    monkeypatch.setitem(sys.modules, "unsloth", ModuleType("unsloth"))
    with pytest.raises(RuntimeError, match="does not import unsloth"):
        trainer(model="there is none")


def test_a_class_of_its_own_behind_a_trainer_is_refused():
    rewritten = type("UnslothSFTTrainer", (SFTTrainer,), {})
    with pytest.raises(RuntimeError, match="Mine cannot be used"):
        refuse_rewritten(type("Mine", (rewritten,), {}))
    refuse_rewritten(SASFTTrainer)
