"""The tables and pictures of `register.yaml`, from its raw results alone."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from choose import loss_increase
from pictures import name_rows, new_figure, save
from register_judge import GUIDE, REFERENCE
from register_measures import JUDGED, LANGUAGES
from settings import Experiment
from tables import Rows, Run, by_arm, claims_table, markdown, percent, same_seeds, verdict

from sae_posttrain.measure.statistics.resampling import bootstrap_mean, bootstrap_ratio

BASELINE = "plain"
TRANSFER_FILE = Path(__file__).parent / "results" / "register_transfer.json"
NAMES = {
    "plain": "plain SFT",
    "sasft": "SASFT",
    "difference_of_means": "difference of means",
    "token_penalty": "penalty on typical tokens",
    "steered_features": "steered away from the features",
}
ENGLISH = ("en",)
TRANSFER = tuple(lang for lang in JUDGED if lang != "en")
LANGUAGE_NAMES = {"en": "English", "ko": "Korean", "ru": "Russian", "zh": "Chinese"}
CLAIMS = {
    "english": "heading, English",
    "transfer": "heading, other languages",
}


def write(experiment: Experiment, results: list[Run], pictures: Path) -> str:
    """Draw the pictures to a folder; returns the tables as Markdown, those of the dev pages alone if need be."""
    test = by_arm([run for run in results if run["split"] == "test"], NAMES)
    dev = by_arm([run for run in results if run["split"] == "dev"], NAMES)
    blocks = json.loads(TRANSFER_FILE.read_text(encoding="utf-8"))["blocks"]
    shown = {NAMES[arm]: own for arm, own in test.items()} or {
        f"{NAMES[arm]}\n{run['config']}": [run] for arm, own in dev.items() for run in own
    }
    draw_transfer(shown, "test" if test else "dev", blocks, pictures / f"{experiment.name}.png")
    rows_of = {
        "english": partial(headed, langs=ENGLISH),
        "transfer": partial(headed, langs=TRANSFER),
    }
    tables = []
    if test:
        claims = {CLAIMS[key]: pairs for key, pairs in experiment.claims.items()}
        tables += [
            main_table(test),
            claims_table(claims, test, NAMES, {CLAIMS[key]: rows for key, rows in rows_of.items()}),
            cost_table(test),
        ]
    tables += [dev_table(dev), transfer_table(blocks)]
    return "\n\n".join(table for table in tables if table)


def dev_table(arms: dict[str, list[Run]]) -> str:
    """Every configuration on the dev pages, one seed; intervals are over titles."""
    plain = arms[BASELINE][0]
    head = ["arm", "configuration", *(f"{LANGUAGE_NAMES[lang]} (95 % interval)" for lang in JUDGED)]
    lines = [[*head, "loss, guides", "loss, reference pages"], ["---"] * (len(head) + 2)]
    for arm, own in arms.items():
        for run in own:
            row = [NAMES[arm], f"`{run['config']}`"]
            row += [percent(bootstrap_mean(headed([run], [lang])), least=0.0, most=1.0) for lang in JUDGED]
            row += [change(part, [run], [plain]) for part in ("loss", "loss_reference")]
            lines.append(row)
    return markdown(lines)


def change(part: str, own: Sequence[Run], before: Sequence[Run]) -> str:
    """Mean held-out loss over languages, and by how much it changed."""
    level = np.mean([np.mean([run[part][lang] for lang in LANGUAGES]) for run in own])
    if [run["arm"] for run in own] == [run["arm"] for run in before]:
        return f"{level:.3f}"
    changes = [loss_increase({"loss": run[part]}, {"loss": other[part]}, LANGUAGES) for run, other in zip(own, before)]
    return f"{level:.3f} ({100 * np.mean(changes):+.2f} %)"


def transfer_table(blocks: dict[str, dict[str, dict[str, float]]]) -> str:
    """How much more features chosen in English read on reference pages than on guides, of what a language's own do."""
    lines = [
        ["block", *(f"features chosen in English, read in {lang}" for lang in JUDGED)],
        ["---"] * (1 + len(JUDGED)),
    ]
    for block, of_lang in blocks.items():
        cells = [f"{one['of_english']:+.2f} of {one['of_own']:+.2f}" for one in (of_lang[lang] for lang in JUDGED)]
        lines.append([block, *cells])
    return markdown(lines)


def headed(runs: Sequence[Run], langs: Sequence[str], register: str = GUIDE) -> Rows:
    """Share of a page's answers with the heading, each language alike."""
    return [
        (str(page), run["seed"], float(value))
        for run in runs
        for page, value in enumerate(np.mean([by_page(run, lang, register) for lang in langs], axis=0))
    ]


def by_page(run: Run, lang: str, register: str) -> np.ndarray:
    """Share of the samples with the heading, one number a page."""
    return np.mean([[flag == "1" for flag in one] for one in run["sampled"][register][lang]["heading"]], axis=0)


