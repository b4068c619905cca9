"""
The command line: `sae-posttrain` with one of `demo`, `inspect`, `convert`, `train-sae`, `find-features`,
`find-directions`, `import-directions`, `calibrate`, `sample-size`, `evaluate`, `estimate`, `report`, `sft` and `grpo`.

Thin; each command is one public function.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from . import __version__
from .cli_directions import add_find_directions
from .cli_errors import in_one_line, in_options, is_ours, options_of
from .cli_estimate import add_estimate
from .cli_evaluate import add_evaluate, add_template_kwargs
from .cli_import import add_import_directions
from .cli_output import add_overwrite, require_new
from .cli_saes import add_convert, add_inspect
from .cli_statistics import add_sample_size
from .model_source import require_model
from .sae_training.command import add_arguments as add_train_sae

_MISTAKES = (ValueError, OSError, ImportError)
"""What a mistake in the input raises: told in one line, without a traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. A mistake in what it was given ends in one line and exit status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["sft"], ["grpo"]):  # their options are the fields of the configs, parsed by TRL's own parser
        return _train(arguments[0], arguments[1:])
    parser = make_parser()
    parsed, more = parser.parse_known_args(arguments)
    if hasattr(parsed, "more"):  # fields of a recipe
        parsed.more = more
    elif more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if hasattr(parsed, "words"):  # kept with what is found
        parsed.words = arguments
    try:
        parsed.run(parsed)
    except _MISTAKES as error:
        return _mistake(in_options(in_one_line(error), options_of(parser, parsed.command)))
    return 0


def _train(command: str, arguments: list[str]) -> int:
    from .training.command import check_command, short_help

    arguments = [
        part for each in arguments for part in (each.split("=", 1) if each.startswith("--config=") else [each])
    ]
    if {"-h", "--help"} & set(arguments) and (text := short_help(command)) is not None:
        print(text)
        return 0
    wants_all = {"-h", "--help", "--help-all"} & set(arguments)
    try:
        if not wants_all:
            check_command(command, arguments)
        script: Any = import_module(f".{'sft' if command == 'sft' else 'rl'}.script", __package__)
        from .training.script import parse_settings, train_and_save

        given = ["--help"] if wants_all else arguments
        script_args, *settings = parse_settings(script.ARGUMENTS, f"sae-posttrain {command}", given)
        trainer = script.make_trainer(script_args, *settings)
    except _MISTAKES as error:
        return _mistake(in_one_line(error))
    try:
        train_and_save(trainer, script_args)
    except ValueError as error:
        if not is_ours(error):
            raise  # of a reward of the user's, or of a library: the place is needed
        return _mistake(in_one_line(error))
    return 0


def _mistake(message: str) -> int:
    print(f"sae-posttrain: {message}", file=sys.stderr)
    return 2


