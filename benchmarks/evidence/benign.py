"""
Repetition that belongs there, read position by position: no prompt has to be understood for it.

- `page`: what people's own pages repeat (menu paths, lines of tables, lists of commands): tokens of an n-gram that
  began earlier on the same page.
- `question`, `list`, `refrain`: built from a page's words (`benign_texts`): the question copied at the head of the
  answer, rows that share their first words, a passage that comes back twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sae_posttrain.baselines.unlikelihood.loss import repeated_ngram_mask
from sae_posttrain.eval_mode import eval_mode
from sae_posttrain.features.find.answers import Answer, Question
from sae_posttrain.features.find.loop_texts import benign_texts

NGRAM = 8
MIN_REPEATED = 16  # tokens of a page
MAX_LENGTH = 256  # tokens of a page that are read
BUILT = ("question", "list", "refrain")  # in the order of `benign_texts`
BUILT_WORDS = 64  # tokens of a page that a text is built from: enough for all three
KINDS = ("page", *BUILT)


@dataclass(frozen=True)
class Passage:
    """Token ids, and which of them repeat something rightly."""

    ids: list[int]
    repeats: list[bool]


def passages_of_pages(tokenizer: Any, rows: Sequence[dict[str, Any]], num_pages: int) -> list[Passage]:
    """The first so many pages that repeat themselves."""
    passages = []
    for row in rows:
        asked = question(tokenizer, row).prompt
        ids = tokenizer(row["completion"][0]["content"], add_special_tokens=False)["input_ids"][:MAX_LENGTH]
        repeats = repeated_ngram_mask(ids, NGRAM)
        if sum(repeats) >= MIN_REPEATED:
            passages.append(Passage([*asked, *ids], [False] * len(asked) + repeats))
        if len(passages) == num_pages:
            break
    return passages


def built_passages(tokenizer: Any, rows: Sequence[dict[str, Any]], num_pages: int) -> dict[str, list[Passage]]:
    """By kind, one passage of each of the first so many pages that are long enough."""
    answers = []
    for row in rows:
        ids = tokenizer(row["completion"][0]["content"], add_special_tokens=False)["input_ids"][:BUILT_WORDS]
        if len(ids) == BUILT_WORDS and len(answers) < num_pages:
            answers.append(Answer(question(tokenizer, row), tuple(ids), finished=True))
    texts = benign_texts(answers, tokenizer)
    return {
        kind: [
            Passage(list(text.ids), [text.start <= i < text.end for i in range(len(text.ids))])
            for text in texts[place :: len(BUILT)]
        ]
        for place, kind in enumerate(BUILT)
    }


def question(tokenizer: Any, row: dict[str, Any]) -> Question:
    """A title as the model reads it."""
    encoded = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=True, return_dict=True)
    text = tokenizer(row["prompt"][0]["content"], add_special_tokens=False)["input_ids"]
    return Question(tuple(encoded["input_ids"]), tuple(text))


def recall(model: Any, passages: Sequence[Passage], pad_id: int, batch_size: int = 16) -> dict[str, list[float]]:
    """
    How well the repeated tokens are foreseen, for each passage: their mean log-probability (nats), and the share that
    are the likeliest tokens at their places.
    """
    log_prob, likeliest = [0.0] * len(passages), [0.0] * len(passages)
    order = sorted(range(len(passages)), key=lambda i: len(passages[i].ids))  # little padding
    with eval_mode(model), torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            longest = max(len(passages[i].ids) for i in batch)
            input_ids = torch.full((len(batch), longest), pad_id, device=model.device)
            repeats = torch.zeros(input_ids.shape, dtype=torch.bool, device=model.device)
            for row, i in enumerate(batch):
                input_ids[row, : len(passages[i].ids)] = torch.tensor(passages[i].ids)
                repeats[row, : len(passages[i].ids)] = torch.tensor(passages[i].repeats)
            logits = model(input_ids=input_ids, use_cache=False).logits  # padding stands behind what is read
            for row, i in enumerate(batch):
                at = repeats[row, 1:]
                own, targets = logits[row, :-1][at].float(), input_ids[row, 1:][at]
                log_prob[i] = own.log_softmax(dim=-1).gather(-1, targets[:, None]).mean().item()
                likeliest[i] = (own.argmax(dim=-1) == targets).float().mean().item()
    return {
        "log_prob": [round(value, 4) for value in log_prob],
        "likeliest": [round(value, 4) for value in likeliest],
    }
