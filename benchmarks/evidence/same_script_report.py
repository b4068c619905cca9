"""The tables and pictures of `same_script_<target>.yaml`, from its raw results alone."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from choose import loss_increase
from pictures import draw_rates, name_rows, new_figure, save
from same_script_measures import fault
from settings import Experiment
from tables import Rows, Run, by_arm, claims_table, markdown, percent, same_seeds, verdict
from tuning import report_tuning

from sae_posttrain.measure.statistics.resampling import bootstrap_mean, bootstrap_ratio

BASELINE = "plain"
LANGUAGES = {"en": "English", "es": "Spanish"}
NAMES = {
    "plain": "plain SFT",
    "sasft": "SASFT",
    "random_features": "random features",
    "difference_of_means": "difference of means",
    "probe": "logistic probe",
    "token_penalty": "penalty on typical tokens",
    "sasft_and_tokens": "SASFT + typical tokens",
}
FEW_TEXTS = {"few_texts_features": ("SASFT", "sasft"), "few_texts_tokens": ("typical tokens", "token_penalty")}
"""Arms with fewer texts: their names, and the arm that has all of them."""


def write(experiment: Experiment, results: list[Run], pictures: Path) -> str:
    """Draw the pictures to a folder; returns the tables as Markdown."""
    test = by_arm([run for run in results if run["split"] == "test"], NAMES)
    target, asked = languages(experiment)
    draw_arms(experiment, test, pictures / f"{experiment.name}.png")
    measured_by = {f"{target} in {asked} answers": ("fault", mixed), f"{target} lost": ("lost", lost)}
    claims = {name: experiment.claims[key] for name, (key, _) in measured_by.items()}
    rows_of = {name: rows for name, (_, rows) in measured_by.items()}
    tables = [
        main_table(experiment, test),
        claims_table(claims, test, NAMES, rows_of),
        report_tuning(
            experiment,
            results,
            NAMES,
            fault,
            ("mixed answers", f"{asked} answers with a line in another language, %"),
            pictures,
        ),
        few_texts_table(experiment, results),
    ]
    return "\n\n".join(table for table in tables if table)


def languages(experiment: Experiment) -> tuple[str, str]:
    """Names of the language that is to be kept out, and of the one asked for."""
    return LANGUAGES[experiment.common["target"]], LANGUAGES[experiment.common["asked"]]


def mixed(runs: Sequence[Run]) -> Rows:
    """Share of a page's answers with a line in another language; where no line could be judged, none."""
    return shares(runs, "asked", lambda flag: flag == "1")


def lost(runs: Sequence[Run]) -> Rows:
    """Share of the answers that should be in the suppressed language and are not, or not alone."""
    return shares(runs, "target", lambda flag: flag != "0")


def shares(runs: Sequence[Run], part: str, counts: Callable[[str], bool]) -> Rows:
    """Share of the samples whose flag counts, by page and seed."""
    return [
        (str(place), run["seed"], sum(map(counts, of_page)) / len(of_page))
        for run in runs
        for place, of_page in enumerate(zip(*run["sampled"][part]["foreign"]))
    ]


def kept(runs: Sequence[Run]) -> Rows:
    """What [`lost`] leaves."""
    return [(page, seed, 1 - value) for page, seed, value in lost(runs)]


