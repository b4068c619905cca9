"""What a generator is asked: one conversation for each attempt, made of a target's own passages and words."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from .generator import Messages
from .row_forms import RowForm
from .targets import Snippet, Target

_NUM_WORDS = 5


@dataclass(frozen=True)
class Templates:
    """
    The requests. Each may hold `{what}`, `{label}`, `{snippets}`, `{words}`, `{word}` (the first of them) and, to
    rewrite, `{seed}`; a passage `{what}`, `{label}`, `{text}` and `{word}`, on which the feature fires there.

    Attributes:
        new (`str`):
            Asks for a new text.
        rewrite (`str`):
            Asks to rewrite a seed.
        new_question, rewrite_question (`str`):
            The same for rows that ask something: the reply is a question, which the generator answers then.
        passage (`str`):
            How a passage stands in `{snippets}`, which has each on a line.

    Raises:
        ValueError: If a template names something else.
    """

    new: str = (
        "Here are passages of other texts:\n{snippets}\n\nWrite one new {label} {what} of a few sentences, in which "
        "the same thing plays a part, in the language of the passages. Use some of these words: {words}. Do not copy "
        "the passages. Reply with the {what} only."
    )
    rewrite: str = (
        "Here is a {label} {what}:\n{seed}\n\nRewrite it in other words, with another story, so that something of "
        "this kind plays a part in it: {words}. Keep its language, and keep it a {label} {what}. Reply with the "
        "{what} only."
    )
    new_question: str = (
        "Here are passages:\n{snippets}\n\nWrite one new {label} {what} whose answer would hold something of this "
        "kind, in the language of the passages. Some words: {words}. Reply with the {what} only."
    )
    rewrite_question: str = (
        "Here is a {label} {what}:\n{seed}\n\nRewrite it so that its answer would hold something of this kind: "
        "{words}. Keep its language, and keep it a {label} {what}. Reply with the {what} only."
    )

    passage: str = "- {text}"

    def __post_init__(self) -> None:
        for each in fields(self):
            known: tuple[str, ...] = ("what", "label", "snippets", "words", "word", "seed")
            if each.name == "passage":
                known = ("what", "label", "text", "word")
            try:
                getattr(self, each.name).format(**dict.fromkeys(known, ""))
            except (KeyError, IndexError, ValueError, AttributeError) as error:
                raise ValueError(
                    f"The template `{each.name}` may hold {', '.join(f'{{{name}}}' for name in known)}, "
                    f"and braces written twice: {error}."
                ) from error

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "Templates":
        """
        Some templates by name; the others stay as they are.

        Raises:
            ValueError: If a name is unknown.
        """
        names = [each.name for each in fields(cls)]
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise ValueError(f"There is no template {unknown[0]!r}. Known: {', '.join(names)}.")
        return cls(**given)


COMPLETIONS = Templates(
    new='{snippets}\nA {label} {what} with the word "{word}":',
    rewrite='A {label} {what}: {seed}\nThe same {label} {what} with the word "{word}":',
    passage='A {label} {what} with the word "{word}": {text}',
)
"""Requests for a base model, which goes on with the list."""


@dataclass(frozen=True)
class Plan:
    """
    An attempt before it is made: what is asked, and what it was made of.

    Attributes:
        target (`int`), attempt (`int`):
            Number of the target, and of the attempt at it, from 0.
        kind (`str`):
            `"new"` or `"rewrite"`.
        label (`str`):
            The label that is asked for.
        snippets (`tuple[Snippet, ...]`):
            Passages that are shown.
        seed_row (`int`, *optional*):
            The seed that is rewritten, from 1.
        messages (`Messages`):
            The conversation.
        shown (`tuple[str, ...]`):
            Texts that the conversation holds, which the answer should not copy.
    """

    target: int
    attempt: int
    kind: str
    label: str
    snippets: tuple[Snippet, ...]
    seed_row: int | None
    messages: Messages
    shown: tuple[str, ...]


def plan_attempt(
    number: int,
    target: Target,
    attempt: int,
    *,
    seeds: Sequence[Mapping[str, Any]],
    form: RowForm,
    templates: Templates,
    what: str,
    num_passages: int,
    rewrite_share: float,
    seed: int,
) -> Plan:
    """
    The attempt of this number at a target; the same each time for the same seed.

    A new row gets the label of the passages that it is made of (those of one label are shown together), or that of a
    random seed where they have none. A rewritten row keeps the label of its seed.
    """
    draw = random.Random(f"{seed} {target.feature} {attempt}")
    rewrites = draw.random() < rewrite_share
    source = draw.randrange(len(seeds))
    words = [*target.words]
    lead = target.snippets[attempt % len(target.snippets)] if target.snippets else None
    if rewrites or lead is None:
        label = form.label(seeds[source])
    else:
        label = lead.label or form.label(seeds[source])
    shown: tuple[Snippet, ...] = ()
    if lead is not None and not rewrites:
        others = [each for each in target.snippets if each is not lead and each.label == lead.label]
        shown = (lead, *draw.sample(others, min(num_passages - 1, len(others))))
    first = [lead.word.casefold()] if lead is not None and lead.word else []
    named = list(dict.fromkeys([*first, *words]))[:_NUM_WORDS]
    seed_text = (form.question if form.has_question else form.answer)(seeds[source])
    kind = "rewrite" if rewrites else "new"
    template = getattr(templates, kind + ("_question" if form.has_question else ""))
    request = template.format(
        what=what,
        label=label,
        snippets="\n".join(
            templates.passage.format(what=what, label=label, text=each.text, word=each.word) for each in shown
        )
        or "(none)",
        words=", ".join(named) or "what the passages have in common",
        word=named[0] if named else "",
        seed=seed_text,
    )
    request = request.replace("  ", " ").replace(" \n", "\n") if not label else request
    return Plan(
        target=number,
        attempt=attempt,
        kind=kind,
        label=label,
        snippets=shown,
        seed_row=source + 1 if rewrites else None,
        messages=[{"role": "user", "content": request}],
        shown=tuple([each.text for each in shown] + ([seed_text] if rewrites else [])),
    )
