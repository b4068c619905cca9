"""The card of a [`FeatureSet`] on the Hub: what its features are, how they read, whose SAE they come from."""

import json
import re
from typing import Any

from .features.feature_file import shown
from .features.feature_set import FeatureSet
from .measure.generate import recorded_name
from .model_card import code, source_lines, table_of

PICTURE = "features.png"
_DASHBOARDS = "https://www.neuronpedia.org"
_LLAMA_SCOPE = re.compile(r"Llama3_1-8B-Base-L(\d+)(R|A|M)-(8|32)x/")
_LLAMA_SCOPE_SITES = {"R": "res", "A": "att", "M": "mlp"}
_GEMMA_SCOPE = re.compile(r"layer_(\d+)/width_16k/average_l0_(\d+)/")
_GEMMA_SCOPE_SHOWN = {
    "google/gemma-scope-2b-pt-res": ("gemma-2-2b", {20: 71, 21: 70, 22: 72, 23: 75, 24: 73, 25: 116}),
    "google/gemma-scope-9b-pt-res": ("gemma-2-9b", {24: 114, 25: 114, 40: 125, 41: 113}),
}
"""By block the SAE that has dashboards, the one nearest to 100 active features; as SAELens lists them."""


def feature_card(feature_set: FeatureSet, repo_id: str, *, has_picture: bool) -> str:
    """
    The card in Markdown, with the metadata that the Hub reads.

    Args:
        feature_set ([`FeatureSet`]):
            The features.
        repo_id (`str`):
            Repository that the card is for.
        has_picture (`bool`):
            Whether [`PICTURE`] lies beside it.
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


def _metadata(feature_set: FeatureSet) -> str:
    lines = ["---", "library_name: sae_posttrain", "tags:", "- sparse-autoencoder", "- feature-set"]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", feature_set.base_model):
        lines += ["base_model:", f"- {feature_set.base_model}"]
    return "\n".join([*lines, "---"])


def _features(feature_set: FeatureSet) -> str:
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
        found.append(f"    {shown(command)}")
    rest = {name: value for name, value in notes.items() if name != "command"}
    if rest:
        found.append(table_of(["", ""], [[code(name), code(json.dumps(value))] for name, value in rest.items()]))
    return found
