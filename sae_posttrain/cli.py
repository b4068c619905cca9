"""The command line: `sae-posttrain find-features | evaluate | sft`. Thin; each command is one public function."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. A mistake in the input of a search or an evaluation ends in one line and exit status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["sft"]:  # its options are the fields of the configs, parsed by TRL's own parser
        from .sft.script import main as train

        train(arguments[1:])
        return 0
    parsed = make_parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(f"sae-posttrain: {error}", file=sys.stderr)
        return 2
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The parser of everything but `sft`, whose options are TRL's."""
    parser = argparse.ArgumentParser(
        prog="sae-posttrain", description="Post-training with sparse-autoencoder features, on TRL."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_find_features(commands.add_parser("find-features", help="find the features that stand for a group of texts"))
    _add_evaluate(commands.add_parser("evaluate", help="sample answers and measure how often they switch language"))
    commands.add_parser("sft", help="train with SASFTTrainer: --config FILE.yaml and any field of it", add_help=False)
    return parser


def _add_find_features(parser: argparse.ArgumentParser) -> None:
    parser.description = "Find the features of an SAE that stand for a group of texts, and write them to one file."
    parser.add_argument("--model", required=True, help="causal language model: folder or Hub id")
    parser.add_argument(
        "--sae", required=True, nargs="+", help="its SAEs: folder or Hub repository, one for all blocks or one each"
    )
    parser.add_argument("--texts", required=True, help="JSONL file (or .gz, or folder of them) or `datasets` id")
    parser.add_argument("--target-group", required=True, help="the group to find features for, e.g. zh")
    parser.add_argument("--blocks", required=True, type=int, nargs="+", help="decoder blocks, counted from 0")
    parser.add_argument("--out", required=True, type=Path, help="file to write, ending in .safetensors")
    parser.add_argument("--num-features", type=int, default=2, help="features per block (default: 2)")
    parser.add_argument(
        "--rank-by",
        choices=["monolinguality", "auroc", "output"],
        default="monolinguality",
        help="what decides among the candidates (default: monolinguality)",
    )
    parser.add_argument("--num-candidates", type=int, help="features per block that are measured further")
    parser.add_argument("--group-column", default="lang", help="column with the group (default: lang)")
    parser.add_argument("--text-column", default="text", help="column with the text (default: text)")
    parser.add_argument("--split", default="train", help="split of a `datasets` id (default: train)")
    parser.add_argument("--max-texts", type=int, help="texts per group (default: all)")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of each text (default: 512)")
    parser.add_argument("--batch-size", type=int, default=16, help="texts in one forward pass (default: 16)")
    parser.add_argument("--check", action="store_true", help="remove the features and measure the loss of each group")
    parser.add_argument("--k", type=int, help="active features per token, where the SAE's files do not say it")
    parser.add_argument("--format", help="format of the SAE's files (default: told from the files)")
    parser.add_argument("--revision", help="branch, tag or commit of the SAE's Hub repository")
    parser.add_argument("--seed", type=int, default=0, help="shuffles the texts (default: 0)")
    parser.set_defaults(run=_find_features)


def _find_features(arguments: argparse.Namespace) -> None:
    options = {**vars(arguments)}
    for name in ("command", "run", "model", "texts", "sae", "out"):
        options.pop(name)
    if arguments.out.suffix != ".safetensors":
        raise ValueError(f"--out must end in .safetensors, got {arguments.out}.")
    from accelerate import PartialState

    from .features.language import find_features
    from .features.picture import draw_features

    feature_set = find_features(arguments.model, arguments.texts, arguments.sae, **options)
    if not PartialState().is_main_process:
        return
    feature_set.save(arguments.out)
    table = str(feature_set)
    if arguments.check:
        table += f"\n\n{_check_table(feature_set.notes['check'], feature_set.target_groups)}"
    print(table)
    arguments.out.with_suffix(".txt").write_text(table + "\n", encoding="utf-8")
    written = [arguments.out, arguments.out.with_suffix(".txt")]
    try:
        written.append(draw_features(feature_set, arguments.out.with_suffix(".png")))
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


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.description = "Sample answers to prompts and measure how often they switch into another language."
    parser.add_argument("--model", required=True, help="causal language model or adapter: folder or Hub id")
    parser.add_argument("--data", required=True, help="JSON or JSONL file (or .gz) of prompts with their language")
    parser.add_argument("--out", required=True, type=Path, help="folder for answers.jsonl and evaluation.json")
    parser.add_argument("--compare", type=Path, help="folder of another evaluation on the same prompts")
    parser.add_argument(
        "--target-lang", default="zh", help="switches into this language count; 'any' counts all (default: zh)"
    )
    parser.add_argument("--group-column", default="lang", help="column with the answer's language (default: lang)")
    parser.add_argument("--plain", action="store_true", help="send prompts as they are, without the chat template")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest answer (default: 512)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (default: 1.0)")
    parser.add_argument("--top-p", type=float, default=0.8, help="nucleus of the sampling (default: 0.8)")
    parser.add_argument("--num-samples", type=int, default=1, help="answers to each prompt (default: 1)")
    parser.add_argument("--batch-size", type=int, default=32, help="answers generated at once (default: 32)")
    parser.add_argument("--limit", type=int, help="use the first so many prompts only")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (default: 0)")
    parser.add_argument("--device", help="where to put the model (default: an accelerator if there is one)")
    parser.add_argument("--dtype", help="of the model's weights, e.g. bfloat16 (default: as stored)")
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> None:
    from .measure.evaluation import evaluate
    from .measure.summary import format_evaluation

    result = evaluate(
        arguments.model,
        arguments.data,
        output_dir=arguments.out,
        compare=arguments.compare,
        target_lang=None if arguments.target_lang == "any" else arguments.target_lang,
        group_column=arguments.group_column,
        chat_template=False if arguments.plain else None,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        num_samples=arguments.num_samples,
        batch_size=arguments.batch_size,
        limit=arguments.limit,
        seed=arguments.seed,
        device=arguments.device,
        model_kwargs={"dtype": arguments.dtype} if arguments.dtype else None,
    )
    print(format_evaluation(result))


if __name__ == "__main__":
    sys.exit(main())
