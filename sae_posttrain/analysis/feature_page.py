"""
The page on which a person looks at features: the tokens that each promotes, where it fires in texts, and how often.

One HTML file in the style of the report, without network or script. All text from models and data is escaped.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..features.read.texts import Text
from ..features.set.feature_set import FeatureSet
from ..hooks.sites import describe_place
from ..measure.report.rendering import STYLE
from .feature_charts import draw_histogram, draw_starts
from .logit_lens import Promoted, logit_lens
from .token_readings import first_counted, token_pieces

_FEATURE_STYLE = Path(__file__).with_name("feature_style.css")
_NUM_SNIPPETS = 4  # of each group
TOKENS_BEFORE, TOKENS_AFTER = 28, 16  # of the strongest token of a snippet
_NUM_SHADES = 5


@dataclass(frozen=True)
class Group:
    """Texts that stand in one column: their title, and their numbers."""

    title: str
    members: Sequence[int]


@dataclass(frozen=True)
class Piece:
    """Text of a token; how strongly the feature fires, 0 (not at all) to 5; its activation; whether it is faulty."""

    text: str
    shade: int
    activation: str
    faulty: bool


@dataclass(frozen=True)
class Snippet:
    """Part of a text around the token on which a feature fires most."""

    pieces: tuple[Piece, ...]
    facts: str
    cut_before: bool
    cut_after: bool


@dataclass(frozen=True)
class Column:
    """What one group shows of a feature."""

    title: str
    summary: str
    snippets: tuple[Snippet, ...]


@dataclass(frozen=True)
class FeatureView:
    """What the page shows of one feature."""

    name: str
    place: str
    facts: tuple[tuple[str, str], ...]
    lens: Promoted
    columns: tuple[Column, ...]
    histogram: str
    starts: str
    starts_caption: str


def view_features(
    model: nn.Module,
    tokenizer: Any,
    feature_set: FeatureSet,
    texts: Sequence[Text],
    values: Sequence[np.ndarray],
    groups: Sequence[Group],
    *,
    faults: Sequence[np.ndarray | None] | None = None,
    facts: Sequence[Sequence[tuple[str, str]]] | None = None,
) -> list[FeatureView]:
    """
    Collect what the page shows.

    Args:
        model (`torch.nn.Module`), tokenizer (`PreTrainedTokenizerBase`):
            For the logit lens, and to write tokens.
        feature_set ([`FeatureSet`]):
            The features.
        texts (`Sequence[Text]`), values (`Sequence[numpy.ndarray]`, each of shape `(T, F)`):
            Texts, and the activations along them.
        groups (`Sequence[Group]`):
            Which texts stand side by side.
        faults (`Sequence[numpy.ndarray]`, *optional*):
            Tokens of each text that are in the fault, `(T,)` bool, or `None`.
        facts (`Sequence[Sequence[tuple[str, str]]]`, *optional*):
            Name and value of what else is known of each feature.
    """
    lenses = logit_lens(model, feature_set, tokenizer)
    faults = faults or [None] * len(texts)
    counted = [np.array(text.counted, dtype=bool) for text in texts]
    views = []
    for row in range(len(feature_set)):
        strongest = [float(value[:, row].max(initial=0.0)) for value in values]
        top = max(strongest, default=0.0)
        columns = []
        for group in groups:
            firing = [i for i in group.members if strongest[i] > 0]
            tokens = sum(int((values[i][:, row] > 0).sum()) for i in group.members)
            of = sum(int(counted[i].sum()) for i in group.members)
            shown = _different(sorted(firing, key=lambda i: -strongest[i]), texts)[:_NUM_SNIPPETS]
            snippets = [_snippet(texts[i], values[i][:, row], top, faults[i], tokenizer) for i in shown]
            share = 100 * tokens / max(1, of)
            summary = f"Fires in {len(firing)} of {len(group.members)} texts, on {share:.2g} % of {of:,} tokens."
            columns.append(Column(group.title, summary, tuple(snippets)))
        place = feature_set.blocks[row], feature_set.sites[row]
        name = feature_set.labels[row]
        starts, caption = _starts(texts, [value[:, row] for value in values], faults, groups, name, row)
        views.append(
            FeatureView(
                name=name,
                place=f"Feature {feature_set.feature_ids[row]} of {describe_place(place)}",
                facts=tuple(facts[row]) if facts else _known(feature_set, row),
                lens=lenses[row],
                columns=tuple(columns),
                histogram=draw_histogram(
                    {group.title: [strongest[i] for i in group.members] for group in groups},
                    name=f"h{row}",
                    alt=f"Strongest activation of {name} in each text, by group",
                ),
                starts=starts,
                starts_caption=caption,
            )
        )
    return views


def _known(feature_set: FeatureSet, row: int) -> tuple[tuple[str, str], ...]:
    return tuple((name, f"{float(score[row]):.3g}") for name, score in feature_set.scores.items())


def _different(members: Sequence[int], texts: Sequence[Text]) -> list[int]:
    """Copies of a text once."""
    return list({(texts[i].key or str(i)): i for i in reversed(members)}.values())[::-1]


def _snippet(text: Text, values_T: np.ndarray, top: float, fault: np.ndarray | None, tokenizer: Any) -> Snippet:
    peak = int(values_T.argmax())
    first = max(0, peak - TOKENS_BEFORE)
    end = min(len(text.ids), peak + TOKENS_AFTER)
    specials = set(tokenizer.all_special_ids)
    pieces = []
    for offset, piece in enumerate(token_pieces(text.ids[first:end], tokenizer)):
        value = float(values_T[first + offset])
        shade = 0 if value <= 0 else max(1, min(_NUM_SHADES, round(_NUM_SHADES * value / top)))
        faulty = fault is not None and bool(fault[first + offset])
        if text.ids[first + offset] in specials:
            piece = f" {piece.strip()} "
        if piece == "" and shade:
            piece = "·"  # a part of a character, which has no text of its own
        pieces.append(Piece(piece, shade, f"{value:.3g}" if value else "", faulty))
    begins = int(np.flatnonzero(values_T > 0)[0]) - first_counted(text)
    facts = (
        f"Strongest {values_T.max():.3g}; fires on {int((values_T > 0).sum())} tokens, first on number {begins + 1}."
    )
    return Snippet(tuple(pieces), facts, first > 0, end < len(text.ids))


def _starts(
    texts: Sequence[Text],
    values: Sequence[np.ndarray],
    faults: Sequence[np.ndarray | None],
    groups: Sequence[Group],
    name: str,
    row: int,
) -> tuple[str, str]:
    """Picture of where the feature starts: relative to the fault where that is known, else in the text."""
    distances = [
        int((value > 0).argmax()) - int(fault.argmax())
        for value, fault in zip(values, faults)
        if fault is not None and (value > 0).any()
    ]
    if distances:
        svg = draw_starts(
            {"First token on which it fires": distances},
            name=f"s{row}",
            alt=f"Where {name} starts, in tokens from the beginning of the fault",
            zero="the fault begins",
        )
        return svg, "Tokens from the beginning of the fault to the first on which the feature fires."
    of_group = {
        group.title: [
            int((values[i] > 0).argmax()) - first_counted(texts[i]) for i in group.members if (values[i] > 0).any()
        ]
        for group in groups
    }
    svg = draw_starts(of_group, name=f"s{row}", alt=f"Where {name} starts, in tokens from the beginning", zero="")
    return svg, "Tokens from the beginning of what is read to the first on which the feature fires."


def write_feature_page(
    path: str | os.PathLike,
    views: Sequence[FeatureView],
    *,
    title: str,
    lead: str,
    words: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None,
    note: str = "",
) -> Path:
    """
    Write the page. It appears under its name only when it is complete.

    Args:
        path (`str` or `os.PathLike`):
            HTML file to write.
        views (`Sequence[FeatureView]`):
            The features.
        title, lead (`str`):
            Heading, and the sentence below it.
        words (`tuple`, *optional*):
            Head and rows of the table of n-grams.
        note (`str`, *optional*):
            What has to be known before the first figure.
    """
    snippets = (snippet for view in views for column in view.columns for snippet in column.snippets)
    html = render(
        "feature_page.html.jinja",
        shows_fault=any(piece.faulty for snippet in snippets for piece in snippet.pieces),
        title=title,
        lead=lead,
        note=note,
        views=views,
        words=words,
        style=STYLE.read_text(encoding="utf-8"),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(html.encode("utf-8", "replace"))  # a lone surrogate of an answer is not text
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return path


def render(template: str, **values: Any) -> str:
    """The HTML of a template of this folder. Every value is escaped unless the template says otherwise."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        feature_style=_FEATURE_STYLE.read_text(encoding="utf-8"), **values
    )
