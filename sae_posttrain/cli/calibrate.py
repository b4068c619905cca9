"""The command `calibrate`."""

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from ..model_source import require_model
from .options import (
    ENGINE_OPTIONS,
    NEW_FEATURES,
    add_batch_size,
    add_model,
    add_options,
    add_out,
    add_overwrite,
    add_prompts,
    add_seed,
    add_template_kwargs,
    flag,
    require_new,
    require_safetensors,
    say_written,
    send_vllm_logs_to_stderr,
)


def add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Find the smallest steering strength at which answers show a fault as often as wanted: endless repetition, or "
        "a switch into another language."
    )
    add_model(parser)
    parser.add_argument("--features", required=True, help="feature set: file, folder or Hub repository")
    add_prompts(
        parser,
        more=". Use the form of the later training",
    )
    add_out(parser, NEW_FEATURES)
    add_overwrite(parser)
    parser.add_argument(
        "--fault",
        choices=["repetition", "language"],
        default="repetition",
        help="what makes an answer faulty: an endless loop, or an unexpected switch into --target-lang "
        "(default: repetition)",
    )
    parser.add_argument(
        "--target-lang",
        help="with --fault language: the language that answers switch into (default: the group that the features "
        "stand for)",
    )
    parser.add_argument(
        "--group-column",
        help="with --fault language: column with the language of the answer (default: lang)",
    )
    parser.add_argument("--names", nargs="+", help="steer along these features of the set only (default: all at once)")
    parser.add_argument("--target", type=float, default=0.8, help="wanted share of faulty answers (default: 0.8)")
    parser.add_argument(
        "--strengths",
        type=float,
        nargs="+",
        help="strengths to try, in median residual norms (default: 0 to 3 in steps of 0.25)",
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="as in the later training (default: 1.0)")
    parser.add_argument(
        "--temperatures",
        type=float,
        nargs="+",
        help="search the temperature of the steered answers too: try these in place of --temperature, and store the "
        "best with the strength",
    )
    parser.add_argument("--top-p", type=float, default=1.0, help="as in the later training (default: 1.0)")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest answer, in tokens (default: 256)")
    parser.add_argument("--num-prompts", type=int, default=64, help="prompts answered at each strength (default: 64)")
    add_batch_size(parser, "answers generated", 32)
    add_template_kwargs(parser)
    parser.add_argument("--control", action="store_true", help="try a random direction at the same strengths too")
    add_seed(parser, "the choice of prompts, the sampling and the control")
    parser.add_argument("--allow-base-model", help="name of another model that these features may steer")
    add_options(parser, ENGINE_OPTIONS)
    parser.set_defaults(run=_calibrate)


def _calibrate(arguments: argparse.Namespace) -> None:
    require_safetensors(arguments.out)
    require_new(arguments.out, arguments.overwrite, (".txt", ".json", ".png"))
    require_model(arguments.model)
    from ..features.calibrate.calibrate import calibrate
    from ..features.calibrate.picture import draw_calibration
    from ..features.calibrate.temperatures import calibrate_temperatures
    from ..features.controls.random_directions import random_directions
    from ..features.find.engine_answers import EngineAnswers, require_engine
    from ..features.read.loading import load_model_and_tokenizer
    from ..features.read.texts import check_prompts
    from ..features.set.feature_set import FeatureSet

    feature_set = FeatureSet.from_pretrained(arguments.features)
    if arguments.names:
        feature_set = feature_set.select(names=arguments.names)
    check_prompts(arguments.prompts)
    of_fault = _fault_options(arguments, feature_set.target_groups)
    engine, engine_kwargs = getattr(arguments, "engine", "transformers"), getattr(arguments, "engine_kwargs", None)
    require_engine(engine, arguments.model, engine_kwargs)
    model, tokenizer = load_model_and_tokenizer(arguments.model, None)
    control = random_directions(feature_set, arguments.seed) if arguments.control else None
    answers: Any = nullcontext("transformers")
    if engine == "vllm":  # one engine for all sweeps
        send_vllm_logs_to_stderr()
        sets = [feature_set] if control is None else [feature_set, control]
        of_engine: dict[str, Any] = {"batch_size": arguments.batch_size, "engine_kwargs": engine_kwargs}
        answers = EngineAnswers(arguments.model, tokenizer, sets, **of_engine)
    names = ("target", "temperature", "top_p", "max_new_tokens", "num_prompts", "batch_size", "seed")
    options = {name: getattr(arguments, name) for name in (*names, "allow_base_model")}
    options |= {"tokenizer": tokenizer, "chat_template_kwargs": arguments.chat_template_kwargs, **of_fault}
    sweeps: dict[str, Any] = {}
    search = None
    with answers as options["engine"]:
        if arguments.temperatures is None:
            calibration = calibrate(model, feature_set, arguments.prompts, strengths=arguments.strengths, **options)
        else:
            search = calibrate_temperatures(
                model,
                feature_set,
                arguments.prompts,
                temperatures=arguments.temperatures,
                strengths=arguments.strengths,
                **{name: value for name, value in options.items() if name != "temperature"},
            )
            calibration = search.chosen or max(search.sweeps.values(), key=lambda sweep: sweep.best.hit_rate)
            options["temperature"] = calibration.settings["temperature"]
            others = [each for each in search.sweeps.values() if each is not calibration]
            sweeps = {f"at temperature {each.settings['temperature']:g}": each for each in others}
        if control is not None:
            strengths = [row.strength for row in calibration.rows]
            sweeps["random direction"] = calibrate(model, control, arguments.prompts, strengths=strengths, **options)
    parts = [] if search is None else [str(search)]
    parts += [str(calibration)]
    parts += [
        f"Control, a {label} at the same strengths, for comparison only:\n\n{sweep}"
        for label, sweep in sweeps.items()
        if label == "random direction"
    ]
    table = "\n\n".join(parts)
    print(table)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    files = {suffix: arguments.out.with_suffix(suffix) for suffix in (".txt", ".json", ".png")}
    files[".txt"].write_text(table + "\n", encoding="utf-8")
    controls = {label: sweep.as_dict() for label, sweep in sweeps.items() if label == "random direction"}
    record = (calibration if search is None else search).as_dict() | {"controls": controls}
    files[".json"].write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    written = [files[".txt"], files[".json"]]
    if calibration.strength is not None:
        found = (calibration if search is None else search).feature_set
        written.insert(0, found.save(arguments.out, overwrite=True))
    say_written(written, lambda: draw_calibration(calibration, files[".png"], others=sweeps))
    if calibration.strength is None:
        best = calibration.best
        raise ValueError(
            f"No strength reaches {100 * arguments.target:g} %; the best rate is {100 * best.hit_rate:.1f} %, at "
            f"{best.strength:g}. Try other features, higher --strengths or a lower --temperature."
        )


def _fault_options(arguments: argparse.Namespace, target_groups: Sequence[str]) -> dict[str, Any]:
    if arguments.fault == "repetition":
        for name in ("target_lang", "group_column"):
            if getattr(arguments, name) is not None:
                raise ValueError(f"{flag(name)} belongs to --fault language; the fault is repetition.")
        return {"fault": "repetition"}
    target = arguments.target_lang or (target_groups[0] if len(target_groups) == 1 else None)
    if target is None:
        raise ValueError("--fault language needs --target-lang, the language that answers switch into.")
    return {"fault": "language", "target_lang": target, "group_column": arguments.group_column or "lang"}
