"""The command `chat`: a conversation with a steered model."""

import argparse
import sys
from collections.abc import Callable

from ..model_source import require_model
from .generate import add_sampling, add_steering, add_strength
from .options import add_model, add_seed, add_template_kwargs


def add_chat(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Talk to a model while its features are pushed. Commands: /set NAME NUMBER, /features, /plain, /why, /new, "
        "/help, /quit. Lines are read from the terminal (pip install 'sae_posttrain[chat]'), or from a pipe."
    )
    add_model(parser)
    parser.add_argument("--features", required=True, help="feature set: file, folder or Hub repository")
    add_strength(parser, required=False)
    add_steering(parser)
    add_sampling(parser)
    add_template_kwargs(parser)
    add_seed(parser, "the sampling")
    parser.set_defaults(run=_chat)


def _chat(arguments: argparse.Namespace) -> None:
    read_line = _reader()
    require_model(arguments.model)
    from rich.console import Console

    from ..features.find.answers import Sampling
    from ..features.read.loading import load_model_and_tokenizer
    from ..features.set.feature_set import FeatureSet
    from ..steering.chat import Chat
    from ..steering.strengths import parse_strengths

    feature_set = FeatureSet.from_pretrained(arguments.features)
    strengths = parse_strengths(arguments.strength, feature_set) if arguments.strength else None
    sampling = Sampling(arguments.max_new_tokens, arguments.temperature, arguments.top_p, arguments.seed)
    model, tokenizer = load_model_and_tokenizer(arguments.model, None)
    chat = Chat(
        model,
        tokenizer,
        feature_set,
        sampling,
        Console(),
        strengths=strengths,
        unit=arguments.unit,
        positions=arguments.positions,
        allow_base_model=arguments.allow_base_model,
        chat_template_kwargs=arguments.chat_template_kwargs,
    )
    chat.say("/features")
    chat.run(read_line)


def _reader() -> Callable[[], str]:
    """Where lines come from: a prompt in a terminal, or standard input as it is."""
    if not sys.stdin.isatty():
        return _piped
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
    except ImportError as error:
        raise ImportError("A conversation needs prompt_toolkit: pip install 'sae_posttrain[chat]'.") from error
    commands = ["/set", "/features", "/plain", "/why", "/new", "/help", "/quit"]
    session: PromptSession[str] = PromptSession(completer=WordCompleter(commands, sentence=True))
    return lambda: session.prompt("> ")


def _piped() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    print(f"> {line.rstrip()}", flush=True)
    return line
