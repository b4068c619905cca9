"""Docstrings in TRL's format, as mkdocstrings takes them: links by name, sections under names of Google's style."""

import re
from typing import Any

import griffe

import sae_posttrain
from sae_posttrain import analysis

LINK = re.compile(r"\[`~?([\w.]+)`\](?!\(|\[)")
SECTIONS = {"Parameters:": "Args:"}
SECTION_NAMES = ("Args", "Raises", "Returns", "Attributes", "Yields")
SUBHEADING = re.compile(r"^\s*> .*$", re.MULTILINE)
NAMES = r"\*{0,2}\w+(?:, \*{0,2}\w+)*"
TYPE = r" \(((?:[^()]|\([^()]*\))*)\)"
ENTRY = re.compile(rf"^(\s+)({NAMES}(?:{TYPE})?(?:, {NAMES}{TYPE})*):$")
PART = re.compile(rf"({NAMES})(?:{TYPE})?(?:, |$)")
UNFINISHED = re.compile(rf"^\s+{NAMES}(?:{TYPE})?(?:, {NAMES}{TYPE})*,?$")


class PlainLinks(griffe.Extension):
    """Rewrites each docstring of the package before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = rewrite(obj.docstring.value)


def rewrite(text: str) -> str:
    """The docstring with links that mkdocs resolves, and sections that its parser knows."""
    for ours, theirs in SECTIONS.items():
        text = re.sub(rf"^(\s*){re.escape(ours)}$", rf"\1{theirs}", text, flags=re.MULTILINE)
    text = SUBHEADING.sub("", text)
    return LINK.sub(link, "\n".join(one_name_each(text.split("\n"))))


def one_name_each(lines: list[str]) -> list[str]:
    """`a, b (type), c (type):` and its description as an entry for each name, and types without their code marks."""
    out: list[str] = []
    number = 0
    while number < len(lines):
        line, taken = whole_entry(lines, number)
        entry = ENTRY.match(line)
        if entry is None or entry[2] in SECTION_NAMES:
            out.append(lines[number])
            number += 1
            continue
        number += taken
        indent, description = entry[1], []
        while number < len(lines) and (not lines[number].strip() or lines[number].startswith(indent + " ")):
            description.append(lines[number])
            number += 1
        for names, of_type in PART.findall(entry[2]):
            shown = plain_type(of_type)
            for name in names.split(", "):
                out += [f"{indent}{name} ({shown}):" if shown else f"{indent}{name}:", *description]
    return out


def whole_entry(lines: list[str], number: int) -> tuple[str, int]:
    """The line with those that go on with its names, at the same indent, and how many lines that are."""
    line, taken = lines[number], 1
    indent = line[: len(line) - len(line.lstrip())]
    while UNFINISHED.match(line) and number + taken < len(lines):
        following = lines[number + taken]
        if not following.strip() or not following.startswith(indent) or following[len(indent)] == " ":
            break
        line, taken = f"{line} {following.strip()}", taken + 1
    return (line, taken) if ENTRY.match(line) else (lines[number], 1)


def link(match: re.Match[str]) -> str:
    """A link to a public name of ours; of anything else the name alone."""
    name = match[1].removeprefix("~")
    short = name.rpartition(".")[2]
    for package in (sae_posttrain, analysis):
        if short in package.__all__:
            return f"[`{short}`][{package.__name__}.{short}]"
    return f"`{name}`"


def plain_type(text: str) -> str:
    """The type alone: what is optional, and the default, stand in the signature."""
    text = re.sub(r",? ?\*optional\*(, defaults to [^)]*)?", "", text)
    return re.sub(r"\[?`~?([^`]*)`\]?", r"\1", text)
