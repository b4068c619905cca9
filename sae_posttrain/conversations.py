"""
Read conversations in all common forms into the messages that TRL takes: `{"role": …, "content": …}`.

TRL's own `maybe_convert_to_chatml` is not enough. It renames `from` and `value` but does not change the roles: `gpt`
stays `gpt`, and a template then renders no answer at all. It also changes its argument and imports torch.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .shown import shown

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles that chat templates know."""

_ROLE_OF = {
    **{role: role for role in ROLES},
    "human": "user",
    **dict.fromkeys("gpt chatgpt bot model function_call tool_call".split(), "assistant"),
    **dict.fromkeys("function function_response tool_response observation ipython".split(), "tool"),
}
"""TRL's role for the role names of ShareGPT, Gemini, OpenAI's functions, Llama and LLaMA-Factory."""

_CALLS = ("function_call", "tool_call")  # turns whose text is the JSON of a call
_TEXT_PARTS = ("text", "input_text", "output_text")

MESSAGE_COLUMNS = ("messages", "prompt", "completion", "chosen", "rejected")
"""Columns in which TRL looks for messages."""


def read_row(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """
    A row with its conversations as TRL's messages; the same object if nothing had to be changed.

    `conversations` becomes `messages`, with the text of a column `system` in front. In [`MESSAGE_COLUMNS`] the roles
    of other conventions become TRL's, `from` and `value` become `role` and `content`, parts of text are joined, and
    JSON in a `messages` column (as CSV holds it) is read.
    """
    changed: dict[str, Any] = {}
    if row.get("conversations") is not None and row.get("messages") is None:
        messages = read_messages(row["conversations"], f"{where}: ", "conversations")
        system = row.get("system")
        if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
        changed["messages"] = messages
        row = {name: value for name, value in row.items() if name not in ("conversations", "messages")}
    for name in MESSAGE_COLUMNS:
        value = row.get(name)
        if isinstance(value, Mapping):  # one message, not in a list
            value = [value]
        if name == "messages" and isinstance(value, str) and value.lstrip().startswith("["):
            value = _from_json(value, f"{where}: `messages`")
        if not _is_list(value):
            continue
        messages = read_messages(value, f"{where}: ", name)
        if messages is not row[name]:
            changed[name] = messages
    return {**row, **changed} if changed else row


def read_messages(value: Any, where: str, column: str) -> list[dict[str, Any]]:
    """
    Convert a list of messages in any common form to TRL's messages; returns the same object if it is already in TRL's
    form. Errors begin with `where` and name the `column`.

    A message of the assistant that calls a tool may lack its `content`, as in TRL.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _from_json(value, f"{where}`{column}`")
    if not _is_list(value) or not len(value):
        raise ValueError(f"{where}`{column}` must be a list of messages, got {shown(value)}.")
    messages = [
        _read_message(message, f"{where}message {place} of `{column}`") for place, message in enumerate(value, start=1)
    ]
    if isinstance(value, list) and all(new is old for new, old in zip(messages, value)):
        return value
    return messages


def _read_message(message: Any, where: str) -> Any:
    if not isinstance(message, Mapping):
        raise ValueError(f'{where} must be {{"role": …, "content": …}}, got {shown(message)}.')
    role = message.get("role") if message.get("role") is not None else message.get("from")
    if role is None:
        raise ValueError(f'{where} says no role: it must be {{"role": …, "content": …}}, got {shown(message)}.')
    meant = _ROLE_OF.get(role.strip().lower()) if isinstance(role, str) else None
    if meant is None:
        others = [name for name in _ROLE_OF if name not in ROLES]
        raise ValueError(
            f"{where} has the role {shown(role)}; known are {', '.join(ROLES)}, and of other forms "
            f"{', '.join(others)}."
        )
    rest = {key: each for key, each in message.items() if key not in ("role", "from", "content", "value", "parts")}
    content = next((message[key] for key in ("content", "value", "parts") if message.get(key) is not None), None)
    if content is not None and not isinstance(content, str):
        content = _joined(content, where)
    if role in _CALLS and not rest.get("tool_calls"):
        rest["tool_calls"], content = [_call(content, where)], None
    elif meant == "assistant" and rest.get("function_call") and not rest.get("tool_calls"):
        rest["tool_calls"] = [_call(rest.pop("function_call"), where)]
    if content is None and not (meant == "assistant" and rest.get("tool_calls")):
        raise ValueError(
            f"{where} has no text: its `content` is {'null' if 'content' in message else 'missing'}. Only an "
            "assistant's message with `tool_calls` may lack it."
        )
    if meant == message.get("role") and content is message.get("content") and rest.keys() <= message.keys():
        if set(message) <= {"role", "content", *rest}:
            return message
    if content is None and "content" not in message and role not in _CALLS:
        return {"role": meant, **rest}
    return {"role": meant, "content": content, **rest}


def _joined(content: Any, where: str) -> str:
    """The text of parts, one per line, as servers pass them to a template that does not support parts."""
    if not _is_list(content):
        raise ValueError(f"{where} must have a text as its content, got {shown(content)}.")
    texts = []
    for number, part in enumerate(content, start=1):
        text = part
        if isinstance(part, Mapping):
            kind = part.get("type")
            text = part.get("text") if kind is None or kind in _TEXT_PARTS else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"{where} has a part {number} of the type {shown(kind)}; only parts of text are read.")
        texts.append(text)
    return "\n".join(texts)


def _call(content: Any, where: str) -> dict[str, Any]:
    call = _from_json(content, where) if isinstance(content, str) else content
    if isinstance(call, Mapping) and isinstance(call.get("name"), str):
        return {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}
    raise ValueError(f'{where} calls a tool and must hold {{"name": …, "arguments": …}}, got {shown(content)}.')


def _from_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} should hold JSON and does not ({error}), got {shown(text)}.") from error


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def text_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of messages as [`read_messages`] returns them, one per line; a tool call has no text."""
    return "\n".join(message["content"] for message in messages if message.get("content") is not None)


def has_conversation(row: Mapping[str, Any]) -> bool:
    """Whether any column of a row holds messages in any form."""
    return row.get("conversations") is not None or any(
        _is_list(row.get(name)) or isinstance(row.get(name), Mapping) for name in MESSAGE_COLUMNS
    )


def with_messages(dataset: Any, name: str) -> Any:
    """
    Convert the conversations of a dataset to TRL's messages, so that a trainer can tokenize it; returns the same
    object if nothing had to be changed. Tokenized rows are not changed, and neither are rows with images, whose parts
    the trainer reads itself.

    If the dataset has a length, all rows are read now. Rows of a stream are converted when they are read. `name` is
    the dataset's in errors.
    """
    first = next(iter(dataset), None)
    if not isinstance(first, Mapping) or {"input_ids", "image", "images"} & set(first) or not has_conversation(first):
        return dataset
    if not hasattr(dataset, "__len__"):
        removed = ["conversations"] if "conversations" in first and first.get("messages") is None else None
        return dataset.map(_numbered_row, with_indices=True, fn_kwargs={"name": name}, remove_columns=removed)
    columns = [column for column in (*MESSAGE_COLUMNS, "conversations", "system") if column in first]
    read = dataset.select_columns(columns) if hasattr(dataset, "select_columns") else dataset
    changed = False
    for number, row in enumerate(read, start=1):
        changed = read_row(row, f"Row {number} of {name}") is not row or changed
    if not changed:
        return dataset
    if not hasattr(dataset, "map"):
        raise ValueError(
            f"The conversations of {name} are not in TRL's form (`role` and `content`, a text). Pass a "
            "`datasets.Dataset`, which is converted, or convert them."
        )
    removed = ["conversations"] if "conversations" in first and first.get("messages") is None else None
    return dataset.map(_numbered_row, with_indices=True, fn_kwargs={"name": name}, remove_columns=removed)


def datasets_with_messages(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a trainer in which `train_dataset` and `eval_dataset` went through [`with_messages`]."""
    changed = dict(kwargs)
    for name in ("train_dataset", "eval_dataset"):
        given = kwargs.get(name)
        called = f"the {name.removesuffix('_dataset')} dataset"
        if isinstance(given, dict):
            changed[name] = {key: with_messages(each, f"{called} {key}") for key, each in given.items()}
        elif given is not None and hasattr(given, "__iter__"):
            changed[name] = with_messages(given, called)
    return changed


def _numbered_row(row: Mapping[str, Any], index: int, name: str) -> dict[str, Any]:
    return dict(read_row(row, f"Row {index + 1} of {name}"))
