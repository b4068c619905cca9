"""Read the results of runs from their folders, as arms and sections of a report."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..answers.folder import ANSWERS_FILE, EVALUATION_FILE
from ..answers.summary import LINE_MEASURE
from ..faults.loops import MIN_TOKENS
from .data import Arm, Section

STATE_FILE = "trainer_state.json"
"""File with a trainer's metrics: in its folder after `trainer.save_state()`, and in each checkpoint."""


def read_run(folder: str | os.PathLike[str], *, name: str = "", label: str = "") -> Arm | None:
    """
    Read one `output_dir`: an evaluation, the metrics of a training (of its last checkpoint, if it has no state), or
    both; `None` if it holds neither. Name and label of the arm are the folder's name by default.
    """
    folder = Path(folder)
    evaluation, answers = _read_evaluation(folder)
    state_file = _find_state(folder)
    log = _read_log(state_file) if state_file is not None else []
    if evaluation is None and not log:
        return None
    return Arm(name or folder.resolve().name, label, evaluation, answers, log)


def read_sections(
    folders: Sequence[str | os.PathLike[str]], *, baseline: str | os.PathLike[str] | None = None
) -> list[Section]:
    """
    A section for each fault that was measured in these runs, and one for their training. The baseline to compare with
    is the first, or an evaluation elsewhere.
    """
    found = _find_runs(folders)
    base_name = None
    if baseline is not None:
        place = Path(baseline).resolve()
        if place not in [each for each, _ in found]:
            if _find_runs([baseline])[0][0] != place:
                raise ValueError(f"The baseline {baseline} is no run but a folder of runs; name one of them.")
            found = _find_runs([baseline, *folders])
        base = next(arm for each, arm in found if each == place)
        if base.evaluation is None:
            raise ValueError(f"The baseline {baseline} holds no evaluation ({EVALUATION_FILE}) to compare with.")
        base_name = base.name
    arms = [arm for _, arm in found]
    evaluated = [replace(arm, log=()) for arm in arms if arm.evaluation is not None]
    trained = [replace(arm, evaluation=None, answers=()) for arm in arms if arm.log]
    sections = []
    if any(_overall(arm)["any"] is not None for arm in evaluated):
        sections.append(Section("Language switching", evaluated, "switching", base_name))
    if any(_can_loop(arm) for arm in evaluated):
        sections.append(Section("Endless repetition", evaluated, "loops", base_name))
    if evaluated and not sections:
        raise ValueError(
            f"The evaluations ({', '.join(arm.name for arm in evaluated)}) measured neither switches nor loops: a "
            f"loop takes {MIN_TOKENS} tokens or more, and switches have to show in the script."
        )
    if trained:
        sections.append(Section("Training", trained))
    return sections


def _overall(arm: Arm) -> Mapping[str, Any]:
    return (arm.evaluation or {})["overall"]


def _can_loop(arm: Arm) -> bool:
    longest = (arm.evaluation or {})["settings"].get("max_new_tokens", MIN_TOKENS)
    return _overall(arm).get("endless") is not None and longest >= MIN_TOKENS


def _find_runs(folders: Sequence[str | os.PathLike[str]]) -> list[tuple[Path, Arm]]:
    """Runs in the order of their folders. If a folder is no run, the runs of its subfolders are read, by name."""
    found: list[tuple[Path, Arm]] = []
    for each in folders:
        folder = Path(each)
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no folder {folder}.")
        places = [folder]
        if (arm := read_run(folder)) is not None:
            runs = [(folder, arm)]
        else:
            places = sorted(child for child in folder.iterdir() if child.is_dir())
            runs = [(child, arm) for child in places if (arm := read_run(child)) is not None]
        if not runs:
            raise ValueError(
                f"{folder} holds no run, nor does a folder in it: looked for {EVALUATION_FILE} with {ANSWERS_FILE} "
                f"(of `evaluate`), and for {STATE_FILE} with logged metrics, also in checkpoint-* (of a trainer)."
            )
        found += [(place.resolve(), arm) for place, arm in runs]
    return _named_apart(found)


def _named_apart(found: Sequence[tuple[Path, Arm]]) -> list[tuple[Path, Arm]]:
    """Names of folders, with as much of the path in front as is needed to make them unique."""
    places = [place for place, _ in found]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise ValueError(f"The run {twice.name} is named twice.")
    named = []
    for place, arm in found:
        depth = 1
        while [other.parts[-depth:] for other in places].count(place.parts[-depth:]) > 1:
            depth += 1
        named.append((place, replace(arm, name="/".join(place.parts[-depth:]))))
    return named


def _find_state(folder: Path) -> Path | None:
    if (folder / STATE_FILE).is_file():
        return folder / STATE_FILE
    checkpoints = {
        int(match[1]): place / STATE_FILE
        for place in folder.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", place.name)) and (place / STATE_FILE).is_file()
    }
    return checkpoints[max(checkpoints)] if checkpoints else None


