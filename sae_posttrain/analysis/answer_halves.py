"""Division of answers into a half that chooses features and a half that judges them."""

import random
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from .answers import Answer


def divide_in_halves(answers: Sequence[Answer], keys: Sequence[str], seed: int) -> list[bool]:
    """
    Whether each answer is held out: half of them, all answers to a prompt and all copies of a text on one side.

    Raises:
        ValueError: If a half has fewer than two answers of a kind.
    """
    parent = list(range(len(answers)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, (answer, key) in enumerate(zip(answers, keys)):
        for mark in (f"text {key}", f"prompt {answer.pair}" if answer.pair else ""):
            if mark:
                parent[root(i)] = root(first.setdefault(mark, i))
    members = defaultdict(list)
    for i in range(len(answers)):
        members[root(i)].append(i)
    together = list(members.values())
    random.Random(seed).shuffle(together)
    together.sort(key=lambda group: (-len(group), -sum(answers[i].bad for i in group)))
    held_out = [False] * len(answers)
    sizes = np.zeros((2, 2), dtype=int)  # half, kind
    for group in together:
        added = np.array([sum(not answers[i].bad for i in group), sum(answers[i].bad for i in group)])
        half = int(((sizes[1] - sizes[0]) * added).sum() < 0)  # where its kinds are rarer
        sizes[half] += added
        for i in group:
            held_out[i] = bool(half)
    if sizes.min() < 2:
        raise ValueError(
            "The answers cannot be divided into two halves with two answers of each kind in both: answers to one "
            f"prompt and copies of a text stay together. There are {len(together)} such groups; give answers to more "
            "prompts."
        )
    return held_out
