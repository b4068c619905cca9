"""The table and pictures of `code_switching.yaml`, from its raw results alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from choose import loss_increase
from code_switching_measures import OTHERS, fault
from pictures import draw_rates, legend_above, name_rows, new_figure, save
from settings import Experiment
from tables import Rows, Run, by_arm, claims_table, markdown, percent, same_seeds, verdict
from tuning import report_tuning

from sae_posttrain.measure.statistics.resampling import bootstrap_mean, bootstrap_ratio

BASELINE = "plain"

NAMES = {
    "plain": "plain SFT",
    "sasft": "SASFT",
    "sasft_zero": "SASFT, level 0",
    "random_features": "random features",
    "difference_of_means": "difference of means",
    "probe": "logistic probe",
    "token_penalty": "token penalty",
    "token_penalty_default": "token penalty, default weight",
    "sasft_and_tokens": "SASFT + token penalty",
    "data_filter": "data filter",
    "lm_head_scaling": "LM head scaling",
    "ablation": "ablation while answering",
    "language_reward": "GRPO, language reward",
}


def write(experiment: Experiment, results: list[Run], pictures: Path) -> str:
    """Draw the pictures to a folder; returns the tables as Markdown."""
    test = by_arm([run for run in results if run["split"] == "test"], NAMES)
    draw_arms(test, pictures / "code_switching.png")
    tables = [
        main_table(test),
        claims_table(experiment.claims, test, NAMES, {"switching": probabilities, "Chinese lost": chinese_lost}),
        side_table(test),
        report_tuning(
            experiment,
            results,
            NAMES,
            fault,
            ("switching", "probability that an answer switches to Chinese, %"),
            pictures,
        ),
    ]
    return "\n\n".join(table for table in tables if table)


def probabilities(runs: Sequence[Run]) -> Rows:
    """Probability of switching by prompt and seed, each language as many prompts."""
    return [
        (f"{lang}/{place}", run["seed"], value)
        for run in runs
        for lang in OTHERS
        for place, value in enumerate(run["switch_probability"][lang])
    ]


def flagged(runs: Sequence[Run], name: str, langs: Sequence[str] = OTHERS) -> Rows:
    """Flags of the sampled answers by prompt and seed; those that could not be told count as 0."""
    return [
        (f"{lang}/{place}", run["seed"], float(flag == "1"))
        for run in runs
        for lang in langs
        for place, flag in enumerate(run["sampled"][lang][name])
    ]


def asked_for(runs: Sequence[Run], kind: str) -> Rows:
    """Mean probability of Chinese where the reference has it, after prompts that ask for it."""
    return [(str(place), run["seed"], value) for run in runs for place, value in enumerate(run[kind]["mean"])]


def chinese_that_belongs(runs: Sequence[Run]) -> dict[str, Rows]:
    """What a method that holds Chinese down may break first."""
    return {
        "Chinese page in Chinese": flagged(runs, "right_language", ["zh"]),
        "translation into Chinese": asked_for(runs, "translate"),
        "Chinese word on request": asked_for(runs, "word"),
    }


def chinese_lost(runs: Sequence[Run]) -> Rows:
    """Chinese titles that were not answered in Chinese."""
    return [(page, seed, 1 - value) for page, seed, value in flagged(runs, "right_language", ["zh"])]


def main_table(arms: dict[str, list[Run]]) -> str:
    """Switching and held-out loss."""
    plain = arms[BASELINE]
    head = ["arm", "chosen", "switching (95 % interval)", "by seed", "against plain SFT", "sampled answers with Han"]
    lines = [[*head, "held-out loss, others", "loss zh"], ["---"] * (len(head) + 2)]
    for arm, own in arms.items():
        rate = bootstrap_mean(probabilities(own))
        sampled = flagged(own, "switched")
        row = [NAMES[arm], own[0]["config"], percent(rate, least=0.0)]
        row.append(", ".join(f"{100 * value:.1f}" for value in rate.per_seed.values()))
        before = probabilities(same_seeds(plain, own))
        row.append("" if arm == BASELINE else percent(bootstrap_ratio(before, probabilities(own)), "+.0f"))
        row.append(f"{sum(flag for _, _, flag in sampled):.0f} of {len(sampled)}")
        for langs in (OTHERS, ("zh",)):
            changes = [loss_increase(run, other, langs) for run, other in zip(own, same_seeds(plain, own))]
            level = np.mean([np.mean([run["loss"][lang] for lang in langs]) for run in own])
            row.append(f"{level:.3f}" + ("" if arm == BASELINE else f" ({100 * np.mean(changes):+.2f} %)"))
        lines.append(row)
    return markdown(lines)


def side_table(arms: dict[str, list[Run]]) -> str:
    """What the arms did to Chinese that belongs there, and to everything else."""
    measures = {
        arm: chinese_that_belongs(own) | {"right language": flagged(own, "right_language")}
        for arm, own in arms.items()
    }
    head = ["arm", *measures[BASELINE], "copying", "tokens", "cut", "empty", "endless"]
    lines = [head, ["---"] * len(head)]
    for arm, own in arms.items():
        row = [NAMES[arm]]
        before = {
            name: [each for each in rows if each[1] in {run["seed"] for run in own}]
            for name, rows in measures[BASELINE].items()
        }
        for name, rows in measures[arm].items():
            kept = "" if arm == BASELINE else f"; {verdict(before[name], rows)}"
            row.append(f"{100 * np.mean([value for _, _, value in rows]):.1f} %{kept}")
        row.append(f"{np.mean([run['copying'] for run in own]):.3f}")
        row.append(f"{np.mean([run['sampled'][lang]['mean_tokens'] for run in own for lang in OTHERS]):.1f}")
        row.append(f"{100 - 100 * mean_flag(own, 'finished'):.0f} %")
        row += [f"{100 * mean_flag(own, name):.1f} %" for name in ("empty", "endless")]
        lines.append(row)
    return markdown(lines)


def mean_flag(runs: Sequence[Run], name: str) -> float:
    """Share of a flag over the languages that should not switch."""
    values = [value for _, _, value in flagged(runs, name)]
    return sum(values) / len(values)


def draw_arms(arms: dict[str, list[Run]], path: Path) -> None:
    """Switching of each arm on the test pages, with its interval and seeds; what it costs; what is left of Chinese."""
    plain = arms[BASELINE]
    figure = new_figure(11, 1.2 + 0.42 * len(arms))
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=[2, 1, 1.2])
    rates = [bootstrap_mean(probabilities(own)) for own in arms.values()]
    draw_rates(left, rates, [arm != BASELINE for arm in arms])
    for row, own in enumerate(arms.values()):
        increases = [100 * loss_increase(run, other, OTHERS) for run, other in zip(own, same_seeds(plain, own))]
        middle.plot([np.mean(increases)], [row], "o", color="C0")
        for place, (label, rows) in enumerate(chinese_that_belongs(own).items()):
            kept = 100 * float(np.mean([value for _, _, value in rows]))
            right.plot([kept], [row + 0.12 * (place - 1)], "sD^"[place], color=f"C{place + 1}", label=label)
    name_rows(left, [NAMES[arm] for arm in arms])
    left.set_xlabel("probability that an answer switches, %\n(95 % interval; ticks: seeds)")
    middle.set_xlabel("change of held-out loss, %")
    middle.axvline(0, color="0.8", linewidth=0.8)
    right.set_xlabel("Chinese where it belongs, %")
    legend_above(right)
    save(figure, [left, middle, right], path)
