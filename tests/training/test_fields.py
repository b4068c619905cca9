"""Fields that are read from source are those of the dataclasses."""

import dataclasses

import pytest

from sae_posttrain.cli.train import _FROM_TRL, short_help
from sae_posttrain.rl.script import ARGUMENTS as GRPO
from sae_posttrain.sft.script import ARGUMENTS as SFT
from sae_posttrain.training.fields import SETTINGS, fields_of


@pytest.mark.parametrize(("command", "arguments"), [("sft", SFT), ("grpo", GRPO)])
def test_fields_are_those_of_the_dataclasses(command, arguments):
    assert tuple(kind.__name__ for kind in arguments) == SETTINGS[command]
    real = {field.name: field for kind in arguments for field in dataclasses.fields(kind) if field.init}
    read = fields_of(command)
    assert set(read) == set(real)
    for name, field in read.items():
        if field.is_ours:
            assert field.help == real[name].metadata["help"].replace("%%", "%"), name
            if real[name].default is not dataclasses.MISSING:
                assert field.default == real[name].default, name


@pytest.mark.parametrize("command", ["sft", "grpo"])
def test_help_shows_our_own_fields_and_the_commonest_of_trl(command):
    text = short_help(command)
    fields = fields_of(command)
    assert all(f"--{name}" in text for name, field in fields.items() if field.is_ours or name in _FROM_TRL)
    assert "--adam_beta1" not in text
    assert len(text.splitlines()) < 120
