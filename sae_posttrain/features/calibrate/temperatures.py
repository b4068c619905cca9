"""How hard to push and how warm to sample, searched together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...tables import align
from ..find.engine_answers import answering, require_engine
from ..read.loading import load_model_and_tokenizer
from ..set.feature_set import FeatureSet
from .calibrate import FaultyWithoutSteering, Prompts, calibrate
from .calibration import Calibration, CalibrationRow


@dataclass(frozen=True)
class TemperatureSearch:
    """
    One sweep over the strength at each temperature.

    Attributes:
        temperature (`float` or `None`):
            The chosen one; `None` if the target is reached at none.
        sweeps (`dict[float, Calibration]`):
            By temperature, in the order asked.
        faulty_without (`dict[float, str]`):
            Temperatures at which nothing must be pushed, each with what was found there.
        feature_set ([`FeatureSet`]):
            The features, with strength and temperature in `notes["calibration"]`.
    """

    temperature: float | None
    sweeps: dict[float, Calibration]
    faulty_without: dict[float, str]
    feature_set: FeatureSet

    @property
    def chosen(self) -> Calibration | None:
        """The sweep at the chosen temperature; `None` if there is none."""
        return None if self.temperature is None else self.sweeps[self.temperature]

    def __str__(self) -> str:
        table = [["temperature", "strength", "faulty %", "unsteered %", "loss per token"]]
        for temperature, sweep in self.sweeps.items():
            row: CalibrationRow = sweep.chosen or sweep.best
            table.append(
                [
                    f"{temperature:g}{' *' if temperature == self.temperature else ''}",
                    f"{row.strength:g}" + ("" if sweep.chosen else " (best)"),
                    f"{100 * row.hit_rate:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]",
                    f"{100 * sweep.rows[0].hit_rate:.1f}",
                    f"{row.loss:.2f}",
                ]
            )
        lines = align(table) if self.sweeps else []
        lines += [f"Temperature {temperature:g}: {why}" for temperature, why in self.faulty_without.items()]
        if self.temperature is None:
            return "\n".join([*lines, "", "The target is reached at none of the temperatures by a push."])
        return "\n".join([*lines, "", "* reaches the target with the likeliest text under the model as it is."])

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the chosen sweep, its temperature, and all sweeps under `temperatures`."""
        sweeps = [{"temperature": each} | sweep.as_dict() for each, sweep in self.sweeps.items()]
        chosen = self.chosen
        return (chosen.as_dict() if chosen else {}) | {"temperature": self.temperature, "temperatures": sweeps}


def calibrate_temperatures(
    model: Any, feature_set: FeatureSet, prompts: Prompts, *, temperatures: Sequence[float], **options: Any
) -> TemperatureSearch:
    """
    Sweep the strength at each temperature, and choose strength and temperature together.

    Of the temperatures at which a push reaches the target, that one is chosen whose answers have the lowest loss per
    token under the model as it is: text that the model itself is most likely to write. Loops that repeat a single
    token are likely too and not how models loop; they are taken only if no temperature gives others.

    Args:
        model, feature_set, prompts, **options:
            As in [`calibrate`], without `temperature`.
        temperatures (`Sequence[float]`):
            Temperatures to try; 0 is greedy.

    Returns:
        [`TemperatureSearch`]: its feature set carries both to training, where `SteeredGRPOTrainer` takes them.

    Raises:
        ValueError: As [`calibrate`]; if there are no temperatures or one stands there twice; if the fault is as
            frequent as wanted without steering at each of them.
    """
    given = [float(each) for each in temperatures]
    if not given or len(set(given)) < len(given) or not all(0 <= each < float("inf") for each in given):
        raise ValueError(f"`temperatures` must be different numbers of 0 or more; got {given}.")
    engine, engine_kwargs = options.pop("engine", "transformers"), options.pop("engine_kwargs", None)
    require_engine(engine, model, engine_kwargs)
    network, tokenizer = load_model_and_tokenizer(model, options.pop("tokenizer", None))
    if not isinstance(prompts, str):
        prompts = prompts if hasattr(prompts, "__fspath__") else list(prompts)
    sweeps: dict[float, Calibration] = {}
    faulty: dict[float, str] = {}
    of_engine: dict[str, Any] = {"batch_size": options.get("batch_size", 32), "engine_kwargs": engine_kwargs}
    with answering(engine, model, network, tokenizer, [feature_set], **of_engine) as answerer:
        options |= {"tokenizer": tokenizer, "engine": answerer if engine != "transformers" else engine}
        for temperature in given:
            try:
                sweeps[temperature] = calibrate(network, feature_set, prompts, temperature=temperature, **options)
            except FaultyWithoutSteering as error:
                faulty[temperature] = str(error)
    if not sweeps:
        raise ValueError(next(iter(faulty.values())))
    reached = {each: sweep.chosen for each, sweep in sweeps.items() if sweep.chosen is not None}
    best = min(reached, key=lambda each: (reached[each].repeats_one_token, reached[each].loss), default=None)
    search = TemperatureSearch(best, sweeps, faulty, feature_set)
    if best is None:
        return search
    notes = feature_set.notes | {"calibration": search.as_dict()}
    return replace(search, feature_set=replace(feature_set, notes=notes))