def make_parser() -> argparse.ArgumentParser:
    """The parser of everything but `sft` and `grpo`, whose options are TRL's."""
    parser = argparse.ArgumentParser(
        prog="sae-posttrain", description="Post-training with sparse-autoencoder features, on TRL."
    )
    parser.add_argument("--version", action="version", version=f"sae_posttrain {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_demo(commands.add_parser("demo", help="see both methods at work on a small model that ships with this"))
    add_inspect(commands.add_parser("inspect", help="say what an SAE is, and how well it fits a model"))
    add_convert(commands.add_parser("convert", help="write an SAE in SAELens' layout"))
    add_train_sae(commands.add_parser("train-sae", help="train an SAE of any block and site of a model, with SAELens"))
    _add_find_features(
        commands.add_parser("find-features", help="find the features that stand for a language or for loops")
    )
    add_find_directions(
        commands.add_parser("find-directions", help="find directions that stand for a group, with no SAE")
    )
    add_import_directions(
        commands.add_parser("import-directions", help="read control and steering vectors that other tools made")
    )
    _add_calibrate(commands.add_parser("calibrate", help="find the steering strength at which answers loop"))
    add_sample_size(commands.add_parser("sample-size", help="say how many prompts it takes to see a rate change"))
    add_evaluate(
        commands.add_parser("evaluate", help="measure how many answers switch language or loop, and capability")
    )
    add_estimate(commands.add_parser("estimate", help="say how much memory a recipe takes, before anything is loaded"))
    _add_report(commands.add_parser("report", help="draw and describe finished runs in one HTML file"))
    commands.add_parser("sft", help="train with SASFTTrainer: --config FILE.yaml and any field of it", add_help=False)
    commands.add_parser("grpo", help="train with SteeredGRPOTrainer, in the same way", add_help=False)
    return parser


def _add_find_features(parser: argparse.ArgumentParser) -> None:
    parser.description = "Find the features of an SAE that stand for a fault, and write them to one file."
    parser.add_argument("--model", required=True, help="causal language model: folder or Hub id")
    parser.add_argument(
        "--sae", required=True, nargs="+", help="its SAEs: folder or Hub repository, one for all blocks or one each"
    )
    parser.add_argument(
        "--kind",
        choices=["language", "repetition"],
        default="language",
        help="features of a group of texts, or of endless repetition (default: language)",
    )
    parser.add_argument("--blocks", required=True, type=int, nargs="+", help="decoder blocks, counted from 0")
    parser.add_argument("--out", required=True, type=Path, help="file to write, ending in .safetensors")
    add_overwrite(parser)
    parser.add_argument("--num-features", type=int, default=2, help="features per block (default: 2)")
    parser.add_argument(
        "--rank-by",
        choices=["monolinguality", "auroc", "output", "causal", "increase"],
        default=argparse.SUPPRESS,
        help="what decides among the candidates: monolinguality (default), auroc or output for a language; "
        "causal (default) or increase for repetition",
    )
    parser.add_argument(
        "--num-candidates", type=int, default=argparse.SUPPRESS, help="features per block that are measured further"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=argparse.SUPPRESS,
        help="texts in one forward pass (default: 16; for repetition 32)",
    )
    add_template_kwargs(parser)
    parser.add_argument("--k", type=int, help="active features per token, where the SAE's files do not say it")
    parser.add_argument("--format", help="format of the SAE's files (default: told from the files)")
    parser.add_argument("--revision", help="branch, tag or commit of the SAE's Hub repository")
    parser.add_argument("--site", help="what the SAEs read in their blocks, e.g. mlp_out (default: what files say)")
    parser.add_argument("--seed", type=int, default=0, help="shuffles the texts or prompts (default: 0)")
    parser.add_argument(
        "--compare", metavar="OLD", help="feature set found before the model was tuned: say whether they moved"
    )
    for kind, options in _OPTIONS_OF_KIND.items():
        group = parser.add_argument_group(f"only with --kind {kind}")
        for name, (of_type, help_text) in options.items():
            how: dict[str, Any] = {"action": "store_true"} if of_type is bool else {"type": of_type}
            group.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, help=help_text, **how)
    parser.set_defaults(run=_find_features, words=[])


_OPTIONS_OF_KIND: dict[str, dict[str, tuple[type, str]]] = {
    "language": {
        "texts": (str, "data file (JSON, JSONL, CSV, Parquet; or folder of them) or `datasets` id; needed"),
        "target_group": (str, "the group to find features for, e.g. zh; needed"),
        "group_column": (str, "column with the group (default: lang)"),
        "text_column": (str, "column with the text (default: text)"),
        "split": (str, "split of a `datasets` id (default: train)"),
        "max_texts": (int, "texts per group (default: all)"),
        "max_length": (int, "tokens of each text (default: 512)"),
        "check": (bool, "remove the features and measure the loss of each group"),
    },
    "repetition": {
        "prompts": (str, "data file (JSON, JSONL, CSV, Parquet) of prompts, answered until enough answers loop"),
        "loops": (str, "data file (JSON, JSONL, CSV, Parquet) of texts that loop (default: the model's own)"),
        "num_loops": (int, "loops to look for (default: 50)"),
        "num_prompts": (int, "prompts on which each candidate is pushed up, and down (default: 16)"),
        "strength": (float, "how far it is pushed, in median residual norms (default: 1.5)"),
        "max_new_tokens": (int, "longest answer (default: 256)"),
        "temperature": (float, "of the answers in which loops are looked for (default: 0, greedy)"),
        "normal_temperature": (float, "of normal answers, at which loops should be rare (default: 0.7)"),
    },
}
"""Options of `find-features` that one kind takes and the other refuses: their type (bool for a switch) and help."""


