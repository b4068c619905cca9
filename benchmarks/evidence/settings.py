"""What an experiment is: a YAML file with its arms, the configurations each is tuned over, splits and seeds."""

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml


@dataclass(frozen=True)
class Job:
    """One run: an arm in one of its configurations with a seed, measured on the dev or the test pages."""

    arm: str
    config: str
    seed: int
    split: str

    @property
    def key(self) -> str:
        return f"{self.split}-{self.arm}-{self.config}-{self.seed}"


@dataclass(frozen=True)
class Experiment:
    """A YAML file of this folder; `module` says whose `<module>_arms.py` and so on it runs."""

    name: str
    common: dict[str, Any]
    arms: dict[str, dict[str, Any]]
    tune: dict[str, Any]
    test: dict[str, Any]
    module: str
    held: tuple[str, ...]  # languages whose mean held-out loss is what a method may cost
    claims: dict[str, list[list[str]]] = field(default_factory=dict)  # by measure: pairs of arms, the first has less
    baseline: str = "plain"  # arm, without configurations, whose held-out loss the budget is counted from

    @classmethod
    def read(cls, file: Path) -> "Experiment":
        """The experiment of a file, laid over the one it `extends`, if any; unknown keys are an error."""
        own = yaml.safe_load(file.read_text(encoding="utf-8"))
        if "extends" in own:
            base = file.with_name(f"{own.pop('extends')}.yaml")
            own = merged(yaml.safe_load(base.read_text(encoding="utf-8")), own)
        return cls(name=file.stem, **own)

    def part(self, what: str) -> ModuleType:
        """Its module of `arms` (what is trained), `measures` or `report`."""
        return import_module(f"{self.module}_{what}")

    def configs(self, arm: str) -> list[str]:
        """Names of the configurations of an arm, in the order of the file."""
        return list(self._definition(arm).get("configs") or {"only": {}})

    def settings(self, arm: str, config: str) -> dict[str, Any]:
        """Settings of an arm in a configuration: those of the experiment, over them the arm's, over them its own."""
        definition = self._definition(arm)
        own = (definition.get("configs") or {"only": {}})[config] or {}
        base = {key: value for key, value in definition.items() if key != "configs"}
        return merged(merged(self.common, base), own)

    def tuning_jobs(self, arms: list[str]) -> list[Job]:
        """Every configuration of every arm, with one seed, on the dev pages."""
        return [Job(arm, config, self.tune["seed"], "dev") for arm in arms for config in self.configs(arm)]

    def test_jobs(self, arms: list[str], chosen: dict[str, str]) -> list[Job]:
        """The chosen configuration of every arm, with every seed, on the test pages; seed by seed."""
        return [Job(arm, chosen[arm], seed, "test") for seed in self.test["seeds"] for arm in arms]

    def _definition(self, arm: str) -> dict[str, Any]:
        if arm not in self.arms:
            raise ValueError(f"{self.name}.yaml has no arm {arm!r}; it has {', '.join(self.arms)}.")
        return self.arms[arm]


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on `base`, dictionaries within them likewise; `null` takes a key out."""
    result = dict(base)
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
            continue
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result
