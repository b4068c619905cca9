"""
Sampling answers and measuring them: how often a model leaves its language, with intervals, resumable and comparable.

Everything is judged from `answers.jsonl`, one line an answer, which is also what is resumed and what is compared.
"""

import gzip
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .code_switching import (
    OWN_SCRIPTS,
    TARGET_SCRIPTS,
    THRESHOLDS,
    can_measure,
    find_switches,
    right_language,
    same_language,
)
from .intervals import paired_difference, wilson

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

ANSWERS_FILE = "answers.jsonl"
SETTINGS_FILE = "settings.json"
EVALUATION_FILE = "evaluation.json"

Message = dict[str, Any]


@dataclass(frozen=True)
class _Row:
    """A prompt to answer: `messages` is set for a conversation, `text` is what was asked in either case."""

    id: str | int
    lang: str
    text: str
    messages: list[Message] | None
    reference: str | None


def evaluate(
    model: "nn.Module | str | os.PathLike[str]",
    data: "str | os.PathLike[str] | Iterable[Mapping[str, Any]]",
    *,
    output_dir: str | os.PathLike[str],
    tokenizer: "PreTrainedTokenizerBase | str | os.PathLike[str] | None" = None,
    target_lang: str | None = "zh",
    group_column: str = "lang",
    chat_template: bool | None = None,
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
    progress: bool = True,
) -> dict[str, Any]:
    """
    Samples answers to prompts and measures how often they switch into another language.

    Sampling defaults are those of SASFT (temperature 1.0, top-p 0.8, no top-k, no repetition penalty; the model's own
    generation settings are not used). Answers whose language is the target, or shares its script, are left out of the
    switching rates; they have their right-language rate.

    Writes `answers.jsonl` (every answer with its spans), `evaluation.json` (what is returned, without the comparison)
    and `settings.json` to `output_dir`. An interrupted run goes on when called again with the same settings, and ends
    in the same answers as one that was not interrupted; a finished one is returned without loading the model.

    Args:
        model (`PreTrainedModel`, `PeftModel`, `str` or path):
            A loaded model, or a folder or Hub id of a model or an adapter. A loaded model stays where it is and is put
            back into the training mode it had.
        data (path, `datasets.Dataset` or iterable of `dict`):
            Rows, or a `.json`, `.jsonl`, `.json.gz` or `.jsonl.gz` file of them. Each has `prompt` (text, sent as one
            user turn, or a list of messages) or `messages` (a closing assistant turn is not sent and serves as
            reference), the language the answer should be in, and optionally `id`, and `reference` or `completion`.
        output_dir (path):
            Folder for the results; made if missing.
        tokenizer (`PreTrainedTokenizerBase`, `str` or path, *optional*):
            By default that of the model, or of an adapter's base model.
        target_lang (`str`, *optional*, defaults to `"zh"`):
            Switches into this language count. `None` counts every script that the answer's language does not use.
        group_column (`str`, *optional*, defaults to `"lang"`):
            Column that holds the language the answer should be in.
        chat_template (`bool`, *optional*):
            Whether prompts go through the tokenizer's chat template; by default if it has one.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*):
            Further variables of the template, e.g. `{"enable_thinking": False}`.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Longest answer, in tokens.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature; 0 takes the likeliest token each time.
        top_p (`float`, *optional*, defaults to `0.8`):
            Probability mass of the tokens that are sampled from.
        num_samples (`int`, *optional*, defaults to `1`):
            Answers to each prompt. The intervals of single rates count them as independent, the comparison does not.
        batch_size (`int`, *optional*, defaults to `32`):
            Answers generated at once. Another batch size gives other samples.
        limit (`int`, *optional*):
            Use the first so many prompts only.
        seed (`int`, *optional*, defaults to `0`):
            Seed; that of each batch follows from it and the batch's number.
        compare (path, *optional*):
            `output_dir` of a finished evaluation of another model on the same prompts: adds `comparison`, this one
            minus that one.
        device (`str`, *optional*):
            Where to put a model that is loaded here; by default an accelerator if there is one.
        model_kwargs (`Mapping[str, Any]`, *optional*):
            Further arguments of `from_pretrained`, e.g. `{"dtype": "bfloat16", "revision": "main"}`.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `dict`: `overall` and `groups` (by language), each with counts, rates and 95 % intervals; `settings`;
        `versions`; with `compare`, `comparison`. [`format_evaluation`] makes a table of it.

    Raises:
        ValueError: If the data, a language or a setting is not usable, before the model is loaded; if `output_dir`
            holds an evaluation with other settings; if the evaluation to compare with is not of the same prompts.
    """
    _check_settings(max_new_tokens, temperature, top_p, num_samples, batch_size, limit)
    rows = _read_rows(data, group_column, target_lang, limit)
    output_dir = Path(output_dir)
    other = _read_finished(Path(compare), rows, num_samples, target_lang) if compare is not None else None

    tokenizer, tokenizer_name = _load_tokenizer(tokenizer, model)
    use_template = bool(getattr(tokenizer, "chat_template", None)) if chat_template is None else chat_template
    settings = {
        "model": _model_name(model),
        "model_fingerprint": _fingerprint(model),
        "model_kwargs": {key: str(value) for key, value in sorted((model_kwargs or {}).items())},
        "tokenizer": tokenizer_name,
        "chat_template": use_template,
        "prompts_sha256": None,
        "num_prompts": len(rows),
        "target_lang": target_lang,
        "group_column": group_column,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "num_samples": num_samples,
        "batch_size": batch_size,
        "seed": seed,
    }
    prompts = _tokenize(tokenizer, rows, use_template, dict(chat_template_kwargs or {}))
    settings["prompts_sha256"] = _sha256(
        [[row.id, row.lang, row.text, row.reference, ids] for row, ids in zip(rows, prompts)]
    )
    _claim_folder(output_dir, settings)

    result = _read_json(output_dir / EVALUATION_FILE)
    if result is None:
        _write_answers(
            output_dir / ANSWERS_FILE,
            rows,
            prompts,
            settings,
            lambda: _load_model(model, device, model_kwargs or {}),
            tokenizer,
            progress,
        )
        result = _summarise(_read_answers(output_dir / ANSWERS_FILE), settings)
        _write_json(output_dir / EVALUATION_FILE, result)
    if other is not None:
        result["comparison"] = _compare(_read_answers(output_dir / ANSWERS_FILE), settings, other, str(compare))
    return result


