"""
Answers by an engine of vLLM in place of `generate`, plain or pushed, for what looks at thousands of them.

The model that reads activations or losses stays the one of transformers: with an engine, weights are in memory twice.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn

from ...measure.answers.vllm_answers import VLLMAnswers, require_vllm, vllm_answers
from ...serving import RowSettings, SteeredLLM, engine_arguments
from ...serving.pushes import fingerprint
from ..set.feature_set import FeatureSet

ENGINES = ("transformers", "vllm")

GPU_SHARE = 0.6
"""Share of a GPU's memory that the engine takes, unless told otherwise: the model of transformers is there too."""


class EngineAnswers:
    """
    An engine of vLLM whose answers can be pushed along the features of some sets, each by itself.

    It starts with the first [`open_for`], and again if a longer prompt or answer comes. Leaving its context stops it.

    Args:
        model (`str` or path):
            Folder or Hub id of a model, or folder of an adapter.
        tokenizer (`PreTrainedTokenizerBase`):
            The model's.
        feature_sets (`Sequence[FeatureSet]`, *optional*):
            What answers can be pushed along.
        batch_size (`int`, *optional*, defaults to `32`):
            Answers that will be asked for at once.
        engine_kwargs (`Mapping[str, Any]`, *optional*):
            Further arguments of `vllm.LLM`, e.g. `{"gpu_memory_utilization": 0.4}`; by default the engine takes
            [`GPU_SHARE`] of a GPU.

    Raises:
        ImportError: If vLLM is not installed.
        ValueError: If vLLM cannot answer for this model, or features cannot be pushed inside an engine.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        feature_sets: Sequence[FeatureSet] = (),
        *,
        batch_size: int = 32,
        engine_kwargs: Mapping[str, Any] | None = None,
    ):
        require_engine("vllm", model, engine_kwargs)
        self._model, self._tokenizer, self._batch_size = model, tokenizer, batch_size
        self._options = {"gpu_memory_utilization": GPU_SHARE, **(engine_kwargs or {})}
        self._sets = list(feature_sets)
        self._pushable = [_each_by_itself(each) for each in self._sets]
        for each in self._pushable:
            fingerprint(each)  # raises before any work
        self._room = (0, 0)
        self._engine: VLLMAnswers | None = None
        self._steered: list[SteeredLLM] = []
        self._running = ExitStack()

    def __enter__(self) -> "EngineAnswers":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine; [`open_for`] starts it again."""
        self._engine, self._steered = None, []
        self._running.close()

    def open_for(self, num_prompt_tokens: int, max_new_tokens: int) -> None:
        """
        Start the engine with room for prompts and answers of so many tokens, if it is not there already.

        Raises:
            ValueError: If they do not fit the model.
        """
        if self._engine is not None and num_prompt_tokens <= self._room[0] and max_new_tokens <= self._room[1]:
            return
        self.close()
        self._room = max(num_prompt_tokens, self._room[0]), max(max_new_tokens, self._room[1])
        steers: dict[str, Any] = {}
        if self._sets:
            folder = Path(self._running.enter_context(TemporaryDirectory(prefix="sae-posttrain-")))
            files = {f"set{i}": folder / f"set{i}.safetensors" for i in range(len(self._sets))}
            for file, each in zip(files.values(), self._pushable):
                each.save(file)
            steers = engine_arguments(files)
        self._engine = engine = self._running.enter_context(
            vllm_answers(
                self._model,
                self._tokenizer,
                num_prompt_tokens=self._room[0],
                max_new_tokens=self._room[1],
                batch_size=self._batch_size,
                model_kwargs={**self._options, **steers},
            )
        )
        self._steered = [SteeredLLM(engine._llm, each) for each in self._pushable]

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
        feature_set: FeatureSet | None = None,
        strength: Tensor | None = None,
        positions: str = "generated",
    ) -> tuple[list[list[int]], list[bool]]:
        """
        One answer to each prompt, as [`generate_answers`] gives it under [`steer`].

        Args:
            prompts, max_new_tokens, temperature, top_p, seed:
                As [`generate_answers`] takes them.
            feature_set ([`FeatureSet`], *optional*):
                One of the sets that the engine was made with, or one with the same features.
            strength (`torch.Tensor` of shape `(N, F)`, *optional*):
                How far, for each prompt and feature, in median residual norms.
            positions (`str`, *optional*, defaults to `"generated"`):
                As in [`steer`].

        Raises:
            ValueError: If the engine was not made with this set, or did not push.
        """
        self.open_for(max(map(len, prompts)), max_new_tokens)
        assert self._engine is not None
        engine: VLLMAnswers = self._engine
        armed: Any = nullcontext()
        if feature_set is not None:
            assert strength is not None
            steered = self._steered[self._number_of(feature_set)]
            engine = VLLMAnswers(steered, self._tokenizer, engine.config, engine.generation_config)
            armed = steered.armed([_row(of_row, positions) for of_row in strength.tolist()])
        with armed:
            return engine.answer(
                prompts, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed
            )

    def _number_of(self, feature_set: FeatureSet) -> int:
        wanted = fingerprint(_each_by_itself(feature_set))
        for number, each in enumerate(self._pushable):
            if fingerprint(each) == wanted:
                return number
        raise ValueError(
            f"The engine was not made to push along {', '.join(feature_set.names)}: name this set in `feature_sets`."
        )


def require_engine(engine: "str | EngineAnswers", model: Any, engine_kwargs: Mapping[str, Any] | None) -> None:
    """
    Check early that answers can be had as asked.

    Raises:
        ImportError: If vLLM is asked for and not installed.
        ValueError: If there is no such engine, vLLM cannot answer for this model, or `engine_kwargs` have no use.
    """
    if isinstance(engine, EngineAnswers):
        return
    if engine not in ENGINES:
        raise ValueError(f"`engine` must be one of {', '.join(ENGINES)}, got {engine!r}.")
    if engine == "vllm":
        require_vllm(model, None, engine_kwargs)
    elif engine_kwargs:
        raise ValueError("`engine_kwargs` are for `engine='vllm'`; transformers answers here.")


@contextmanager
def answering(
    engine: str | EngineAnswers,
    model: Any,
    network: nn.Module,
    tokenizer: Any,
    feature_sets: Sequence[FeatureSet] = (),
    *,
    batch_size: int,
    engine_kwargs: Mapping[str, Any] | None = None,
) -> Iterator[nn.Module | EngineAnswers]:
    """What answers: the model itself, an engine that stops when the context exits, or a given one, which runs on."""
    if engine == "transformers":
        yield network
    elif isinstance(engine, EngineAnswers):
        yield engine
    else:
        options: dict[str, Any] = {"batch_size": batch_size, "engine_kwargs": engine_kwargs}
        with EngineAnswers(model, tokenizer, feature_sets, **options) as opened:
            yield opened


def _each_by_itself(feature_set: FeatureSet) -> FeatureSet:
    """
    The same pushes under a name for each feature, since an engine pushes all of a name together.

    Without the model's name: whoever asks has compared that with the model, and an adapter is merged under another.
    """
    names = tuple(str(number) for number in range(len(feature_set)))
    return replace(feature_set, names=names, base_model="", fingerprint={}, notes={})


def _row(strength_F: Sequence[float], positions: str) -> RowSettings:
    pushed = {str(number): strength for number, strength in enumerate(strength_F) if strength}
    return RowSettings(pushed or 0.0, positions)
