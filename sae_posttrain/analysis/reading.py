"""[`read_activations`]: one pass over texts that keeps which features fire on which, in memory or in a file."""

import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..eval_mode import eval_mode
from ..features.read.loading import load_model_and_tokenizer, load_saes, place_of, require_fit, require_order
from ..features.read.text_options import ALL_TEXTS, TextOptions
from ..features.read.texts import POSITIONS, Text, TextBatch, batches, located_rows, require_form, tokenize
from ..features.set.model_identity import found_on
from ..hooks.blocks import unwrap
from ..hooks.sites import Place
from ..hooks.truncated import read_sites
from ..measure.answers.folder import describe_differences
from ..measure.answers.prompt_tokens import template_hash, tokenizer_hash
from ..model_loading import load_tokenizer
from ..model_records import is_path, recorded_model, weights_fingerprint
from ..row_checks import Copies
from ..saes.frozen import COMPARING, FrozenSAE
from .activation_file import read_origin, require_activation_name
from .pooling import pool_activations, pool_residuals
from .scipy_sparse import scipy_sparse
from .text_activations import POOLS, TextActivations

if TYPE_CHECKING:
    from scipy.sparse import csr_array

logger = logging.getLogger(__name__)

_TEXTS_SORTED = 4096
"""Texts that are tokenized, sorted by length and read at a time."""

_CONTENT = ("messages", "prompt", "completion")
"""Columns of a row, beside that of the text, which can hold what the model reads."""

Texts = str | os.PathLike | Iterable[Mapping[str, Any]]


def read_activations(
    model: nn.Module | str,
    saes: str | os.PathLike | FrozenSAE | Sequence[str | os.PathLike | FrozenSAE],
    texts: Texts,
    *,
    pool: str = "max",
    positions: str = "response",
    blocks: Sequence[int] | None = None,
    site: str | None = None,
    residuals: bool = False,
    cache: str | os.PathLike | None = None,
    tokenizer: Any = None,
    text_options: TextOptions = ALL_TEXTS,
    k: int | None = None,
    format: str | None = None,
    revision: str | None = None,
) -> TextActivations:
    """
    Which features of one or several SAEs fire on which texts: sparse activations, pooled over each text's tokens.

    One forward pass a batch serves all SAEs; it stops after the deepest block that is read, and computes no logits.
    Activations are those of the SAE's authors: after TopK, JumpReLU or the threshold. Special tokens and a text's
    first position never count.
    Memory beyond the sparse result does not grow with the number of texts if they come from a file or a dataset.
    Under `accelerate launch` the texts are divided among the processes, and each returns the same.

    ```python
    activations = read_activations(
        "HuggingFaceTB/SmolLM2-135M-Instruct", "saes", "reviews.jsonl", blocks=[9, 14], cache="reviews.safetensors"
    )
    ```

    Args:
        model (`torch.nn.Module` or `str`):
            A causal language model, or its path or Hub id.
        saes (`str`, `os.PathLike`, [`FrozenSAE`] or a sequence of them):
            As [`find_features`] takes them: one for all blocks, or one for each.
        texts (`str`, `os.PathLike` or iterable of rows):
            Data file, folder of such files, `datasets` id, or rows. A row holds a text, or `messages`, or `prompt` and
            `completion`.
        pool (`str`, *optional*, defaults to `"max"`):
            What a feature's activations at a text's tokens become: `"max"`, `"mean"` over the tokens, `"count"` of
            the tokens on which it is above 0, or `"last"`, that at the last of them.
        positions (`str`, *optional*, defaults to `"response"`):
            Tokens that are read. `"response"`: the last answer of `messages`, the `completion`, or all of a text.
            `"prompt"`: what precedes it. `"all"`: both. `"last"`: the last token of both.
        blocks (`Sequence[int]`, *optional*):
            Decoder blocks, from 0. Needed unless loaded SAEs are given.
        site (`str`, *optional*):
            What the SAEs read in these blocks, as [`load_sae`] names it.
        residuals (`bool`, *optional*, defaults to `False`):
            Keep what each site holds too, for probes: the mean over the same tokens, or the last one's with
            `pool="last"`; dense, `D` floats a text and place.
        cache (`str` or `os.PathLike`, *optional*):
            File, ending in `.safetensors`, that keeps the result. If it is there and of the same model, SAEs, texts
            and settings, it is returned without loading the model.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The model's, loaded from its folder if left out.
        text_options ([`TextOptions`], *optional*):
            How the texts are read: columns, split, how many of each group, how long, chat template, batch size. The
            group column may be missing.
        k, format, revision (*optional*):
            As in [`load_sae`].

    Returns:
        [`TextActivations`]: a row a text, in the order of the texts.

    Raises:
        ImportError: If scipy is not installed.
        ValueError: If there are no texts, one cannot be read or is longer than the model's window, an SAE does not
            fit the model, or `cache` holds the activations of other texts, another model, other SAEs or settings.
    """
    scipy_sparse()
    require_order(saes, texts)
    if pool not in POOLS:
        raise ValueError(f"`pool` must be one of {', '.join(map(repr, POOLS))}, got {pool!r}.")
    if positions not in POSITIONS:
        raise ValueError(f"`positions` must be one of {', '.join(map(repr, POSITIONS))}, got {positions!r}.")
    cache = None if cache is None else Path(cache)
    if cache is not None:
        require_activation_name(cache)
    source = _TextSource(texts, text_options)
    loaded = load_saes(saes, blocks, site, k=k, format=format, revision=revision)
    for sae in loaded:
        _require_whole(sae)
    tokenizer, _ = load_tokenizer(tokenizer, model if is_path(model) else unwrap(model))
    origin = {
        "model": recorded_model(model if is_path(model) else unwrap(model)),
        "tokenizer": tokenizer_hash(tokenizer),
        "chat_template": template_hash(tokenizer, text_options.chat_template_kwargs),
        "saes": [_recorded(sae) for sae in loaded],
        "texts": {"number": source.num_texts, "sha256": source.sha256},
        "settings": {
            "pool": pool,
            "positions": positions,
            "residuals": residuals,
            "max_length": text_options.max_length,
            "chat_template_kwargs": dict(text_options.chat_template_kwargs or {}),
        },
    }
    network: Any = None if is_path(model) else model
    if cache is not None and cache.exists():
        network = _require_same(cache, origin, model, tokenizer)
        return TextActivations.load(cache)
    if network is None:
        network, tokenizer = load_model_and_tokenizer(model, tokenizer)
    for sae in loaded:
        require_fit(sae, network)
    origin |= {
        "weights": weights_fingerprint(unwrap(network)),
        "weight_files": weights_fingerprint(model) if is_path(model) else None,
        **found_on(network, tokenizer),
    }
    with eval_mode(network):
        activations = _read(network, loaded, source, tokenizer, pool, positions, residuals, text_options, origin)
    if cache is not None and PartialState().is_main_process:
        activations.save(cache)
    PartialState().wait_for_everyone()
    return activations


