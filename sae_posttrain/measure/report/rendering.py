"""Fill a template of this folder, and write the page."""

import os
from pathlib import Path
from typing import Any

from .words import language

STYLE = Path(__file__).with_name("style.css")
"""Style sheet of the report, which other pages of the package share."""


def render_page(template: str, **values: Any) -> str:
    """The HTML of a template of this folder. Every value is escaped unless the template says otherwise."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["language"] = language
    return environment.get_template(template).render(**values)


def write_page(path: str | os.PathLike[str], html: str) -> Path:
    """Write a page; the file appears only when it is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(html.encode("utf-8", "replace"))  # a lone surrogate of an answer is not text
    os.replace(part, path)
    return path
