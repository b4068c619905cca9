"""What every arm of `code_switching.yaml` is measured by, on pages that no arm was trained on."""

import shutil
from pathlib import Path
from typing import Any

import torch
from code_switching_arms import TARGET, Bench, Trained, no_change
from held_out import measure_held_out
from intended import intended_rows
from pages import as_example
from shared_measures import copying, flags, prompt_ids
from switch_probability import switch_probability

from sae_posttrain import evaluate
from sae_posttrain.features.read.text_options import TextOptions
from sae_posttrain.features.read.texts import batches, tokenize
from sae_posttrain.measure.answers.folder import ANSWERS_FILE
from sae_posttrain.measure.answers.prompts import read_rows
from sae_posttrain.measure.faults.script_tokens import script_tokens

__all__ = ["OTHERS", "fault", "measure", "measure_all"]

NUM_INTENDED = 75
OTHERS = ("en", "es", "ko", "ru")


def fault(run: dict[str, Any]) -> float:
    """Mean probability of an answer to switch, each language alike."""
    values = run["switch_probability"].values()
    return sum(sum(own) / len(own) for own in values) / len(values)


def measure(bench: Bench, trained: Trained, settings: dict[str, Any], ids: list[str], seed: int) -> dict[str, Any]:
    """What the dev pages choose by: how likely answers are to switch, and held-out loss by language."""
    pages, tokenizer, model = bench.pages(), bench.tokenizer, trained.model
    held_out = [as_example(pages[lang][page_id]) for page_id in ids for lang in (*OTHERS, TARGET)]
    others = [row for row in held_out if row["lang"] != TARGET]
    losses = {}
    max_length = settings["training"]["max_length"]
    for rows, context in ((others, trained.answering), ([r for r in held_out if r["lang"] == TARGET], no_change)):
        with context():
            found = measure_held_out(model, tokenizer, rows, max_length=max_length, top_p=0.8)
        losses |= found["loss"]
    with trained.answering():
        probabilities = [
            measured.probability
            for start in range(0, len(others), 100)
            for measured in switch_probability(
                model,
                tokenizer,
                [prompt_ids(tokenizer, row) for row in others[start : start + 100]],
                script_tokens(tokenizer, TARGET).ids,
                seed=seed * 1000 + start,
                **settings["sampling"],
            )
        ]
    return {"loss": losses, "switch_probability": {lang: by_lang(others, probabilities, lang) for lang in OTHERS}}


def measure_all(bench: Bench, trained: Trained, settings: dict[str, Any], ids: list[str], seed: int) -> dict[str, Any]:
    """[`measure`], and sampled answers, Chinese where it belongs, and copying."""
    pages, tokenizer, model = bench.pages(), bench.tokenizer, trained.model
    result = measure(bench, trained, settings, ids, seed)
    sampled = {}
    for langs, context in ((OTHERS, trained.answering), ((TARGET,), no_change)):
        prompts = [as_example(pages[lang][page_id]) for lang in langs for page_id in ids]
        with context():
            sampled |= sample(model, tokenizer, prompts, settings["sampling"], seed, bench.scratch / "answers")
    result["sampled"] = sampled
    drawn = ids[:NUM_INTENDED]
    result["translate"] = chinese_where_asked(model, tokenizer, intended_rows(pages, drawn, "translate"), no_change)
    result["word"] = chinese_where_asked(model, tokenizer, intended_rows(pages, drawn, "word"), trained.answering)
    with trained.answering():
        result["copying"] = copying(model, tokenizer, [as_example(pages[lang][i]) for i in drawn for lang in OTHERS])
    return result


def by_lang(rows: list[dict[str, Any]], values: list[float], lang: str) -> list[float]:
    """Values of the rows of a language, to four digits, in order of the pages."""
    return [round(value, 4) for row, value in zip(rows, values) if row["lang"] == lang]


def sample(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], sampling: dict[str, Any], seed: int, folder: Path
) -> dict[str, dict[str, Any]]:
    """One sampled answer a page: flags by language, one character a page, in the order of the pages."""
    shutil.rmtree(folder, ignore_errors=True)
    prompts = [{"id": f"{row['lang']}/{row['id']}", "lang": row["lang"], "prompt": row["prompt"]} for row in rows]
    evaluate(
        model,
        prompts,
        output_dir=folder,
        tokenizer=tokenizer,
        target_lang=TARGET,
        batch_size=100,
        seed=seed,
        progress=False,
        **sampling,
    )
    answers = [dict(answer) for answer in read_rows(folder / ANSWERS_FILE)]
    if len(answers) != len(prompts):
        raise ValueError(f"{len(answers)} answers to {len(prompts)} prompts: does another process write to {folder}?")
    result = {}
    for lang in sorted({row["lang"] for row in rows}):
        own = [answer for answer in answers if answer["lang"] == lang]
        result[lang] = {
            "switched": flags([answer["any"] for answer in own]),
            "unexpected": flags([answer["unexpected"] for answer in own]),
            "right_language": flags([answer["right_language"] for answer in own]),
            "endless": flags([answer["loop"]["endless"] for answer in own]),
            "finished": flags([answer["finished"] for answer in own]),
            "empty": flags([not answer["answer"].strip() for answer in own]),
            "mean_tokens": round(sum(answer["num_tokens"] for answer in own) / len(own), 2),
        }
    return result


def chinese_where_asked(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], context: Any
) -> dict[str, list[float]]:
    """
    How likely tokens of Han are where the reference has one, after a prompt that asks for Chinese: in each row at the
    first of them, and the mean over all. Read off the reference, since so small a model does not follow the request.
    """
    texts = tokenize(
        [{"lang": "", "messages": [*row["prompt"], *row["completion"]]} for row in rows],
        tokenizer,
        TextOptions(max_length=64),
    )
    is_han = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    is_han[list(script_tokens(tokenizer, TARGET).ids)] = True
    first, mean = [], []
    with context(), torch.inference_mode():
        for batch in batches(texts, [""], 50):
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
            mass_BT = logits[:, :-1].float().softmax(dim=-1)[..., is_han].sum(dim=-1)
            asked_BT = batch.counted[:, 1:] & is_han[batch.input_ids[:, 1:]]
            for mass_T, asked_T in zip(mass_BT, asked_BT):
                if asked_T.any():  # some titles are Latin in Chinese too
                    first.append(round(float(mass_T[asked_T][0]), 4))
                    mean.append(round(float(mass_T[asked_T].mean()), 4))
    return {"first": first, "mean": mean}
