"""
Watched answers from the engine of vLLM that a trainer of TRL makes its rollouts with.

All names of TRL's trainers and of its `VLLMGeneration` that the watch rests on are in this file.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ...measure.answers.end_of_turn import answer_end_ids
from ...measure.answers.generate import seeded


class TrainerEngine:
    """
    The trainer's engine (`vllm_mode="colocate"`) or server (`"server"`), asked as [`generate_answers`] is.

    All processes call the methods together, with equally many prompts each.

    Args:
        trainer (`GRPOTrainer`, or another trainer of TRL that takes `use_vllm`):
            The trainer that is watched.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.

    Raises:
        ValueError: If the trainer has no engine.
    """

    def __init__(self, trainer: Any, tokenizer: Any):
        self._generation: Any = getattr(trainer, "vllm_generation", None)
        if self._generation is None:
            raise ValueError(
                '`engine="vllm"` asks the engine that the trainer makes its rollouts with, and this trainer has none. '
                "Set `use_vllm=True` in its settings (GRPO and RLOO have it), or leave out `engine`."
            )
        self._trainer = trainer
        self._end_ids = answer_end_ids(getattr(trainer.model, "generation_config", None), tokenizer)

    def require_room(self, num_tokens: int) -> None:
        """Raise a `ValueError` if a prompt and its answer have more tokens than the engine has room for."""
        room = self._generation.max_model_length
        if self._generation.mode == "colocate" and room is not None and num_tokens > room:
            raise ValueError(
                f"A watched prompt and its answer have up to {num_tokens} tokens, and the trainer's engine has room "
                f"for {room}. Set `vllm_max_model_length` to {num_tokens} or more, or a smaller `max_new_tokens`."
            )

    def update(self) -> None:
        """Give the engine the weights of this step."""
        self._generation.sync_weights()
        self._trainer._last_loaded_step = self._trainer.state.global_step  # TRL need not do it again

    def seed_of(self, process: int) -> int:
        """The process whose seed this one takes: processes that share an engine draw the same random numbers."""
        shared = self._generation.tensor_parallel_size if self._generation.mode == "colocate" else 1
        return process - process % shared

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, temperature: float, top_p: float, seed: int
    ) -> tuple[list[list[int]], list[bool]]:
        """
        One answer to each prompt (token ids); greedily at temperature 0. A server draws by a seed of its own.

        Returns the token ids of each answer up to its end token, without it, and whether there was one.

        Raises:
            ValueError: If an answer was cut before `max_new_tokens`.
        """
        sampling = {
            "temperature": temperature,
            "top_p": top_p if temperature > 0 else 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "max_completion_length": max_new_tokens,
            "structured_outputs_regex": None,
            "generation_kwargs": {"stop_token_ids": self._end_ids},
        }
        with _attributes(self._generation, sampling), seeded(seed):
            told = self._generation.generate(prompts=[list(ids) for ids in prompts], images=None, num_generations=1)
        answers, finished = [], []
        for ids in told[1]:
            end = next((position for position, token in enumerate(ids) if token in self._end_ids), None)
            if end is None and len(ids) < max_new_tokens:
                raise ValueError(
                    f"The trainer's engine cut a watched answer at {len(ids)} tokens, before `max_new_tokens` "
                    f"({max_new_tokens}): there is no room for a longer prompt and answer. Start the server with a "
                    "larger `--max-model-len`, or set a smaller `max_new_tokens`."
                )
            answers.append(list(ids) if end is None else list(ids[:end]))
            finished.append(end is not None)
        return answers, finished


@contextmanager
def _attributes(owner: Any, values: dict[str, Any]) -> Iterator[None]:
    """Inside, the object has these attributes; afterwards its own again."""
    own = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in own.items():
            setattr(owner, name, value)
