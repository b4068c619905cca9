"""Checks that training puts its prompts to the model in the same way as the calibration of the strength did."""

from collections.abc import Iterable, Mapping
from typing import Any

from ..measure.answers.prompt_tokens import render_messages, template_hash


def require_calibrated_prompts(
    calibration: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]],
    tokenizer: Any,
    chat_template_kwargs: Mapping[str, Any] | None,
) -> None:
    """
    Compare how prompts go to the model in training with how they went to it in the `calibration` of the feature set.

    A strength holds for the prompts that it was measured on. A model answers a bare text, a chat turn and a turn with
    thinking switched off in different ways, and loops at different strengths. Only the first training prompt is looked
    at. Nothing is compared that the calibration did not record, and no prompts that it got as token ids.
    """
    settings = calibration.get("settings") or {}
    form = settings.get("prompt_form")
    row = next(iter(rows), None)
    if form not in ("text", "messages") or row is None:
        return
    prompt = row.get("prompt")
    trained = "text" if isinstance(prompt, str) else "messages"
    way_out = "or set `steer_strength` to a number, which is then used unchecked."
    if trained != form:
        raise ValueError(
            f"The steering strength was calibrated on prompts that are {_say(form)}, and the training prompts are "
            f"{_say(trained)}: the strength holds for the first. Calibrate on prompts of the training data's form, "
            f"{way_out}"
        )
    if trained == "text":
        return
    if settings.get("chat_template") != template_hash(tokenizer, chat_template_kwargs):
        raise ValueError(
            "The steering strength was calibrated with another chat template than the tokenizer of this training has. "
            f"Calibrate with this one, {way_out}"
        )
    calibrated_kwargs = settings.get("chat_template_kwargs") or {}
    kwargs = dict(chat_template_kwargs or {})
    if calibrated_kwargs == kwargs:
        return
    rendered = [
        render_messages(tokenizer, prompt or (), "The first training prompt", add_generation_prompt=True, **each)
        for each in (calibrated_kwargs, kwargs)
    ]
    if rendered[0] != rendered[1]:
        raise ValueError(
            f"The steering strength was calibrated with `chat_template_kwargs` {calibrated_kwargs}, this training has "
            f"{kwargs}, and the template makes different prompts of them. Give both the same "
            f"(`--chat-template-kwargs` of `sae-posttrain calibrate`), {way_out}"
        )


def _say(form: str) -> str:
    return "texts, which go to the model as they are" if form == "text" else "messages, which go through the template"
