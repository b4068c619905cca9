"""The documents and rollouts that every case trains on, small enough to be laid out by hand."""

MAX_LENGTH = 40
NUM_PROCESSES = {"one": 1, "DDP": 2, "FSDP2": 2}

_LENGTHS = (24, 18, 55, 22, 10, 16, 8, 7)
"""
Tokens of each document: one is longer than a row, and however they are packed they fill four rows, so that two
processes get two each: `bfd` cuts the long one to 40 and lays 24 + 16, 22 + 18 and 10 + 8 + 7 together; `bfd_split`
lays its other 15 beside these; `wrapped` has 160 = 4 · 40 in all.
"""

NUM_DOCUMENTS, NUM_PACKED_ROWS = len(_LENGTHS), 4


def documents() -> list[dict[str, str]]:
    """Prompt, answer and group; a letter is a token, and each answer gets an end token."""
    groups = ("en", "ko", "zh")
    rows = []
    for i, length in enumerate(_LENGTHS):
        letters = "".join(chr(97 + (7 * k * k + 5 * i * k + 3 * i) % 26) for k in range(length - 1))
        rows.append({"lang": groups[i % 3], "prompt": letters[:3], "completion": letters[3:]})
    return rows


LOOPING = 50
PROMPTS = ("a", "one file")
NUM_GENERATIONS = 4
TEMPERATURE = 0.5
MAX_COMPLETION_LENGTH = 12
END = 1
"""Id of the test tokenizer's end token."""


def completions() -> list[list[int]]:
    """What is trained on in place of what was generated: four answers to each prompt, the last one a loop."""
    rows = []
    for i in range(len(PROMPTS) * NUM_GENERATIONS):
        if i % NUM_GENERATIONS == NUM_GENERATIONS - 1:
            rows.append([LOOPING] * MAX_COMPLETION_LENGTH)
        else:
            rows.append([60 + (11 * k * k + 7 * i) % 90 for k in range(3 + i)] + [END])
    return rows


def reward(ids: list[int]) -> float:
    """-1 for the loop, else a little that differs from row to row."""
    return -1.0 if set(ids[-4:]) == {LOOPING} else (sum(ids) % 7) / 10
