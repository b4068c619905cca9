"""Where Unsloth has replaced TRL's trainers, ours refuse to train."""

import sys
from types import ModuleType

import pytest
from trl import SFTTrainer

from sae_posttrain import SASFTTrainer, SteeredGRPOTrainer
from sae_posttrain.unsloth import refuse_unsloth


@pytest.mark.parametrize("trainer", [SASFTTrainer, SteeredGRPOTrainer])
def test_unsloth_in_the_process_is_refused_before_any_work(trainer, monkeypatch):
    monkeypatch.setitem(sys.modules, "unsloth", ModuleType("unsloth"))
    with pytest.raises(RuntimeError, match="does not import unsloth"):
        trainer(model="there is none")


def test_a_class_of_its_own_behind_a_trainer_is_refused():
    theirs = type("UnslothSFTTrainer", (SFTTrainer,), {"__module__": "theirs"})
    with pytest.raises(RuntimeError, match="Mine cannot be used"):
        refuse_unsloth(type("Mine", (theirs,), {"__module__": "mine"}))
    refuse_unsloth(SASFTTrainer)
