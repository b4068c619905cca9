"""The loop of a synthesis: plan a batch, have it written, judge it, keep it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ...features.read.text_options import TextOptions
from ...features.set.feature_set import FeatureSet
from ...measure.answers.generate import batch_seed
from ...saes.frozen import FrozenSAE
from .acceptance import Novelty, strongest_activations
from .attempts import Attempts
from .generator import Aim, Generator
from .prompts import Plan, Templates, plan_attempt
from .row_forms import RowForm
from .targets import Target


class SynthesisRun:
    """The loop: plan a batch, have it written, judge it, keep it."""

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        sae: FrozenSAE,
        generator: Generator,
        seeds: Sequence[Mapping[str, Any]],
        form: RowForm,
        targets: Sequence[Target],
        features: FeatureSet,
        novelty: Novelty,
        attempts: Attempts,
        templates: Templates,
        settings: Mapping[str, Any],
        options: TextOptions,
        folder: Path,
        progress: bool,
    ):
        self._network, self._tokenizer, self._sae = network, tokenizer, sae
        self._generator, self._seeds, self._form = generator, seeds, form
        self._targets, self._features, self._novelty = targets, features, novelty
        self.attempts, self._templates, self._settings = attempts, templates, settings
        self._options, self._folder, self._progress = options, folder, progress
        for record in attempts.records:
            novelty.watch(record["answer"], record["reason"])
            if record["reason"] is None:
                novelty.keep(_name(record), self._row(record))

    def finish(self) -> str:
        """Go on until nothing is left to do; says why it ended."""
        settings = self._settings
        wanted = len(self._targets) * settings["rows_per_target"]
        wanted = min(wanted, settings["max_rows"] or wanted)
        bar = tqdm(
            total=wanted, initial=min(wanted, len(self.attempts.accepted)), unit=" rows", desc="Synthesising",
            disable=not self._progress,
        )  # fmt: skip
        with bar:
            while True:
                if settings["max_rows"] is not None and len(self.attempts.accepted) >= settings["max_rows"]:
                    return f"{settings['max_rows']:,} rows are made."
                if settings["max_tokens"] is not None and self.attempts.num_tokens >= settings["max_tokens"]:
                    return f"the budget of {settings['max_tokens']:,} tokens is spent."
                if self._novelty.stuck:
                    return (
                        "the generator repeats itself, or gives no usable answer. Raise its temperature, its longest "
                        "answer, or take another one, in another `output_dir`."
                    )
                chosen = self.attempts.next_targets(
                    settings["batch_size"],
                    len(self._targets),
                    settings["rows_per_target"],
                    settings["attempts_per_target"],
                )
                if not chosen:
                    return "every target has its rows or its attempts."
                before = len(self.attempts.accepted)
                self.attempts.add(self._batch(chosen))
                bar.update(len(self.attempts.accepted) - before)
                bar.set_postfix_str(
                    f"{len(self.attempts.records)} attempts, {self.attempts.num_tokens:,} tokens", refresh=False
                )

    def rows(self) -> list[dict[str, Any]]:
        """The accepted rows with their provenance."""
        return [
            {
                **self._row(record),
                "provenance": {
                    "target": self._targets[record["target"]].name,
                    "feature": self._targets[record["target"]].feature,
                    "block": self._sae.block,
                    "site": self._sae.site,
                    "activation": record["activation"],
                    "kind": record["kind"],
                    "snippets": record["snippets"],
                    "seed_row": record["seed_row"],
                    "prompt": record["prompt"],
                    "generator": self._settings["generator"].get("model") or self._settings["generator"]["name"],
                    "attempt": record["attempt"],
                },
            }
            for record in self.attempts.accepted
        ]

    def _batch(self, chosen: Sequence[int]) -> list[dict[str, Any]]:
        planned: dict[int, int] = {}
        plans = []
        for target in chosen:
            attempt = self.attempts.num_tried(target) + planned.get(target, 0)
            planned[target] = planned.get(target, 0) + 1
            plans.append(
                plan_attempt(
                    target,
                    self._targets[target],
                    attempt,
                    seeds=self._seeds,
                    form=self._form,
                    templates=self._templates,
                    what=self._settings["what"],
                    num_passages=self._settings["num_passages"],
                    rewrite_share=self._settings["rewrite_share"],
                    seed=self._settings["seed"],
                )
            )
        number = self.attempts.num_batches
        if not self._form.has_question:
            questions: list[str] = [""] * len(plans)
            answers = self._ask([plan.messages for plan in plans], 2 * number, self._aim(chosen))
        else:
            asked = self._ask([plan.messages for plan in plans], 2 * number, None)
            questions = [(each or "").strip() for each in asked]
            usable = [i for i, question in enumerate(questions) if question]
            answers = [None] * len(plans)
            conversations = [[{"role": "user", "content": questions[i]}] for i in usable]
            if usable:
                aim = self._aim([chosen[i] for i in usable])
                for i, answer in zip(usable, self._ask(conversations, 2 * number + 1, aim)):
                    answers[i] = answer
        return self._judge(plans, questions, answers)

    def _aim(self, chosen: Sequence[int]) -> Aim:
        used = sorted(set(chosen))
        return Aim(self._features[used], tuple(used.index(target) for target in chosen))

    def _ask(self, conversations: list[Any], number: int, aim: Aim | None) -> list[str | None]:
        kept = f"What was made so far is in {self._folder}, and the same call goes on from there."
        try:
            found = self._generator(conversations, seed=batch_seed(self._settings["seed"], number), aim=aim)
        except ValueError as error:
            raise ValueError(f"{error} {kept}") from error
        except OSError as error:
            raise ConnectionError(f"{error} {kept}") from error
        except Exception as error:
            said = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"The generator failed ({type(error).__name__}: {said}). {kept}") from error
        answers = None if isinstance(found, str) or found is None else list(found)
        if answers is None or len(answers) != len(conversations):
            got = "no list" if answers is None else f"{len(answers)} answers"
            raise ValueError(
                f"The generator was given {len(conversations)} conversations and returned {got}. It must return one "
                "text for each, or `None`."
            )
        if not all(each is None or isinstance(each, str) for each in answers):
            raise ValueError("The generator must return texts, or `None` for an answer that is not usable.")
        return [None if each is None else each.encode("utf-8", "replace").decode("utf-8").strip() for each in answers]

    def _judge(
        self, plans: Sequence[Plan], questions: Sequence[str], answers: Sequence[str | None]
    ) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = []
        for plan, question, answer in zip(plans, questions, answers):
            row = self._form.make(question, answer or "", plan.label)
            ids = self._tokenizer(answer or "", add_special_tokens=False)["input_ids"]
            reason, same = self._novelty.objection(plan, row, ids)
            records.append(
                {
                    "target": plan.target,
                    "attempt": plan.attempt,
                    "kind": plan.kind,
                    "label": plan.label,
                    "snippets": [snippet.id for snippet in plan.snippets],
                    "seed_row": plan.seed_row,
                    "prompt": plan.messages[-1]["content"],
                    "question": question,
                    "answer": answer,
                    "num_tokens": len(ids) + self._num_tokens(plan.messages[-1]["content"], question),
                    "reason": reason,
                    "same": same,
                    "activation": None,
                }
            )
        left = [record for record in records if record["reason"] is None]
        fired = strongest_activations(
            self._network,
            self._tokenizer,
            self._features,
            self._sae,
            [self._row(record) for record in left],
            [record["target"] for record in left],
            positions=self._settings["positions"],
            options=self._options,
        )
        for record, activation in zip(left, fired):
            record["activation"] = activation
            if activation <= self._settings["min_activation"]:
                record["reason"] = "feature silent"
                continue
            same = self._novelty.same(self._row(record))  # of this batch
            if same is not None:
                record["reason"], record["same"] = "near-duplicate", same
            elif self._full(record, records):
                record["reason"] = "not needed"
            else:
                self._novelty.keep(_name(record), self._row(record))
        for record in records:
            self._novelty.watch(record["answer"], record["reason"])
        return records

    def _full(self, record: Mapping[str, Any], batch: Sequence[Mapping[str, Any]]) -> bool:
        """Whether enough rows were accepted already, of its target or of all; those of a batch count in its order."""
        before = batch[: next(i for i, each in enumerate(batch) if each is record)]
        accepted = [each["target"] for each in before if each["reason"] is None]
        of_target = self.attempts.num_accepted(record["target"]) + accepted.count(record["target"])
        most = self._settings["max_rows"]
        return of_target >= self._settings["rows_per_target"] or (
            most is not None and len(self.attempts.accepted) + len(accepted) >= most
        )

    def _row(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return self._form.make(record["question"], record["answer"] or "", record["label"])

    def _num_tokens(self, *texts: str) -> int:
        return sum(len(self._tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts if text)


def _name(record: Mapping[str, Any]) -> str:
    return f"synthetic:{record['target']}.{record['attempt']}"
