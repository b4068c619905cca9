"""
Turn prompts into token ids by TRL's rule: text goes to the model unchanged, messages go through the chat template.

The way of prompting is recorded, so that a number measured with one way is not used with another.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from .encodable import require_encodable
from .prompts import Prompt

logger = logging.getLogger(__name__)

_PROBE = (
    "Hello,  wörld!\n\tx = 10**3; <b>don't</b> 1,234.50 ﬁ "
    "Привет, мир! 파일을 저장합니다。打开文件、保存 العربية ไทย \U0001f600\r\n\n"
)
"""A text that two tokenizers with the same vocabulary but different rules divide differently."""


def tokenize_prompts(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    template_kwargs: Mapping[str, Any] | None = None,
    *,
    rows: Sequence[int] | None = None,
) -> list[list[int]]:
    """
    Token ids of each prompt, as TRL's `GRPOTrainer` makes them: text with the tokenizer's own special tokens and
    without the chat template; messages through the template, with the beginning of an answer.

    `rows` are the numbers of the prompts' rows, from 1, for messages.
    """
    template_kwargs = dict(template_kwargs or {})
    if template_kwargs and prompts and all(prompt.messages is None for prompt in prompts):
        raise ValueError(
            f"The chat template's variables {template_kwargs} would have no effect: all prompts are texts, which go "
            f"to the model as they are. {_AS_MESSAGES}"
        )
    tokenized = []
    for place, prompt in enumerate(prompts):
        row = place + 1 if rows is None else rows[place]
        if prompt.messages is None:
            tokenized.append(list(tokenizer(prompt.text)["input_ids"]))
            continue
        rendered = render_messages(
            tokenizer, prompt.messages, f"Row {row} of the prompts", add_generation_prompt=True, **template_kwargs
        )
        tokenized.append(rendered)
    return tokenized


_AS_MESSAGES = 'To have a text answered as a user\'s turn, write {"prompt": [{"role": "user", "content": "…"}]}.'


def render_messages(tokenizer: Any, messages: Sequence[Mapping[str, Any]], where: str, **options: Any) -> list[int]:
    """Token ids of a conversation, through the chat template, with options of `apply_chat_template`."""
    import jinja2

    for message in messages:
        require_encodable(message.get("content"), where)
    if not getattr(tokenizer, "chat_template", None) and "chat_template" not in options:
        raise ValueError(
            f"{where} is made of messages, and the tokenizer has no chat template. Set one "
            "(`tokenizer.chat_template`), or give the prompt as text."
        )
    try:
        encoded = tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=True, **options)
    except jinja2.TemplateError as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        advice = ""
        if any(message.get("role") in ("system", "developer") for message in messages):
            advice = " If it knows no system turn, put that text at the head of the first user turn."
        raise ValueError(f"{where} (turns: {roles}) is refused by the chat template: {error}.{advice}") from error
    return list(encoded["input_ids"])


# What a measurement records about its prompts


def prompt_form(prompts: Sequence[Prompt]) -> str:
    """`"text"`, `"messages"`, or `"mixed"`."""
    forms = {"text" if prompt.messages is None else "messages" for prompt in prompts}
    return forms.pop() if len(forms) == 1 else "mixed"


def describe_prompting(tokenizer: Any, form: str, template_kwargs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """
    Describe how prompts of a form are sent to the model, for records. Returns `prompt_form`; `chat_template`, a hash,
    and `chat_template_kwargs`, both `None` if nothing goes through the template.
    """
    templated = form in ("messages", "mixed")
    return {
        "prompt_form": form,
        "chat_template": template_hash(tokenizer, template_kwargs) if templated else None,
        "chat_template_kwargs": dict(template_kwargs or {}) if templated else None,
    }


def say_what_goes_raw(tokenizer: Any, form: str) -> None:
    """Warn once if text prompts go to a model that has a chat template."""
    if form in ("text", "mixed") and getattr(tokenizer, "chat_template", None):
        _say_once(
            f"{'Prompts' if form == 'text' else 'Some prompts'} are texts and go to the model as they are, without "
            f"its chat template, as in TRL's GRPO. {_AS_MESSAGES}"
        )


@lru_cache
def _say_once(message: str) -> None:
    logger.warning(message)


def template_hash(tokenizer: Any, template_kwargs: Mapping[str, Any] | None = None) -> str | None:
    """Hash of the chat template without the marks `{% generation %}`, which do not change the text."""
    given = (template_kwargs or {}).get("chat_template")
    if given is None and not getattr(tokenizer, "chat_template", None):
        return None
    template = tokenizer.get_chat_template(given)
    return _sha256(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template))


def tokenizer_hash(tokenizer: Any) -> str:
    """
    Hash of a tokenizer's behaviour, independent of where it was loaded from: its vocabulary, the special tokens that
    it adds to text or recognises in text, and how it divides a text in several scripts.

    The padding token and the end tokens are not part of the hash, because training may change them.
    """
    specials = [tokenizer.bos_token, tokenizer.unk_token]
    content = [sorted(tokenizer.get_vocab().items()), specials, list(tokenizer(_PROBE)["input_ids"])]
    return _sha256(json.dumps(content, ensure_ascii=False))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
