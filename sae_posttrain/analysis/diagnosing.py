"""[`diagnose`]: which features tell bad answers from good ones, when they begin to fire, and what words alone tell."""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..eval_mode import eval_mode
from ..features.find.causal import output_scores, prompts_of_other_groups, target_tokens
from ..features.read.loading import load_model_and_tokenizer, load_saes, place_of, require_one_width
from ..features.read.text_options import ALL_TEXTS, TextOptions
from ..features.read.texts import Text, tokenize
from ..features.set.feature_set import FeatureSet
from ..features.set.model_identity import found_on
from ..hooks.blocks import unwrap
from ..saes.frozen import FrozenSAE
from .answer_halves import divide_in_halves
from .answers import Answers, read_answers
from .diagnosis import Diagnosis, Finding, facts_of
from .fault_position import fault_tokens, onsets
from .feature_page import Group, view_features
from .feature_tests import Chosen, choose_features, held_out_figures, run_tests
from .ngrams import telling_ngrams
from .reading import read_activations
from .removal import Removal, remove_each
from .text_activations import TextActivations
from .token_readings import read_along_texts

POOLS_OF_DIAGNOSIS = ("mean", "max", "count")
_FEWEST = 8  # answers of a kind: two in each half and the interval says nothing
_NUM_PROMPTS = 16
_STRENGTH = 0.5  # of the output score, in median residual norms, as in `find_features`
_MOST_REMOVED_IN = 32  # bad answers that are read again for each feature


def diagnose(
    model: nn.Module | str,
    sae: str | os.PathLike | FrozenSAE | Sequence[str | os.PathLike | FrozenSAE],
    bad: Answers,
    good: Answers | None = None,
    *,
    fault: str = "any",
    blocks: Sequence[int] | None = None,
    site: str | None = None,
    num_features: int = 5,
    pool: str = "mean",
    alpha: float = 0.05,
    check: bool = False,
    cache: str | os.PathLike | None = None,
    tokenizer: Any = None,
    text_options: TextOptions = ALL_TEXTS,
    seed: int = 0,
    k: int | None = None,
    format: str | None = None,
    revision: str | None = None,
) -> Diagnosis:
    """
    Find what is abnormal in bad answers: features that fire there and not in good ones.

    The answers are divided into two halves, all answers to a prompt and all copies of a text on one side. One half
    chooses the features; rates, AUROC and mean activation come from the other. Beside the features stand the n-grams
    that tell the most, with the same held-out AUROC: a feature that tells no more than a word may be that word.

    ```python
    found = diagnose(model, sae, "evaluation", fault="loops", blocks=[9, 14])  # a folder that `evaluate` wrote
    print(found)
    found.features.save("loops.safetensors")
    found.write_page("loops.html")
    ```

    Args:
        model (`torch.nn.Module` or `str`):
            The causal language model that wrote the answers, or its path or Hub id.
        sae:
            As in [`find_features`].
        bad, good (path or iterable of rows):
            Folder that `evaluate` wrote, data file, or rows. Judged answers are divided by their fault, so that one
            folder may give both; other rows are `bad` or `good` as a whole, and may hold `spans`, a list of
            `[first character, character after the last]` of the fault in the answer.
        fault (`str`, *optional*, defaults to `"any"`):
            For judged answers: `"switching"`, `"loops"`, or `"any"`.
        blocks, site, k, format, revision (*optional*):
            As in [`find_features`].
        num_features (`int`, *optional*, defaults to `5`):
            Features to keep over all blocks.
        pool (`str`, *optional*, defaults to `"mean"`):
            What is compared of an answer: its `"mean"` or `"max"` activation, or the `"count"` of its tokens on which
            the feature fires. `"max"` suits faults of a single word.
        alpha (`float`, *optional*, defaults to `0.05`):
            Share of false discoveries at which a feature counts as different.
        check (`bool`, *optional*, defaults to `False`):
            Remove each kept feature and read the log-probability of the fault's tokens and of the others, in up to 32
            bad answers. Needs to know where the fault is.
        cache (`str` or `os.PathLike`, *optional*):
            As in [`read_activations`].
        tokenizer, text_options (*optional*):
            As in [`find_features`]; the group column is not used.
        seed (`int`, *optional*, defaults to `0`):
            Divides the answers.

    Returns:
        [`Diagnosis`]: a table (`print`), the feature set, and the page.

    Raises:
        ValueError: If a kind of answers is missing or has fewer than eight, the halves cannot be divided, no feature
            fires more in bad answers, or `check` is asked for and no answer says where its fault is.
    """
    if pool not in POOLS_OF_DIAGNOSIS:
        raise ValueError(f"`pool` must be one of {', '.join(map(repr, POOLS_OF_DIAGNOSIS))}, got {pool!r}.")
    if num_features < 1 or not 0 < alpha < 1:
        raise ValueError(f"`num_features` must be 1 or more and `alpha` in (0, 1), got {num_features}, {alpha}.")
    answers = read_answers(bad, good, fault=fault, text_column=text_options.text_column)
    if check and not any(each.spans or each.token_spans for each in answers):
        raise ValueError(
            "`check` compares the tokens of the fault with others, and no bad answer says where its fault is. Give "
            "`spans` with the answers, or a folder that `evaluate` wrote."
        )
    is_bad = [each.bad for each in answers]
    _require_enough(is_bad)
    saes = load_saes(sae, blocks, site, k=k, format=format, revision=revision)
    require_one_width(saes)
    network, tokenizer = load_model_and_tokenizer(model, tokenizer)
    options = replace(text_options, group_column="_kind", text_column="text", max_texts=None)
    rows = [{**each.row, "_kind": "bad" if each.bad else "good"} for each in answers]
    activations = read_activations(
        network, saes, rows, pool=pool, tokenizer=tokenizer, text_options=options, cache=cache
    )
    held_out = divide_in_halves(answers, activations.keys, seed)
    tests = run_tests(activations, is_bad, held_out)
    chosen = choose_features(tests, num_features, alpha)
    counts = {
        "bad": sum(is_bad),
        "good": len(is_bad) - sum(is_bad),
        "held_out_bad": sum(b and h for b, h in zip(is_bad, held_out)),
        "held_out_good": sum(not b and h for b, h in zip(is_bad, held_out)),
        "tested": sum(len(test.p) for test in tests),
        "passed": sum(int(((test.q <= alpha) & (test.auroc > 0.5)).sum()) for test in tests),
    }
    texts = tokenize(rows, tokenizer, options)
    with eval_mode(network):
        feature_set = _as_feature_set(saes, activations, chosen)
        read = read_along_texts(network, feature_set, texts, saes, batch_size=options.batch_size)
        values = read.activations
        feature_set = replace(
            read.with_statistics(feature_set, texts, ("bad", "good")),
            target_groups=("bad",),
            **found_on(network, tokenizer),
        )
        faults = [fault_tokens(answer, text, tokenizer) for answer, text in zip(answers, texts)]
        starts = onsets(texts, is_bad, faults, values)
        outputs = _outputs(network, feature_set, texts)
        removals = _removals(network, feature_set, texts, faults) if check else None
    findings = [
        Finding(
            label=label,
            q=each.q,
            onset=starts[row] if starts else None,
            output=outputs[row],
            removal=removals[row] if removals else None,
            **held_out_figures(activations, each, answers, held_out),
        )
        for row, (label, each) in enumerate(zip(feature_set.labels, chosen))
    ]
    feature_set = replace(
        feature_set,
        scores=_scores(findings),
        notes={"diagnosis": {**counts, "pool": pool, "fault": fault, "alpha": alpha, "seed": seed}},
    )
    words = telling_ngrams([each.text for each in answers], is_bad, held_out)
    groups = [
        Group("Bad answers", [i for i, b in enumerate(is_bad) if b]),
        Group("Good answers", [i for i, b in enumerate(is_bad) if not b]),
    ]
    views = view_features(
        network,
        tokenizer,
        feature_set,
        texts,
        values,
        groups,
        faults=faults,
        facts=[facts_of(each) for each in findings],
    )
    return Diagnosis(feature_set, findings, words, counts, views)


