"""Every command has the same word for the same thing, and former names still work."""

import argparse

import pytest

from sae_posttrain.cli import main, make_parser


def options():
    """(command, option) of every option that the help shows."""
    commands = next(each for each in make_parser()._actions if isinstance(each, argparse._SubParsersAction))
    for name, parser in commands.choices.items():
        for action in parser._actions:
            if action.help != argparse.SUPPRESS:
                yield name, action


def test_every_option_has_a_help_text_and_hyphens():
    for command, action in options():
        assert action.help and not action.help.lower().startswith("of "), (command, action.dest)
        assert not any("_" in each for each in action.option_strings), (command, action.dest)


def test_shared_options_have_one_help_text():
    for name in ("texts", "text_column", "split", "overwrite", "chat_template_kwargs", "k", "format", "revision"):
        said = {action.help for command, action in options() if action.dest == name and command != "demo"}
        if name == "k":
            said = {text for text in said if "default" not in text}  # `train-sae` sets it
        assert len(said) == 1, (name, said)


def test_data_has_no_option_of_that_name():
    assert not [command for command, action in options() if "--data" in action.option_strings]


@pytest.mark.parametrize(
    ("arguments", "old", "new"),
    [
        (["evaluate", "--model", "no/model", "--data", "p.jsonl", "--out", "o"], "--data", "--prompts"),
        (["inspect", "none", "--model", "no/model", "--data", "t.jsonl"], "--data", "--texts"),
        (["inspect", "none", "--json", "o.json"], "--json", "--out"),
    ],
)
def test_a_former_name_works_and_says_the_new_one_once(arguments, old, new, capsys):
    assert main(arguments) == 2  # there is no such model or SAE
    assert capsys.readouterr().err.count(f"{old} is now called {new}.") == 1


def test_convert_takes_its_folder_in_the_former_place(tmp_path, capsys):
    assert main(["convert", "none", str(tmp_path / "new"), "--block", "0"]) == 2
    assert "The folder to write is now named with --out." in capsys.readouterr().err
    assert main(["convert", "none", "--block", "0"]) == 2
    assert "Name the folder to write: --out FOLDER." in capsys.readouterr().err