def main_table(experiment: Experiment, arms: dict[str, list[Run]]) -> str:
    """The fault, held-out loss, and what is left of the suppressed language."""
    plain = arms[BASELINE]
    target, asked = languages(experiment)
    head = ["arm", "chosen", f"{asked} answers mixed (95 % interval)", "by seed", "against plain SFT"]
    head += ["held-out loss, others", f"loss {target}", f"{target} pages in {target}", "copying", "tokens", "empty"]
    lines = [head, ["---"] * len(head)]
    for arm, own in arms.items():
        before, rate = same_seeds(plain, own), bootstrap_mean(mixed(own))
        row = [NAMES[arm], f"`{own[0]['config']}`", percent(rate, least=0.0)]
        row.append(", ".join(f"{100 * value:.1f}" for value in rate.per_seed.values()))
        row.append("" if arm == BASELINE else percent(bootstrap_ratio(mixed(before), mixed(own)), "+.0f"))
        for langs in (experiment.held, [experiment.common["target"]]):
            changes = [loss_increase(run, other, langs) for run, other in zip(own, before)]
            level = np.mean([np.mean([run["loss"][lang] for lang in langs]) for run in own])
            row.append(f"{level:.3f}" + ("" if arm == BASELINE else f" ({100 * np.mean(changes):+.2f} %)"))
        share = f"{100 * np.mean([value for _, _, value in kept(own)]):.1f} %"
        row.append(share if arm == BASELINE else f"{share}; {verdict(kept(before), kept(own))}")
        row.append(f"{np.mean([run['copying'] for run in own]):.3f}")
        row.append(f"{np.mean([run['sampled']['asked']['mean_tokens'] for run in own]):.1f}")
        empty = "".join("".join(run["sampled"]["asked"]["empty"]) for run in own)
        row.append(f"{100 * empty.count('1') / len(empty):.1f} %")
        lines.append(row)
    return markdown(lines)


def few_texts_table(experiment: Experiment, results: Sequence[Run]) -> str:
    """On the dev pages: what is left of a method that has few texts to learn from."""
    lines = [["method", "texts a language", "mixed answers, dev pages", "change of held-out loss"], ["---"] * 4]
    dev = [run for run in results if run["split"] == "dev"]
    plain = next(run for run in dev if run["arm"] == BASELINE)
    for arm, (name, whole) in FEW_TEXTS.items():
        own = [run for run in dev if run["arm"] == arm]
        if not own:
            continue
        like = [run for run in dev if run["arm"] == whole and same_training(run, own[0])]
        for run in [*own, *like]:
            increase, rate = 100 * loss_increase(run, plain, experiment.held), 100 * fault(run)
            texts = run["config"].removeprefix("n") if run["arm"] == arm else "200"
            lines.append([name, texts, f"{rate:.1f} %", f"{increase:+.2f} %"])
    return markdown(lines) if len(lines) > 2 else ""


def same_training(run: Run, other: Run) -> bool:
    """Whether the settings of the training are the same, and the tokens as typical."""
    shares_of = [one["settings"].get("tokens", {}).get("min_share") for one in (run, other)]
    return run["settings"]["training"] == other["settings"]["training"] and shares_of[0] == shares_of[1]


def draw_arms(experiment: Experiment, arms: dict[str, list[Run]], path: Path) -> None:
    """The fault of each arm on the test pages, with its interval and seeds; what it costs; what it leaves."""
    plain = arms[BASELINE]
    target, asked = languages(experiment)
    figure = new_figure(11, 1.2 + 0.42 * len(arms))
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=[2, 1, 1.2])
    draw_rates(left, [bootstrap_mean(mixed(own)) for own in arms.values()], [arm != BASELINE for arm in arms])
    for row, own in enumerate(arms.values()):
        increases = [
            100 * loss_increase(run, other, experiment.held) for run, other in zip(own, same_seeds(plain, own))
        ]
        middle.plot([np.mean(increases)], [row], "o", color="C0")
        right.plot([100 * np.mean([value for _, _, value in kept(own)])], [row], "s", color="C1")
    name_rows(left, [NAMES[arm] for arm in arms])
    left.set_xlabel(f"{asked} answers with a line in another language, %\n(95 % interval; ticks: seeds)")
    middle.set_xlabel("change of held-out loss, %")
    middle.axvline(0, color="0.8", linewidth=0.8)
    right.set_xlabel(f"{target} pages\nanswered in {target}, %")
    save(figure, [left, middle, right], path)
