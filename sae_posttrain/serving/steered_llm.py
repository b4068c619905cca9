"""An engine in this process (`vllm.LLM`, TRL's colocate mode) whose rows differ in steering and in sampling."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..features.set.feature_set import FeatureSet
from .armed_rows import ArmedRows
from .guard import NOTHING, Report, read_reports, require_pushed
from .row_settings import RowSettings

_HOW = "Make the engine with `LLM(model, **engine_arguments(features))` of `sae_posttrain.serving`."


class SteeredLLM(ArmedRows):
    """
    A `vllm.LLM` that generates some rows of a batch under steering, or with sampling parameters of their own.

    It passes everything on to the engine. Only `generate` is its own: inside [`armed`](#armed), with one row for each
    prompt (with `tp_group`, those of this process), it gives each row its own sampling parameters and a `cache_salt`
    to each steered row, and hands all rows to the engine in one call, so that plain and steered rows share batches.
    Afterwards it checks that the steered rows were pushed.

    ```python
    file = "loops.safetensors"
    llm = SteeredLLM(LLM(model, **engine_arguments(file)), FeatureSet.load(file))
    with llm.armed([RowSettings(), RowSettings(strength=1.5, sampling={"temperature": 0.7})]):
        plain, steered = llm.generate([prompt, prompt], SamplingParams(max_tokens=64))
    ```

    Args:
        llm (`vllm.LLM`):
            An engine made with [`engine_arguments`].
        feature_set ([`FeatureSet`], *optional*):
            The features that rows are pushed along, one of the sets that the engine was made with. Without it, rows
            differ in sampling only, and any `vllm.LLM` will do.
        unit (`"norm"` or `"raw"`, *optional*, defaults to `"norm"`):
            Unit of the strengths; the engine's.
        tp_group (`torch.distributed.ProcessGroup`, *optional*):
            Processes that hold parts of one engine (TRL's `vllm_tensor_parallel_size`). Each calls `generate` with
            the prompts of all, in the group's order, and arms its own rows: the rows are gathered over the group.

    Raises:
        ValueError: If the engine's workers cannot steer, or do not know these features.
    """

    def __init__(self, llm: Any, feature_set: FeatureSet | None, *, unit: str = "norm", tp_group: Any = None):
        super().__init__(llm, feature_set, unit)
        self._tp_group = tp_group
        self._report()

    def generate(self, prompts: Any, sampling_params: Any = None, **options: Any) -> list[Any]:
        """
        `vllm.LLM.generate`; inside [`armed`], with the settings of each row.

        Args:
            prompts (`Sequence`):
                As the engine takes them: token ids, texts, or dictionaries.
            sampling_params (`vllm.SamplingParams` or one for each prompt, *optional*):
                Settings of the whole batch; each row's settings change a copy.
            **options:
                Passed on to the engine.

        Returns:
            `list[vllm.RequestOutput]`, one for each prompt, in their order.

        Raises:
            ValueError: If there is not one row for each prompt, the sampling parameters steer already, a sampling
                parameter is unknown, or the steered rows were not pushed.
        """
        if self._rows is None:
            return self._wrapped.generate(prompts, sampling_params, **options)
        rows = self._all_rows()
        prompts = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
        if len(rows) != len(prompts):
            raise ValueError(f"{len(rows)} rows are armed, but {len(prompts)} prompts are generated from.")
        if sampling_params is None:
            sampling_params = self._wrapped.get_default_sampling_params()
        of_batch = [sampling_params] * len(rows) if not isinstance(sampling_params, Sequence) else sampling_params
        if len(of_batch) != len(rows):
            raise ValueError(f"Got {len(of_batch)} sampling parameters for {len(rows)} prompts.")
        before = self._report()
        outputs = self._wrapped.generate(
            [_salted(prompt, row, self._fingerprint) for prompt, row in zip(prompts, rows)],
            [self._params_of(row, params) for row, params in zip(rows, of_batch)],
            **options,
        )
        num_tokens = [sum(len(each.token_ids) for each in output.outputs) for output in outputs]
        require_pushed(before, self._report(), rows, num_tokens)
        return outputs

    def _params_of(self, row: RowSettings, params: Any) -> Any:
        given = params.extra_args or {}
        if any(name.startswith("steer") for name in given):
            raise ValueError("The sampling parameters have a `steer` of their own in `extra_args`. Remove it.")
        if not row.is_steered and not row.sampling:
            return params
        for name in row.sampling:
            if not hasattr(params, name):
                raise ValueError(f"`sampling` of a row names {name!r}, which is no sampling parameter of vLLM.")
        extra = {**given, **row.extra_args(self._fingerprint)} or None
        return params.__replace__(**{**row.sampling, "extra_args": extra})

    def _report(self) -> Report:
        if self._names is None:
            return NOTHING
        try:
            reports = self._wrapped.collective_rpc("steering_report")
        except NotImplementedError as error:  # vLLM's answer for a method that its workers do not have
            raise ValueError(f"The engine's workers cannot steer. {_HOW}") from error
        return read_reports(reports, self._fingerprint, _HOW)

    def _all_rows(self) -> list[RowSettings]:
        assert self._rows is not None
        if self._tp_group is None:
            return list(self._rows)
        gathered: list[Any] = [None] * torch.distributed.get_world_size(self._tp_group)
        torch.distributed.all_gather_object(gathered, self._rows, group=self._tp_group)
        return [row for rows in gathered for row in rows]


def _salted(prompt: Any, row: RowSettings, features: str) -> Any:
    if not row.is_steered:
        return prompt
    if isinstance(prompt, str):
        prompt = {"prompt": prompt}
    elif not isinstance(prompt, Mapping):
        prompt = {"prompt_token_ids": list(prompt)}
    mark: int | str = 0
    if "prompt_token_ids" in prompt:
        mark = len(prompt["prompt_token_ids"])
    elif "prompt" in prompt:
        mark = hashlib.sha256(str(prompt["prompt"]).encode()).hexdigest()[:16]
    else:
        raise ValueError("A steered row needs a prompt as text or token ids.")
    salt = row.salt(features, mark)
    given = prompt.get("cache_salt")
    return {**prompt, "cache_salt": f"{salt}|{given}" if given else salt}
