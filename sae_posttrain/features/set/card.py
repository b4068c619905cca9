"""
The card of a [`FeatureSet`] on the Hub: what its features are, how they read, whose SAE they come from.

Names from files and from the Hub are data: they stand in code spans, with what could end one or not be printed
replaced.
"""

import json
import logging
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, constants

from ...model_records import recorded_name
from ...shown import printable

if TYPE_CHECKING:
    from .feature_set import FeatureSet
    from .source import FeatureSource

logger = logging.getLogger(__name__)

PICTURE = "features.png"

SECONDS_FOR_THE_HUB = 5.0
"""How long a card waits for the licence of an SAE."""

_MAX_ROWS = 100
_MAX_LETTERS = 200
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_COMMIT = re.compile("[0-9a-f]{40}")
_DASHBOARDS = "https://www.neuronpedia.org"
_LLAMA_SCOPE = re.compile(r"Llama3_1-8B-Base-L(\d+)(R|A|M)-(8|32)x/")
_LLAMA_SCOPE_SITES = {"R": "res", "A": "att", "M": "mlp"}
_GEMMA_SCOPE = re.compile(r"layer_(\d+)/width_16k/average_l0_(\d+)/")
_GEMMA_SCOPE_SHOWN = {
    "google/gemma-scope-2b-pt-res": ("gemma-2-2b", {20: 71, 21: 70, 22: 72, 23: 75, 24: 73, 25: 116}),
    "google/gemma-scope-9b-pt-res": ("gemma-2-9b", {24: 114, 25: 114, 40: 125, 41: 113}),
}
"""By block the SAE that has dashboards, the one nearest to 100 active features; as SAELens lists them."""


def feature_card(feature_set: "FeatureSet", repo_id: str, *, has_picture: bool) -> str:
    """
    The card of a repository in Markdown, with the metadata that the Hub reads, and [`PICTURE`] if it lies beside it.
    """
    targets = ", ".join(map(code, feature_set.target_groups))
    found_on = f" They were found on {code(recorded_name(feature_set.base_model))}." if feature_set.base_model else ""
    blocks = [
        _metadata(feature_set),
        f"# {repo_id.split('/')[-1]}",
        f"{len(feature_set)} feature{'s' * (len(feature_set) > 1)}{f' for {targets}' if targets else ''}, for "
        f"post-training with `sae_posttrain`.{found_on}",
        f"```python\nfrom sae_posttrain import FeatureSet\n\nfeatures = FeatureSet.from_pretrained({repo_id!r})\n```",
        "## Features",
        _features(feature_set),
        *([f"![How each feature reads on each group]({PICTURE})"] if has_picture else []),
        "## SAEs",
        *source_lines(feature_set, "these features"),
        *_how_found(feature_set.notes),
    ]
    return "\n\n".join(blocks) + "\n"


def dashboard(repository: str, file: str, feature: int) -> str | None:
    """Address of a feature's page on Neuronpedia, where it shows this very SAE; else `None`."""
    llama = _LLAMA_SCOPE.match(file)
    if llama and repository.startswith("fnlp/"):
        width = {"8": "32k", "32": "131k"}[llama[3]]
        sae = f"llama3.1-8b/{llama[1]}-llamascope-{_LLAMA_SCOPE_SITES[llama[2]]}-{width}"
        return f"{_DASHBOARDS}/{sae}/{feature}"
    gemma = _GEMMA_SCOPE.match(file)
    if gemma and repository in _GEMMA_SCOPE_SHOWN:
        model, nearest = _GEMMA_SCOPE_SHOWN[repository]
        if nearest.get(int(gemma[1])) == int(gemma[2]):
            return f"{_DASHBOARDS}/{model}/{gemma[1]}-gemmascope-res-16k/{feature}"
    return None


def _metadata(feature_set: "FeatureSet") -> str:
    lines = ["---", "library_name: sae_posttrain", "tags:", "- sparse-autoencoder", "- feature-set"]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", feature_set.base_model):
        lines += ["base_model:", f"- {feature_set.base_model}"]
    return "\n".join([*lines, "---"])


