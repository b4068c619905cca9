"""What every arm of `same_script_<target>.yaml` is measured by: lines in another language, told by identification."""

import shutil
from typing import Any

from code_switching_arms import Bench, Trained
from held_out import measure_held_out
from pages import as_example
from shared_measures import copying, flags

from sae_posttrain import evaluate
from sae_posttrain.measure.answers.folder import ANSWERS_FILE
from sae_posttrain.measure.answers.prompts import read_rows

NUM_SAMPLES = 2  # answers a title
LANGUAGES = ("en", "es", "ko", "ru", "zh")


def fault(run: dict[str, Any]) -> float:
    """Share of the judged answers with a line in another language."""
    judged = [flag for sample in run["sampled"]["asked"]["foreign"] for flag in sample if flag != "-"]
    return judged.count("1") / len(judged)


def measure(bench: Bench, trained: Trained, settings: dict[str, Any], ids: list[str], seed: int) -> dict[str, Any]:
    """What the dev pages choose by."""
    rows = [as_example(bench.pages()[lang][page_id]) for page_id in ids for lang in LANGUAGES]
    found = measure_held_out(
        trained.model, bench.tokenizer, rows, max_length=settings["training"]["max_length"], top_p=0.8
    )
    return {
        "loss": found["loss"],
        "sampled": {"asked": sample(bench, trained, settings, settings["asked"], ids, seed)},
    }


def measure_all(bench: Bench, trained: Trained, settings: dict[str, Any], ids: list[str], seed: int) -> dict[str, Any]:
    """[`measure`], answers in the target language itself, and copying."""
    result = measure(bench, trained, settings, ids, seed)
    result["sampled"]["target"] = sample(bench, trained, settings, settings["target"], ids, seed)
    others = [lang for lang in LANGUAGES if lang != settings["target"]]
    rows = [as_example(bench.pages()[lang][page_id]) for page_id in ids[:75] for lang in others]
    return result | {"copying": copying(trained.model, bench.tokenizer, rows)}


def sample(
    bench: Bench, trained: Trained, settings: dict[str, Any], lang: str, ids: list[str], seed: int
) -> dict[str, Any]:
    """Answers to the titles of a language: whether a line is in the other one, a string of flags for each sample."""
    folder = bench.scratch / "answers"
    shutil.rmtree(folder, ignore_errors=True)
    pages = bench.pages()[lang]
    languages = sorted({settings["asked"], settings["target"]})
    evaluate(
        trained.model,
        [{"id": page_id, "lang": lang, "prompt": as_example(pages[page_id])["prompt"]} for page_id in ids],
        output_dir=folder,
        tokenizer=bench.tokenizer,
        target_lang="zh",
        lid_languages=languages,
        num_samples=NUM_SAMPLES,
        batch_size=100,
        seed=seed,
        progress=False,
        **settings["sampling"],
    )
    answers = [dict(answer) for answer in read_rows(folder / ANSWERS_FILE)]
    by_sample = [
        [answer for answer in answers if answer["sample"] == number]
        for number in sorted({answer["sample"] for answer in answers})
    ]
    return {
        "foreign": [flags([negated(answer["lines"]["line_pass"]) for answer in own]) for own in by_sample],
        "finished": [flags([answer["finished"] for answer in own]) for own in by_sample],
        "empty": [flags([not answer["answer"].strip() for answer in own]) for own in by_sample],
        "mean_tokens": round(sum(answer["num_tokens"] for answer in answers) / len(answers), 2),
    }


def negated(value: bool | None) -> bool | None:
    """Not, of what may be unknown."""
    return None if value is None else not value
