"""What several experiments measure alike."""

import random
from typing import Any

import torch


def draw_ids(ids: list[str], num_ids: int) -> list[str]:
    """Some of the ids, the same for every run."""
    return random.Random(0).sample(ids, min(num_ids, len(ids)))


def prompt_ids(tokenizer: Any, row: dict[str, Any]) -> list[int]:
    """Token ids of a chat prompt."""
    encoded = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=True, return_dict=True)
    return list(encoded["input_ids"])


def flags(values: list[bool | None]) -> str:
    """One character a value: 1, 0, or - where it cannot be told."""
    return "".join("-" if value is None else str(int(value)) for value in values)


def copying(model: Any, tokenizer: Any, rows: list[dict[str, Any]], passage: int = 32, shown: int = 8) -> float:
    """
    Benign repetition: a passage of a page, then its first tokens again. Share of the passage's other tokens that are
    the likeliest now, as a model that can quote has it.
    """
    ids_of_rows = [tokenizer(row["completion"][0]["content"])["input_ids"][:passage] for row in rows]
    doubled = [[*ids, *ids] for ids in ids_of_rows if len(ids) == passage]
    correct = 0
    with torch.inference_mode():
        for start in range(0, len(doubled), 50):
            input_ids = torch.tensor(doubled[start : start + 50], device=model.device)
            predicted = model(input_ids=input_ids).logits[:, passage + shown - 1 : -1].argmax(dim=-1)
            correct += int((predicted == input_ids[:, passage + shown :]).sum())
    return round(correct / (len(doubled) * (passage - shown)), 4)
