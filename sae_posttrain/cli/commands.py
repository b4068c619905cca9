"""Every command of `sae-posttrain`, and how a command line is run."""

import argparse
import sys
from collections.abc import Sequence

from .. import __version__
from .browse import add_browse
from .calibrate import add_calibrate
from .chat import add_chat
from .classify import add_classify
from .convert import add_convert
from .coverage import add_coverage
from .demo import add_demo
from .diagnose import add_diagnose
from .errors import MISTAKES, OneLineParser, in_one_line, in_options, mistake, options_of
from .estimate import add_estimate
from .evaluate import add_evaluate
from .export import add_export
from .features import add_features
from .find_directions import add_find_directions
from .find_features import add_find_features
from .generate import add_generate
from .import_directions import add_import_directions
from .inspect import add_inspect
from .lab import add_lab
from .report import add_report
from .sample_size import add_sample_size
from .show import add_show
from .synthesise import add_synthesise
from .train_sae import add_train_sae
from .vllm_serve import add_vllm_serve
from .watch import add_watch

_COMMANDS = {
    "demo": (add_demo, "see both methods at work on a small model that ships with the package"),
    "lab": (add_lab, "write the model that ships, its SAEs and its texts to a folder, for the other commands"),
    "inspect": (add_inspect, "describe an SAE, and measure how well it fits a model"),
    "convert": (add_convert, "write an SAE in SAELens' layout"),
    "train-sae": (add_train_sae, "train SAEs for any block and site of a model, with SAELens"),
    "find-features": (add_find_features, "find the features that stand for a language or for loops"),
    "find-directions": (add_find_directions, "find directions that stand for a group of texts, without an SAE"),
    "import-directions": (add_import_directions, "read control and steering vectors that other tools made"),
    "diagnose": (add_diagnose, "find what is abnormal in bad answers: features, their onset, and words"),
    "show": (add_show, "write a page to look at features, and give them names"),
    "browse": (add_browse, "write pages on which to search and read all features of an SAE"),
    "classify": (add_classify, "tell texts apart by features that fire on them, compared with words and probes"),
    "coverage": (add_coverage, "measure what data sets cover of the features, and which sets repeat each other"),
    "synthesise": (add_synthesise, "make rows that fire the features which a data set does not"),
    "calibrate": (add_calibrate, "find the steering strength at which answers show a fault"),
    "features": (add_features, "list the feature sets of a repository, index them, or give features other names"),
    "generate": (add_generate, "answer prompts without and with steering, or measure a sweep over the strength"),
    "chat": (add_chat, "talk to a model while its features are pushed"),
    "export": (add_export, "write a push for llama.cpp, repeng, steering-vectors, or into a model's biases"),
    "sample-size": (add_sample_size, "compute how many prompts it takes to see a rate change"),
    "evaluate": (add_evaluate, "measure how many answers switch language or loop, and capability"),
    "estimate": (add_estimate, "compute how much memory a recipe takes, before anything is loaded"),
    "vllm-serve": (add_vllm_serve, "start a vLLM server whose requests can be steered"),
    "watch": (add_watch, "show the faults of a run while it trains, in a browser on this machine"),
    "report": (add_report, "compare finished runs in one HTML file"),
}
"""Every command but `sft` and `grpo`: what adds its options, and its help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. A mistake in its input prints one line and gives exit status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["sft"], ["grpo"]):  # their options are the fields of the configs, parsed by TRL's own parser
        from .train import train

        return train(arguments[0], arguments[1:])
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
    except MISTAKES as error:
        return mistake(in_options(in_one_line(error), options_of(parser, parsed.command)))
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The parser of everything but `sft` and `grpo`, whose options are TRL's."""
    parser = OneLineParser(prog="sae-posttrain", description="Post-training with sparse-autoencoder features, on TRL.")
    parser.add_argument("--version", action="version", version=f"sae_posttrain {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (add, text) in _COMMANDS.items():
        add(commands.add_parser(name, help=text))
    commands.add_parser("sft", help="train with SASFTTrainer: --config FILE.yaml and any field of it", add_help=False)
    commands.add_parser("grpo", help="train with SteeredGRPOTrainer, in the same way", add_help=False)
    return parser