def generate_answers(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 512,
    temperature: float = 1.0,
    top_p: float = 0.8,
    seed: int = 0,
) -> tuple[list[list[int]], list[bool]]:
    """
    Samples one answer to each prompt, all in one batch.

    The same batch and seed give the same answers on the same hardware and versions. The random state of the caller,
    the model's mode and its generation settings are left as they were; of the latter only the end tokens are used,
    together with that of the tokenizer.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A causal language model.
        tokenizer (`PreTrainedTokenizerBase`):
            Gives the padding token and an end token.
        prompts (`Sequence[Sequence[int]]`):
            Token ids of each prompt, of any lengths from 1 up.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Longest answer, in tokens.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature; 0 takes the likeliest token each time.
        top_p (`float`, *optional*, defaults to `0.8`):
            Probability mass of the tokens that are sampled from.
        seed (`int`, *optional*, defaults to `0`):
            Seed of this batch.

    Returns:
        `tuple[list[list[int]], list[bool]]`: the token ids of each answer up to its end token, without it, and whether
        there was one. `False` means that the answer was cut at `max_new_tokens`.

    Raises:
        ValueError: If a prompt is empty or does not fit the model together with its answer.
    """
    import torch
    from transformers import GenerationConfig

    if not prompts:
        return [], []
    if any(len(ids) == 0 for ids in prompts):
        raise ValueError("A prompt has no tokens; a model needs at least one to begin from.")
    longest = max(map(len, prompts))
    _check_length(model, longest, max_new_tokens)

    end_ids = _end_token_ids(model, tokenizer)
    pad_id = tokenizer.pad_token_id
    if pad_id is None:
        pad_id = end_ids[0] if end_ids else 0
    # What is not set here would be filled in from the model's own generation settings.
    sampling = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0, "min_p": 0.0}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        eos_token_id=end_ids or None,
        pad_token_id=pad_id,
        **sampling,
    )

    device = model.device
    input_ids = torch.full((len(prompts), longest), pad_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(prompts):
        input_ids[row, longest - len(ids) :] = torch.tensor(ids, dtype=torch.long)
        attention_mask[row, longest - len(ids) :] = 1
    with _eval_mode(model), _seeded(seed), torch.inference_mode():
        output = model.generate(
            input_ids=input_ids.to(device), attention_mask=attention_mask.to(device), generation_config=config
        )

    answers, finished = [], []
    for ids in output[:, longest:].tolist():
        end = next((position for position, token in enumerate(ids) if token in end_ids), None)
        answers.append(ids if end is None else ids[:end])
        finished.append(end is not None)
    return answers, finished


def format_evaluation(result: Mapping[str, Any]) -> str:
    """
    Table of an evaluation for people: rates in percent with 95 % intervals, one line a language.

    Args:
        result (`Mapping[str, Any]`):
            What [`evaluate`] returned, or the content of its `evaluation.json`.

    Returns:
        `str`: plain text of several lines.
    """
    settings = result["settings"]
    target = settings["target_lang"]
    into = f"into {target}" if target is not None else "into any other script"
    header = ["lang", "answers", "unexpected %", "any %", "right language %", "cut %", "empty %", "tokens"]
    table = [header]
    for name, group in [*result["groups"].items(), ("all", result["overall"])]:
        table.append(
            [
                name,
                str(group["num_answers"]),
                _format_rate(group["unexpected"] and group["unexpected"]["1"]),
                _format_rate(group["any"] and group["any"]["1"]),
                _format_rate(group["right_language"]),
                _format_rate(group["truncated"], interval=False),
                _format_rate(group["empty"], interval=False),
                f"{group['mean_tokens']:.0f}",
            ]
        )
    lines = [f"{settings['model']}: code-switching {into}", "", *_align(table), ""]
    lines.append("unexpected: characters that nothing excuses; any: the published rule, one character anywhere.")
    unmeasured = [name for name, group in result["groups"].items() if group["any"] is None]
    if unmeasured:
        lines.append(f"-: a switch {into} does not show in the script of {', '.join(unmeasured)}.")
    if settings["num_samples"] > 1:
        lines.append(
            f"{settings['num_samples']} answers to each prompt count as independent here; true intervals are wider."
        )
    if "comparison" in result:
        lines += ["", *_format_comparison(result["comparison"])]
    return "\n".join(lines) + "\n"


def _format_comparison(comparison: Mapping[str, Any]) -> list[str]:
    table = [["lang", "pairs", "unexpected, points", "p", "any, points", "p", "right language, points", "p"]]
    for name, group in [*comparison["groups"].items(), ("all", comparison["overall"])]:
        cells = [name, str(group["num_pairs"])]
        for measure in ("unexpected", "any", "right_language"):
            paired = group[measure]
            if paired is None:
                cells += ["-", "-"]
                continue
            low, high = 100 * paired["low"], 100 * paired["high"]
            cells.append(f"{100 * paired['difference']:+.2f} [{low:+.2f}, {high:+.2f}]")
            cells.append("-" if paired["p_value"] is None else f"{paired['p_value']:.3g}")
        table.append(cells)
    lines = [f"Difference to {comparison['other_model']} ({comparison['other']}), paired:", "", *_align(table), ""]
    lines.append("p: exact McNemar test; - where answers to one prompt repeat (intervals then resample prompts).")
    if comparison["different_settings"]:
        lines.append(f"Not the same in both: {', '.join(comparison['different_settings'])}.")
    return lines


def _format_rate(rate: Mapping[str, Any] | None, interval: bool = True) -> str:
    if rate is None:
        return "-"
    if not interval:
        return f"{100 * rate['rate']:.1f}"
    return f"{100 * rate['rate']:.2f} [{100 * rate['low']:.2f}, {100 * rate['high']:.2f}]"


def _align(table: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in table
    ]


# Settings and data: everything that can be wrong is found before the model is loaded.


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
    if temperature < 0:
        raise ValueError(f"`temperature` must be 0 (the likeliest token) or more, got {temperature}.")
    if not 0 < top_p <= 1:
        raise ValueError(f"`top_p` must be above 0 and at most 1 (no cut), got {top_p}.")


def _read_rows(data: Any, group_column: str, target_lang: str | None, limit: int | None) -> list[_Row]:
    source = f"{data}" if isinstance(data, (str, os.PathLike)) else "the data"
    raw_rows = _read_file(Path(data)) if isinstance(data, (str, os.PathLike)) else data
    rows: list[_Row] = []
    for index, raw in enumerate(raw_rows):
        if limit is not None and len(rows) == limit:
            break
        rows.append(_read_row(raw, index, group_column, f"Row {index} of {source}"))
    if not rows:
        raise ValueError(f"No prompts in {source}: it holds no rows.")

    seen: set[tuple[str | int, str]] = set()
    for row in rows:
        if (row.id, row.lang) in seen:
            raise ValueError(
                f"The id {row.id!r} occurs twice with the language {row.lang!r} in {source}. Make ids unique within a "
                "language, or remove the column `id` to have the rows numbered; `num_samples` gives several answers."
            )
        seen.add((row.id, row.lang))
    languages = sorted({row.lang for row in rows})
    others = [lang for lang in languages if target_lang is None or not same_language(lang, target_lang)]
    if others and not any(can_measure(lang, target_lang) for lang in others):
        raise ValueError(
            f"No row can show a switch into {target_lang!r}: the script of that language "
            f"({', '.join(TARGET_SCRIPTS.get(str(target_lang), ()))}) is allowed in all languages of {source} "
            f"({', '.join(languages)}). Latin is allowed everywhere. Choose another `target_lang`, or None for any "
            "foreign script."
        )
    return rows


def _read_file(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise ValueError(
            f"There is no data file {path}. Data is a .json, .jsonl, .json.gz or .jsonl.gz file; load anything else "
            "with `datasets.load_dataset` and pass the dataset."
        )
    name = path.name.removesuffix(".gz")
    if not name.endswith((".json", ".jsonl")):
        raise ValueError(
            f"{path} is not a .json, .jsonl, .json.gz or .jsonl.gz file; load it with `datasets.load_dataset` and "
            "pass the dataset."
        )
    opener: Callable[..., Any] = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as file:
        if name.endswith(".json"):
            try:
                rows = json.load(file)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path} is not valid JSON: {error}. A file with one object a line ends in .jsonl."
                ) from error
            if not isinstance(rows, list):
                raise ValueError(f"{path} holds a {type(rows).__name__}, not a list of rows.")
            yield from rows
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"Line {number} of {path} is not valid JSON: {error}.") from error


