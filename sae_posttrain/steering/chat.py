"""A conversation with a model that is steered, with commands that change the push and say what was read."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn
from transformers import TextStreamer

from ..features.find.answers import Sampling
from ..features.set.feature_set import FeatureSet
from ..hooks.steer import steer
from ..measure.answers.generate import generate_answers
from ..measure.answers.judge import judge_answer
from ..measure.answers.prompt_tokens import render_messages
from ..measure.answers.prompts import Prompt
from ..measure.faults.segments import prompt_opens_thinking
from ..measure.report.examples import show_whole
from .pushing import chosen_features
from .questions import guess_language
from .readings import read_tokens
from .side_by_side import is_faulty
from .strengths import describe_strengths, parse_strengths
from .terminal import answer_text, shaded, visible

HELP = {
    "/set NAME NUMBER": "push a feature so far, such as /set chinese -0.8; 0 stops",
    "/features": "the features, and how far each is pushed",
    "/plain": "answer the last question again without steering; the conversation keeps the steered answer",
    "/why": "shade the tokens of the last answer by what they read on each pushed feature",
    "/new": "begin a new conversation",
    "/help": "this list",
    "/quit": "leave, as end of input does",
}
"""The commands of a conversation, and what they do."""


class Chat:
    """
    A conversation.

    Args:
        model (`torch.nn.Module`), tokenizer (`PreTrainedTokenizerBase`):
            A causal language model and its tokenizer. Without a chat template, the turns are joined by empty lines.
        feature_set ([`FeatureSet`]):
            The features.
        sampling ([`Sampling`]):
            How answers are sampled. Turn n draws with `seed + n`, so that a conversation can be repeated.
        console (`rich.console.Console`):
            Where to print.
        strengths (`Mapping[str, float]`, *optional*):
            Strength by name at the beginning.
        unit, positions, allow_base_model:
            As in [`steer`].
        chat_template_kwargs (`Mapping[str, Any]`, *optional*):
            Further variables of the chat template.

    Raises:
        ValueError: If the features do not belong to the model, or a strength is not usable.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        feature_set: FeatureSet,
        sampling: Sampling,
        console: Console,
        *,
        strengths: Mapping[str, float] | None = None,
        unit: str = "norm",
        positions: str = "generated",
        allow_base_model: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        feature_set.check_model(model, allow_base_model=allow_base_model, tokenizer=tokenizer)
        self._model, self._tokenizer, self._features = model, tokenizer, feature_set
        self._sampling, self._console = sampling, console
        self._unit, self._positions = unit, positions
        self._template_kwargs = dict(chat_template_kwargs or {})
        self._turns: list[dict[str, str]] = []
        self._asked: list[int] = []  # the latest prompt, as the model reads it
        self._answer: list[int] = []
        self._seed = sampling.seed
        self.strengths: dict[str, float] = {}
        for name, value in (strengths or {}).items():
            self._set(name, value)

    def run(self, read_line: Callable[[], str]) -> None:
        """
        Answer lines until the input ends or `/quit`.

        Args:
            read_line (`Callable[[], str]`):
                Returns the next line, and raises `EOFError` at the end of the input.
        """
        while True:
            try:
                line = read_line().strip()
            except (EOFError, KeyboardInterrupt):
                return
            if line in ("/quit", "/exit"):
                return
            if not line:
                continue
            try:
                self.say(line)
            except ValueError as error:
                self._console.print(Text(str(error), style="red"))
            except KeyboardInterrupt:
                self._console.print(Text("[stopped]", style="dim"))

    def say(self, line: str) -> None:
        """
        Carry out a command, or answer a question.

        Raises:
            ValueError: If the command is unknown or lacks something, or the conversation does not fit the model.
        """
        if not line.startswith("/"):
            self._ask(line)
            return
        command, *words = line.split()
        if command == "/set":
            self._set_words(words)
        elif command == "/features":
            self._print_features()
        elif command == "/plain":
            self._require_answer()
            self._generate(self._asked, {})
        elif command == "/why":
            self._require_answer()
            self._explain()
        elif command == "/new":
            self._turns, self._asked, self._answer = [], [], []
            self._console.print(Text("A new conversation.", style="dim"))
        elif command == "/help":
            self._print_help()
        else:
            raise ValueError(f"There is no command {command}. Known: {', '.join(each.split()[0] for each in HELP)}.")

    # Answers

    def _ask(self, text: str) -> None:
        turns = [*self._turns, {"role": "user", "content": text}]
        asked = self._render(turns)
        self._seed = self._sampling.seed + len(self._turns) // 2
        answer, content = self._generate(asked, self.strengths)
        self._asked, self._answer = asked, answer  # only now: a refused question leaves the conversation as it was
        self._turns = [*turns, {"role": "assistant", "content": content}]

    def _render(self, turns: list[dict[str, str]]) -> list[int]:
        if getattr(self._tokenizer, "chat_template", None):
            where = "The conversation"
            return render_messages(self._tokenizer, turns, where, add_generation_prompt=True, **self._template_kwargs)
        return list(self._tokenizer("\n\n".join(turn["content"] for turn in turns))["input_ids"])

    def _generate(self, asked: list[int], strengths: Mapping[str, float]) -> tuple[list[int], str]:
        pushed = {name: value for name, value in strengths.items() if value}
        steering: Any = nullcontext()
        if pushed:
            chosen, strength = chosen_features(self._features, pushed, self._unit)
            steering = steer(self._model, chosen, strength, positions=self._positions)
        self._console.print(Text(describe_strengths(pushed) or "plain", style="dim"))
        streamer = _Streamer(self._tokenizer, self._console)
        with steering:
            answers, finished = generate_answers(
                self._model,
                self._tokenizer,
                [asked],
                max_new_tokens=self._sampling.max_new_tokens,
                temperature=self._sampling.temperature,
                top_p=self._sampling.top_p,
                seed=self._seed,
                streamer=streamer,
            )
        text = self._tokenizer.decode(answers[0], skip_special_tokens=True)
        self._print_found(asked, answers[0], text, finished[0])
        return answers[0], text

    def _print_found(self, asked: list[int], ids: list[int], text: str, finished: bool) -> None:
        """What is wrong with an answer, if anything is; the answer again with its marks."""
        question = self._tokenizer.decode(asked, skip_special_tokens=True)
        prompt = Prompt(0, guess_language(question), question, None, None)
        think_opened = prompt_opens_thinking(self._tokenizer, asked)
        judged = judge_answer(prompt, text, ids, finished, think_opened=think_opened)
        shown = show_whole("", judged, is_faulty(judged))
        self._console.print(Text(f"[{shown.facts}{'; marked:' if shown.faulty else ''}]", style="dim"))
        if shown.faulty:
            self._console.print(answer_text(shown))

    # Commands

    def _set(self, name: str, value: float) -> None:
        strengths = {**self.strengths, name: value}
        chosen_features(self._features, strengths, self._unit)  # an unknown name is an error here
        self.strengths = strengths

    def _set_words(self, words: list[str]) -> None:
        pairs = [f"{words[0]}={words[1]}"] if len(words) == 2 and "=" not in words[0] else words
        if not pairs or not all("=" in pair for pair in pairs):
            raise ValueError(f"/set takes a name and a number, such as /set {self._features.names[0]} -0.8.")
        for name, value in parse_strengths(pairs, self._features).items():
            self._set(name, value)
        self._print_features()

    def _print_features(self) -> None:
        table = Table("feature", "block", "pushed", box=None, padding=(0, 2))
        for name in dict.fromkeys(self._features.names):
            blocks = {block for block, own in zip(self._features.blocks, self._features.names) if own == name}
            value = self.strengths.get(name, 0.0)
            table.add_row(Text(visible(name)), ", ".join(map(str, sorted(blocks))), f"{value:g}" if value else "-")
        self._console.print(table)

    def _print_help(self) -> None:
        table = Table(show_header=False, box=None, padding=(0, 2))
        for command, what in HELP.items():
            table.add_row(Text(command, style="bold"), Text(what))
        self._console.print(table)

    def _require_answer(self) -> None:
        if not self._answer:
            raise ValueError("There is no answer yet. Ask something first.")

    def _explain(self) -> None:
        readings = read_tokens(self._model, self._features, [*self._asked, *self._answer], len(self._answer))
        pushed = {name for name, value in self.strengths.items() if value}
        tokens = [self._tokenizer.decode([token]) for token in self._answer]
        of_place = [
            name
            for place in self._features.places
            for name, other in zip(self._features.names, zip(self._features.blocks, self._features.sites))
            if other == place
        ]
        for number, (label, name) in enumerate(zip(readings.labels, of_place)):
            if pushed and name not in pushed:
                continue
            column = readings.values[:, number]
            highest = int(column.argmax())
            self._console.print(
                Text.assemble(
                    (visible(label), "bold"),
                    f": mean {float(column.mean()):.2f}, highest {float(column.max()):.2f} at "
                    f"{visible(tokens[highest])!r}, above 0 on {int((column > 0).sum())} of {len(column)} tokens",
                )
            )
            self._console.print(shaded(tokens, readings.shades(number)))
        self._console.print(Text("Read without steering, on the answer as it was written.", style="dim"))


class _Streamer(TextStreamer):
    """Prints an answer as it comes, with nothing that could control the terminal."""

    def __init__(self, tokenizer: Any, console: Console):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._console = console

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._console.print(Text(visible(text)), end="\n" if stream_end else "", soft_wrap=True)