def _features(feature_set: "FeatureSet") -> str:
    scores = list(feature_set.scores)
    head = ["feature", "block", "site", "number in the SAE", *map(code, scores)]
    head += [f"mean on {code(group)}" for group in feature_set.groups]
    rows = []
    for i, (name, source) in enumerate(zip(feature_set.names, feature_set.sources)):
        number = feature_set.feature_ids[i]
        page = dashboard(source.repository, source.file, number)
        row = [code(name), str(feature_set.blocks[i]), code(feature_set.sites[i])]
        row.append(f"[{number}]({page})" if page else str(number))
        row += [f"{float(feature_set.scores[score][i]):.3g}" for score in scores]
        row += [f"{float(value):.3g}" for value in feature_set.mean[i]] if feature_set.groups else []
        rows.append(row)
    return table_of(head, rows)


def _how_found(notes: dict[str, Any]) -> list[str]:
    if not notes:
        return []
    command = notes.get("command")
    found = ["## How they were found"]
    if command:
        found.append(f"    {printable(command)}")
    rest = {name: value for name, value in notes.items() if name != "command"}
    if rest:
        found.append(table_of(["", ""], [[code(name), code(json.dumps(value))] for name, value in rest.items()]))
    return found


def source_lines(feature_set: "FeatureSet", what: str) -> list[str]:
    """The SAEs that features come from and their licences, in Markdown; `what` is shared under these."""
    sources = [source for source in dict.fromkeys(feature_set.sources) if source.format != "direction"]
    if not sources:
        return ["They are directions, not features of a published SAE."]
    rows = [[_repository(source), code(source.file), code(source.format), _licence(source)] for source in sources]
    note = f"The licence is what the SAE's repository states; read it before you use or share {what}."
    return [table_of(["SAE", "file", "format", "licence"], rows), note]


def _repository(source: "FeatureSource") -> str:
    if not _REPOSITORY.fullmatch(source.repository):
        return code(source.repository) if source.repository else "a local folder"
    link = f"[`{source.repository}`](https://huggingface.co/{source.repository})"
    if source.revision is None:
        return link
    if _COMMIT.fullmatch(source.revision):
        return f"{link} at `{source.revision[:12]}`"
    return f"{link} at {code(source.revision)}"


def _licence(source: "FeatureSource") -> str:
    if not _REPOSITORY.fullmatch(source.repository):
        return "not known"
    licence = stated_licence(source.repository, source.revision)
    return code(licence) if licence else f"see [the repository](https://huggingface.co/{source.repository})"


def stated_licence(repository: str, revision: str | None) -> str | None:
    """
    The licence that a repository of the Hub states in its metadata; the Hub is asked once in a process. Returns a text
    such as `"apache-2.0"`, or `"other (qwen)"`; `None` if it states none or cannot be asked.
    """
    return None if constants.HF_HUB_OFFLINE else _ask_for_licence(repository, revision)


@lru_cache(maxsize=256)
def _ask_for_licence(repository: str, revision: str | None) -> str | None:
    try:
        card = HfApi().model_info(repository, revision=revision, timeout=SECONDS_FOR_THE_HUB).card_data
    except Exception as error:  # whatever it is, a line of the card is not worth a training
        logger.warning(
            "The licence of %s is not known (%s); the card names the repository.", repository, printable(error)
        )
        return None
    licence, name = (card.get("license"), card.get("license_name")) if card is not None else (None, None)
    if isinstance(licence, list):
        licence = ", ".join(map(str, licence))
    return f"{licence} ({name})" if licence and name else (str(licence) if licence else None)


def table_of(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows[:_MAX_ROWS]]
    more = f"\n\nand {len(rows) - _MAX_ROWS} more." if len(rows) > _MAX_ROWS else ""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + more


def code(value: object) -> str:
    """A text from anywhere as a code span in a table of Markdown."""
    text = printable(str(value)[:_MAX_LETTERS]).replace("`", "'").replace("|", "¦").strip()
    return f"`{text}`" if text else "-"
