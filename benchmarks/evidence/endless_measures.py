"""What every arm of `repetition.yaml` is measured by, on pages that no arm was trained on."""

from typing import Any

from benign import KINDS, built_passages, passages_of_pages, recall
from endless_arms import Bench, Trained
from held_out import measure_held_out
from pages import as_example
from shared_measures import copying, flags, prompt_ids

from sae_posttrain import find_loop
from sae_posttrain.measure.answers.generate import generate_answers
from sae_posttrain.measure.faults.scripts import count_scripts
from sae_posttrain.measure.faults.switching import right_language

__all__ = ["HELD", "fault", "measure", "measure_all"]

HELD = ("en", "es", "ko", "ru", "zh")
NUM_COPIED = 75  # ids whose pages are copied
NUM_REPEATING = 75  # pages that repeat themselves, and pages from which repetition is built
BATCH_SIZE = 100


def fault(run: dict[str, Any]) -> float:
    """Share of the sampled answers that repeat themselves without end, each language alike."""
    rates = ["".join(run["sampled"][lang]["endless"]) for lang in HELD]
    return sum(own.count("1") / len(own) for own in rates) / len(rates)


def measure(bench: Bench, trained: Trained, settings: dict[str, Any], ids: list[str], seed: int) -> dict[str, Any]:
    """What the dev pages choose by: sampled answers, and held-out loss by language."""
    rows = held_out_rows(bench, ids)
    with trained.answering():
        found = measure_held_out(trained.model, bench.tokenizer, rows, top_p=1.0, **settings["held_out"])
    sampling = settings["sampling"]
    answers = answered(bench, trained, settings, rows, seed, sampling["temperature"], sampling["num_samples"])
    return {"loss": found["loss"], "sampled": answers}


def measure_all(bench: Bench, trained: Trained, settings: dict[str, Any], ids: list[str], seed: int) -> dict[str, Any]:
    """[`measure`], greedy answers, copying and other repetition that belongs there."""
    tokenizer, model = bench.tokenizer, trained.model
    result = measure(bench, trained, settings, ids, seed)
    rows = held_out_rows(bench, ids[: settings["greedy"]["num_ids"]])
    result["greedy"] = answered(bench, trained, settings, rows, seed, 0.0, 1)
    repeating = held_out_rows(bench, bench.ids("test"))
    rows = held_out_rows(bench, ids[:NUM_COPIED])
    passages = {
        "page": passages_of_pages(tokenizer, repeating, NUM_REPEATING),
        **built_passages(tokenizer, rows, NUM_REPEATING),
    }
    with trained.answering():
        result["copying"] = copying(model, tokenizer, rows)
        result["benign"] = {kind: recall(model, passages[kind], tokenizer.pad_token_id) for kind in KINDS}
    return result


def held_out_rows(bench: Bench, ids: list[str]) -> list[dict[str, Any]]:
    """The pages of some ids in every language, as examples."""
    pages = bench.pages()
    return [as_example(pages[lang][page_id]) for page_id in ids for lang in HELD]


def answered(
    bench: Bench,
    trained: Trained,
    settings: dict[str, Any],
    rows: list[dict[str, Any]],
    seed: int,
    temperature: float,
    num_samples: int,
) -> dict[str, dict[str, Any]]:
    """By language, a string of flags for each sample, one character a page in the order of the pages."""
    tokenizer = bench.tokenizer
    samples = []
    for number in range(num_samples):
        seen = []
        for first in range(0, len(rows), BATCH_SIZE):
            batch = rows[first : first + BATCH_SIZE]
            answers, finished = generate_answers(
                trained.model,
                tokenizer,
                [prompt_ids(tokenizer, row) for row in batch],
                max_new_tokens=settings["sampling"]["max_new_tokens"],
                temperature=temperature,
                top_p=1.0,
                seed=(seed * 10 + number) * 10_000 + first,
                repetition_penalty=settings.get("repetition_penalty", 1.0),
            )
            seen += [
                seen_in(tokenizer.decode(answer, skip_special_tokens=True), answer, ended, row["lang"])
                for row, answer, ended in zip(batch, answers, finished)
            ]
        samples.append(seen)
    result: dict[str, dict[str, Any]] = {}
    for lang in HELD:
        own = [[one for one, row in zip(seen, rows) if row["lang"] == lang] for seen in samples]
        num_tokens = [one["num_tokens"] for seen in own for one in seen]
        result[lang] = {
            name: [flags([one[name] for one in seen]) for seen in own]
            for name in ("endless", "near_loop", "finished", "empty", "right_language", "switched")
        }
        result[lang]["mean_tokens"] = round(sum(num_tokens) / len(num_tokens), 2)
    return result


def seen_in(text: str, ids: list[int], finished: bool, lang: str) -> dict[str, Any]:
    """What one answer shows; `switched` is Chinese where another language was asked."""
    loop = find_loop(ids, finished=finished)
    return {
        "endless": loop.endless,
        "near_loop": loop.near_loop,
        "finished": finished,
        "empty": not text.strip(),
        "right_language": right_language(text, lang=lang),
        "switched": None if lang == "zh" else count_scripts(text).get("Han", 0) > 0,
        "num_tokens": len(ids),
    }
