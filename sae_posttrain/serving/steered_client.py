"""An engine behind HTTP (`vllm serve`, TRL's server mode) whose rows differ in steering and in sampling."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ..features.set.feature_set import FeatureSet
from .armed_rows import ArmedRows
from .engine import check_server
from .guard import NOTHING, Report, read_reports, require_pushed
from .row_settings import RowSettings

MAX_CALLS = 64
"""Calls that wait for the server at the same time."""

_OF_ROWS = ("completion_ids", "logprobs", "logprob_token_ids")


@dataclass(frozen=True)
class _Call:
    """Rows that one call to the server can ask for: of equal settings, as many for each of its prompts."""

    row: RowSettings
    prompt_length: int
    rows_of_prompt: dict[int, list[int]]


class SteeredClient(ArmedRows):
    """
    A client of a vLLM server that generates some rows of a group under steering, or with settings of their own.

    It passes everything on to the client. Only `generate` is its own: inside [`armed`](#armed), with `n` rows for
    each prompt (those of all processes, since one process asks the server for all), it posts the rows of equal
    settings together and all calls at the same time, so that the server batches them, and puts the answers back
    into the order of the rows. Afterwards it checks that the steered rows were pushed.

    Args:
        client (`trl.generation.vllm_client.VLLMClient` or a client with the same methods):
            It has `generate(prompts=…, n=…, generation_kwargs=…, …)`, `get_server_info()`, `base_url` and `session`
            (`requests.Session`).
        feature_set ([`FeatureSet`], *optional*):
            The features that rows are pushed along, one of the sets that the server was started with. Without it,
            rows differ in sampling only, and any vLLM server will do.
        unit (`"norm"` or `"raw"`, *optional*, defaults to `"norm"`):
            Unit of the strengths; the server's.

    Raises:
        ValueError: If the server cannot steer along these features; the message has the command that starts one.
    """

    def __init__(self, client: Any, feature_set: FeatureSet | None, *, unit: str = "norm"):
        super().__init__(client, feature_set, unit)
        if feature_set is not None:
            check_server(client.get_server_info(), feature_set, unit=unit)
        self._report()

    def generate(
        self,
        prompts: list[Any],
        features: list[Any] | None = None,
        n: int = 1,
        generation_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """
        The client's `generate`; inside [`armed`], with the settings of each row.

        Args:
            prompts (`list[list[int]]` or `list[str]`):
                One for each group.
            features (`list`, *optional*):
                The client's image features, one for each prompt.
            n (`int`, *optional*, defaults to 1):
                Answers to each prompt.
            generation_kwargs (`dict`, *optional*):
                Settings of the whole batch; a row's settings replace single ones.
            **options:
                Passed on to the client.

        Returns:
            `dict`: what the client returns: `prompt_ids`, one for each prompt, and `completion_ids`, `logprobs` and
            `logprob_token_ids`, one for each row.

        Raises:
            ValueError: If there are not `n` rows for each prompt, a steered row has images or a `steer` of its own,
                or the steered rows were not pushed.
        """
        if self._rows is None:
            return self._wrapped.generate(
                prompts=prompts, features=features, n=n, generation_kwargs=generation_kwargs, **options
            )
        rows, given = self._rows, generation_kwargs or {}
        if len(rows) != len(prompts) * n:
            raise ValueError(f"{len(rows)} rows are armed, but {n} answers to {len(prompts)} prompts are generated.")
        if "n" in given or any(name.startswith("steer") for name in given.get("vllm_xargs") or {}):
            raise ValueError("`generation_kwargs` sets `n` or a `steer` in `vllm_xargs`; the rows say both.")
        for i, row in enumerate(rows):
            if row.is_steered and features is not None and features[i // n] is not None:
                raise ValueError(
                    "A vLLM server cannot steer a prompt with images: its endpoint for them takes no cache salt. Use "
                    "vllm_mode='colocate'."
                )
        calls = _calls(rows, prompts, n)
        before = self._report()

        def post(call: _Call) -> dict[str, Any]:
            picked = list(call.rows_of_prompt)
            return self._wrapped.generate(
                prompts=[prompts[i] for i in picked],
                features=None if features is None else [features[i] for i in picked],
                n=len(call.rows_of_prompt[picked[0]]),
                generation_kwargs=self._request(call, given),
                **options,
            )

        with ThreadPoolExecutor(min(MAX_CALLS, len(calls))) as pool:
            answers = list(pool.map(post, calls))
        merged = _in_order(calls, answers, len(prompts), len(rows))
        require_pushed(before, self._report(), rows, [len(ids) for ids in merged["completion_ids"]])
        return merged

    def _request(self, call: _Call, given: dict[str, Any]) -> dict[str, Any]:
        if not call.row.is_steered:
            return {**given, **call.row.sampling}
        salt = call.row.salt(self._fingerprint, call.prompt_length)
        if given.get("cache_salt"):
            salt = f"{salt}|{given['cache_salt']}"
        xargs = {**(given.get("vllm_xargs") or {}), **call.row.extra_args(self._fingerprint)}
        return {**given, **call.row.sampling, "cache_salt": salt, "vllm_xargs": xargs}

    def _report(self) -> Report:
        if self._names is None:
            return NOTHING
        url = f"{self._wrapped.base_url}/collective_rpc"
        response = self._wrapped.session.post(url, json={"method": "steering_report"})
        how = "Start the server with the command that `sae-posttrain vllm-serve MODEL --features FILE --print` prints."
        if response.status_code == 404:
            raise ValueError(f"The vLLM server has no development endpoints, which say what was pushed. {how}")
        if response.status_code != 200:
            raise ValueError(
                f"The vLLM server cannot say what was pushed ({response.status_code}: {response.text[:200]}). {how}"
            )
        return read_reports(response.json()["results"], self._fingerprint, how)


def _calls(rows: Sequence[RowSettings], prompts: Sequence[Any], n: int) -> list[_Call]:
    """The rows, sorted into as few calls as can ask for them."""
    of_prompt: dict[tuple[int, str], list[int]] = {}
    for i, row in enumerate(rows):
        of_prompt.setdefault((i // n, row.key), []).append(i)
    calls: dict[tuple, _Call] = {}
    for (prompt, key), picked in of_prompt.items():
        row = rows[picked[0]]
        length = len(prompts[prompt]) if row.is_steered else 0  # the salt says where steering starts
        call = calls.setdefault((key, len(picked), length), _Call(row, length, {}))
        call.rows_of_prompt[prompt] = picked
    return list(calls.values())


def _in_order(
    calls: Sequence[_Call], answers: Sequence[dict[str, Any]], num_prompts: int, num_rows: int
) -> dict[str, Any]:
    merged: dict[str, Any] = {"prompt_ids": [None] * num_prompts}
    merged |= {name: [None] * num_rows if answers[0].get(name) is not None else None for name in _OF_ROWS}
    for call, answer in zip(calls, answers):
        for i, prompt_ids in zip(call.rows_of_prompt, answer["prompt_ids"], strict=True):
            merged["prompt_ids"][i] = prompt_ids
        picked = [row for rows in call.rows_of_prompt.values() for row in rows]
        for name in _OF_ROWS:
            if merged[name] is not None:
                for row, value in zip(picked, answer[name], strict=True):
                    merged[name][row] = value
    return merged
