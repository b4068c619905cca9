"""What every arm of `register.yaml` is measured by: how much of the register of reference pages stands in answers."""

from typing import Any

from code_switching_arms import Bench, Trained, no_change
from held_out import measure_held_out
from pages import as_example
from register_arms import LANGUAGES, judges, passage
from register_judge import GUIDE, REFERENCE, RegisterJudge, register_of
from shared_measures import copying, flags, prompt_ids

from sae_posttrain.measure.answers.generate import generate_answers

JUDGED = ("en", "ko", "ru", "zh")  # Spanish pages have no heading that only reference pages have
NUM_SAMPLES = {"en": 2}  # answers a title; 1 where nothing stands
NUM_LOSS = {GUIDE: 50, REFERENCE: 25}  # pages of each language for the held-out loss
NUM_REFERENCE = 40  # titles of reference pages that are asked on the test side
NUM_COPIED = 40


def fault(run: dict[str, Any]) -> float:
    """Share of the answers to English titles of guides with a heading of reference pages."""
    judged = "".join(run["sampled"][GUIDE]["en"]["heading"])
    return judged.count("1") / len(judged)


def measure(bench: Bench, trained: Trained, settings: dict[str, Any], ids: list[str], seed: int) -> dict[str, Any]:
    """What the dev pages choose by: answers to the titles of guides, and held-out loss by register and language."""
    pages = bench.pages()
    losses = {}
    for register, context in ((GUIDE, trained.answering), (REFERENCE, no_change)):
        chosen = of_register(ids, register)[: NUM_LOSS[register]]
        rows = [as_example(pages[lang][page_id]) for page_id in chosen for lang in LANGUAGES]
        with context():
            found = measure_held_out(
                trained.model, bench.tokenizer, rows, max_length=settings["training"]["max_length"], top_p=0.8
            )
        losses[register] = found["loss"]
    with trained.answering():
        sampled = {GUIDE: sample(bench, trained, settings, of_register(ids, GUIDE), seed)}
    return {"loss": losses[GUIDE], "loss_reference": losses[REFERENCE], "sampled": sampled}


def measure_all(bench: Bench, trained: Trained, settings: dict[str, Any], ids: list[str], seed: int) -> dict[str, Any]:
    """[`measure`], answers to the titles of reference pages, copying, and what people's pages of these titles hold."""
    result = measure(bench, trained, settings, ids, seed)
    asked = of_register(ids, REFERENCE)[:NUM_REFERENCE]
    result["sampled"][REFERENCE] = sample(bench, trained, settings, asked, seed, once=True)
    rows = [as_example(bench.pages()[lang][i]) for i in of_register(ids, GUIDE)[:NUM_COPIED] for lang in JUDGED]
    with trained.answering():
        result["copying"] = copying(trained.model, bench.tokenizer, rows)
    return result | {"people": people(bench, ids)}


def of_register(ids: list[str], register: str) -> list[str]:
    """The ids of a register."""
    return [page_id for page_id in ids if register_of(page_id) == register]


def people(bench: Bench, ids: list[str]) -> dict[str, Any]:
    """What the judges say of the pages themselves, by register and language."""
    return {
        register: {
            lang: judged(judges(bench)[lang], [passage(bench.pages()[lang][i]) for i in of_register(ids, register)])
            for lang in LANGUAGES
        }
        for register in (GUIDE, REFERENCE)
    }


def judged(judge: RegisterJudge, passages: list[str]) -> dict[str, Any]:
    """Whether passages have a heading, one character each, and how much they are worded like reference pages."""
    return {
        "heading": flags([judge.has_heading(one) for one in passages]),
        "wording": [round(judge.wording(one), 2) for one in passages],
    }


def sample(
    bench: Bench, trained: Trained, settings: dict[str, Any], ids: list[str], seed: int, *, once: bool = False
) -> dict[str, Any]:
    """Answers to the titles of pages by language: what the judges say, for each sample in the order of the pages."""
    tokenizer, result = bench.tokenizer, {}
    for lang in JUDGED:
        prompts = [prompt_ids(tokenizer, as_example(bench.pages()[lang][i])) for i in ids]
        found: dict[str, list[Any]] = {"heading": [], "wording": [], "empty": [], "num_tokens": []}
        for number in range(1 if once else NUM_SAMPLES.get(lang, 1)):
            answers, _ = generate_answers(
                trained.model, tokenizer, prompts, seed=seed * 1000 + number, **settings["sampling"]
            )
            texts = tokenizer.batch_decode(answers)
            for key, value in judged(judges(bench)[lang], texts).items():
                found[key].append(value)
            found["empty"].append(flags([not text.strip() for text in texts]))
            found["num_tokens"].append(round(sum(map(len, answers)) / len(answers), 2))
        result[lang] = found
    return result
