"""
What the site adds to the pages of `docs/`: the READMEs, the public names, the command line and the settings.

Links between files of the repository become links between pages. A link to a file that is no page shows its path.
"""

import importlib
import inspect
import re
from argparse import SUPPRESS
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

import sae_posttrain

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "recipes/*/README.md",
    "benchmarks/README.md",
    "benchmarks/*/*.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
]
"""Markdown files outside `docs/` that are pages of the site, under their own path."""

START = ROOT / "README.md"
"""The first page of the site, `index.md`."""

ROOMS = ["features", "sft", "rl", "penalty", "hooks", "measure", "saes"]
"""Order of the rooms on the page of the Python API; the others follow."""

DOORS = ["analysis", "baselines", "measure.statistics", "serving"]
"""Rooms with public names of their own, in the order of the page."""

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that do not lie in `docs/`, and the pictures that they show."""
    for source in [START, *outside()]:
        uri = "index.md" if source == START else source.relative_to(ROOT).as_posix()
        files.append(File.generated(config, uri, content=source.read_text(encoding="utf-8")))
        for _, _, target in LINK.findall(source.read_text(encoding="utf-8")):
            picture = (source.parent / target).resolve()
            if picture.suffix == ".png" and picture.is_file() and not picture.is_relative_to(ROOT / "docs"):
                place = picture.relative_to(ROOT).as_posix()
                if files.get_file_from_path(place) is None:
                    files.append(File.generated(config, place, content=picture.read_bytes()))
    files.append(File.generated(config, "reference/api.md", content=api_page()))
    files.append(File.generated(config, "reference/command-line.md", content=command_line_page()))
    files.append(File.generated(config, "reference/configuration.md", content=configuration_page()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to files of the repository as links to pages, or as paths."""
    uri = page.file.src_uri
    in_docs = (ROOT / "docs" / uri).is_file()
    source = START if uri == "index.md" else (ROOT / "docs" if in_docs else ROOT) / uri
    parts = FENCE.split(markdown)
    return "".join(
        part if part.startswith("```") else LINK.sub(lambda m: rewritten(m, source, uri), part) for part in parts
    )


def rewritten(match: re.Match[str], source: Path, uri: str) -> str:
    """One link, as the site needs it."""
    mark, text, target = match.groups()
    if re.match(r"[a-z]+:|#", target):
        return match[0]
    path, hash_, anchor = target.partition("#")
    file = (source.parent / path).resolve()
    page = page_of(file)
    if page is None:
        if not file.exists() and not uri.startswith("reference/"):
            raise PluginError(f"{uri}: the link to {target} leads nowhere.")
        return text if not file.exists() else f"{text} (`{file.relative_to(ROOT)}`)" if "`" not in text else text
    up = "../" * uri.count("/")
    return f"{mark}[{text}]({up}{page}{hash_}{anchor})"


def page_of(file: Path) -> str | None:
    """Where a file of the repository lies in the site, or `None` if it is no part of it."""
    if file != ROOT and (file / "README.md").is_file():
        file = file / "README.md"
    if file.is_file() and file.is_relative_to(ROOT / "docs"):
        return file.relative_to(ROOT / "docs").as_posix()
    if file in outside() or (file.is_file() and file.suffix == ".png"):
        return file.relative_to(ROOT).as_posix()
    return "index.md" if file == START else None


def outside() -> list[Path]:
    """The pages that do not lie in `docs/`."""
    return sorted(path for pattern in PAGES for path in ROOT.glob(pattern))


def api_page() -> str:
    """Every public name, by the room that it lives in."""
    rooms: dict[str, list[str]] = {}
    for name in sae_posttrain.__all__:
        rooms.setdefault(sae_posttrain._MODULES[name].partition(".")[0], []).append(name)
    lines = ["# Python API", "", "Everything that `from sae_posttrain import …` gives.", ""]
    for room, names in sorted(
        rooms.items(), key=lambda item: (ROOMS.index(item[0]) if item[0] in ROOMS else 99, item[0])
    ):
        lines += [f"## `{room}`", ""]
        for name in names:
            lines += entry(sae_posttrain, name, sae_posttrain._MODULES[name])
    for package in DOORS:
        module = importlib.import_module(f"sae_posttrain.{package}")
        lines += [f"## `{package}`", "", f"Everything that `from sae_posttrain.{package} import …` gives.", ""]
        for name in module.__all__:
            lines += entry(module, name, module._MODULES[name])
    lines += ["## Single files", "", "Names of earlier versions that are imported from the file they live in.", ""]
    for name, place in sae_posttrain._MOVED.items():
        if place not in DOORS:
            lines += entry(importlib.import_module(f"sae_posttrain.{place}"), name)
    return "\n".join(lines)