def _read_row(raw: Any, index: int, group_column: str, where: str) -> _Row:
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where} is a {type(raw).__name__}, not a dictionary of columns.")
    lang = raw.get(group_column)
    if lang is None:
        raise ValueError(
            f"{where} does not say the language of its answer: no column `{group_column}`. It has: "
            f"{', '.join(map(str, raw))}. Name another column with `group_column`."
        )
    try:
        can_measure(lang, None)
    except ValueError:
        raise ValueError(
            f"{where} has the unknown language {lang!r} in `{group_column}`. Known: {', '.join(sorted(OWN_SCRIPTS))}."
        ) from None

    reference = _content(raw.get("reference") or raw.get("completion"), where)
    prompt = raw.get("prompt")
    messages = raw.get("messages") if prompt is None else prompt
    text = ""
    if isinstance(messages, str):
        text, messages = messages, None
    elif isinstance(messages, Sequence) and messages:
        messages = [dict(message) for message in messages]
        if messages[-1].get("role") == "assistant" and prompt is None:
            reference = reference or _content([messages.pop()], where)
        text = _content(messages, where) or ""
    else:
        raise ValueError(
            f"{where} has nothing to answer: it needs a column `prompt` (text or messages) or `messages`. It has: "
            f"{', '.join(map(str, raw))}."
        )
    if not text.strip():
        raise ValueError(f"{where} has an empty prompt.")
    row_id = raw.get("id")
    row_id = index if row_id is None else row_id
    return _Row(row_id if isinstance(row_id, (str, int)) else str(row_id), lang, text, messages, reference)