def _find_features(arguments: argparse.Namespace) -> None:
    options = {**vars(arguments)}
    for name in ("command", "run", "words", "kind", "model", "sae", "out", "overwrite", "compare"):
        options.pop(name)
    _require_ending(arguments.out)
    require_new(arguments.out, arguments.overwrite)
    for kind, of_kind in _OPTIONS_OF_KIND.items():
        wrong = [name for name in of_kind if name in options and kind != arguments.kind]
        if wrong:
            raise ValueError(
                f"--{wrong[0].replace('_', '-')} belongs to --kind {kind}, the kind asked for is {arguments.kind}."
            )
    if arguments.kind == "repetition":
        if not {"prompts", "loops"} & set(options):
            raise ValueError("--kind repetition needs --prompts, which the model answers until it loops, or --loops.")
    else:
        for name in ("texts", "target_group"):
            if name not in options:
                raise ValueError(f"--kind language needs --{name.replace('_', '-')}.")
    require_model(arguments.model)
    from accelerate import PartialState

    from .features.set.picture import draw_features
    from .model_records import recorded_name

    command = shlex.join(["sae-posttrain", *map(recorded_name, arguments.words)])

    def save(found: Any) -> Any:
        """Write what was found, with the command that found it."""
        found = replace(found, notes=found.notes | {"command": command})
        if PartialState().is_main_process:
            found.save(arguments.out, overwrite=True)  # what was there before was asked about at the start
        return found

    before = _search_wider(arguments, options) if arguments.compare else None
    if arguments.kind == "repetition":
        from .features.find.by_repetition import find_repetition_features

        feature_set = find_repetition_features(arguments.model, arguments.sae, **options)
    else:
        from .features.find.by_group import find_features
        from .features.read.text_options import TextOptions

        if options.get("check"):  # it can run out of memory, and the search must not be lost with it
            options["on_found"] = save
        options["text_options"] = TextOptions().take(options)
        feature_set = find_features(arguments.model, arguments.sae, options.pop("texts"), **options)
    if not PartialState().is_main_process:
        return
    comparison = None
    if before is not None:
        from .features.find.compare import best_of_each_place, compare_features

        comparison = compare_features(before, feature_set)
        feature_set = best_of_each_place(feature_set, arguments.num_features)
    feature_set = save(feature_set)
    table = str(feature_set)
    if comparison is not None:
        table += f"\n\nAgainst {arguments.compare}:\n{comparison}"
    if "check" in feature_set.notes:
        table += f"\n\n{_check_table(feature_set.notes['check'], feature_set.target_groups)}"
    if feature_set.notes.get("fires_on_benign"):
        table += f"\n\nAlso rise in benign repetition: {', '.join(feature_set.notes['fires_on_benign'])}"
    print(table)
    arguments.out.with_suffix(".txt").write_text(table + "\n", encoding="utf-8")
    written = [arguments.out, arguments.out.with_suffix(".txt")]
    _report(written, lambda: draw_features(feature_set, arguments.out.with_suffix(".png")))


def _search_wider(arguments: argparse.Namespace, options: dict[str, Any]) -> Any:
    """The set found before; the search lists more features than are wanted, so that those that fell are seen."""
    from .features.find.compare import most_at_a_place
    from .features.set.feature_set import FeatureSet

    if options.get("check"):
        raise ValueError(
            "--check removes the features that are wanted, --compare lists more of them. Run one, then the other."
        )
    before = FeatureSet.from_pretrained(arguments.compare)
    options["num_features"] = max(4 * arguments.num_features, most_at_a_place(before))
    measured = 16 if arguments.kind == "repetition" else 32  # as many as without --compare, so that ranks are the same
    options.setdefault("num_candidates", max(measured, options["num_features"]))
    return before


def _require_ending(out: Path) -> None:
    if out.suffix != ".safetensors":
        raise ValueError(f"--out must end in .safetensors, got {out}.")


def _report(written: list[Path], draw: Callable[[], Path]) -> None:
    """Draw the picture, if that can be done here, and say what was written."""
    try:
        written.append(draw())
    except ImportError as error:
        print(f"No picture: {error}", file=sys.stderr)
    print("Written: " + ", ".join(map(str, written)))


def _check_table(check: dict[str, dict[str, float]], targets: Sequence[str]) -> str:
    lines = ["Loss per token with the features' directions removed (only the target should suffer):"]
    for group, loss in check["loss"].items():
        without = check["loss_without"][group]
        mark = "  (target)" if group in targets else ""
        lines.append(f"  {group:>8}  {loss:.3f} -> {without:.3f}  {100 * (without / loss - 1):+.1f} %{mark}")
    return "\n".join(lines)


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Find the smallest steering strength at which answers show a fault as often as wanted: endless repetition, or "
        "a switch into another language."
    )
    parser.add_argument("--model", required=True, help="causal language model: folder or Hub id")
    parser.add_argument("--features", required=True, help="feature set: file, folder or Hub repository")
    parser.add_argument(
        "--prompts",
        required=True,
        help="data file (JSON, JSONL, CSV, Parquet) of prompts, in the form of the later training: texts go to the "
        "model as they are, messages through the chat template",
    )
    parser.add_argument("--out", required=True, type=Path, help="file to write, ending in .safetensors")
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
    parser.add_argument("--names", nargs="+", help="push along these features of the set only (default: all at once)")
    parser.add_argument("--target", type=float, default=0.8, help="share of faulty answers wanted (default: 0.8)")
    parser.add_argument(
        "--strengths", type=float, nargs="+", help="in median residual norms (default: 0 to 3, in steps of 0.25)"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="as in the later training (default: 1.0)")
    parser.add_argument("--top-p", type=float, default=1.0, help="as in the later training (default: 1.0)")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest answer (default: 256)")
    parser.add_argument("--num-prompts", type=int, default=64, help="prompts answered at each strength (default: 64)")
    parser.add_argument("--batch-size", type=int, default=32, help="answers generated at once (default: 32)")
    add_template_kwargs(parser)
    parser.add_argument("--control", action="store_true", help="draw a random direction beside it, at these strengths")
    parser.add_argument("--seed", type=int, default=0, help="of prompts, sampling and control (default: 0)")
    parser.add_argument("--allow-base-model", help="another model that these features may push, by name")
    parser.set_defaults(run=_calibrate)


