"""The tables and pictures of `register.yaml`, from its raw results alone."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from choose import loss_increase
from pictures import draw_rates, name_rows, new_figure, save
from register_judge import GUIDE, REFERENCE
from register_measures import JUDGED, LANGUAGES, fault
from settings import Experiment
from tables import Rows, Run, by_arm, claims_table, markdown, percent, same_seeds, verdict
from tuning import report_tuning

from sae_posttrain.measure.resampling import bootstrap_mean, bootstrap_ratio

BASELINE = "plain"
NAMES = {
    "plain": "plain SFT",
    "sasft": "SASFT",
    "difference_of_means": "difference of means",
    "token_penalty": "penalty on typical tokens",
    "random_features": "random features",
}
ENGLISH = ("en",)
TRANSFER = tuple(lang for lang in JUDGED if lang != "en")
CLAIMS = {
    "english": "heading, English",
    "transfer": "heading, other languages",
    "lost": "heading lost where it belongs",
}


def write(experiment: Experiment, results: list[Run], pictures: Path) -> str:
    """Draw the pictures to a folder; returns the tables as Markdown."""
    test = by_arm([run for run in results if run["split"] == "test"], NAMES)
    draw_arms(experiment, test, pictures / f"{experiment.name}.png")
    rows_of = {
        "english": partial(headed, langs=ENGLISH),
        "transfer": partial(headed, langs=TRANSFER),
        "lost": lost,
    }
    tables = [
        main_table(test),
        claims_table(
            {CLAIMS[key]: pairs for key, pairs in experiment.claims.items()},
            test,
            NAMES,
            {CLAIMS[key]: rows for key, rows in rows_of.items()},
        ),
        cost_table(experiment, test),
        report_tuning(
            experiment,
            results,
            NAMES,
            fault,
            ("English answers with the heading", "English answers to titles of guides\nwith the heading, %"),
            pictures,
        ),
    ]
    transfer = Path(__file__).parent / "results" / "register_transfer.json"
    if transfer.exists():
        tables.append(transfer_table(json.loads(transfer.read_text(encoding="utf-8"))["blocks"]))
    return "\n\n".join(table for table in tables if table)


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


def kept(runs: Sequence[Run]) -> Rows:
    """Share of the answers to titles of reference pages that have the heading, all languages alike."""
    return headed(runs, JUDGED, REFERENCE)


def lost(runs: Sequence[Run]) -> Rows:
    """What [`kept`] leaves."""
    return [(page, seed, 1 - value) for page, seed, value in kept(runs)]


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
            row += [percent(rate, least=0.0), ", ".join(f"{100 * value:.1f}" for value in rate.per_seed.values())]
            before = headed(same_seeds(plain, own), langs)
            row.append("" if arm == BASELINE else percent(bootstrap_ratio(before, rows), "+.0f"))
        row.append(", ".join(f"{100 * mean(headed(own, [lang])):.1f}" for lang in TRANSFER))
        lines.append(row)
    return markdown(lines)


def cost_table(experiment: Experiment, arms: dict[str, list[Run]]) -> str:
    """What it costs, what it leaves where it belongs, and whether the wording goes with the heading."""
    plain = arms[BASELINE]
    head = ["arm", "heading where it belongs", "loss, guides", "loss, reference pages"]
    head += [f"wording {lang}" for lang in JUDGED] + ["copying", "tokens", "empty"]
    lines = [head, ["---"] * len(head)]
    people = {lang: plain[0]["people"][REFERENCE][lang]["heading"] for lang in JUDGED}
    shares = [flags.count("1") / len(flags) for flags in people.values()]
    lines.append(["people's pages", f"{100 * np.mean(shares):.1f} %", "", "", *["0 %"] * len(JUDGED), "", "", ""])
    for arm, own in arms.items():
        before = same_seeds(plain, own)
        share = f"{100 * mean(kept(own)):.1f} %"
        row = [NAMES[arm], share if arm == BASELINE else f"{share}; {verdict(kept(before), kept(own))}"]
        for part in ("loss", "loss_reference"):
            level = np.mean([np.mean([run[part][lang] for lang in LANGUAGES]) for run in own])
            change = np.mean(
                [
                    loss_increase({"loss": run[part]}, {"loss": other[part]}, LANGUAGES)
                    for run, other in zip(own, before)
                ]
            )
            row.append(f"{level:.3f}" + ("" if arm == BASELINE else f" ({100 * change:+.2f} %)"))
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


def draw_arms(experiment: Experiment, arms: dict[str, list[Run]], path: Path) -> None:
    """The fault of each arm in English and in the other languages, what it costs, and what it leaves."""
    plain = arms[BASELINE]
    figure = new_figure(12, 1.2 + 0.42 * len(arms))
    panels = figure.subplots(1, 4, sharey=True, width_ratios=[2, 2, 1, 1.2])
    emphasised = [arm != BASELINE for arm in arms]
    for axes, langs, name in zip(panels, (ENGLISH, TRANSFER), ("English", "Korean, Russian and Chinese")):
        draw_rates(axes, [bootstrap_mean(headed(own, langs)) for own in arms.values()], emphasised)
        axes.set_xlabel(f"{name} answers to titles of guides\nwith the heading of reference pages, %")
    for row, own in enumerate(arms.values()):
        pairs = zip(own, same_seeds(plain, own))
        increases = [100 * loss_increase(run, other, experiment.held) for run, other in pairs]
        panels[2].plot([np.mean(increases)], [row], "o", color="C0")
        panels[3].plot([100 * mean(kept(own))], [row], "s", color="C1")
    name_rows(panels[0], [NAMES[arm] for arm in arms])
    panels[2].set_xlabel("change of held-out\nloss, %")
    panels[2].axvline(0, color="0.8", linewidth=0.8)
    panels[3].set_xlabel("titles of reference pages:\nanswers with the heading, %")
    save(figure, panels, path)
