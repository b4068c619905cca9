"""[`synthesise`]: make rows for a data set that fire the features which its rows do not."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn

from ...eval_mode import eval_mode
from ...features.read.loading import load_model_and_tokenizer, load_saes, place_of, require_fit, require_order
from ...features.read.text_options import ALL_TEXTS, TextOptions
from ...features.read.texts import check_texts
from ...features.set.feature_set import FeatureSet
from ...hooks.blocks import unwrap
from ...measure.answers.folder import read_json, write_json
from ...model_loading import load_tokenizer
from ...model_records import is_path, recorded_model, weights_fingerprint
from ...saes.frozen import FrozenSAE
from .acceptance import Novelty
from .attempts import ACTIVATIONS_FOLDER, ATTEMPTS_FILE, REPORT_FILE, ROWS_FILE, Attempts, claim_folder
from .coverage_gain import CoverageGain, coverage_gain
from .generator import Generator, describe_generator
from .local_generator import LocalGenerator
from .prompts import COMPLETIONS, Templates
from .result import Synthesis, yields_of
from .row_forms import form_of
from .row_reader import RowReader
from .run import SynthesisRun
from .target_choice import choose_targets

Rows = str | os.PathLike | Iterable[Mapping[str, Any]]
SAEs = str | os.PathLike | FrozenSAE | Sequence[str | os.PathLike | FrozenSAE]

MISSING = "missing"
"""Instead of targets: the features that fire on the reference and never on the seeds."""


def synthesise(
    model: nn.Module | str,
    sae: str | os.PathLike | FrozenSAE,
    seeds: Rows,
    targets: FeatureSet | Sequence[int] | str | os.PathLike,
    generator: Generator,
    *,
    output_dir: str | os.PathLike,
    reference: Rows | None = None,
    label_column: str | None = None,
    what: str = "text",
    templates: Templates | None = None,
    positions: str = "response",
    block: int | None = None,
    site: str | None = None,
    check_sae: SAEs | None = None,
    check_blocks: Sequence[int] | None = None,
    only_missing: bool = True,
    max_seed_rate: float = 0.0,
    max_targets: int = 100,
    rows_per_target: int = 4,
    attempts_per_target: int = 16,
    max_rows: int | None = None,
    max_tokens: int | None = None,
    num_passages: int = 3,
    rewrite_share: float = 0.25,
    min_activation: float = 0.0,
    min_tokens: int = 8,
    duplicate_threshold: float = 0.7,
    batch_size: int = 16,
    tokenizer: Any = None,
    text_options: TextOptions = ALL_TEXTS,
    k: int | None = None,
    format: str | None = None,
    revision: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Synthesis:
    """
    Make rows that fire the features which the seeds do not.

    As published (Qwen-Scope, section 6, https://huggingface.co/papers/2605.11887): targets are features that matter
    and that never fire on the seeds; a generator is asked for rows about each of them; a row is kept only if its
    target fires. Here the request is made of passages on which the target fires and of its words.
    The acceptance makes coverage by the same SAE circular, so that the result also says what other SAEs find
    (`check_sae`, `check_blocks`).

    Every attempt is written to `output_dir` before the next batch begins. The same call goes on with an interrupted
    run and loses one batch at most; other seeds or settings in the same folder are an error. `synthetic.jsonl` has the
    rows in the form of the seeds, each with a column `provenance`, which TRL ignores.

    ```python
    made = synthesise(model, sae, "reviews.jsonl", "missing", LocalGenerator("HuggingFaceTB/SmolLM2-1.7B-Instruct"),
                      reference="more-reviews.jsonl", label_column="label", what="hotel review", output_dir="made")
    print(made)
    ```

    Args:
        model (`torch.nn.Module` or `str`), sae (`str`, `os.PathLike` or [`FrozenSAE`]):
            The model that the SAE was trained on, and the SAE that knows the targets.
        seeds (`str`, `os.PathLike` or iterable of rows):
            The data set to add to: texts, `messages`, or `prompt` and `completion`. All of one form.
        targets ([`FeatureSet`], `Sequence[int]`, `str` or `os.PathLike`):
            Features of the SAE: a set or its file, their numbers, or `"missing"` for those that fire on the reference
            and never on the seeds, the most relevant first ([`missing_features`]).
        generator ([`Generator`]):
            What writes the texts: [`LocalGenerator`], [`EndpointGenerator`], or any callable like them.
        output_dir (`str` or `os.PathLike`):
            Folder for everything that is made.
        reference (*optional*):
            Rows of the same form, on which targets fire: passages are taken from them. Never rows that you test on.
            Without it passages come from the seeds, and targets that never fire there have promoted words only.
        label_column (`str`, *optional*):
            Column with a label in seeds and reference. A new row gets the label of its passages, which the request
            asks for; a rewritten one keeps that of its seed. Nothing checks that the generator obeys.
        what (`str`, *optional*, defaults to `"text"`):
            What a row is, in the words of a request: `"hotel review"`, `"question about cooking"`.
        templates ([`Templates`], *optional*):
            Other requests; by default those of a conversation, or a list of examples for a generator with
            `completions`.
        positions (`str`, *optional*, defaults to `"response"`):
            Tokens on which the target must fire: `"response"`, `"prompt"`, `"all"` or `"last"`.
        block (`int`, *optional*), site (`str`, *optional*):
            Which SAE, where `sae` is not loaded yet.
        check_sae (*optional*), check_blocks (`Sequence[int]`, *optional*):
            SAEs that take no part and only measure the result: other ones, or other blocks of the same files.
        only_missing (`bool`, *optional*, defaults to `True`):
            Leave out targets that fire on more than `max_seed_rate` of the seeds.
        max_seed_rate (`float`, *optional*, defaults to `0.0`):
            Share of the seeds on which a feature may fire and still count as missing.
        max_targets (`int`, *optional*, defaults to `100`):
            Most targets with `"missing"`.
        rows_per_target, attempts_per_target (`int`, *optional*, defaults to `4` and `16`):
            Rows wanted for each target, and answers asked for until it is given up.
        max_rows (`int`, *optional*), max_tokens (`int`, *optional*):
            The run ends with the batch that reaches one of them: rows made, and tokens of prompts and answers as the
            SAE's model counts them. Without limit by default.
        num_passages (`int`, *optional*, defaults to `3`):
            Most passages that a request shows.
        rewrite_share (`float`, *optional*, defaults to `0.25`):
            Share of attempts that rewrite a random seed instead of asking for a new row.
        min_activation (`float`, *optional*, defaults to `0.0`):
            Activation above which the target fires.
        min_tokens (`int`, *optional*, defaults to `8`):
            Fewest tokens of a row.
        duplicate_threshold (`float`, *optional*, defaults to `0.7`):
            Share of runs of five characters in common from which a row repeats a seed, a reference row or another made
            row, or copies what its request showed.
        batch_size (`int`, *optional*, defaults to `16`):
            Attempts at once: what an interruption can lose.
        tokenizer (`PreTrainedTokenizerBase`, *optional*), text_options ([`TextOptions`], *optional*):
            The tokenizer of `model`, and how rows are read.
        k, format, revision (*optional*):
            As in [`load_sae`].
        seed (`int`, *optional*, defaults to `0`):
            Seed of the requests and of the sampling.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        [`Synthesis`]: the rows, the yield of each target, and the coverage before and after.

    Raises:
        ImportError: If datasketch or scipy is not installed (extra `synthesis`).
        ValueError: If there are no seeds or no targets, seeds or settings are not those of the folder, the SAE does
            not fit the model, the generator fails, or nothing that it writes is usable.
    """
    require_order(sae, seeds)
    _check_numbers(
        rows_per_target=rows_per_target,
        attempts_per_target=attempts_per_target,
        max_targets=max_targets,
        batch_size=batch_size,
        num_passages=num_passages,
        max_rows=max_rows,
        max_tokens=max_tokens,
        shares={"rewrite_share": rewrite_share, "max_seed_rate": max_seed_rate},
    )
    if PartialState().num_processes > 1:
        raise ValueError("A synthesis runs in one process. Start it without `accelerate launch` or `torchrun`.")
    folder, completions = Path(output_dir), bool(getattr(generator, "completions", False))
    templates = templates or (COMPLETIONS if completions else Templates())
    options = replace(text_options, max_texts=None)
    seed_rows = _read_rows(seeds, "seeds", options, label_column)
    form = form_of(seed_rows, options.text_column, label_column)
    reference_rows = None if reference is None else _read_rows(reference, "reference", options, label_column)
    if reference_rows is not None and form_of(reference_rows, options.text_column, label_column) != form:
        raise ValueError("The reference rows have another form than the seeds. Give rows of one form.")
    if form.has_question and completions:
        raise ValueError(
            "The seeds ask something, and a base model that goes on with a text (`completions`) answers nothing. Take "
            "a generator with a chat template, or seeds that are texts."
        )
    if not form.has_question and positions == "prompt":
        raise ValueError("The seeds are texts, which have no prompt: `positions='prompt'` needs rows that ask.")
    if isinstance(targets, str | os.PathLike) and targets != MISSING:
        targets = FeatureSet.from_pretrained(targets)
    if isinstance(targets, str) and reference_rows is None:
        raise ValueError("`targets='missing'` needs `reference`: rows on which the features fire that the seeds lack.")
    blocks = None if block is None else [block]
    (target_sae,) = _one(load_saes(sae, blocks, site, k=k, format=format, revision=revision))
    others: list[FrozenSAE] = []
    if check_sae is not None or check_blocks is not None:
        given = sae if check_sae is None else check_sae
        others = load_saes(given, check_blocks, site, k=k, format=format, revision=revision)
    known_tokenizer, _ = load_tokenizer(tokenizer, model if is_path(model) else unwrap(model))
    settings = {
        "model": recorded_model(model if is_path(model) else unwrap(model)),
        "weights": weights_fingerprint(model if is_path(model) else unwrap(model)),
        "sae": _recorded(target_sae),
        "check_saes": [_recorded(each) for each in others],
        "seeds": _hashed(seed_rows),
        "reference": None if reference_rows is None else _hashed(reference_rows),
        "targets": _recorded_targets(targets),
        "generator": describe_generator(generator),
        "templates": asdict(templates),
        "label_column": label_column,
        "text_column": options.text_column,
        "max_length": options.max_length,
        "chat_template_kwargs": dict(options.chat_template_kwargs or {}),
        "what": what,
        "positions": positions,
        "only_missing": only_missing,
        "max_seed_rate": max_seed_rate,
        "max_targets": max_targets,
        "rows_per_target": rows_per_target,
        "attempts_per_target": attempts_per_target,
        "max_rows": max_rows,
        "max_tokens": max_tokens,
        "num_passages": num_passages,
        "rewrite_share": rewrite_share,
        "min_activation": min_activation,
        "min_tokens": min_tokens,
        "duplicate_threshold": duplicate_threshold,
        "batch_size": batch_size,
        "seed": seed,
    }
    known = {"seeds": seed_rows, **({} if reference_rows is None else {"reference": reference_rows})}
    novelty = Novelty(form, known, duplicate_threshold, min_tokens)
    claim_folder(folder, settings)
    finished = read_json(folder / REPORT_FILE)
    if finished is not None:
        return Synthesis.from_dict(finished, _read_made(folder / ROWS_FILE), folder)

    network, known_tokenizer = load_model_and_tokenizer(model, known_tokenizer)
    for each in (target_sae, *others):
        require_fit(each, network)
    if isinstance(generator, LocalGenerator):
        generator.prepare(model if isinstance(model, str) else None, network, known_tokenizer)
    reader = RowReader(
        network, known_tokenizer, [target_sae, *others], positions, options, folder / ACTIVATIONS_FOLDER
    )
    with eval_mode(network):
        read = {name: reader.read(rows, name) for name, rows in known.items()}
        found, features = choose_targets(
            targets,
            network,
            known_tokenizer,
            target_sae,
            known,
            {name: each[0] for name, each in read.items()},
            form,
            folder,
            positions=positions,
            options=options,
            only_missing=only_missing,
            max_seed_rate=max_seed_rate,
            max_targets=max_targets,
        )
        run = SynthesisRun(
            network, known_tokenizer, target_sae.to(next(network.parameters()).device), generator, seed_rows, form,
            found, features, novelty, Attempts(folder / ATTEMPTS_FILE), templates, settings, options, folder, progress,
        )  # fmt: skip
        stopped = run.finish()
        rows = run.rows()
        coverage: list[CoverageGain] = []
        if rows:
            made = reader.read(rows, None)
            for number, each in enumerate([target_sae, *others]):
                reference_read = read["reference"][number] if "reference" in read else None
                coverage.append(
                    coverage_gain(
                        read["seeds"][number], made[number], reference_read, place_of(each), took_part=number == 0
                    )
                )
    if not rows:
        why = ", ".join(f"{reason} {number}" for reason, number in run.attempts.reasons().items())
        raise ValueError(
            f"No row was accepted of {len(run.attempts.records)} attempts ({why}; {stopped}). The attempts are in "
            f"{folder / ATTEMPTS_FILE}: look at what the generator writes, and try another generator, other `targets` "
            "or a `strength`, in another `output_dir`."
        )
    result = Synthesis(rows, yields_of(found, run.attempts), tuple(coverage), run.attempts.num_tokens, stopped, folder)
    _write_rows(folder / ROWS_FILE, rows)
    write_json(folder / REPORT_FILE, result.as_dict())
    return result


def _one(saes: Sequence[FrozenSAE]) -> Sequence[FrozenSAE]:
    if len(saes) != 1:
        raise ValueError(f"Targets are features of one SAE, got {len(saes)}. Others can measure, as `check_sae`.")
    return saes


def _read_rows(rows: Rows, name: str, options: TextOptions, label_column: str | None) -> list[Mapping[str, Any]]:
    read = check_texts(rows, options.split, group_column=label_column, text_column=options.text_column)
    if not read:
        raise ValueError(f"There are no {name}. Give rows, or a data file that holds some.")
    return read


def _hashed(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    content = json.dumps([dict(row) for row in rows], sort_keys=True, ensure_ascii=False, default=str)
    return {"number": len(rows), "sha256": hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]}


def _recorded(sae: FrozenSAE) -> dict[str, Any]:
    digest = hashlib.sha256(f"{sae.activation} {sae.k}".encode())
    for tensor in (sae.W_enc.T.contiguous(), sae.b_enc):
        digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return {"block": sae.block, "site": sae.site, "file": sae.source.file, "sha256": digest.hexdigest()[:16]}


def _recorded_targets(targets: Any) -> Any:
    if isinstance(targets, str):
        return targets
    if isinstance(targets, FeatureSet):
        return [list(each) for each in zip(targets.blocks, targets.sites, targets.feature_ids)]
    return [int(each) for each in targets]


def _check_numbers(*, shares: Mapping[str, float], **numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"`{name}` must be 1 or more, got {number}.")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"`{name}` must be from 0 to 1, got {share}.")


def _read_made(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(part, path)
