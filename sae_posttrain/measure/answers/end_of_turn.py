"""
Tokens that end an answer: those of the model and its tokenizer, and the token that closes the assistant's turn in the
chat template. For a base model, the latter is often a different token.

torch and transformers load on first use.
"""

from collections.abc import Iterable, Sequence
from typing import Any

_QUESTION, _ANSWER = "zebraquestion", "zebraanswer"  # words that no template holds
_CHECKED_ROWS = 64


def end_of_turn_id(tokenizer: Any) -> int | None:
    """
    The token that closes the assistant's turn in the chat template.

    Two conversations are rendered, and the token after the answer's text is taken. If the template leaves the last
    turn open, the token after an answer in the middle of a conversation is taken, which opens the next turn. Only
    added or special tokens count: a template that ends turns with ordinary words has no such token. Returns the id of
    the token, or `None` if there is no template, it cannot be rendered, or ordinary text follows the answer.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    for conversation, before in ((turns, None), ([*turns, *turns], _QUESTION)):
        followed = _text_after_answer(tokenizer, conversation, before)
        end = None if followed is None else _first_marker(tokenizer, followed)
        if end is not None:
            return end
    return None


def _text_after_answer(tokenizer: Any, conversation: list[dict[str, str]], before: str | None) -> str | None:
    import jinja2

    try:
        rendered = tokenizer.apply_chat_template(conversation, tokenize=False)
    except (jinja2.TemplateError, TypeError, KeyError, ValueError):  # a template may raise any of these
        return None
    if not isinstance(rendered, str):
        return None
    _, found, rest = rendered.partition(_ANSWER)
    if not found:
        return None
    return rest if before is None else rest.partition(before)[0]


def _first_marker(tokenizer: Any, text: str) -> int | None:
    """The first token of a text after blanks, if it is a special or added token."""
    markers = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    markers -= {tokenizer.unk_token_id, tokenizer.bos_token_id} - {tokenizer.eos_token_id}
    for token in tokenizer(text.lstrip(), add_special_tokens=False)["input_ids"]:
        if token in markers:
            return int(token)
        if tokenizer.decode([token]).strip():
            return None
    return None


def known_end_ids(generation_config: Any, tokenizer: Any) -> set[int]:
    """The end tokens named by a model and its tokenizer, at which `generate` and TRL stop."""
    ends = getattr(generation_config, "eos_token_id", None)
    ends = list(ends) if isinstance(ends, (list, tuple)) else [ends]
    return {int(end) for end in [*ends, tokenizer.eos_token_id] if end is not None}


def answer_end_ids(generation_config: Any, tokenizer: Any) -> list[int]:
    """Every token that ends an answer: [`known_end_ids`], and the chat template's [`end_of_turn_id`]."""
    closing = end_of_turn_id(tokenizer)
    return sorted(known_end_ids(generation_config, tokenizer) | (set() if closing is None else {closing}))


def describe_tokens(tokenizer: Any, ids: Iterable[int]) -> str:
    """Tokens as text with their ids, for messages."""
    return ", ".join(f"{tokenizer.convert_ids_to_tokens(each)!r} ({each})" for each in sorted(ids)) or "none"


def why_never_ending(
    rows: Iterable[Any], tokenizer: Any, generation_config: Any, *, cloned_template: bool = False
) -> str | None:
    """
    Why a model would not learn to end its answers from these rows, and what to set; `None` if some row has a token at
    which generation stops, or no row has a token to learn.

    The first 64 tokenized rows are checked, with `labels` or, if all tokens count, `input_ids`. Tokenizer and
    generation config are those that will be saved with the model. With `cloned_template` TRL copies the template from
    another tokenizer, whose end token then overrides `eos_token`.
    """
    known = known_end_ids(generation_config, tokenizer)
    last: list[Sequence[int]] = []
    for number, row in enumerate(rows):
        if number == _CHECKED_ROWS:
            break
        labels = row.get("labels") or row.get("input_ids") or ()
        learned = [label for label in labels if label != -100]
        if known & set(learned):
            return None
        if learned:
            last.append(learned)
    if not last:
        return None
    stops = f"Generation stops at {describe_tokens(tokenizer, known)}"
    closing = end_of_turn_id(tokenizer)
    if closing is None or not any(closing in learned for learned in last):
        advice = "End each answer with one of these tokens."
        if closing is not None:
            advice = (
                f"The chat template ends a turn with {describe_tokens(tokenizer, [closing])}, which no label holds: "
                "put it inside the template's `{% generation %}`, or raise `max_length` if it is cut off there."
            )
        return (
            f"{stops}, and none of the first {len(last)} training rows has such a token to learn: the model would "
            f"never learn to end an answer. {advice}"
        )
    token = tokenizer.convert_ids_to_tokens(closing)
    advice = f"Set `eos_token: {token!r}` (`SFTConfig`), which makes generation and the saved tokenizer stop at it."
    if cloned_template:
        advice = (
            "TRL takes the end token over from the tokenizer that `chat_template_path` names, whatever `eos_token` "
            "says: save that template as a .jinja file, name the file as `chat_template_path`, and set "
            f"`eos_token: {token!r}`."
        )
    return (
        f"{stops}, and the training rows end their answers with {describe_tokens(tokenizer, [closing])}, as the chat "
        f"template does: whatever samples from the trained model would not stop where its answers end. {advice}"
    )


def why_rollouts_run_on(tokenizer: Any, known: Iterable[int]) -> str | None:
    """Why rollouts of messages would continue after their end, and what to set; `None` if they stop there."""
    closing = end_of_turn_id(tokenizer)
    if closing is None or closing in set(known):
        return None
    token = tokenizer.convert_ids_to_tokens(closing)
    return (
        f"The chat template ends a turn with {describe_tokens(tokenizer, [closing])}, and rollouts stop only at "
        f"{describe_tokens(tokenizer, known)}: they run on until they are cut. Set `eos_token_id` in the model's "
        f"generation_config.json to [{closing}, …], or `tokenizer.eos_token = {token!r}` on the `processing_class`."
    )
