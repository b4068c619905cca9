"""A conversation, scripted."""

import io

import pytest
import torch
from rich.console import Console

from sae_posttrain.features.find.answers import Sampling
from sae_posttrain.hooks.record import record_blocks
from sae_posttrain.steering.chat import Chat


@pytest.fixture
def talk(model, tokenizer, features):
    """Runs a script of lines; what was printed, and the conversation."""

    def run(*lines, **options):
        file = io.StringIO()
        chat = Chat(
            model, tokenizer, features, Sampling(12, 0.0), Console(file=file, width=120, no_color=True), **options
        )
        script = iter(lines)

        def read_line():
            try:
                return next(script)
            except StopIteration:
                raise EOFError from None

        chat.run(read_line)
        return file.getvalue(), chat

    return run


def test_set_changes_the_push_and_plain_answers_the_same_turn_without(talk):
    plain, _ = talk("Hello")
    printed, chat = talk("/set loop 20", "Hello", "/plain")
    assert chat.strengths == {"loop": 20.0}
    assert "a" * 12 in printed
    answer = plain.split("plain\n")[1].splitlines()[0]
    assert printed.split("plain\n")[1].splitlines()[0] == answer
    assert chat._turns == [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "a" * 12}]


def test_the_conversation_grows_and_new_ends_it(talk, tokenizer):
    _, chat = talk("Hello", "And then?")
    turns = [turn["role"] for turn in chat._turns]
    assert turns == ["user", "assistant", "user", "assistant"]
    assert tokenizer.decode(chat._asked).startswith("<|user|>Hello<|end|><|assistant|>")
    _, chat = talk("Hello", "/new")
    assert chat._turns == []


def test_features_and_why_say_what_is_pushed_and_read(talk, model, features):
    printed, chat = talk("/set loop=0.5", "Hello", "/why")
    assert "loop" in printed and "0.5" in printed
    assert "Read without steering" in printed
    ids = torch.tensor([[*chat._asked, *chat._answer]])
    with torch.no_grad(), record_blocks(model, [1]) as values:
        model(ids)
    readings = features.pre_activations(values[1][0][0, -len(chat._answer) :])[:, 0]
    assert f"loop: mean {readings.mean():.2f}, highest {readings.max():.2f}" in printed
    assert "other: mean" not in printed  # it is not pushed


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set loop much", "The strength in 'loop=much' is not a finite number"),
        ("/set lop 1", "names 'lop', which is not in the feature set"),
        ("/set", "/set takes a name and a number, such as /set loop -0.8."),
        ("/why", "There is no answer yet"),
        ("/plain", "There is no answer yet"),
        ("/shout", "There is no command /shout. Known: /set, /features"),
        ("x" * 300, "do not fit the 256 positions of the model"),
    ],
)
def test_a_mistake_is_one_line_and_the_conversation_goes_on(talk, line, message):
    printed, chat = talk(line, "Hello")
    assert message in " ".join(printed.split())
    assert [turn["content"] for turn in chat._turns][:1] == ["Hello"]


def test_quit_ends_it_and_help_lists_the_commands(talk):
    printed, chat = talk("/help", "/quit", "Hello")
    assert "/why" in printed and chat._turns == []