def _content(value: Any, where: str) -> str | None:
    """The text of a string or of all messages of a list."""
    if value is None or isinstance(value, str):
        return value
    contents: list[Any] = [message.get("content") if isinstance(message, Mapping) else message for message in value]
    if not all(isinstance(content, str) for content in contents):
        raise ValueError(f"{where} has a message whose `content` is not text; only text can be evaluated.")
    return "\n".join(contents)


# Model and tokenizer.


def _is_path(model: Any) -> bool:
    return isinstance(model, (str, os.PathLike))


def _model_name(model: Any) -> str:
    if _is_path(model):
        return os.fspath(model)
    return getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__


def _load_tokenizer(tokenizer: Any, model: Any) -> tuple[Any, str]:
    from transformers import AutoTokenizer

    if tokenizer is not None and not _is_path(tokenizer):
        return tokenizer, getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    names = [os.fspath(tokenizer)] if tokenizer is not None else []
    if not names and _is_path(model):
        names.append(os.fspath(model))
        adapter = _read_json(Path(model) / "adapter_config.json")
        if adapter is not None and not (Path(model) / "tokenizer_config.json").is_file():
            names = [adapter["base_model_name_or_path"]]
    elif not names:
        names.append(getattr(getattr(model, "config", None), "_name_or_path", ""))
    try:
        if not names[0]:
            raise OSError("the model does not say where it was loaded from")
        return AutoTokenizer.from_pretrained(names[0]), names[0]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"No tokenizer for the model {_model_name(model)!r}: {error}. Pass `tokenizer=`.") from error


