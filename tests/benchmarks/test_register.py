"""The judge of registers, and the tables of the experiment that is measured by it."""

import random
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path[:0] = [str(FOLDER / "evidence"), str(FOLDER / "help")]

from choose import chosen_configs  # noqa: E402
from register_judge import GUIDE, REFERENCE, RegisterJudge, headings, register_of, words  # noqa: E402
from register_measures import JUDGED, LANGUAGES  # noqa: E402
from register_report import BASELINE  # noqa: E402
from settings import Experiment  # noqa: E402


@pytest.mark.parametrize(
    ("page_id", "register"),
    [
        ("swriter/guide/wrap", GUIDE),
        ("scalc/01/12080000", REFERENCE),
        ("shared/02/01170000", REFERENCE),
        ("sbasic/shared/03020101", None),
        ("sbasic/guide/control_properties", None),
        ("shared/optionen/01010000", None),
        ("swriter/main0000", None),
    ],
)
def test_the_folder_of_a_page_tells_its_register(page_id, register):
    assert register_of(page_id) == register


def test_words_are_whole_in_latin_and_cyrillic_and_pairs_of_characters_in_chinese_and_korean():
    assert words("Choose the Cell, выберите A1") == {"choose", "the", "cell", "выберите", "a"}
    assert words("要访问 명령을") == {"要访", "访问", "명령", "령을"}


def test_headings_are_lines_of_many_reference_passages_and_hardly_any_guide():
    reference = ["Sets the font.\nTo access this command..."] * 3 + ["Related\nSets the size."] * 7 + ["Choose it."]
    guides = ["Related\n1. Click the text."] * 10
    assert headings(reference, guides) == ("Sets the size", "Sets the font", "To access this command")
    with_one = [*guides * 4, "To access this command..."]  # one of 41 guides is too many
    assert headings(reference, with_one) == ("Sets the size", "Sets the font")


def test_the_wording_is_judged_without_the_heading():
    reference = [f"Specifies the width.\nTo access this command...\nword{number}" for number in range(5)]
    judge = RegisterJudge.fit(reference, [f"Click the text.\nword{number}" for number in range(5)])
    assert judge.headings == ("Specifies the width", "To access this command")
    judge = RegisterJudge(judge.headings[1:], {"specifies": 2.0, "width": 2.0, "click": -2.0, "to": 9.0})
    # the heading's "to" is taken out; (2 + 2 - 2) / √3
    assert judge.wording("Specifies the width. To access this command Click") == pytest.approx(2 / 3**0.5)
    assert judge.wording("nothing known") == 0.0
    assert judge.has_heading("text. To access this command...") and not judge.has_heading("To access a command")


def register_result(drawn: random.Random, read: Experiment, arm: str, config: str, seed: int, split: str) -> dict:
    def said(rate: float, num_samples: int) -> dict:
        return {
            "heading": ["".join(drawn.choices("10", [rate, 1 - rate], k=20)) for _ in range(num_samples)],
            "wording": [[drawn.gauss(-0.5, 1) for _ in range(20)] for _ in range(num_samples)],
            "empty": ["0" * 20] * num_samples, "num_tokens": [60.0] * num_samples,
        }  # fmt: skip

    people = {
        register: {lang: {"heading": flags * 20, "wording": [mean] * 20} for lang in LANGUAGES}
        for register, flags, mean in ((GUIDE, "0", -2.0), (REFERENCE, "1", -0.5))
    }
    return {
        "arm": arm, "config": config, "seed": seed, "split": split, "settings": read.settings(arm, config),
        "loss": {lang: 3.0 + 0.01 * drawn.random() for lang in LANGUAGES},
        "loss_reference": dict.fromkeys(LANGUAGES, 3.0), "copying": 0.4, "people": people,
        "sampled": {
            GUIDE: {lang: said(0.5 if arm == BASELINE else 0.1, 2 if lang == "en" else 1) for lang in JUDGED},
            REFERENCE: {lang: said(0.5, 1) for lang in JUDGED},
        },
    }  # fmt: skip


def test_the_report_of_registers_stands_on_raw_results_alone(tmp_path):
    read, drawn = Experiment.read(FOLDER / "evidence" / "register.yaml"), random.Random(0)
    arms = ("plain", "token_penalty")
    dev = [register_result(drawn, read, arm, name, 100, "dev") for arm in arms for name in read.configs(arm)]
    tables = read.part("report").write(read, dev, tmp_path)
    assert "share0.9_w30" in tables and "declared claim" not in tables  # nothing is claimed of dev pages
    chosen = chosen_configs(read, dev, list(arms))
    test = [register_result(drawn, read, arm, chosen[arm], seed, "test") for arm in arms for seed in (0, 1)]
    tables = read.part("report").write(read, dev + test, tmp_path)
    assert "heading, other languages: penalty on typical tokens < plain SFT" in tables
    assert [file.name for file in tmp_path.iterdir()] == ["register.png"]