def wording(runs: Sequence[Run], lang: str) -> float:
    """Where answers stand between the wording of people's guides, 0 %, and of people's reference pages, 100 %."""
    people = {register: np.mean(runs[0]["people"][register][lang]["wording"]) for register in (GUIDE, REFERENCE)}
    own = np.mean([run["sampled"][GUIDE][lang]["wording"] for run in runs])
    return float((own - people[GUIDE]) / (people[REFERENCE] - people[GUIDE]))


def main_table(arms: dict[str, list[Run]]) -> str:
    """The fault in the language that things were found in, and in the others."""
    plain = arms[BASELINE]
    head = ["arm", "chosen", "English (95 % interval)", "by seed", "against plain SFT"]
    head += ["Korean, Russian, Chinese (95 % interval)", "by seed", "against plain SFT", "ko, ru, zh"]
    lines = [head, ["---"] * len(head)]
    for arm, own in arms.items():
        row = [NAMES[arm], f"`{own[0]['config']}`"]
        for langs in (ENGLISH, TRANSFER):
            rows, rate = headed(own, langs), bootstrap_mean(headed(own, langs))
            row += [
                percent(rate, least=0.0, most=1.0),
                ", ".join(f"{100 * value:.1f}" for value in rate.per_seed.values()),
            ]
            before = headed(same_seeds(plain, own), langs)
            row.append("" if arm == BASELINE else percent(bootstrap_ratio(before, rows), "+.0f"))
        row.append(", ".join(f"{100 * mean(headed(own, [lang])):.1f}" for lang in TRANSFER))
        lines.append(row)
    return markdown(lines)


def cost_table(arms: dict[str, list[Run]]) -> str:
    """What it costs, what it leaves where it belongs, and whether the wording goes with the heading."""
    plain = arms[BASELINE]
    head = ["arm", "where it belongs, English", "ko, ru, zh", "loss, guides", "loss, reference pages"]
    head += [f"wording {lang}" for lang in JUDGED] + ["copying", "tokens", "empty"]
    lines = [head, ["---"] * len(head)]
    people = {lang: plain[0]["people"][REFERENCE][lang]["heading"] for lang in JUDGED}
    shares = {lang: flags.count("1") / len(flags) for lang, flags in people.items()}
    kept = [f"{100 * np.mean([shares[lang] for lang in langs]):.1f} %" for langs in (ENGLISH, TRANSFER)]
    lines.append(["people's pages", *kept, "", "", *["100 %"] * len(JUDGED), "", "", ""])
    for arm, own in arms.items():
        before = same_seeds(plain, own)
        row = [NAMES[arm]]
        for langs in (ENGLISH, TRANSFER):
            rows = headed(own, langs, REFERENCE)
            share = f"{100 * mean(rows):.1f} %"
            row.append(share if arm == BASELINE else f"{share}; {verdict(headed(before, langs, REFERENCE), rows)}")
        row += [change(part, own, before) for part in ("loss", "loss_reference")]
        row += [f"{100 * wording(own, lang):.0f} %" for lang in JUDGED]
        row.append(f"{np.mean([run['copying'] for run in own]):.3f}")
        answers = [run["sampled"][GUIDE][lang] for run in own for lang in JUDGED]
        row.append(f"{np.mean([num for one in answers for num in one['num_tokens']]):.1f}")
        empty = "".join(flags for one in answers for flags in one["empty"])
        row.append(f"{100 * empty.count('1') / len(empty):.1f} %")
        lines.append(row)
    return markdown(lines)


def mean(rows: Rows) -> float:
    """Mean value of rows."""
    return float(np.mean([value for _, _, value in rows]))


def draw_transfer(
    shown: dict[str, list[Run]], split: str, blocks: dict[str, dict[str, dict[str, float]]], path: Path
) -> None:
    """The fault in each language, by name of the runs, and how much of what is found in English reaches others."""
    figure = new_figure(11, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    for number, lang in enumerate(JUDGED):
        rates = [bootstrap_mean(headed(own, [lang])) for own in shown.values()]
        places = np.arange(len(shown)) + 0.18 * (number - 1.5)
        for rate, place in zip(rates, places):
            error = [[100 * (rate.estimate - rate.low)], [100 * (rate.high - rate.estimate)]]
            colour = f"C{number}"
            left.errorbar([100 * rate.estimate], [place], xerr=error, fmt="o", color=colour, capsize=2, markersize=4)
    name_rows(left, list(shown))
    left.tick_params(axis="y", labelsize=8)
    left.set_xlim(left=0)
    left.set_xlabel(
        "answers to titles of guides with the heading of reference pages, %\n"
        f"({split} pages; 95 % by bootstrap over titles and seeds)"
    )
    for number, lang in enumerate(JUDGED):
        shares = [100 * of_lang[lang]["of_english"] / of_lang["en"]["of_english"] for of_lang in blocks.values()]
        right.plot(list(blocks), shares, "o-", color=f"C{number}", label=LANGUAGE_NAMES[lang], markersize=4)
    right.set_ylim(bottom=0)
    right.set_xlabel("block")
    right.set_ylabel("of what English features read in English, %")
    right.legend(frameon=False, fontsize=8)
    save(figure, [left, right], path)
