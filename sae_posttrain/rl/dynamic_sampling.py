"""
DAPO's dynamic sampling: prompts whose plain rollouts all score the same teach nothing, so others are sampled in their
place until the batch is full.

Legend of the shapes: N rollouts of all processes, G of a prompt, K rewards, M prompts. "Group" in a name is TRL's word
for the rollouts of one prompt.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from .advantages import SMALLEST_SPREAD, spread, total_reward
from .refusals import refuse_images
from .rollouts import Rollouts, steered_slots

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One rollout, as it goes from the process that made it to the one that trains on it."""

    completion_ids: list[int]
    logprobs: list[float] | None  # of the engine that sampled it, where it tells
    faulty: bool
    hit_at_first: bool
    extra: dict[str, Any]  # what reward functions put into the completions table


@dataclass(frozen=True)
class Replay:
    """
    The rollouts that were kept, in place of a generation: `GRPOTrainer` pads, scores and logs them as its own.

    Attributes:
        rows (`list[Row]`):
            Of this process.
        rewards (`torch.Tensor` of shape `(N, K)`):
            Of all processes.
        rollouts ([`Rollouts`]):
            Of this process.
    """

    rows: list[Row]
    rewards: Tensor
    rollouts: Rollouts

    @property
    def completion_ids(self) -> list[list[int]]:
        return [row.completion_ids for row in self.rows]

    @property
    def logprobs(self) -> list[list[float] | None] | None:
        return None if all(row.logprobs is None for row in self.rows) else [row.logprobs for row in self.rows]


class SamplingState(TrainerCallback, ExportableState):
    """
    What dynamic sampling keeps in checkpoints.

    Attributes:
        num_drawn (`int`):
            Further prompts that were drawn.
        lowest, highest (`float`, *optional*):
            Of all rewards of plain rollouts so far; `None` before there is one.
    """

    def __init__(self) -> None:
        self.num_drawn = 0
        self.lowest: float | None = None
        self.highest: float | None = None

    def see(self, rewards: Tensor) -> None:
        """Take in rewards of plain rollouts, NaN where there is none."""
        seen = rewards[~rewards.isnan()].tolist()
        if seen:
            self.lowest = min(seen if self.lowest is None else [self.lowest, *seen])
            self.highest = max(seen if self.highest is None else [self.highest, *seen])

    def middle(self) -> float | None:
        """Halfway between the lowest and the highest reward; `None` until two different ones were seen."""
        if self.lowest is None or self.highest is None or self.lowest == self.highest:
            return None
        return (self.lowest + self.highest) / 2

    def state(self) -> dict[str, dict[str, Any]]:
        """Arguments to build another one, and what has changed since."""
        return {
            "args": {},
            "attributes": {"num_drawn": self.num_drawn, "lowest": self.lowest, "highest": self.highest},
        }

    def on_train_begin(self, args, state, control, **kwargs):
        """Go on from the checkpoint that training resumes from, if dynamic sampling was on in it."""
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())["attributes"]
        num_drawn, lowest, highest = (saved.get(name) for name in ("num_drawn", "lowest", "highest"))
        numbers = all(value is None or isinstance(value, int | float) for value in (lowest, highest))
        if not numbers or not isinstance(num_drawn, int) or num_drawn < 0:
            raise ValueError(
                f"The checkpoint holds {str(num_drawn)[:50]} drawn prompts and rewards from {str(lowest)[:50]} to "
                f"{str(highest)[:50]}: its `trainer_state.json` is damaged. Resume from another one."
            )
        self.num_drawn, self.lowest, self.highest = num_drawn, lowest, highest