def entry(package: Any, name: str, file: str | None = None) -> list[str]:
    """A public name of a package, under an anchor of its own, from the file of the package that defines it."""
    owner = getattr(package, name)
    if not owner.__doc__:
        raise PluginError(f"The public name {name} has no docstring.")
    path = f"{package.__name__}.{name}" if file is None else f"{package.__name__}.{file}.{name}"
    anchor = [] if file is None else [f"[](){{#{package.__name__}.{name}}}", ""]
    return [*anchor, f"::: {path}", "", *members(owner)]


def members(owner: Any) -> list[str]:
    """The option that lists a class's own public methods."""
    if not isinstance(owner, type):
        return []
    own = [
        key
        for key, value in vars(owner).items()
        if not key.startswith("_") and getattr(value, "__doc__", None) and callable(getattr(value, "__func__", value))
    ]
    return ["    options:", f"      members: {own}", "      heading_level: 3", ""] if own else []


def command_line_page() -> str:
    """Every command with its help, from the parsers themselves."""
    from sae_posttrain.cli import make_parser

    parser = make_parser()
    commands = next(action for action in parser._actions if hasattr(action, "choices") and action.choices)
    lines = ["# Command line", "", str(parser.description), ""]
    helps = {action.dest: action.help for action in commands._choices_actions}  # type: ignore[attr-defined]
    for name, command in commands.choices.items():  # type: ignore[union-attr]
        lines += [f"## `sae-posttrain {name}`", "", sentence(helps.get(name) or ""), ""]
        options = [action for action in command._actions if action.dest != "help" and action.help != SUPPRESS]
        if not options:
            lines += [
                "Its options are the fields of its [settings](configuration.md): `sae-posttrain " + name + " --help`.",
                "",
            ]
            continue
        lines += ["| option | |", "|---|---|"]
        for action in options:
            flag = ", ".join(f"`{option}`" for option in action.option_strings) or f"`{action.metavar or action.dest}`"
            needed = "**Needed.** " if action.required and action.option_strings else ""
            text = (action.help or "") % {"default": action.default, "prog": "sae-posttrain"} if action.help else ""
            lines.append(f"| {flag} | {needed}{cell(text)} |")
        lines.append("")
    return "\n".join(lines)


def configuration_page() -> str:
    """The fields that our settings add to TRL's."""
    lines = [
        "# Settings",
        "",
        "What ours add to TRL's dataclasses. In a YAML file and on the command line they have the same names.",
        "",
    ]
    for module, name in (
        ("penalty.arguments", "FeaturePenaltyArguments"),
        ("sft.config", "SASFTConfig"),
        ("rl.config", "SteeredGRPOConfig"),
    ):
        owner = getattr(importlib.import_module(f"sae_posttrain.{module}"), name)
        own = inspect.get_annotations(owner)
        fields = [owner.__dataclass_fields__[field] for field in own if field in owner.__dataclass_fields__]
        lines += [f"## `{name}`", ""]
        if not fields:
            lines += ["All fields of [`FeaturePenaltyArguments`](#featurepenaltyarguments) and of TRL's own.", ""]
            continue
        lines += ["| field | default | |", "|---|---|---|"]
        for field in fields:
            default = field.default if not callable(field.default_factory) else field.default_factory()  # type: ignore[misc]
            help_text = str(field.metadata.get("help", "")).replace("%%", "%")
            lines.append(f"| `{field.name}` | `{default!r}` | {cell(help_text)} |")
        lines.append("")
    return "\n".join(lines)


def sentence(text: str) -> str:
    """A help text with a capital at the beginning and a full stop at the end."""
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."


def cell(text: str) -> str:
    """A text that fits a cell of a Markdown table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")