def _require_enough(is_bad: Sequence[bool]) -> None:
    numbers = sum(is_bad), len(is_bad) - sum(is_bad)
    if min(numbers) < _FEWEST:
        raise ValueError(
            f"There are {numbers[0]} bad and {numbers[1]} good answers; at least {_FEWEST} of each are needed, since "
            "half of them judge, and a hundred of each are wanted."
        )


def _as_feature_set(saes: Sequence[FrozenSAE], activations: TextActivations, chosen: Sequence[Chosen]) -> FeatureSet:
    of_place = {place_of(sae): sae for sae in saes}
    sets = [
        FeatureSet.from_sae(of_place[each.place], [int(activations.feature_ids[each.place][each.column])])
        for each in chosen
    ]
    return sets[0].merge(*sets[1:]) if len(sets) > 1 else sets[0]


def _outputs(model: nn.Module, feature_set: FeatureSet, texts: Sequence[Text]) -> list[float]:
    """Output score of each feature; NaN where no token is used almost only in bad answers."""
    tokens = target_tokens(texts, "bad", unwrap(model).get_output_embeddings().weight.shape[0])
    try:
        prompts = prompts_of_other_groups(texts, "bad", _NUM_PROMPTS) if tokens.any() else None
    except ValueError:
        prompts = None
    if prompts is None:
        return [math.nan] * len(feature_set)
    scores = torch.zeros(len(feature_set))
    for place in feature_set.places:
        rows = [i for i, other in enumerate(zip(feature_set.blocks, feature_set.sites)) if other == place]
        norm = float(feature_set.residual_norms[rows[0]])
        directions = feature_set.directions[rows]
        scores[rows] = output_scores(model, prompts, directions, place, tokens, _STRENGTH * norm)
    return scores.tolist()


def _removals(
    model: nn.Module, feature_set: FeatureSet, texts: Sequence[Text], faults: Sequence[np.ndarray | None]
) -> list[Removal]:
    located = [(text, fault) for text, fault in zip(texts, faults) if fault is not None][:_MOST_REMOVED_IN]
    return remove_each(model, feature_set, [text for text, _ in located], [fault for _, fault in located])


def _scores(findings: Sequence[Finding]) -> dict[str, torch.Tensor]:
    columns: dict[str, list[float]] = {
        name: [getattr(each, name) for each in findings]
        for name in ("auroc", "q", "difference", "mean_bad", "mean_good", "output")
    }
    if all(each.onset for each in findings):
        columns["onset"] = [each.onset.distance for each in findings if each.onset]
    if all(each.removal for each in findings):
        columns["removal_fault"] = [each.removal.fault for each in findings if each.removal]
        columns["removal_others"] = [each.removal.others for each in findings if each.removal]
    return {name: torch.tensor(column, dtype=torch.float32) for name, column in columns.items()}
