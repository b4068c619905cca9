"""Which configuration of an arm goes to the test pages: the rule, stated before any test page is read."""

from collections.abc import Sequence
from typing import Any

from settings import Experiment


def loss_increase(run: dict[str, Any], plain: dict[str, Any], langs: Sequence[str]) -> float:
    """Relative change of the mean held-out loss over languages."""
    return sum(run["loss"][lang] for lang in langs) / sum(plain["loss"][lang] for lang in langs) - 1


def chosen_configs(experiment: Experiment, results: list[dict[str, Any]], arms: Sequence[str]) -> dict[str, str]:
    """
    For each arm the configuration of the smallest fault rate among those within the loss budget of the experiment;
    where none is, the one of the smallest loss.

    Raises:
        ValueError: If a configuration of an arm has not been run on the dev pages.
    """
    measures = experiment.part("measures")
    dev = {(r["arm"], r["config"]): r for r in results if r["split"] == "dev"}
    chosen = {}
    for arm in arms:
        missing = [config for config in experiment.configs(arm) if (arm, config) not in dev]
        if missing:
            raise ValueError(f"{arm}: {', '.join(missing)} not run on the dev pages yet; run `--stage tune` first.")
        increase = {
            config: loss_increase(dev[arm, config], dev[experiment.baseline, "only"], experiment.held)
            for config in experiment.configs(arm)
        }
        within = [config for config in increase if increase[config] <= experiment.tune["loss_budget"]]
        if within:
            chosen[arm] = min(within, key=lambda config: measures.fault(dev[arm, config]))
        else:
            chosen[arm] = min(increase, key=lambda config: increase[config])
    return chosen
