"""The command `find-features`."""

import argparse
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..model_source import require_model
from .options import (
    DATA_FILE,
    ENGINE_OPTIONS,
    NEW_FEATURES,
    TEXT_OPTIONS,
    add_blocks,
    add_model,
    add_options,
    add_out,
    add_overwrite,
    add_prompts,
    add_sae_options,
    add_seed,
    add_template_kwargs,
    add_texts,
    flag,
    require_new,
    require_safetensors,
    say_written,
    send_vllm_logs_to_stderr,
)


def add_find_features(parser: argparse.ArgumentParser) -> None:
    parser.description = "Find the features of an SAE that stand for a fault, and write them to one file."
    add_model(parser)
    parser.add_argument(
        "--sae",
        required=True,
        nargs="+",
        help="its SAEs: folder or Hub repository, one for all blocks or one each",
    )
    parser.add_argument(
        "--kind",
        choices=["language", "repetition"],
        default="language",
        help="features of a group of texts, or of endless repetition (default: language)",
    )
    add_blocks(parser)
    add_out(parser, NEW_FEATURES)
    add_overwrite(parser)
    parser.add_argument("--num-features", type=int, default=2, help="features per block (default: 2)")
    parser.add_argument(
        "--rank-by",
        choices=["monolinguality", "auroc", "output", "causal", "increase"],
        default=argparse.SUPPRESS,
        help="how candidates are ranked: monolinguality (default), auroc or output for a language; "
        "causal (default) or increase for repetition",
    )
    parser.add_argument(
        "--num-candidates",
        type=int,
        default=argparse.SUPPRESS,
        help="features per block to measure further",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=argparse.SUPPRESS,
        help="texts in one forward pass (default: 16; for repetition 32)",
    )
    add_template_kwargs(parser)
    add_sae_options(parser)
    add_seed(parser, "the order of texts or prompts")
    parser.add_argument(
        "--compare",
        metavar="OLD",
        help="feature set found before fine-tuning: report whether its features moved",
    )
    language = parser.add_argument_group("only with --kind language")
    add_texts(language, required=False, default=argparse.SUPPRESS)
    add_options(language, _OPTIONS_OF_KIND["language"])
    repetition = parser.add_argument_group("only with --kind repetition")
    add_prompts(repetition, False, argparse.SUPPRESS, "; answered until enough answers loop")
    add_options(repetition, _OPTIONS_OF_KIND["repetition"])
    parser.set_defaults(run=_find_features, words=[])


_OPTIONS_OF_KIND: dict[str, dict[str, tuple[Callable[[str], Any], str]]] = {
    "language": {
        "target_group": (str, "group to find features for, e.g. zh; required"),
        **TEXT_OPTIONS,
        "check": (bool, "remove the features and measure the loss of each group"),
    },
    "repetition": {
        "loops": (str, f"texts that loop: {DATA_FILE} (default: the model's own answers)"),
        "num_loops": (int, "loops to look for (default: 50)"),
        "num_prompts": (int, "prompts on which each candidate is steered up, and down (default: 16)"),
        "strength": (float, "steering strength for them, in median residual norms (default: 1.5)"),
        "max_new_tokens": (int, "longest answer, in tokens (default: 256)"),
        "temperature": (float, "sampling temperature of the answers that are searched for loops (default: 0, greedy)"),
        "normal_temperature": (
            float,
            "sampling temperature of normal answers, where loops are rare (default: 0.7)",
        ),
        **ENGINE_OPTIONS,
    },
}
"""Options that one kind takes and the other refuses: their type (bool for a switch) and help."""


def _find_features(arguments: argparse.Namespace) -> None:
    options = {**vars(arguments)}
    for name in ("command", "run", "words", "kind", "model", "sae", "out", "overwrite", "compare"):
        options.pop(name)
    require_safetensors(arguments.out)
    require_new(arguments.out, arguments.overwrite)
    for kind, of_kind in _OPTIONS_OF_KIND.items():
        names = ("texts" if kind == "language" else "prompts", *of_kind)
        wrong = [name for name in names if name in options and kind != arguments.kind]
        if wrong:
            raise ValueError(f"{flag(wrong[0])} belongs to --kind {kind}, the kind asked for is {arguments.kind}.")
    if arguments.kind == "repetition":
        if not {"prompts", "loops"} & set(options):
            raise ValueError("--kind repetition needs --prompts, which the model answers until it loops, or --loops.")
    else:
        for name in ("texts", "target_group"):
            if name not in options:
                raise ValueError(f"--kind language needs {flag(name)}.")
    require_model(arguments.model)
    from accelerate import PartialState

    from ..features.set.picture import draw_features
    from ..model_records import recorded_name

    command = shlex.join(["sae-posttrain", *map(recorded_name, arguments.words)])

    def save(found: Any) -> Any:
        """Write the features, with the command that found them."""
        found = replace(found, notes=found.notes | {"command": command})
        if PartialState().is_main_process:
            found.save(arguments.out, overwrite=True)  # `require_new` has asked about old files
        return found

    before = _search_wider(arguments, options) if arguments.compare else None
    if arguments.kind == "repetition":
        from ..features.find.by_repetition import find_repetition_features

        if options.get("engine") == "vllm":
            send_vllm_logs_to_stderr()
        feature_set = find_repetition_features(arguments.model, arguments.sae, **options)
    else:
        from ..features.find.by_group import find_features
        from ..features.read.text_options import TextOptions

        if options.get("check"):  # the check can run out of memory: keep what was found before it
            options["on_found"] = save
        options["text_options"] = TextOptions().take(options)
        feature_set = find_features(arguments.model, arguments.sae, options.pop("texts"), **options)
    if not PartialState().is_main_process:
        return
    comparison = None
    if before is not None:
        from ..features.find.compare import best_of_each_place, compare_features

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
    say_written(written, lambda: draw_features(feature_set, arguments.out.with_suffix(".png")))


def _search_wider(arguments: argparse.Namespace, options: dict[str, Any]) -> Any:
    """The earlier set. The search lists more features than asked for, so that features that lost rank are seen too."""
    from ..features.find.compare import most_at_a_place
    from ..features.set.feature_set import FeatureSet

    if options.get("check"):
        raise ValueError(
            "--check removes exactly the features asked for, and --compare lists more. Run one, then the other."
        )
    before = FeatureSet.from_pretrained(arguments.compare)
    options["num_features"] = max(4 * arguments.num_features, most_at_a_place(before))
    measured = 16 if arguments.kind == "repetition" else 32  # as many as without --compare: the same ranks
    options.setdefault("num_candidates", max(measured, options["num_features"]))
    return before


def _check_table(check: dict[str, dict[str, float]], targets: Sequence[str]) -> str:
    lines = ["Loss per token with the features' directions removed (only the target should suffer):"]
    for group, loss in check["loss"].items():
        without = check["loss_without"][group]
        mark = "  (target)" if group in targets else ""
        lines.append(f"  {group:>8}  {loss:.3f} -> {without:.3f}  {100 * (without / loss - 1):+.1f} %{mark}")
    return "\n".join(lines)
