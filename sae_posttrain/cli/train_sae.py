"""The command `train-sae`."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from ..model_source import require_model
from ..tables import align
from .options import TEXT_OPTIONS, add_blocks, add_model, add_options, add_out, add_texts

_RENAMED = {"out": "output_dir", "lr": "learning_rate", "l1": "l1_coefficient"}


def add_train_sae(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train one sparse autoencoder for each of the named blocks of a model, with SAELens' trainer "
        "(pip install 'sae_posttrain[train]'), and measure it on held-out texts. To continue an interrupted "
        "training, run the same command again."
    )
    add_model(parser)
    add_texts(parser)
    add_blocks(parser)
    add_out(parser, "folder for the SAEs and training.json")

    def option(name: str, of_type: Callable[[str], Any], help_text: str) -> None:
        parser.add_argument(name, type=of_type, default=argparse.SUPPRESS, help=help_text)

    option("--site", str, "what to read in the blocks, e.g. attn_z or mlp_out (default: resid_post, the output)")
    option("--architecture", str, "topk (default), batchtopk, matryoshka_batchtopk, jumprelu, standard or gated")
    size = parser.add_mutually_exclusive_group()
    for name, help_text in {
        "--num-features": "features of each SAE",
        "--expansion": "features per dimension of the site (default: 8)",
    }.items():
        size.add_argument(name, type=int, default=argparse.SUPPRESS, help=help_text)
    option("--k", int, "active features per token (default: 32); not for standard and gated")
    option("--l1", float, "weight of the L1 loss of standard and gated (default: 5)")
    option("--num-tokens", _count, "tokens to train on, such as 2e6 (the default)")
    option("--batch-size", _count, "tokens in a step (default: 4096)")
    option("--lr", float, "peak learning rate (default: 3e-3, for a short training; 3e-4 for 1e8 tokens and more)")
    add_options(parser, {name: TEXT_OPTIONS[name] for name in ("text_column", "split", "max_length")})
    option("--texts-per-pass", int, "texts in one forward pass of the model (default: 16)")
    option("--buffer-tokens", _count, "tokens whose activations are shuffled in memory (default: 131072)")
    option("--held-out", float, "share of the texts to measure on, not to train on (default: 0.05)")
    option("--seed", int, "seed of the first weights and of the order (default: 0)")
    option("--save-every", float, "minutes between two checkpoints; 0 for none (default: 10)")
    parser.add_argument(
        "--restart",
        action="store_true",
        default=argparse.SUPPRESS,
        help="remove the checkpoint of an interrupted training and start again; without this option it is continued",
    )
    parser.set_defaults(run=_train_sae)


def _train_sae(arguments: argparse.Namespace) -> None:
    """Train, and print how well the SAEs do on held-out tokens."""
    require_model(arguments.model)
    from ..sae_training.folder import REPORT, read_report
    from ..sae_training.processes import Processes
    from ..sae_training.trainer import train_sae

    given = {name: value for name, value in vars(arguments).items() if name not in ("command", "run")}
    options = {_RENAMED.get(name, name): value for name, value in given.items()}
    folders = train_sae(options.pop("model"), options.pop("texts"), **options)
    if not Processes.current().is_main:
        return
    report = read_report(arguments.out)
    print(format_figures({folder.name: report[folder.name] for folder in folders}))
    print("Written: " + ", ".join(map(str, [*folders, arguments.out / REPORT])))


def format_figures(report: Mapping[str, Mapping[str, Any]]) -> str:
    """A table with one row for each SAE of a report."""
    tokens = ", ".join(sorted({f"{entry['measured']['num_tokens']:,}" for entry in report.values()}))
    rows: list[tuple[str, ...]] = [
        ("", "FVU", "L0", "dead features", "loss", "with SAE", "recovered: zeros", "mean"),
    ]
    for name, entry in report.items():
        fit = entry["measured"]
        names = ("dead_features", "loss", "loss_with_sae", "loss_recovered", "loss_recovered_from_mean")
        figures = ("-" if fit[figure] is None else f"{fit[figure]:.3f}" for figure in names)
        rows.append((name, f"{fit['fvu']:.3f}", f"{fit['l0']:.1f}", *figures))
    return "\n".join(
        [
            f"On {tokens} held-out tokens:",
            *align(rows, num_left=1),
            "FVU: fraction of variance unexplained; L0: active features a token; loss: nats a token of the model;",
            "recovered: share of the loss that zeros, or the mean, cost in the place of what the SAE reads.",
        ]
    )


def _count(text: str) -> int:
    """Read a whole number, also in the form `2e6`."""
    number = float(text)
    if not number.is_integer():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number")
    return int(number)