def _load_model(model: Any, device: str | None, model_kwargs: Mapping[str, Any]) -> Any:
    if not _is_path(model):
        return model
    import torch
    from transformers import AutoModelForCausalLM

    kwargs = {"dtype": "auto", **model_kwargs}
    if (Path(model) / "adapter_config.json").is_file():
        from peft import AutoPeftModelForCausalLM

        loaded = AutoPeftModelForCausalLM.from_pretrained(os.fspath(model), **kwargs)
    else:
        loaded = AutoModelForCausalLM.from_pretrained(os.fspath(model), **kwargs)
    if "device_map" in kwargs:
        return loaded
    if device is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = accelerator.type if accelerator is not None else "cpu"
    return loaded.to(device)


def _fingerprint(model: Any) -> str | None:
    """Tells two sets of weights apart that have the same name: a sample of them, hashed. `None` for a Hub id."""
    digest = hashlib.sha256()
    if _is_path(model):
        if not Path(model).is_dir():
            return None
        for path in sorted(Path(model).iterdir()):
            if path.suffix in (".safetensors", ".bin", ".pt") and path.is_file():
                digest.update(f"{path.name} {path.stat().st_size}".encode())
                with path.open("rb") as file:
                    digest.update(file.read(2**20))
                    file.seek(max(0, path.stat().st_size - 2**20))
                    digest.update(file.read())
        return digest.hexdigest()[:16]
    import torch

    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if parameter.device.type != "meta":
            values = parameter.detach().flatten()
            values = values[:: max(1, values.numel() // 1024)]
            digest.update(values.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _tokenize(tokenizer: Any, rows: list[_Row], use_template: bool, kwargs: dict[str, Any]) -> list[list[int]]:
    if use_template and not getattr(tokenizer, "chat_template", None):
        raise ValueError("The tokenizer has no chat template. Set one, or `chat_template=False` to send plain text.")
    prompts = []
    for row in rows:
        if use_template:
            messages = row.messages or [{"role": "user", "content": row.text}]
            encoded = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, **kwargs
            )
            prompts.append(list(encoded["input_ids"]))
            continue
        if row.messages and len(row.messages) > 1:
            raise ValueError(
                f"The prompt {row.id!r} has {len(row.messages)} messages, which plain text cannot tell apart. Use a "
                "tokenizer with a chat template, or give `prompt` as text."
            )
        prompts.append(list(tokenizer(row.text)["input_ids"]))
    return prompts


def _end_token_ids(model: Any, tokenizer: Any) -> list[int]:
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = list(ends) if isinstance(ends, (list, tuple)) else [ends]
    return sorted({end for end in [*ends, tokenizer.eos_token_id] if end is not None})


def _check_length(model: Any, num_prompt_tokens: int, max_new_tokens: int) -> None:
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and num_prompt_tokens + max_new_tokens > longest:
        advice = "Shorten the prompt, or leave it out"
        if num_prompt_tokens < longest:
            advice = f"Set `max_new_tokens` to {longest - num_prompt_tokens} or less, or shorten the prompt"
        raise ValueError(
            f"A prompt of {num_prompt_tokens} tokens and an answer of {max_new_tokens} do not fit the {longest} "
            f"positions of the model. {advice}."
        )


@contextmanager
def _eval_mode(model: Any) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kind = accelerator.type if accelerator is not None else "cuda"
    keeps_state = accelerator is not None and hasattr(getattr(torch, kind), "get_rng_state_all")
    devices = range(torch.accelerator.device_count()) if keeps_state else ()
    with torch.random.fork_rng(devices=devices, device_type=kind):
        torch.manual_seed(seed)  # seeds every device
        yield


# Answers: written batch by batch, so that what is there is always whole batches from the first on.


def _write_answers(
    path: Path,
    rows: list[_Row],
    prompts: list[list[int]],
    settings: Mapping[str, Any],
    load_model: Callable[[], Any],
    tokenizer: Any,
    progress: bool,
) -> None:
    from tqdm.auto import tqdm

    num_samples, batch_size = settings["num_samples"], settings["batch_size"]
    # Longest first: what does not fit fails at once, and batches hold prompts of like length.
    order = sorted(range(len(rows)), key=lambda index: -len(prompts[index]))
    jobs = [(index, sample) for index in order for sample in range(num_samples)]
    num_done = _keep_whole_batches(path, len(jobs), batch_size)
    if num_done == len(jobs):
        return

    model = load_model()
    _check_length(model, max(map(len, prompts)), settings["max_new_tokens"])
    with (
        path.open("a", encoding="utf-8") as file,
        tqdm(total=len(jobs), initial=num_done, unit="answer", desc="answers", disable=not progress) as bar,
    ):
        for start in range(num_done, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            answers, finished = generate_answers(
                model,
                tokenizer,
                [prompts[index] for index, _ in batch],
                max_new_tokens=settings["max_new_tokens"],
                temperature=settings["temperature"],
                top_p=settings["top_p"],
                seed=_batch_seed(settings["seed"], start // batch_size),
            )
            for (index, sample), ids, ended in zip(batch, answers, finished):
                answer = tokenizer.decode(ids, skip_special_tokens=True)
                judged = _judge(rows[index], sample, answer, len(ids), ended, settings)
                file.write(json.dumps(judged, ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(batch))


def _batch_seed(seed: int, batch: int) -> int:
    return int(np.random.SeedSequence([seed % 2**32, batch]).generate_state(1)[0])


def _keep_whole_batches(path: Path, num_jobs: int, batch_size: int) -> int:
    """Cuts the file behind its last whole batch; returns the number of answers that are left."""
    if not path.is_file():
        return 0
    content = path.read_bytes()
    ends = [found.end() for found in re.finditer(rb"\n", content)]
    num_done = len(ends) if len(ends) >= num_jobs else len(ends) // batch_size * batch_size
    with path.open("r+b") as file:
        file.truncate(ends[num_done - 1] if num_done else 0)
    return num_done


def _judge(
    row: _Row, sample: int, answer: str, num_tokens: int, finished: bool, settings: Mapping[str, Any]
) -> dict[str, Any]:
    target_lang = settings["target_lang"]
    judged: dict[str, Any] = {
        "id": row.id,
        "sample": sample,
        "lang": row.lang,
        "prompt": row.text,
        "answer": answer,
        "num_tokens": num_tokens,
        "finished": finished,
        "any": None,
        "unexpected": None,
        "num_any": None,
        "num_unexpected": None,
        "num_unexpected_in_think": None,
        "num_replacement_chars": answer.count("\ufffd"),
        "right_language": right_language(answer, lang=row.lang),
        "spans": [],
    }
    if can_measure(row.lang, target_lang):
        switches = find_switches(
            answer, lang=row.lang, prompt=row.text, reference=row.reference, target_lang=target_lang
        )
        judged.update(
            any=switches.any,
            unexpected=switches.unexpected,
            num_any=switches.num_any,
            num_unexpected=switches.num_unexpected,
            num_unexpected_in_think=switches.num_unexpected_in_think,
            spans=[asdict(span) for span in switches.spans],
        )
    return judged


def _read_answers(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# Rates.


def _summarise(answers: list[dict[str, Any]], settings: Mapping[str, Any]) -> dict[str, Any]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for answer in answers:
        groups.setdefault(answer["lang"], []).append(answer)
    return {
        "overall": _summarise_group(answers),
        "groups": {lang: _summarise_group(groups[lang]) for lang in sorted(groups)},
        "settings": dict(settings),
        "versions": _versions(),
    }


def _summarise_group(answers: list[dict[str, Any]]) -> dict[str, Any]:
    measured = [answer for answer in answers if answer["any"] is not None]
    return {
        "num_answers": len(answers),
        "num_measured": len(measured),
        "any": _rates_at_thresholds([answer["num_any"] for answer in measured]),
        "unexpected": _rates_at_thresholds([answer["num_unexpected"] for answer in measured]),
        "unexpected_in_think": _rate([answer["num_unexpected_in_think"] > 0 for answer in measured]),
        "right_language": _rate([a["right_language"] for a in answers if a["right_language"] is not None]),
        "truncated": _rate([not answer["finished"] for answer in answers]),
        "empty": _rate([not answer["answer"].strip() for answer in answers]),
        "broken_characters": _rate([answer["num_replacement_chars"] > 0 for answer in answers]),
        "mean_tokens": sum(answer["num_tokens"] for answer in answers) / len(answers),
    }


def _rates_at_thresholds(num_chars: list[int]) -> dict[str, Any] | None:
    if not num_chars:
        return None
    return {str(threshold): _rate([num >= threshold for num in num_chars]) for threshold in THRESHOLDS}


def _rate(flags: list[bool]) -> dict[str, Any] | None:
    if not flags:
        return None
    low, high = wilson(sum(flags), len(flags))
    return {"count": sum(flags), "n": len(flags), "rate": sum(flags) / len(flags), "low": low, "high": high}


def _versions() -> dict[str, str]:
    versions = {}
    for package in ("sae-posttrain", "torch", "transformers", "regex"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a checkout
            continue
    return versions


# Comparison with another evaluation.


def _read_finished(
    folder: Path, rows: list[_Row], num_samples: int, target_lang: str | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Settings and answers of the evaluation to compare with, if it is one of the same prompts."""
    result = _read_json(folder / EVALUATION_FILE)
    if result is None:
        raise ValueError(f"Nothing to compare with: {folder} holds no finished evaluation ({EVALUATION_FILE}).")
    other_target = result["settings"]["target_lang"]
    if other_target != target_lang:
        raise ValueError(
            f"{folder} measured switches into {other_target!r}, this evaluation into {target_lang!r}; set "
            "`target_lang` to the same."
        )
    answers = _read_answers(folder / ANSWERS_FILE)
    prompts = {(row.id, sample, row.lang): row.text for row in rows for sample in range(num_samples)}
    other_prompts = {_key(answer): answer["prompt"] for answer in answers}
    if prompts != other_prompts:
        only_here = [key for key in prompts if key not in other_prompts]
        only_there = [key for key in other_prompts if key not in prompts]
        changed = [key for key in prompts if key in other_prompts and prompts[key] != other_prompts[key]]
        example = (only_here + only_there + changed)[0]
        raise ValueError(
            f"{folder} did not answer the same prompts: of the answers by (id, sample, lang), {len(only_here)} are "
            f"only here, {len(only_there)} only there, and {len(changed)} have another prompt, e.g. {example}. Use "
            "the same `data`, `limit` and `num_samples` for both."
        )
    return result["settings"], answers


def _key(answer: Mapping[str, Any]) -> tuple[Any, int, str]:
    return answer["id"], answer["sample"], answer["lang"]


def _compare(
    answers: list[dict[str, Any]],
    settings: Mapping[str, Any],
    other: tuple[dict[str, Any], list[dict[str, Any]]],
    folder: str,
) -> dict[str, Any]:
    other_settings, other_answers = other
    before_by_key = {_key(answer): answer for answer in other_answers}
    pairs = [(before_by_key[_key(answer)], answer) for answer in answers]
    own = ("model", "model_fingerprint", "model_kwargs", "batch_size")
    return {
        "other": folder,
        "other_model": other_settings["model"],
        "different_settings": [
            name for name in settings if name not in own and settings[name] != other_settings.get(name)
        ],
        "overall": _compare_group(pairs),
        "groups": {
            lang: _compare_group([pair for pair in pairs if pair[1]["lang"] == lang])
            for lang in sorted({answer["lang"] for answer in answers})
        },
    }


def _compare_group(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    compared: dict[str, Any] = {"num_pairs": len(pairs)}
    for measure in ("any", "unexpected", "right_language"):
        judged = [(before, after) for before, after in pairs if None not in (before[measure], after[measure])]
        compared[measure] = None
        if judged:
            ids = [after["id"] for _, after in judged]
            difference = paired_difference(
                [before[measure] for before, _ in judged],
                [after[measure] for _, after in judged],
                # several samples of a prompt, or one text in several languages
                ids if len(set(ids)) < len(ids) else None,
            )
            compared[measure] = asdict(difference)
    return compared


# Files.


def _claim_folder(output_dir: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings into a new folder; checks that those of a used one are the same."""
    output_dir.mkdir(parents=True, exist_ok=True)
    stored = _read_json(output_dir / SETTINGS_FILE)
    if stored is None:
        if (output_dir / ANSWERS_FILE).exists():
            raise ValueError(
                f"{output_dir} has answers but no {SETTINGS_FILE} to say how they were made. Pick another "
                "`output_dir`, or delete it."
            )
        _write_json(output_dir / SETTINGS_FILE, settings)
        return
    differences = [
        f"{name} was {stored.get(name)!r}, is {settings.get(name)!r}"
        for name in {**stored, **settings}
        if stored.get(name) != settings.get(name)
    ]
    if differences:
        raise ValueError(
            f"{output_dir} holds an evaluation with other settings: {'; '.join(differences)}. Pick another "
            "`output_dir`, or delete it to start anew."
        )


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[:16]
