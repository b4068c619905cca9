"""Answers to the watched prompts, with the same seeds every time, divided over processes."""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...measure.answers.generate import batch_seed, generate_answers
from ...measure.answers.judge import judge_answer
from ...measure.answers.positions import check_length
from ...measure.answers.prompt_tokens import tokenize_prompts
from ...measure.answers.prompts import Prompt
from ...measure.faults.segments import prompt_opens_thinking
from .rates import Judge, add_flags
from .trainer_engine import TrainerEngine


@dataclass(frozen=True)
class Sampling:
    """How the watched answers are sampled and judged, by the names that [`evaluate`] has for it."""

    target_lang: str | None
    max_new_tokens: int
    temperature: float
    top_p: float
    num_samples: int
    batch_size: int
    seed: int
    engine: str


class WatchedPrompts:
    """Prompts with their tokens. Longest prompts come first, so that one that does not fit is seen at once."""

    def __init__(self, prompts: Sequence[Prompt], tokenizer: Any, template_kwargs: Mapping[str, Any], how: Sampling):
        self._tokenizer = tokenizer
        self._how = how
        self._prompts = list(prompts)
        self._tokens = tokenize_prompts(tokenizer, self._prompts, template_kwargs)
        order = sorted(range(len(self._prompts)), key=lambda index: -len(self._tokens[index]))
        jobs = [(index, sample) for index in order for sample in range(how.num_samples)]
        self._batches = [jobs[start : start + how.batch_size] for start in range(0, len(jobs), how.batch_size)]

    def identity(self, names: Sequence[str]) -> str:
        """Tells one watch from another: prompts, sampling and what is judged."""
        content = [self._tokens, [each.lang for each in self._prompts], vars(self._how), list(names)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def require_room(self, model: Any, engine: TrainerEngine | None = None) -> None:
        """Raise a `ValueError` if a prompt and its answer do not fit the positions of the model, or the engine."""
        longest = max(map(len, self._tokens))
        check_length(model, longest, self._how.max_new_tokens)
        if engine is not None:
            engine.require_room(longest + self._how.max_new_tokens)

    def answer(
        self,
        model: Any,
        judges: Mapping[str, Judge],
        process: int,
        num_processes: int,
        engine: TrainerEngine | None = None,
    ) -> list[dict[str, Any]]:
        """
        The judged answers of every `num_processes`-th batch. The seed of a batch does not depend on who generates it,
        so all processes together write what one would.

        With an engine, all processes take part in each of its generations; a process without a batch of its own asks
        for answers that nobody reads.
        """
        how = self._how
        sampling: dict[str, Any] = {
            "max_new_tokens": how.max_new_tokens,
            "temperature": how.temperature,
            "top_p": how.top_p,
        }
        judged = []
        if engine is not None:
            engine.update()
        with _kept_random_state():
            for first in range(0, len(self._batches), num_processes):
                number = first + process
                jobs = self._batches[number] if number < len(self._batches) else []
                prompts = [self._tokens[index] for index, _ in jobs]
                if engine is not None:
                    filled = prompts + [self._tokens[0]] * (len(self._batches[first]) - len(prompts))
                    seed = batch_seed(how.seed, first + engine.seed_of(process))
                    answers, finished = engine.generate(filled, seed=seed, **sampling)
                else:
                    seed = batch_seed(how.seed, number)
                    answers, finished = generate_answers(model, self._tokenizer, prompts, seed=seed, **sampling)
                for (index, sample), ids, ended in zip(jobs, answers, finished):
                    answer = self._judge(index, sample, ids, ended)
                    judged.append({**add_flags(answer, judges), "row": index})
        return judged

    def _judge(self, index: int, sample: int, ids: list[int], finished: bool) -> dict[str, Any]:
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        think_opened = prompt_opens_thinking(self._tokenizer, self._tokens[index])
        answer = judge_answer(
            self._prompts[index],
            text,
            ids,
            finished,
            sample=sample,
            target_lang=self._how.target_lang,
            think_opened=think_opened,
        )
        onset, span = answer["loop"]["onset"], answer["loop"]["span"]
        if span:  # where the loop lies in the text
            start = len(self._tokenizer.decode(ids[:onset], skip_special_tokens=True))
            end = len(self._tokenizer.decode(ids[: onset + span], skip_special_tokens=True))
            answer["loop_text"] = [start, end]
        return answer


@contextmanager
def _kept_random_state() -> Iterator[None]:
    """Put Python's and numpy's random states back afterwards, since a judge may draw from them."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
