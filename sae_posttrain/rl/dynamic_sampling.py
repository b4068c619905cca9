"""
DAPO's dynamic sampling: a prompt whose plain rollouts all score the same teaches nothing, so other rollouts take its
place until the batch is full.

Legend of the shapes: N rollouts of all processes, B of this one, G of a prompt, K rewards, M prompts.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from .advantages import SMALLEST_SPREAD, spread, total_reward
from .config import SteeredGRPOConfig
from .refusals import refuse_images
from .rollouts import Rollouts, steered_slots

logger = logging.getLogger(__name__)

Row = dict[str, Any]
"""A row of the dataset."""

Generate = Callable[[list[Row]], Rollouts]
"""Generates and scores one rollout for each row of this process."""


@dataclass(frozen=True)
class _Rollout:
    """One rollout, as it goes from the process that made it to the one that trains on it."""

    completion_ids: list[int]
    logprobs: list[float] | None
    faulty: bool
    hit_at_first: bool
    sampling_logps: list[float] | None
    extra: dict[str, Any]


class SamplingState(TrainerCallback, ExportableState):
    """
    What dynamic sampling keeps in checkpoints.

    Attributes:
        num_drawn (`int`):
            Number of further prompts drawn so far.
        lowest, highest (`float`, *optional*):
            Lowest and highest reward of a plain rollout so far. `None` before there is one.
    """

    def __init__(self) -> None:
        self.num_drawn = 0
        self.lowest: float | None = None
        self.highest: float | None = None

    def see(self, rewards: Tensor) -> None:
        """Take in rewards of plain rollouts; NaN where there is none."""
        seen = rewards[~rewards.isnan()].tolist()
        if seen:
            self.lowest = min(seen if self.lowest is None else [self.lowest, *seen])
            self.highest = max(seen if self.highest is None else [self.highest, *seen])

    def middle(self) -> float | None:
        """Halfway between the lowest and the highest reward; `None` before two different rewards were seen."""
        if self.lowest is None or self.highest is None or self.lowest == self.highest:
            return None
        return (self.lowest + self.highest) / 2

    def state(self) -> dict[str, dict[str, Any]]:
        """What a checkpoint keeps: the arguments of a new one, and the values to set on it."""
        return {
            "args": {},
            "attributes": {"num_drawn": self.num_drawn, "lowest": self.lowest, "highest": self.highest},
        }

    def on_train_begin(self, args, state, control, **kwargs):
        """Go on from the checkpoint that training resumes from, if that run sampled dynamically too."""
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())["attributes"]
        num_drawn, lowest, highest = (saved.get(name) for name in ("num_drawn", "lowest", "highest"))
        numbers = all(value is None or isinstance(value, int | float) for value in (lowest, highest))
        if not numbers or not isinstance(num_drawn, int) or num_drawn < 0:
            raise ValueError(
                f"The checkpoint holds {str(num_drawn)[:50]} drawn prompts and rewards from {str(lowest)[:50]} to "
                f"{str(highest)[:50]}: its `trainer_state.json` is damaged. Resume from another one."
            )
        self.num_drawn, self.lowest, self.highest = num_drawn, lowest, highest


class DynamicSampler:
    """
    Replaces prompts without spread before anything is computed from their rollouts
    (https://huggingface.co/papers/2503.14476, section 3.2).

    A round generates and scores all rollouts of its prompts. A prompt is kept if its plain rollouts differ in reward.
    Kept prompts stay in the order in which they were asked. Rounds go on until there are as many prompts as the
    trainer asked for. After `dynamic_sampling_max_rounds` rounds, prompts of the last round that have no spread fill
    the open places.

    Every process takes part in every round with the same number of rows and knows the rewards of all, so all processes
    decide alike.

    Args:
        generate (`Callable[[list[dict]], Rollouts]`):
            Generates and scores one rollout for each row of this process. All processes call it together.
        args ([`SteeredGRPOConfig`]):
            Settings.
        accelerator (`accelerate.Accelerator`):
            Tells the number of processes and which one this is.
        dataset (`Dataset`):
            Where fresh prompts are drawn from.
        reward_names (`Sequence[str]`):
            Names of the rewards, as they are logged.
        reward_weights (`torch.Tensor` of shape `(K,)`):
            Weights of the rewards.

    Raises:
        ValueError: If there is no reward of the name that is judged by, or the dataset is a stream and fresh prompts
            are wanted.
    """

    def __init__(
        self,
        generate: Generate,
        args: SteeredGRPOConfig,
        *,
        accelerator: Any,
        dataset: Any,
        reward_names: Sequence[str],
        reward_weights: Tensor,
    ):
        judged_by = args.dynamic_sampling_reward
        if judged_by is not None and judged_by not in reward_names:
            raise ValueError(
                f"`dynamic_sampling_reward={judged_by!r}` is none of the rewards, which are "
                f"{', '.join(map(repr, reward_names))}."
            )
        if args.dynamic_sampling == "fresh" and not hasattr(dataset, "__len__"):
            raise ValueError(
                "`dynamic_sampling='fresh'` draws further prompts by their number, and a stream has none. Set "
                "`dynamic_sampling='same'`, or load the dataset as a whole."
            )
        self._generate = generate
        self._args = args
        self._accelerator = accelerator
        self._dataset = dataset
        self._judged_column = None if judged_by is None else list(reward_names).index(judged_by)
        self._reward_weights = reward_weights
        assert args.num_generations is not None
        self._size: int = args.num_generations
        self._short_before = False

    def fill(self, inputs: list[Row], state: SamplingState) -> tuple[list[Row], Rollouts, dict[str, float]]:
        """
        Sample until the batch is full.

        Args:
            inputs (`list[dict]`):
                Rows of this process, as the trainer drew them.
            state ([`SamplingState`]):
                What checkpoints keep; moved on.

        Returns:
            The rows of this process that were kept, their rollouts with the rewards of all processes, and what is
            logged.

        Raises:
            ValueError: If the rows hold images.
        """
        refuse_images(inputs[0])
        args, size, num_local = self._args, self._size, len(inputs)
        first_row = self._accelerator.process_index * num_local
        asked = gather_object([row for number, row in enumerate(inputs, first_row) if number % size == 0])
        num_prompts = len(asked)
        kept: list[Row] = []
        rows: list[_Rollout] = []
        rewards: list[Tensor] = []
        num_asked = num_spread = num_right = num_wrong = num_resampled = 0
        for number in range(1, args.dynamic_sampling_max_rounds + 1):
            made, rewards_NK = self._sample(asked)
            num_resampled += made.num_resampled
            judged_MG = self._judged(rewards_NK)
            state.see(judged_MG)
            has_spread = spread(judged_MG) >= SMALLEST_SPREAD
            num_asked += len(asked)
            num_spread += int(has_spread.sum())
            right, wrong = all_right_and_all_wrong(judged_MG[~has_spread], state.middle())
            num_right, num_wrong = num_right + right, num_wrong + wrong

            chosen = has_spread.nonzero().flatten().tolist()[: num_prompts - len(kept)]
            num_full = len(kept) + len(chosen)
            if number == args.dynamic_sampling_max_rounds:
                chosen += (~has_spread).nonzero().flatten().tolist()[: num_prompts - num_full]
            kept += [asked[prompt] for prompt in chosen]
            rows += self._exchange(made, chosen)
            rewards.append(rewards_NK.view(-1, size, rewards_NK.shape[1])[chosen].flatten(0, 1))
            missing = num_prompts - len(kept)
            if not missing:
                break
            if args.dynamic_sampling == "same":
                asked = [prompt for prompt, found in zip(asked, has_spread.tolist()) if not found][:missing]
            else:
                asked = self._fresh(prompts_to_ask(missing, num_spread, num_asked, num_prompts), inputs[0], state)
        if num_full < num_prompts:
            self._warn_of_shortfall(num_prompts - num_full, num_prompts)

        rollouts = self._joined(rows[first_row : first_row + num_local], torch.cat(rewards), num_resampled, made)
        sampled = {
            "rounds": float(number),
            "generated_per_kept": num_asked / num_full if num_full else math.nan,
            "kept": num_spread / num_asked,
            "all_right": num_right / num_asked,
            "all_wrong": num_wrong / num_asked,
            "shortfall": 1 - num_full / num_prompts,
        }
        return [dict(kept[(first_row + row) // size]) for row in range(num_local)], rollouts, sampled

    def _sample(self, asked: list[Row]) -> tuple[Rollouts, Tensor]:
        """
        All rollouts of some prompts: those of this process, and the rewards of all processes, `(N, K)`.

        Where the rows of that many prompts cannot be shared out evenly, the first prompts are asked once more, only to
        keep all processes in step.
        """
        processes = self._accelerator.num_processes
        every = processes // math.gcd(processes, self._size)
        in_step = [asked[prompt % len(asked)] for prompt in range(math.ceil(len(asked) / every) * every)]
        num_local = len(in_step) * self._size // processes
        first_row = self._accelerator.process_index * num_local
        made = self._generate([dict(in_step[(first_row + row) // self._size]) for row in range(num_local)])
        assert made.rewards is not None
        return made, made.rewards[: len(asked) * self._size]

    def _exchange(self, made: Rollouts, prompts: Sequence[int]) -> list[_Rollout]:
        """The rollouts of some prompts of a round, from the processes that made them, in the order of `prompts`."""
        size, wanted = self._size, set(prompts)
        first_row = self._accelerator.process_index * len(made.completion_ids)
        own = [
            (
                first_row + row,
                _Rollout(
                    completion_ids=list(ids),
                    logprobs=None if made.logprobs is None else made.logprobs[row],
                    faulty=bool(made.faulty[row]),
                    hit_at_first=bool(made.hit_at_first[row]),
                    sampling_logps=None if made.sampling_logps is None else made.sampling_logps[row],
                    extra={column: values[row] for column, values in made.extra.items()},
                ),
            )
            for row, ids in enumerate(made.completion_ids)
            if (first_row + row) // size in wanted
        ]
        by_number = dict(gather_object(own))
        return [by_number[prompt * size + slot] for prompt in prompts for slot in range(size)]

    def _joined(self, rows: list[_Rollout], rewards: Tensor, num_resampled: int, last: Rollouts) -> Rollouts:
        """The kept rollouts of this process, as if one generation had made them."""
        columns = sorted({column for row in rows for column in row.extra})
        return Rollouts(
            completion_ids=[row.completion_ids for row in rows],
            logprobs=None if all(row.logprobs is None for row in rows) else [row.logprobs for row in rows],
            steered=steered_slots(len(rows), self._accelerator.process_index, self._size, self._args.num_steered),
            sampling_logps=[row.sampling_logps for row in rows] if last.sampling_logps is not None else None,
            faulty=torch.tensor([row.faulty for row in rows], dtype=torch.bool),
            hit_at_first=torch.tensor([row.hit_at_first for row in rows], dtype=torch.bool),
            num_resampled=num_resampled,
            strength=last.strength,
            rewards=rewards,
            extra={column: [row.extra.get(column) for row in rows] for column in columns},
        )

    def _judged(self, rewards_NK: Tensor) -> Tensor:
        """The reward whose spread counts, `(M, G)`: NaN for steered rollouts and where there is none."""
        if self._judged_column is None:
            rewards_N = total_reward(rewards_NK, self._reward_weights)
        else:
            rewards_N = rewards_NK[:, self._judged_column]
        judged_MG = rewards_N.view(-1, self._size).clone()
        judged_MG[:, self._size - self._args.num_steered :] = torch.nan
        return judged_MG

    def _fresh(self, num: int, like: Row, state: SamplingState) -> list[Row]:
        """Further prompts, with the columns that the others have; the same prompts on every process."""
        indices = fresh_indices(state.num_drawn, num, len(self._dataset), self._args.seed)
        state.num_drawn += num
        return [{column: row[column] for column in like} for row in (self._dataset[index] for index in indices)]

    def _warn_of_shortfall(self, missing: int, num_prompts: int) -> None:
        if not self._short_before:
            logger.warning(
                "After %d rounds, %d of %d prompts still have plain rollouts that all score the same; they stay in "
                "the batch. `dynamic/shortfall` logs their share. If it is high, the prompts are too easy or too hard "
                "for the model, or its sampling too sharp; `dynamic_sampling_max_rounds` allows for more.",
                self._args.dynamic_sampling_max_rounds,
                missing,
                num_prompts,
            )
        self._short_before = True


def all_right_and_all_wrong(same_MG: Tensor, middle: float | None) -> tuple[int, int]:
    """Numbers of prompts without spread whose reward lies above, and not above, the middle of all rewards so far."""
    if middle is None:
        return 0, 0
    level_M = same_MG.nanmean(dim=1)
    return int((level_M > middle).sum()), int((level_M <= middle).sum())


def prompts_to_ask(missing: int, num_spread: int, num_asked: int, at_most: int) -> int:
    """
    Number of prompts that the next round asks, at most a whole batch.

    It asks enough to fill the open places if the share of prompts with spread stays as it was:
    `(num_spread + 1) / (num_asked + 2)`.
    """
    share = (num_spread + 1) / (num_asked + 2)
    return min(max(missing, math.ceil(missing / share)), at_most)


def fresh_indices(num_drawn: int, num: int, num_prompts: int, seed: int) -> list[int]:
    """
    Numbers of the next prompts, drawn without replacement until every prompt of the dataset was drawn once.

    Args:
        num_drawn (`int`):
            Number of prompts drawn before. Nothing else must be remembered.
        num (`int`):
            Number of prompts to draw.
        num_prompts (`int`):
            Size of the dataset.
        seed (`int`):
            Seed of the random order, which changes each time the dataset is through.
    """
    chosen: list[int] = []
    while len(chosen) < num:
        lap, start = divmod(num_drawn + len(chosen), num_prompts)
        order = torch.randperm(num_prompts, generator=torch.Generator().manual_seed(seed + 1 + lap))
        chosen += order[start : start + num - len(chosen)].tolist()
    return chosen