class _TextSource:
    """
    Rows of texts that can be gone through again, checked and hashed once. Only rows of an iterator are kept.

    Raises:
        ValueError: If there are no rows, or one holds no text in a form that is read.
    """

    def __init__(self, texts: Texts, options: TextOptions):
        self._texts = texts if isinstance(texts, str | os.PathLike) or hasattr(texts, "__len__") else list(texts)
        self._options = options
        digest, copies = hashlib.sha256(), Copies()
        for where, row in self._located():
            require_form(row, options.text_column, where)
            copies.add(row, where)
            read = {name: row[name] for name in (*_CONTENT, options.text_column) if row.get(name) is not None}
            content = json.dumps([read, self._group(row)], sort_keys=True, ensure_ascii=False, default=str)
            digest.update(content.encode("utf-8", "surrogatepass") + b"\n")
        self.num_texts = copies.num_rows
        if not self.num_texts:
            raise ValueError("There are no texts. Give rows, or a data file that holds some.")
        copies.say(f"{texts}" if isinstance(texts, str | os.PathLike) else "The texts")
        self.sha256 = digest.hexdigest()[:16]

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows, each with its group, which is empty where it has none."""
        for _, row in self._located():
            yield {**row, self._options.group_column: self._group(row)}

    def _located(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        most, seen = self._options.max_texts, Counter[str]()
        for where, row in located_rows(self._texts, self._options.split):
            seen[self._group(row)] += 1
            if most is None or seen[self._group(row)] <= most:
                yield where, row

    def _group(self, row: Mapping[str, Any]) -> str:
        group = row.get(self._options.group_column)
        return "" if group is None else str(group)


def _require_whole(sae: FrozenSAE) -> None:
    if sae.features is not None and sae.activation in COMPARING:
        raise ValueError(
            f"{sae.activation} compares all features of a token, and only {sae.num_features} of {sae.source.file} "
            "were loaded. Load the SAE without `features`."
        )


def _recorded(sae: FrozenSAE) -> dict[str, Any]:
    """What tells an SAE from another, whatever its file: the encoder, and how it is used."""
    digest = hashlib.sha256(f"{sae.activation} {sae.k} {sae.relu_after_topk} {sae.norm_in_acts}".encode())
    for name in ("W_enc", "b_enc", "decoder_norm", "threshold", "magnitude_scale", "magnitude_shift"):
        tensor = getattr(sae, name)
        if tensor is not None:
            kept = tensor.T if tensor.ndim == 2 and not tensor.is_contiguous() else tensor
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(kept.detach().contiguous().cpu().numpy().data)
    return {"block": sae.block, "site": sae.site, "file": sae.source.file, "sha256": digest.hexdigest()[:16]}


def _require_same(cache: Path, origin: Mapping[str, Any], model: Any, tokenizer: Any) -> Any:
    """Raises a `ValueError` if the cache is of something else. Returns the model, if it had to be loaded to tell."""
    stored = read_origin(cache)
    advice = f"Give another `cache`, or delete {cache} to read again."
    if stored.get("texts") != origin["texts"]:
        was, number = stored.get("texts") or {}, origin["texts"]["number"]
        raise ValueError(
            f"{cache} holds the activations of other texts: {was.get('number')} texts with the hash "
            f"{was.get('sha256')}; these are {number} with the hash {origin['texts']['sha256']}. {advice}"
        )
    was, now = ({**each, **(each.get("settings") or {})} for each in (stored, origin))
    compared = ["model", "tokenizer", "chat_template", "saes", *origin["settings"]]
    differences = describe_differences({n: was.get(n) for n in compared}, {n: now[n] for n in compared})
    network = None
    if not differences:
        if is_path(model) and stored.get("weight_files") is not None:
            name, now_is = "weight_files", weights_fingerprint(model)
        elif is_path(model) and not Path(model).is_dir():
            return None  # a Hub id: its name is all that can be compared
        else:
            network = load_model_and_tokenizer(model, tokenizer)[0]
            name, now_is = "weights", weights_fingerprint(unwrap(network))
        if stored.get(name) != now_is:
            differences = f"the hash of the model's weights was {stored.get(name)}, is {now_is}"
    if differences:
        raise ValueError(f"{cache} holds activations that were read otherwise: {differences}. {advice}")
    return network


def _read(
    model: nn.Module,
    saes: Sequence[FrozenSAE],
    source: _TextSource,
    tokenizer: Any,
    pool: str,
    positions: str,
    residuals: bool,
    options: TextOptions,
    origin: dict[str, Any],
) -> TextActivations:
    device = next(model.parameters()).device
    saes = [sae.to(device) for sae in saes]
    process = PartialState()
    parts = _Parts({place_of(sae): sae.num_features for sae in saes})
    started, num_read = time.monotonic(), 0
    progress = tqdm(total=source.num_texts, unit=" texts", desc="Reading texts", disable=not process.is_main_process)
    first = 0
    with torch.inference_mode(), progress:
        rows_left = source.rows()
        while rows := list(islice(rows_left, _TEXTS_SORTED)):
            texts = tokenize(rows, tokenizer, options, positions=positions, first_row=first + 1)
            require_window(model, texts)
            longest_first = sorted(range(len(texts)), key=lambda i: -len(texts[i].ids))
            mine = longest_first[process.process_index :: process.num_processes]
            groups = sorted({text.group for text in texts})
            num_done = 0
            for batch in batches([texts[i] for i in mine], groups, options.batch_size):
                members = mine[num_done : num_done + len(batch.groups)]
                num_done += len(members)
                _read_batch(model, saes, batch.to(device), pool, residuals, parts)
                parts.add_texts([first + i for i in members], [texts[i] for i in members])
                num_read += sum(len(texts[i].ids) for i in members)
                progress.set_postfix_str(f"{num_read / max(1e-9, time.monotonic() - started):,.0f} tokens/s")
                progress.update(len(members) * process.num_processes)
            first += len(texts)
    return parts.gathered(saes, pool, positions, origin)


def require_window(model: nn.Module, texts: Sequence[Text]) -> None:
    """Raises a `ValueError` if a text is longer than the model's window."""
    longest = max(len(text.ids) for text in texts)
    window = getattr(unwrap(model).config.get_text_config(), "max_position_embeddings", None)
    if window is not None and longest > window:
        raise ValueError(
            f"A text has {longest:,} tokens within `max_length`, and the model's window has {window:,}. Set "
            f"`max_length` to {window:,} or less to read the beginning of each text, or divide the texts."
        )


