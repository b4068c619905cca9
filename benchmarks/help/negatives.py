"""
Bad rollouts that come from no steering: the controls of `repetition.py`.

Each trainer is `SteeredGRPOTrainer` with a strength too small to change a token; what stands in the steered slots is
then replaced. Everything behind the rollouts (rewards, baselines, weights, loss) is the same code in every arm.
"""

import copy
import random
from abc import ABC, abstractmethod
from typing import Any

from sae_posttrain import SteeredGRPOTrainer
from sae_posttrain.rl.rollouts import Rollouts, show_fault

NO_STRENGTH = 1e-6  # in residual norms


class ReplacedNegatives(SteeredGRPOTrainer, ABC):
    """Steered GRPO whose steered slots are filled by `negatives`."""

    @abstractmethod
    def negatives(self, plain: list[list[int]], prompts: list, *args: Any, **kwargs: Any) -> list[list[int]]:
        """Answers in place of those that were sampled for the same prompts."""

    def _generate_single_turn(self, prompt_ids: list, *args: Any, **kwargs: Any):
        completion_ids, logprobs = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        if self.model.training:
            steered, _ = self._kinds.rows(len(prompt_ids))
            rows = steered.nonzero().flatten().tolist()
            prompts = [prompt_ids[row] for row in rows]
            negatives = self.negatives([completion_ids[row] for row in rows], prompts, *args, **kwargs)
            for row, ids in zip(rows, negatives):
                completion_ids[row] = ids
            faulty = show_fault(self._fault, completion_ids, self.eos_token_ids)
            self._rollouts = Rollouts(completion_ids, logprobs, steered, faulty, faulty.clone())
        return completion_ids, logprobs


class HandMadeLoops(ReplacedNegatives):
    """
    A loop written by hand: the beginning of an ordinary answer, and then its last few tokens over and over.

    Onset and period are drawn from those of the start model's own loops (onset at token 24 to 49, mostly 3 tokens).
    """

    def negatives(self, plain: list[list[int]], prompts: list, *args: Any, **kwargs: Any) -> list[list[int]]:
        drawn = random.Random(self.args.seed * 100_000 + self.state.global_step)
        return [self._loop(ids, drawn) for ids in plain]

    def _loop(self, ids: list[int], drawn: random.Random) -> list[int]:
        ids = [token for token in ids if token not in self.eos_token_ids]
        period = drawn.choice([2, 3, 3, 3, 4, 9, 13])
        kept = ids[: max(period, drawn.randrange(24, 50))]
        rounds = self.max_completion_length // period + 1
        return (kept + kept[-period:] * rounds)[: self.max_completion_length]


class GreedyNegatives(ReplacedNegatives):
    """The model's own greedy answer: more than half of those of the start model loop."""

    def negatives(self, plain: list[list[int]], prompts: list, *args: Any, **kwargs: Any) -> list[list[int]]:
        sampling = self.generation_config
        self.generation_config = copy.deepcopy(sampling)
        self.generation_config.update(do_sample=False, temperature=1.0, top_p=1.0)
        try:
            # not `super()`: this is a further generation beside the sampled one, without its push
            answers, _ = super(SteeredGRPOTrainer, self)._generate_single_turn(prompts, *args, **kwargs)
        finally:
            self.generation_config = sampling
        return answers
