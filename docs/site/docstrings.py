"""Docstrings in TRL's format, as mkdocstrings takes them: links by name, sections under names of Google's style."""

import re
from typing import Any

import griffe

import sae_posttrain

LINK = re.compile(r"\[`~?([\w.]+)`\](?!\(|\[)")
SECTIONS = {"Parameters:": "Args:"}
SECTION_NAMES = ("Args", "Raises", "Returns", "Attributes", "Yields")
SUBHEADING = re.compile(r"^\s*> .*$", re.MULTILINE)
TYPED_NAME = re.compile(r"^(\s+)(\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: \((.+)\))?:$")


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
    """`a, b (type):` and its description as an entry for each name, and types without their code marks."""
    out: list[str] = []
    number = 0
    while number < len(lines):
        entry = TYPED_NAME.match(lines[number])
        number += 1
        if entry is None or entry[2] in SECTION_NAMES:
            out.append(lines[number - 1])
            continue
        indent, names, of_type = entry[1], entry[2].split(", "), plain_type(entry[3] or "")
        description = []
        while number < len(lines) and (not lines[number].strip() or lines[number].startswith(indent + " ")):
            description.append(lines[number])
            number += 1
        for name in names:
            out += [f"{indent}{name} ({of_type}):" if of_type else f"{indent}{name}:", *description]
    return out


def link(match: re.Match[str]) -> str:
    """A link to a public name of ours; of anything else the name alone."""
    name = match[1].removeprefix("~")
    short = name.rpartition(".")[2]
    return f"[`{short}`][sae_posttrain.{short}]" if short in sae_posttrain.__all__ else f"`{name}`"


def plain_type(text: str) -> str:
    """The type alone: what is optional, and the default, stand in the signature."""
    text = re.sub(r",? ?\*optional\*(, defaults to [^)]*)?", "", text)
    return re.sub(r"\[?`~?([^`]*)`\]?", r"\1", text)
