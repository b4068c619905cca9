"""[`browse_features`]: a folder of pages on all features of an SAE, for a browser without a network."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ...eval_mode import eval_mode
from ...features.read.loading import load_model_and_tokenizer, load_saes, place_of, require_fit, require_order
from ...features.read.text_options import ALL_TEXTS, TextOptions
from ...features.read.texts import Text, check_texts, tokenize
from ...features.set.card import dashboard
from ...features.set.feature_set import FeatureSet
from ...hooks.blocks import unwrap
from ...hooks.sites import describe_place
from ...model_records import is_path, recorded_model
from ...saes.frozen import FrozenSAE
from ..logit_lens import lens_tokens, reaches_logits
from ..reading import require_window
from ..scipy_sparse import scipy_sparse
from ..show import of_each_group
from .folder import (
    FEATURES_A_FILE,
    new_folder,
    read_record,
    require_new_folder,
    write_data,
    write_features,
    write_record,
    write_static,
    write_texts,
)
from .nearest import nearest_directions
from .pages import LEVELS, NUM_BINS, TokenTable, feature_records, score_records, segment_records, segments_of
from .query import QUERIES, Query, add_queries, read_queries
from .reading import Reading, read_all_features
from .scores import MOST_GROUPS, Score, scores_of, scores_of_sets

_NUM_NEAREST = 8
_NUM_PROMOTED = 10


def browse_features(
    model: nn.Module | str,
    sae: str | os.PathLike | FrozenSAE,
    texts: str | os.PathLike | Iterable[Mapping[str, Any]],
    out: str | os.PathLike,
    *,
    block: int | None = None,
    site: str | None = None,
    feature_sets: Mapping[str, FeatureSet] | None = None,
    queries: Sequence[str] = (),
    num_snippets: int = 8,
    overwrite: bool = False,
    tokenizer: Any = None,
    text_options: TextOptions = ALL_TEXTS,
    k: int | None = None,
    format: str | None = None,
    revision: str | None = None,
) -> Path:
    """
    Write a folder of pages on which a person can look through all features of an SAE, by a browser and without a
    network: `index.html`, and the data beside it.

    The list is searched by token, by a part of the texts, or by number, and sorted by any score. A feature has the
    snippets in which it fires most, the tokens that it promotes, a histogram, its firing rate in each group, the
    features of nearly the same direction, its page on Neuronpedia if it has one, and the line that makes a
    [`FeatureSet`] of it.

    One pass over the texts serves everything. Memory beyond it grows with texts × features only for AUROC (4 bytes
    each, up to 1 GiB: then of some texts of each group) and where features fire.

    ```python
    browse_features("my-model", "my-saes", "texts.jsonl", "pages", block=14)
    ```

    Args:
        model (`torch.nn.Module` or `str`):
            A causal language model, or its path or Hub id.
        sae (`str`, `os.PathLike` or [`FrozenSAE`]):
            Published SAE as [`load_sae`] takes it, or a loaded one.
        texts (`str`, `os.PathLike` or iterable of rows):
            Texts as in [`find_features`]; the group column may be missing. The eight groups with the most texts have
            scores and histograms of their own.
        out (`str` or `os.PathLike`):
            Folder to write.
        block (`int`, *optional*):
            Decoder block, from 0. Needed unless a loaded SAE is given.
        site (`str`, *optional*):
            What the SAE reads in that block, as [`load_sae`] names it.
        feature_sets (`Mapping[str, FeatureSet]`, *optional*):
            Sets of features of this SAE by a title. Their scores (`output` of [`find_features`], or those of
            [`find_repetition_features`]) and names are shown too.
        queries (`Sequence[str]`, *optional*):
            Texts to read with the model: the pages list the features that fire on each.
        num_snippets (`int`, *optional*, defaults to `8`):
            Snippets of each feature, each of another text.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether older pages in `out` may be replaced.
        tokenizer, text_options (*optional*):
            As in [`find_features`].
        k, format, revision (*optional*):
            As in [`load_sae`].

    Returns:
        `Path`: the page to open, `index.html`.

    Raises:
        FileExistsError: If `out` exists and `overwrite` is not set, or it holds something else.
        ImportError: If scipy is not installed.
        ValueError: If there are no texts, or the SAE does not fit the model.
    """
    scipy_sparse()
    require_order(sae, texts)
    out = Path(out)
    require_new_folder(out, overwrite)
    if num_snippets < 1:
        raise ValueError(f"`num_snippets` must be 1 or more, got {num_snippets}.")
    rows = check_texts(texts, text_options.split, group_column=None, text_column=text_options.text_column)
    if not rows:
        raise ValueError("There are no texts. Give rows, or a data file that holds some.")
    column = text_options.group_column
    rows = [{**row, column: str(row.get(column) or "")} for row in rows]
    loaded = _load(sae, block, site, k, format, revision)
    set_scores, names = scores_of_sets(loaded, feature_sets or {})
    network, tokenizer = load_model_and_tokenizer(model, tokenizer)
    require_fit(loaded, network)
    read = of_each_group(tokenize(rows, tokenizer, text_options), text_options.max_texts)
    require_window(network, read)
    with eval_mode(network):
        reading = read_all_features(
            network, loaded, read, num_snippets=num_snippets, batch_size=text_options.batch_size
        )
        strongest_F = np.asarray(reading.strongest.max(axis=0).todense()).ravel()
        read_with_model = read_queries(network, loaded, tokenizer, queries, strongest_F)
        groups = _groups(reading.texts)
        scores = scores_of(reading, groups) + set_scores
        source = _source_line(sae, loaded, {"site": site, "k": k, "format": format, "revision": revision})
        with new_folder(out) as folder:
            write_static(folder)
            _write(folder, network, tokenizer, loaded, reading, groups, scores, names, model, source)
            write_data(folder, QUERIES, [])
            add_queries(folder, read_with_model, tokenizer, strongest_F)
            record = _identity(network, loaded) | {"strongest": [float(f"{each:.5g}") for each in strongest_F]}
            write_record(folder, record)
    return out / "index.html"


def query_pages(
    model: nn.Module | str,
    sae: str | os.PathLike | FrozenSAE,
    out: str | os.PathLike,
    queries: Sequence[str],
    *,
    block: int | None = None,
    site: str | None = None,
    tokenizer: Any = None,
    k: int | None = None,
    format: str | None = None,
    revision: str | None = None,
) -> tuple[list[Query], Any]:
    """
    Read texts with the model and add them to pages that [`browse_features`] wrote.

    Args:
        model, sae, block, site, tokenizer, k, format, revision:
            As in [`browse_features`].
        out (`str` or `os.PathLike`):
            Folder of the pages.
        queries (`Sequence[str]`):
            The texts.

    Returns:
        `tuple[list[Query], PreTrainedTokenizerBase]`: what was read, and the tokenizer.

    Raises:
        FileNotFoundError: If there are no pages in `out`.
        ValueError: If the pages are of another model or SAE, or no token of a text can be read.
    """
    out = Path(out)
    record = read_record(out)
    loaded = _load(sae, block, site, k, format, revision)
    network, tokenizer = load_model_and_tokenizer(model, tokenizer)
    require_fit(loaded, network)
    for name, now in _identity(network, loaded).items():
        if record[name] != now:
            raise ValueError(
                f"The pages in {out} are of another {'SAE' if name == 'sae' else 'model'} ({record[name]}; this is "
                f"{now}). Name that one, or another folder."
            )
    strongest_F = np.array(record["strongest"], dtype=np.float32)
    with eval_mode(network):
        read = read_queries(network, loaded, tokenizer, queries, strongest_F)
    add_queries(out, read, tokenizer, strongest_F)
    return read, tokenizer


def _load(
    sae: Any, block: int | None, site: str | None, k: int | None, format: str | None, revision: str | None
) -> Any:
    blocks = None if block is None else [block]
    loaded = load_saes(sae, blocks, site, k=k, format=format, revision=revision)
    if len(loaded) != 1:
        raise ValueError(f"Pages are those of one SAE, got {len(loaded)}. Name the `block`.")
    return loaded[0]


def _identity(model: nn.Module, sae: FrozenSAE) -> dict[str, Any]:
    return {"model": recorded_model(unwrap(model)), "sae": [sae.block, sae.site, sae.source.file, sae.num_features]}


def _groups(texts: Sequence[Text]) -> list[str]:
    counts = Counter(text.group for text in texts)
    return sorted(sorted(counts, key=lambda group: -counts[group])[:MOST_GROUPS])


def _source_line(sae: Any, loaded: FrozenSAE, options: Mapping[str, Any]) -> str:
    """Python that loads the SAE again."""
    path = os.fspath(sae) if is_path(sae) else loaded.source.repository or str(loaded.source.path.parent)
    given = {"block": loaded.block} | {name: value for name, value in options.items() if value is not None}
    return f"load_sae({path!r}, {', '.join(f'{name}={value!r}' for name, value in given.items())})"


def _write(
    folder: Path,
    model: nn.Module,
    tokenizer: Any,
    sae: FrozenSAE,
    reading: Reading,
    groups: Sequence[str],
    scores: Sequence[Score],
    names: Mapping[int, str],
    model_name: Any,
    source: str,
) -> None:
    lens = None
    if reaches_logits(model, sae.site, sae.d_model):
        lens = lens_tokens(model, sae.directions, tokenizer, num_tokens=_NUM_PROMOTED)
    cosines, neighbours = nearest_directions(sae.directions, _NUM_NEAREST)
    table = TokenTable(tokenizer)
    segments = segments_of(reading.snippets, reading.texts)
    numbers = {group: number for number, group in enumerate(groups)}
    records, fires_on = feature_records(reading, segments, lens, (cosines.numpy(), neighbours.numpy()), groups, table)
    write_features(folder, records)
    texts_from = write_texts(folder, segment_records(segments, reading.texts, numbers, tokenizer))
    ids = list(range(sae.num_features)) if sae.features is None else list(sae.features)
    page = dashboard(sae.source.repository, sae.source.file, 0)
    counts = Counter(text.group for text in reading.texts)
    num_tokens = int(reading.sums.num_tokens.sum())
    left_out = len(reading.groups) - len(groups)
    write_data(
        folder,
        "index",
        {
            "title": f"Features of {describe_place(place_of(sae))}",
            "lead": f"{len(ids):,} features of {sae.source.repository or sae.source.file} in "
            f"{recorded_model(model_name if is_path(model_name) else unwrap(model))}, on {len(reading.texts):,} texts "
            f"with {num_tokens:,} tokens that count."
            + (f" {left_out} smaller groups have no scores of their own." if left_out else ""),
            "groups": [[group or "Texts", counts[group]] for group in groups],
            "ids": ids,
            "names": {str(row): name for row, name in names.items()},
            "tokens": table.texts,
            "fires_on": fires_on,
            "promotes": [[] if not record[0] else record[0][0][:10:2] for record in records],
            "scores": score_records(scores),
            "features_a_file": FEATURES_A_FILE,
            "texts_from": texts_from,
            "levels": LEVELS,
            "bins": NUM_BINS,
            "source": source,
            "dashboard": None if page is None else page.removesuffix("0"),
        },
    )
