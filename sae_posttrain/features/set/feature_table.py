"""A feature set as text and as HTML: what `print` and a notebook show."""

from html import escape
from typing import TYPE_CHECKING

from ...tables import align

if TYPE_CHECKING:
    from .feature_set import FeatureSet

_MAX_NAMES = 4
_MAX_ROWS = 50


def short_text(feature_set: "FeatureSet") -> str:
    """One line: how many features, of which blocks, found where, and the first names."""
    names = ", ".join(feature_set.names[:_MAX_NAMES]) + (", …" if len(feature_set) > _MAX_NAMES else "")
    blocks = ", ".join(str(block) for block in sorted(set(feature_set.blocks)))
    plural = "s" if len(set(feature_set.blocks)) > 1 else ""
    return f"FeatureSet({_title(feature_set)}, block{plural} {blocks}: {names})"


def text_table(feature_set: "FeatureSet") -> str:
    """A title, and a row for each feature: place, number, name, scores and the mean on each group."""
    return "\n".join([_title(feature_set), *align(_rows(feature_set))])


def html_table(feature_set: "FeatureSet") -> str:
    """The same as an HTML table, of the first 50 features. Everything from a file is escaped."""
    head, *rows = _rows(feature_set, _MAX_ROWS)
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    more = f"<p>and {len(feature_set) - _MAX_ROWS} more</p>" if len(feature_set) > _MAX_ROWS else ""
    title = escape(_title(feature_set))
    return f"<p>{title}</p><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>{more}"


def _title(feature_set: "FeatureSet") -> str:
    target = f" for {', '.join(feature_set.target_groups)}" if feature_set.target_groups else ""
    num = len(feature_set)
    return (
        f"{num} feature{'s' * (num > 1)}{target}, found on {feature_set.base_model or 'an unknown model'} "
        f"(width {feature_set.d_model})"
    )


def _rows(feature_set: "FeatureSet", most: int | None = None) -> list[list[str]]:
    where = ["block"] if set(feature_set.sites) == {"resid_post"} else ["block", "site"]
    head = [*where, "feature", "name", *feature_set.scores, *(f"mean[{group}]" for group in feature_set.groups)]
    rows = [
        [
            *(str(feature_set.blocks[i]), feature_set.sites[i])[: len(where)],
            str(feature_set.feature_ids[i]),
            feature_set.names[i],
            *(f"{score[i].item():.3f}" for score in feature_set.scores.values()),
            *(f"{feature_set.mean[i, group].item():.2f}" for group in range(len(feature_set.groups))),
        ]
        for i in range(len(feature_set))[:most]
    ]
    return [head, *rows]
