import argparse

import pytest

from sae_posttrain.cli.sample_size import add_sample_size


def run(*arguments):
    parser = argparse.ArgumentParser()
    add_sample_size(parser)
    parsed = parser.parse_args(["--before", "0.03", "--after", "0.015", *arguments])
    parsed.run(parsed)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "1,533 prompts in each arm show a fall from 3 % to 1.5 % with 80 % power (two-sided test at 5 %)."),
        (("--after", "0.045", "--power", "0.9"), "prompts in each arm show a rise from 3 % to 4.5 % with 90 % power"),
        (("--paired", "--overlap", "0.5"), "1,044 prompts answered by both models show a fall from 3 % to 1.5 %"),
        (
            ("--answers-per-prompt", "8", "--icc", "0.3"),
            "594 prompts in each arm, 8 answers to each (4,752 a model), show a fall from 3 % to 1.5 %",
        ),
    ],
)
def test_sample_size_is_said_in_one_sentence(arguments, sentence, capsys):
    run(*arguments)
    printed = capsys.readouterr().out
    assert sentence in printed
    assert printed.count("\n") == 1


def test_help_can_be_printed(capsys):
    with pytest.raises(SystemExit, match="0"):
        run("--help")
    assert "0.03 is 3 %" in capsys.readouterr().out


def test_option_without_effect_is_refused():
    with pytest.raises(ValueError, match="set `paired`"):
        run("--overlap", "0.5")
