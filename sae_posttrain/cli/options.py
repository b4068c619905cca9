"""Options that several commands share, each defined once, and what commands write."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

DATA_FILE = "data file (JSON, JSONL, CSV, Parquet)"
NEW_FEATURES = "file to write, ending in .safetensors"

TEXT_OPTIONS: dict[str, tuple[type, str]] = {
    "group_column": (str, "column with the group of a text: a language or any other label (default: lang)"),
    "text_column": (str, "column with the text (default: text)"),
    "split": (str, "split of a `datasets` id (default: train)"),
    "max_texts": (int, "texts per group (default: all)"),
    "max_length": (int, "tokens kept of each text (default: 512)"),
}
"""How texts are read: type and help of each option."""


def add_model(parser: Any, required: bool = True, what: str = "causal language model") -> None:
    forms = "folder, GGUF file, Hub id, or repository:file.gguf"
    parser.add_argument("--model", required=required, help=f"{what}: {forms}")


def add_blocks(parser: Any) -> None:
    parser.add_argument("--blocks", required=True, type=int, nargs="+", help="decoder blocks, counted from 0")


def add_texts(parser: Any, required: bool = True, default: Any = None) -> None:
    what = "texts: data file (JSON, JSONL, CSV, Parquet), folder of such files, or `datasets` id"
    parser.add_argument("--texts", required=required, default=default, help=what)


def add_prompts(parser: Any, required: bool = True, default: Any = None, more: str = "") -> None:
    parser.add_argument(
        "--prompts", required=required, default=default, help=f"prompts, as texts or messages: {DATA_FILE}{more}"
    )


def add_out(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--out", required=True, type=Path, help=what)


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """The option that allows files to be replaced."""
    parser.add_argument("--overwrite", action="store_true", help="replace existing files of --out")


def add_seed(parser: Any, of: str) -> None:
    parser.add_argument("--seed", type=int, default=0, help=f"seed of {of} (default: 0)")


def add_batch_size(parser: Any, what: str, default: int) -> None:
    parser.add_argument("--batch-size", type=int, default=default, help=f"{what} at once (default: {default})")


def add_template_kwargs(parser: argparse.ArgumentParser) -> None:
    """The option of every command that sends messages to a model."""
    parser.add_argument(
        "--chat-template-kwargs",
        type=json_object,
        metavar="JSON",
        help="variables of the chat template, for prompts and texts that are messages: '{\"enable_thinking\": false}'",
    )


def add_sae_options(parser: argparse.ArgumentParser) -> None:
    """How an SAE is read, where its files leave something open."""
    parser.add_argument("--site", help="what the SAE reads in its block, e.g. mlp_out (default: what its files say)")
    parser.add_argument("--format", help="format of the SAE's files (default: recognised from the files)")
    parser.add_argument("--revision", help="branch, tag or commit of the SAE's Hub repository")
    parser.add_argument("--k", type=int, help="active features per token, if the SAE's files do not say it")


def add_options(parser: Any, options: Mapping[str, tuple[Callable[[str], Any], str]]) -> None:
    """Add options that are passed on only when they are given; the type `bool` makes a switch."""
    for name, (of_type, help_text) in options.items():
        how: dict[str, Any] = {"action": "store_true"} if of_type is bool else {"type": of_type}
        parser.add_argument(flag(name), default=argparse.SUPPRESS, help=help_text, **how)


def add_old_name(parser: Any, old: str, new: str, **how: Any) -> None:
    """Keep a former name of an option. The help hides it, and its use prints the new name."""
    parser.add_argument(
        old, dest=new, action=_OldName, default=argparse.SUPPRESS, help=argparse.SUPPRESS, required=False, **how
    )


class _OldName(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        print(f"{option_string} is now called {flag(self.dest)}.", file=sys.stderr)
        setattr(namespace, self.dest, values)


def json_object(text: str) -> dict[str, Any]:
    """A JSON object that is given as an option."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object; write '{{\"enable_thinking\": false}}'")
    return value


ENGINE_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "engine": (
        str,
        "what samples the answers: transformers (default), or vllm, with a large --batch-size "
        "(pip install 'sae_posttrain[vllm]')",
    ),
    "engine_kwargs": (
        json_object,
        "with --engine vllm: further arguments of vllm.LLM, as JSON: '{\"gpu_memory_utilization\": 0.4}'",
    ),
}
"""Which engine samples answers, for commands that load the model with transformers too."""


def send_vllm_logs_to_stderr() -> None:
    """Leave stdout to the results. To be called before vLLM is imported."""
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def require_new(out: Path, overwrite: bool, suffixes: Sequence[str] = (".txt", ".png")) -> None:
    """Refuse to replace `out`, and what the command writes beside it with other endings, before any work is done."""
    taken = [str(file) for file in (out, *map(out.with_suffix, suffixes)) if file.exists()]
    if taken and not overwrite:
        raise FileExistsError(
            f"{' and '.join(taken)} exist{'s' * (len(taken) == 1)} already. Give another --out, or --overwrite to "
            "replace existing files."
        )


def require_safetensors(out: Path) -> None:
    if out.suffix != ".safetensors":
        raise ValueError(f"--out must end in .safetensors, got {out}.")


def write_whole(path: Path, content: str) -> Path:
    """Write a text file that appears under its name only when it is complete; the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def say_written(written: list[Path], draw: Callable[[], Path] | None = None) -> None:
    """Draw the picture, if matplotlib is installed, and print what was written."""
    if draw is not None:
        try:
            written.append(draw())
        except ImportError as error:
            print(f"No picture: {error}", file=sys.stderr)
    print("Written: " + ", ".join(map(str, written)))