def _read_batch(
    model: nn.Module, saes: Sequence[FrozenSAE], batch: TextBatch, pool: str, residuals: bool, parts: "_Parts"
) -> None:
    places = [place_of(sae) for sae in saes]
    values = read_sites(model, places, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    num_texts = len(batch.groups)
    text_N = batch.counted.nonzero()[:, 0]
    for sae in saes:
        residual_ND = values[place_of(sae)][batch.counted]
        parts.add_activations(place_of(sae), pool_activations(sae, residual_ND, text_N, num_texts, pool))
        if residuals:
            parts.add_residuals(place_of(sae), pool_residuals(residual_ND, text_N, num_texts, pool))


class _Parts:
    """What one process has read so far, in the order in which it read it."""

    def __init__(self, num_features: Mapping[Place, int]):
        self._num_features = num_features
        self._values: dict[Place, list[csr_array]] = {place: [] for place in num_features}
        self._residuals: dict[Place, list[np.ndarray]] = {place: [] for place in num_features}
        self._about: list[tuple[int, int, str, str, bool]] = []  # number, tokens, group, key, cut

    def add_activations(self, place: Place, pooled_BF: Tensor) -> None:
        self._values[place].append(scipy_sparse().csr_array(pooled_BF.cpu().numpy()))

    def add_residuals(self, place: Place, pooled_BD: Tensor) -> None:
        self._residuals[place].append(pooled_BD.cpu().numpy())

    def add_texts(self, numbers: Sequence[int], texts: Sequence[Text]) -> None:
        self._about += [(i, sum(t.counted), t.group, t.key, t.cut) for i, t in zip(numbers, texts)]

    def gathered(
        self, saes: Sequence[FrozenSAE], pool: str, positions: str, origin: dict[str, Any]
    ) -> TextActivations:
        """The texts of all processes, in their own order."""
        sparse = scipy_sparse()
        values, residuals = {}, {}
        about = [each for part in _from_all(self._about) for each in part]
        order = np.argsort([number for number, *_ in about])
        for place, num_features in self._num_features.items():
            empty = sparse.csr_array((0, num_features), dtype=np.float32)
            mine = sparse.vstack([empty, *self._values[place]], format="csr")
            self._values[place].clear()
            values[place] = sparse.vstack(_from_all(mine), format="csr")[order]
            if self._residuals[place]:
                residuals[place] = np.concatenate(_from_all(np.concatenate(self._residuals[place])))[order]
        about = [about[i] for i in order]
        _warn_of_texts(about, positions, pool)
        return TextActivations(
            values=values,
            feature_ids={
                place_of(sae): np.arange(sae.num_features) if sae.features is None else np.array(sae.features)
                for sae in saes
            },
            num_tokens=np.array([tokens for _, tokens, *_ in about], dtype=np.int64),
            groups=tuple(group for _, _, group, _, _ in about),
            keys=tuple(key for *_, key, _ in about),
            pool=pool,
            positions=positions,
            residuals=residuals,
            origin=origin,
        )


def _from_all(part: Any) -> list[Any]:
    """What each process holds, in the order of the processes."""
    return [part] if PartialState().num_processes == 1 else gather_object([part])


def _warn_of_texts(about: Sequence[tuple[int, int, str, str, bool]], positions: str, pool: str) -> None:
    if not PartialState().is_main_process:
        return
    num_cut = sum(cut for *_, cut in about)
    num_empty = sum(tokens == 0 for _, tokens, *_ in about)
    if num_cut:
        logger.warning(
            "%d of %d texts are longer than `max_length` and were read up to there%s.",
            num_cut,
            len(about),
            "; the last token read is not their last" if "last" in (positions, pool) else "",
        )
    if num_empty:
        logger.warning(
            "%d of %d texts have no token that counts within `max_length` (not the first, not special%s): no feature "
            "fires on them.",
            num_empty,
            len(about),
            {"response": ", in the answer", "prompt": ", in the prompt"}.get(positions, ""),
        )