class DynamicSampling:
    """
    Put before [`~trl.GRPOTrainer`] in the bases of a class: prompts without spread are replaced before anything is
    computed from their rollouts (https://huggingface.co/papers/2503.14476, section 3.2).

    A round generates and scores all rollouts of its prompts; prompts whose plain ones differ in reward are kept, in
    the order in which they were asked, until there are as many as `GRPOTrainer` expects. Only then `GRPOTrainer` does
    its own work, once, on their rollouts: old and reference log-probabilities, advantages, metrics and logs. After
    `dynamic_sampling_max_rounds` rounds what is missing is filled with prompts of the last round that have no spread,
    and these are trained on as `GRPOTrainer` would. The list of rows that `_generate_and_score_completions` was given
    holds from then on those that were kept, in the order of the batch.

    Every process takes part in every round with the same number of rows, and knows the rewards of all of them, so that
    all decide alike.
    """

    # The trainer's own; declared for the type checker.
    args: Any
    model: Any
    state: Any
    accelerator: Any
    train_dataset: Any
    callback_handler: Any
    num_generations: Any
    reward_weights: Any
    reward_func_names: Any
    _metrics: Any
    _pending_extra_logs: Any
    _rollouts: Rollouts | None

    _dynamic_sampling = "none"
    _replay: Replay | None = None
    _short_before = False

    def _start_dynamic_sampling(self) -> None:
        """After the trainer is built: check what can be checked, and keep a state in its checkpoints."""
        if self.args.dynamic_sampling == "none":
            return
        judged_by = self.args.dynamic_sampling_reward
        if judged_by is not None and judged_by not in self.reward_func_names:
            raise ValueError(
                f"`dynamic_sampling_reward={judged_by!r}` is none of the rewards, which are "
                f"{', '.join(map(repr, self.reward_func_names))}."
            )
        if self.args.dynamic_sampling == "fresh" and not hasattr(self.train_dataset, "__len__"):
            raise ValueError(
                "`dynamic_sampling='fresh'` draws further prompts by their number, and a stream has none. Set "
                "`dynamic_sampling='same'`, or load the dataset as a whole."
            )
        self._dynamic_sampling = self.args.dynamic_sampling
        self.add_callback(SamplingState())  # type: ignore[attr-defined]

    @property
    def _sampling_state(self) -> SamplingState:
        return next(each for each in self.callback_handler.callbacks if isinstance(each, SamplingState))

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        score = super()._generate_and_score_completions  # type: ignore[misc]
        if self._dynamic_sampling == "none" or not self.model.training:
            return score(inputs)
        refuse_images(inputs[0])
        metrics = {name: list(values) for name, values in self._metrics["train"].items()}
        kept, self._replay, sampled = self._sample_until_full(inputs)
        num_tokens = self.state.num_input_tokens_seen
        self._metrics["train"].clear()
        self._metrics["train"].update(metrics)
        try:
            batch = score(kept)
        finally:
            self._replay = None
        inputs[:] = kept  # whoever passed the rows, such as a penalty by their language, knows those of the batch
        self.state.num_input_tokens_seen = num_tokens  # each generated token once, those of kept rows among them
        self._metrics["train"]["num_tokens"] = [num_tokens]
        for name, value in sampled.items():
            self._metrics["train"][f"dynamic/{name}"].append(value)
        return batch

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        if self._replay is None:
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)  # type: ignore[misc]
        rows = self._replay.rows
        for column in sorted({column for row in rows for column in row.extra}):
            self._pending_extra_logs[column].extend(row.extra.get(column) for row in rows)
        return self._replay.rewards

    def _sample_until_full(
        self, inputs: list[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], Replay, dict[str, float]]:
        """Rounds until there are enough prompts; returns this process' inputs and rollouts, and what is logged."""
        num_local, size = len(inputs), self.num_generations
        first_row = self.accelerator.process_index * num_local
        asked = gather_object([row for number, row in enumerate(inputs, first_row) if number % size == 0])
        num_groups = len(asked)
        kept: list[dict[str, Any]] = []
        rows: list[Row] = []
        rewards: list[Tensor] = []
        num_asked = num_spread = num_right = num_wrong = num_resampled = 0
        for number in range(1, self.args.dynamic_sampling_max_rounds + 1):
            own, rewards_NK = self._sample(asked)
            assert self._rollouts is not None
            num_resampled += self._rollouts.num_resampled
            judged_MG = self._judged(rewards_NK)
            has_spread = spread(judged_MG) >= SMALLEST_SPREAD
            num_asked += len(asked)
            num_spread += int(has_spread.sum())
            right, wrong = self._all_right_and_all_wrong(judged_MG[~has_spread])
            num_right, num_wrong = num_right + right, num_wrong + wrong

            chosen = has_spread.nonzero().flatten().tolist()[: num_groups - len(kept)]
            num_full = len(kept) + len(chosen)
            if number == self.args.dynamic_sampling_max_rounds:
                chosen += (~has_spread).nonzero().flatten().tolist()[: num_groups - num_full]
            kept += [asked[group] for group in chosen]
            rows += self._rows_of(chosen, own)
            rewards.append(rewards_NK.view(-1, size, rewards_NK.shape[1])[chosen].flatten(0, 1))
            if len(kept) == num_groups:
                break
            missing = num_groups - len(kept)
            if self._dynamic_sampling == "same":
                asked = [prompt for prompt, found in zip(asked, has_spread.tolist()) if not found][:missing]
            else:
                asked = self._fresh(groups_to_ask(missing, num_spread, num_asked, num_groups), inputs[0])
        if num_full < num_groups:
            self._warn_of_shortfall(num_groups - num_full, num_groups)

        local = rows[first_row : first_row + num_local]
        last = self._rollouts
        assert last is not None
        flags = torch.tensor([[row.faulty, row.hit_at_first] for row in local], dtype=torch.bool)
        steered = steered_slots(num_local, self.accelerator.process_index, size, self.args.num_steered)
        replay = Replay(
            local, torch.cat(rewards), Rollouts(steered, flags[:, 0], flags[:, 1], num_resampled, last.strength)
        )
        sampled = {
            "rounds": float(number),
            "generated_per_kept": num_asked / num_full if num_full else math.nan,
            "kept": num_spread / num_asked,
            "all_right": num_right / num_asked,
            "all_wrong": num_wrong / num_asked,
            "shortfall": 1 - num_full / num_groups,
        }
        return [dict(kept[(first_row + row) // size]) for row in range(num_local)], replay, sampled

    def _sample(self, asked: list[dict[str, Any]]) -> tuple[list[Row], Tensor]:
        """
        All rollouts of some prompts: this process' rows, and the rewards of all, `(N, K)`.

        Where the rows of that many prompts cannot be shared out evenly, the first prompts are asked once more, only to
        keep all processes in step.
        """
        size, processes = self.num_generations, self.accelerator.num_processes
        every = processes // math.gcd(processes, size)
        in_step = [asked[group % len(asked)] for group in range(math.ceil(len(asked) / every) * every)]
        num_local = len(in_step) * size // processes
        first_row = self.accelerator.process_index * num_local
        inputs = [dict(in_step[(first_row + row) // size]) for row in range(num_local)]
        prompts = [row["prompt"] for row in inputs]

        _, completion_ids, _, completions, logprobs, *_ = self._generate(prompts)  # type: ignore[attr-defined]
        rewards_NK = super()._calculate_rewards(inputs, prompts, completions, completion_ids)  # type: ignore[misc]
        extra, rollouts = dict(self._pending_extra_logs), self._rollouts
        self._pending_extra_logs.clear()
        assert rollouts is not None
        rows = [
            Row(
                completion_ids=list(completion_ids[row]),
                logprobs=None if logprobs is None else logprobs[row],
                faulty=bool(rollouts.faulty[row]),
                hit_at_first=bool(rollouts.hit_at_first[row]),
                extra={column: values[row] for column, values in extra.items()},
            )
            for row in range(num_local)
        ]
        return rows, rewards_NK[: len(asked) * size]

    def _rows_of(self, groups: Sequence[int], own: list[Row]) -> list[Row]:
        """The rows of some prompts of a round, from the processes that made them, in that order."""
        size = self.num_generations
        first_row = self.accelerator.process_index * len(own)
        wanted = set(groups)
        sent = gather_object([(number, row) for number, row in enumerate(own, first_row) if number // size in wanted])
        by_number = dict(sent)
        return [by_number[group * size + slot] for group in groups for slot in range(size)]

    def _judged(self, rewards_NK: Tensor) -> Tensor:
        """The reward whose spread counts, `(M, G)`: NaN for steered rollouts and where there is none."""
        judged_by = self.args.dynamic_sampling_reward
        if judged_by is None:
            rewards_N = total_reward(rewards_NK, self.reward_weights)
        else:
            rewards_N = rewards_NK[:, self.reward_func_names.index(judged_by)]
        judged_MG = rewards_N.view(-1, self.num_generations).clone()
        judged_MG[:, self.num_generations - self.args.num_steered :] = torch.nan
        self._sampling_state.see(judged_MG)
        return judged_MG

    def _all_right_and_all_wrong(self, same_MG: Tensor) -> tuple[int, int]:
        """How many prompts without spread lie above, and how many below, the middle of all rewards seen so far."""
        middle = self._sampling_state.middle()
        if middle is None:
            return 0, 0
        level_M = same_MG.nanmean(dim=1)
        return int((level_M > middle).sum()), int((level_M <= middle).sum())

    def _fresh(self, num: int, like: dict[str, Any]) -> list[dict[str, Any]]:
        """Further prompts, with the columns that the others have; the same ones on every process."""
        state, seed = self._sampling_state, self.args.seed
        indices = fresh_indices(state.num_drawn, num, len(self.train_dataset), seed)
        state.num_drawn += num
        return [{column: row[column] for column in like} for row in (self.train_dataset[index] for index in indices)]

    def _warn_of_shortfall(self, missing: int, num_groups: int) -> None:
        if not self._short_before:
            logger.warning(
                "After %d rounds, %d of %d prompts still have plain rollouts that all score the same; they stay in "
                "the batch. `dynamic/shortfall` logs their share. If it is high, the prompts are too easy or too hard "
                "for the model, or its sampling too sharp; `dynamic_sampling_max_rounds` allows for more.",
                self.args.dynamic_sampling_max_rounds,
                missing,
                num_groups,
            )
        self._short_before = True


def groups_to_ask(missing: int, num_spread: int, num_asked: int, at_most: int) -> int:
    """
    How many prompts the next round asks: enough to fill what is missing at the share that has had spread so far,
    `(num_spread + 1) / (num_asked + 2)`, but no more than a whole batch.
    """
    share = (num_spread + 1) / (num_asked + 2)
    return min(max(missing, math.ceil(missing / share)), at_most)


def fresh_indices(num_drawn: int, num: int, num_prompts: int, seed: int) -> list[int]:
    """
    Numbers of the next prompts: each of the dataset once, in a random order, before any comes again.

    Args:
        num_drawn (`int`):
            Prompts drawn before; all that must be remembered.
        num (`int`):
            Prompts to draw.
        num_prompts (`int`):
            Size of the dataset.
        seed (`int`):
            Of the order, which is another one each time the dataset is through.
    """
    chosen: list[int] = []
    while len(chosen) < num:
        lap, start = divmod(num_drawn + len(chosen), num_prompts)
        order = torch.randperm(num_prompts, generator=torch.Generator().manual_seed(seed + 1 + lap))
        chosen += order[start : start + num - len(chosen)].tolist()
    return chosen