def _read_log(path: Path) -> list[dict[str, Any]]:
    state = _read_json(path)
    log = state.get("log_history")
    if not isinstance(log, list) or not all(isinstance(entry, dict) for entry in log):
        raise ValueError(f"{path} has no list `log_history` of logged metrics: it is no trainer state.")
    return log


def _read_evaluation(folder: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    path, answers_path = folder / EVALUATION_FILE, folder / ANSWERS_FILE
    if not path.is_file():
        if answers_path.is_file():
            raise ValueError(
                f"{folder} holds an evaluation that was not finished: {ANSWERS_FILE} but no {EVALUATION_FILE}. Run "
                "`evaluate` again with the same settings, which goes on where it stopped."
            )
        return None, []
    evaluation = _read_json(path)
    _check_evaluation(evaluation, path)
    if not answers_path.is_file():
        return evaluation, []
    answers = []
    with answers_path.open("rb") as file:
        for number, line in enumerate(file, 1):
            answer = _parse(line, f"{answers_path}, line {number}")
            _check_answer(answer, f"{answers_path}, line {number}")
            answers.append(answer)
    return evaluation, answers


def _read_json(path: Path) -> dict[str, Any]:
    return _parse(path.read_bytes(), str(path))


def _parse(content: bytes, where: str) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error}). Was it written to the end?") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{where} holds a {type(parsed).__name__}, not an object.")
    return parsed


_NUMBER = int | float
_MAX_TOKENS = 1e12

_SETTINGS_FIELDS = {"target_lang": str | None, "prompts_sha256": str, "num_samples": int, "max_new_tokens": int}
_ANSWER_FIELDS = {
    "id": str | int | float | None,
    **dict.fromkeys(("lang", "prompt", "answer"), str),
    **dict.fromkeys(("sample", "num_tokens"), int),
    **dict.fromkeys(("any", "unexpected", "right_language"), bool | None),
    **{"finished": bool, "num_any": int | None, "spans": list},
}
_SPAN_FIELDS = {"start": int, "text": str, "script": str, "segment": str, "excused": str | None}
_LOOP_FIELDS = {"endless": bool, "loop_any": bool, "near_loop": bool, "period": int | None, "span": int}
_RATE_FIELDS = {"count": int, "n": int, "rate": _NUMBER, "low": _NUMBER, "high": _NUMBER}


def _check_evaluation(evaluation: Mapping[str, Any], path: Path) -> None:
    where = f"{path} is no evaluation"
    _check(evaluation, {"overall": dict, "groups": dict, "settings": dict}, where)
    _check({"versions": {}, **evaluation}, {"versions": dict}, where)
    for name, group in {"overall": evaluation["overall"], **evaluation["groups"]}.items():
        _check({name: group}, {name: dict}, where)
        _check(group, {"num_answers": int, "mean_tokens": _NUMBER}, f"{where}: {name}")
        rates = [group.get(measure) for measure in ("right_language", "endless", "near_loop", LINE_MEASURE)]
        for rule in ("any", "unexpected"):
            _check(group, {rule: dict | None}, f"{where}: {name}")
            rates += [group[rule].get("1", {})] if group[rule] is not None else []
        for rate in rates:
            if rate is not None:
                _check({"rate": rate}, {"rate": dict}, f"{where}: {name}")
                _check(rate, _RATE_FIELDS, f"{where}: a rate of {name}")
                if not all(0 <= rate[key] <= 1 for key in ("rate", "low", "high")):
                    raise ValueError(f"{where}: a rate of {name} is not between 0 and 1.")
        if not 0 <= group["mean_tokens"] < _MAX_TOKENS or group["num_answers"] < 1:
            raise ValueError(f"{where}: {name} has {group['num_answers']} answers of {group['mean_tokens']} tokens.")
    settings = evaluation["settings"]
    _check(settings, {name: types for name, types in _SETTINGS_FIELDS.items() if name in settings}, where)
    if settings.get("num_samples", 1) < 1:
        raise ValueError(f"{where}: `num_samples` is {settings['num_samples']}.")


def _check_answer(answer: Mapping[str, Any], where: str) -> None:
    where = f"{where} is no judged answer"
    _check(answer, _ANSWER_FIELDS, where)
    for span in answer["spans"]:
        _check({"span": span}, {"span": dict}, where)
        _check(span, _SPAN_FIELDS, f"{where}: a span")
    if "loop" in answer:
        _check(answer, {"loop": dict}, where)
        _check(answer["loop"], _LOOP_FIELDS, f"{where}: its loop")
    if answer.get("lines") is not None:
        _check(answer, {"lines": dict}, where)
        _check(answer["lines"], {"line_pass": bool | None}, f"{where}: its lines")


def _check(given: Mapping[str, Any], fields: Mapping[str, Any], where: str) -> None:
    for name, types in fields.items():
        if name not in given or not isinstance(given[name], types):
            what = f"{name!r} is a {type(given[name]).__name__}" if name in given else f"{name!r} is missing"
            raise ValueError(f"{where}: {what}.")
