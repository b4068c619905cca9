"""The command `vllm-serve`."""

import argparse
import os
import shutil
import sys

from .options import add_options


def add_vllm_serve(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Start a vLLM server whose requests can be steered: by a steered GRPO run in server mode, or one by one with "
        '`"vllm_xargs": {"steer": "loop=-0.8"}`. Options that are not listed here are passed on to `vllm serve`.'
    )
    parser.add_argument("model", help="model to serve: folder or Hub id")
    parser.add_argument(
        "--features",
        required=True,
        nargs="+",
        metavar="[NAME=]FILE",
        help="feature sets: files, folders or Hub repositories, with the name that requests use (default: the file's)",
    )
    parser.add_argument(
        "--unit",
        choices=("norm", "raw"),
        default="norm",
        help="unit of strengths: median residual norms of a feature's site, or lengths in its values (default: norm)",
    )
    options = {"allow_base_model": (str, "name of another model than that on which the features were found")}
    add_options(parser, options)
    parser.add_argument(
        "--alone",
        action="store_true",
        help="serve without training: leave out what lets a trainer send weights and read log-probabilities",
    )
    parser.add_argument("--print", action="store_true", help="print the command instead of running it")
    parser.set_defaults(run=_vllm_serve, more=[])


def _vllm_serve(arguments: argparse.Namespace) -> None:
    from ..serving.engine import as_shell, server_command

    _require_fit(arguments)
    environment, words = server_command(
        arguments.model,
        _named(arguments.features),
        unit=arguments.unit,
        allow_base_model=getattr(arguments, "allow_base_model", None),
        training=not arguments.alone,
        more=arguments.more,
    )
    if arguments.print:
        print(as_shell(environment, words))
        return
    if shutil.which(words[0]) is None:
        raise ValueError("vLLM is not installed here: `pip install 'sae_posttrain[vllm]'`, or --print the command.")
    sys.stdout.flush()
    os.execvpe(words[0], words, {**os.environ, **environment})


def _require_fit(arguments: argparse.Namespace) -> None:
    """Say before the server starts what it would say minutes later, if the model's folder is here."""
    if not os.path.isdir(arguments.model):
        return
    from transformers import AutoConfig

    from ..features.set.feature_set import FeatureSet
    from ..serving.worker_mixin import require_fit

    config = AutoConfig.from_pretrained(arguments.model)
    for name, path in _named(arguments.features).items():
        features = FeatureSet.from_pretrained(path)
        allowed = getattr(arguments, "allow_base_model", None)
        require_fit(name, features, config, config.get_text_config(), allowed)


def _named(features: list[str]) -> dict[str, str | os.PathLike]:
    from ..serving.engine import named

    found: dict[str, str | os.PathLike] = {}
    for given in features:
        name, equals, path = given.partition("=")
        sets = {name: path} if equals and not os.path.exists(given) else named(given)
        twice = [each for each in sets if each in found]
        if twice:
            raise ValueError(f"--features has two sets named {twice[0]!r}. Name them: --features a={given} b=…")
        found |= sets
    return named(found)