def _calibrate(arguments: argparse.Namespace) -> None:
    _require_ending(arguments.out)
    require_new(arguments.out, arguments.overwrite, (".txt", ".json", ".png"))
    require_model(arguments.model)
    from .features.calibrate.calibrate import calibrate
    from .features.calibrate.picture import draw_calibration
    from .features.controls.random_directions import random_directions
    from .features.read.loading import load_model_and_tokenizer
    from .features.read.texts import check_prompts
    from .features.set.feature_set import FeatureSet

    feature_set = FeatureSet.from_pretrained(arguments.features)
    if arguments.names:
        feature_set = feature_set.select(names=arguments.names)
    check_prompts(arguments.prompts)
    of_fault = _fault_options(arguments, feature_set.target_groups)
    model, tokenizer = load_model_and_tokenizer(arguments.model, None)
    names = ("target", "temperature", "top_p", "max_new_tokens", "num_prompts", "batch_size", "seed")
    options = {name: getattr(arguments, name) for name in (*names, "allow_base_model")}
    options |= {"tokenizer": tokenizer, "chat_template_kwargs": arguments.chat_template_kwargs, **of_fault}
    calibration = calibrate(model, feature_set, arguments.prompts, strengths=arguments.strengths, **options)
    sweeps = {}
    if arguments.control:
        strengths = [row.strength for row in calibration.rows]
        control = random_directions(feature_set, arguments.seed)
        sweeps["random direction"] = calibrate(model, control, arguments.prompts, strengths=strengths, **options)
    parts = [str(calibration)]
    parts += [f"Control, a {label} at the same strengths, for comparison only:\n\n{s}" for label, s in sweeps.items()]
    table = "\n\n".join(parts)
    print(table)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    files = {suffix: arguments.out.with_suffix(suffix) for suffix in (".txt", ".json", ".png")}
    files[".txt"].write_text(table + "\n", encoding="utf-8")
    record = calibration.as_dict() | {"controls": {label: sweep.as_dict() for label, sweep in sweeps.items()}}
    files[".json"].write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    written = [files[".txt"], files[".json"]]
    if calibration.strength is not None:
        written.insert(0, calibration.feature_set.save(arguments.out, overwrite=True))
    _report(written, lambda: draw_calibration(calibration, files[".png"], others=sweeps))
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
                raise ValueError(f"--{name.replace('_', '-')} belongs to --fault language; the fault is repetition.")
        return {"fault": "repetition"}
    target = arguments.target_lang or (target_groups[0] if len(target_groups) == 1 else None)
    if target is None:
        raise ValueError("--fault language needs --target-lang, the language that answers switch into.")
    return {"fault": "language", "target_lang": target, "group_column": arguments.group_column or "lang"}


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Find features, train without and with them, and compare, on a small model that ships with the package: "
        "language switching, then endless repetition. Minutes on a CPU; nothing is downloaded."
    )
    parser.add_argument(
        "--out", required=True, type=Path, help="folder to write; new or empty, or with --resume or --overwrite"
    )
    parser.add_argument("--quick", action="store_true", help="only the first half, language switching")
    parser.add_argument("--seed", type=int, default=0, help="of training and sampling (default: 0)")
    used = parser.add_mutually_exclusive_group()
    used.add_argument("--resume", action="store_true", help="go on with an interrupted demo in the folder, if any")
    used.add_argument("--overwrite", action="store_true", help="remove the demo in the folder, and begin anew")
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> None:
    from .lab.demo import run_demo

    run_demo(
        arguments.out,
        quick=arguments.quick,
        seed=arguments.seed,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
    )


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.description = "Compare evaluations and trainings in one HTML file, which needs no network."
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN_DIR",
        help="folder of an evaluation or a training, or of such folders",
    )
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="file to write (default: report.html)")
    parser.add_argument("--title", default="Report", help="title of the page (default: Report)")
    parser.add_argument(
        "--baseline", type=Path, metavar="RUN_DIR", help="evaluation to compare with (default: the first)"
    )
    parser.set_defaults(run=_write_report)


def _write_report(arguments: argparse.Namespace) -> None:
    from .measure.report.page import write_report
    from .measure.report.runs import read_sections

    sections = read_sections(arguments.runs, baseline=arguments.baseline)
    print(f"Written: {write_report(arguments.out, sections, title=arguments.title)}")


if __name__ == "__main__":
    sys.exit(main())
