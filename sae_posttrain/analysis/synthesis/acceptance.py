"""Whether an answer becomes a row: it says something new, and its feature fires where it should."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ...features.read.text_options import TextOptions
from ...features.read.texts import tokenize
from ...features.set.feature_set import FeatureSet
from ...measure.faults.loops import find_loop
from ...saes.frozen import FrozenSAE
from ..token_readings import read_along_texts
from .near_duplicates import NearDuplicates, copied_share
from .prompts import Plan
from .row_forms import RowForm

_WINDOW = 64
_MOST_REPEATED = 0.9


def strongest_activations(
    model: nn.Module,
    tokenizer: Any,
    features: FeatureSet,
    sae: FrozenSAE,
    rows: Sequence[Mapping[str, Any]],
    targets: Sequence[int],
    *,
    positions: str,
    options: TextOptions,
) -> list[float]:
    """
    For each row the largest activation of its target, over the tokens that count.

    Args:
        model, tokenizer, features ([`FeatureSet`]), sae ([`FrozenSAE`]):
            The targets, all of one place.
        rows (`Sequence[Mapping]`), targets (`Sequence[int]`):
            The rows, and the number of each one's target in the set.
        positions (`str`), options ([`TextOptions`]):
            Which tokens count, and how rows are read.
    """
    if not rows:
        return []
    used = sorted(set(targets))
    texts = tokenize([{**row, options.group_column: ""} for row in rows], tokenizer, options, positions=positions)
    along = read_along_texts(model, features[used], texts, [sae], batch_size=options.batch_size)
    return [
        float(values_TF[:, used.index(target)].max(initial=0.0))
        for values_TF, target in zip(along.activations, targets)
    ]


class Novelty:
    """
    What was said before, to tell answers that say it again.

    Args:
        form ([`RowForm`]):
            How rows are written.
        known (`Mapping[str, Sequence[Mapping]]`):
            Seeds and reference rows, by what they are called.
        threshold (`float`):
            Share of runs of characters in common from which an answer repeats another text, or copies its prompt.
        min_tokens (`int`):
            Fewest tokens of an answer.
    """

    def __init__(
        self, form: RowForm, known: Mapping[str, Sequence[Mapping[str, Any]]], threshold: float, min_tokens: int
    ):
        self._form = form
        self._threshold = threshold
        self._min_tokens = min_tokens
        self._kept = NearDuplicates(threshold)
        self._answers: set[str] = set()
        self._repeated: deque[bool] = deque(maxlen=_WINDOW)
        for source, rows in known.items():
            for number, row in enumerate(rows, start=1):
                self._kept.add(f"{source}:{number}", form.whole(row))

    def keep(self, name: str, row: Mapping[str, Any]) -> None:
        """Remember a made row."""
        self._kept.add(name, self._form.whole(row))

    def objection(self, plan: Plan, row: Mapping[str, Any], ids: Sequence[int]) -> tuple[str | None, str | None]:
        """Why a row is not wanted, and the name of the text that it repeats; `None` where it may be."""
        answer = self._form.answer(row).strip()
        if not answer or (self._form.has_question and not self._form.question(row).strip()):
            return "no answer", None
        if len(ids) < self._min_tokens:
            return "too short", None
        if find_loop(ids, finished=False).loop_any:
            return "loop", None
        made = self._form.question(row) if self._form.has_question else answer
        if copied_share(made, plan.shown) >= self._threshold:
            return "copies its prompt", None
        same = self.same(row)
        return ("near-duplicate", same) if same is not None else (None, None)

    def same(self, row: Mapping[str, Any]) -> str | None:
        """Name of a seed, a reference row or a made row that a row repeats; `None` if there is none."""
        return self._kept.find(self._form.whole(row))

    def watch(self, answer: str | None, reason: str | None) -> None:
        """Take note of whether an answer was of no use, or was given before."""
        said = " ".join((answer or "").casefold().split())
        self._repeated.append(reason in ("no answer", "near-duplicate", "loop") or said in self._answers)
        self._answers.add(said)

    @property
    def stuck(self) -> bool:
        """Whether nearly all of the last answers were of no use or had been given before."""
        return len(self._repeated) == _WINDOW and sum(self._repeated) >= _MOST_REPEATED * _WINDOW
