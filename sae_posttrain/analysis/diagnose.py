"""[`diagnose`]: which features tell bad answers from good ones, when they begin to fire, and what words alone tell."""

import logging
import math
import os
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..eval_mode import eval_mode
from ..features.find.causal import output_scores, prompts_of_other_groups, target_tokens
from ..features.read.auroc import auroc
from ..features.read.loading import load_model_and_tokenizer, load_saes, place_of, require_one_width
from ..features.read.text_options import ALL_TEXTS, TextOptions
from ..features.read.texts import Text, tokenize
from ..features.set.feature_set import FeatureSet
from ..features.set.model_identity import found_on
from ..hooks.blocks import unwrap
from ..hooks.sites import Place
from ..measure.statistics.intervals import paired_difference, unpaired_difference
from ..saes.frozen import FrozenSAE
from ..tables import align
from .answers import Answer, Answers, read_answers
from .fault_position import Onset, fault_tokens, onsets
from .feature_page import FeatureView, Group, view_features, write_feature_page
from .ngrams import NGram, telling_ngrams
from .read_activations import read_activations
from .removal import Removal, remove_each
from .text_activations import TextActivations
from .token_readings import read_along_texts

logger = logging.getLogger(__name__)

POOLS_OF_DIAGNOSIS = ("mean", "max", "count")
_FEWEST = 8  # answers of a kind: two in each half and the interval says nothing
_DENSE_ELEMENTS = 1 << 24  # answers × features of a dense part: 64 MB
_NUM_PROMPTS = 16
_STRENGTH = 0.5  # of the output score, in median residual norms, as in `find_features`
_MOST_REMOVED_IN = 32  # bad answers that are read again for each feature


@dataclass(frozen=True)
class Finding:
    """
    What is known of one feature.

    Attributes:
        label (`str`):
            Its name in the feature set.
        bad, good (`float`):
            Share of held-out bad and good answers in which it fires on any token.
        difference (`float`), interval (`tuple[float, float]`):
            Bad minus good, with its 95 % interval.
        q (`float`):
            P-value of the two-sided Mann-Whitney test of the pooled activation on the other half, after Benjamini and
            Hochberg over all features that fire there.
        auroc (`float`):
            How well the pooled activation tells held-out bad answers from good ones.
        mean_bad, mean_good (`float`):
            Mean pooled activation, held out.
        onset ([`Onset`] or `None`):
            Where the fault is known.
        output (`float`):
            Output score, as in [`find_features`]; NaN where no token stands for the bad answers.
        removal ([`Removal`] or `None`):
            The causal check, if it was asked for.
    """

    label: str
    bad: float
    good: float
    difference: float
    interval: tuple[float, float]
    q: float
    auroc: float
    mean_bad: float
    mean_good: float
    onset: Onset | None
    output: float
    removal: Removal | None


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """
    What is abnormal in bad answers.

    Attributes:
        features ([`FeatureSet`]):
            The features, best first, with statistics of the groups `bad` and `good`, ready for SASFT or steering.
        findings (`list[Finding]`):
            What is known of each, in the same order.
        words (`list[NGram]`):
            N-grams that bad answers use more, with the AUROC on the same held-out answers.
        counts (`dict[str, int]`):
            Bad and good answers, held-out ones, features that fire and were tested, and how many pass `alpha`.
        views (`list[FeatureView]`):
            What the page shows of each feature.
    """

    features: FeatureSet
    findings: list[Finding]
    words: list[NGram]
    counts: dict[str, int]
    views: list[FeatureView]

    def __str__(self) -> str:
        onset = any(each.onset for each in self.findings)
        removal = any(each.removal for each in self.findings)
        head = ["feature", "fires: bad", "good", "difference", "q", "AUROC", "mean: bad", "good"]
        head += ["onset", "before", "in it", "in good"] * onset + ["output"] + ["removed: fault", "others"] * removal
        rows = [head]
        for each in self.findings:
            low, high = each.interval
            row = [each.label, _percent(each.bad), _percent(each.good)]
            row += [f"{100 * each.difference:+.0f} ({100 * low:+.0f} to {100 * high:+.0f})", _p(each.q)]
            row += [f"{each.auroc:.3f}", f"{each.mean_bad:.3g}", f"{each.mean_good:.3g}"]
            if onset and each.onset:
                rates = (each.onset.before, each.onset.inside, each.onset.good)
                row += [f"{each.onset.distance:+.0f}", *map(_percent, rates)]
            row.append("–" if math.isnan(each.output) else f"{each.output:+.3f}")
            if removal and each.removal:
                row += [f"{each.removal.fault:+.3f}", f"{each.removal.others:+.3f}"]
            rows.append(row)
        words = [["n-gram", "log-odds", "z", "in bad", "in good", "AUROC"]]
        for word in self.words:
            shares = (_percent(word.bad), _percent(word.good))
            words.append([repr(word.text), f"{word.log_odds:+.2f}", f"{word.z:.1f}", *shares, f"{word.auroc:.3f}"])
        title = (
            "{bad} bad and {good} good answers; {held_out_bad} and {held_out_good} held out for rates and AUROC. "
            "{tested:,} features fire and were tested, {passed:,} pass."
        ).format(**self.counts)
        notes = ["onset: tokens from the fault's first token to the feature's first; before, in it, in good: share of "
                 "tokens on which it fires"] if onset else []  # fmt: skip
        return "\n".join([title, "", *align(rows, 1), *notes, "", "Words alone:", *align(words, 1)])

    def write_page(self, path: str | os.PathLike, *, title: str = "Diagnosis") -> Path:
        """
        Write the page: for each feature the tokens that it promotes, snippets of both groups side by side with the
        tokens shaded by activation, a histogram, and where it starts. One HTML file, without network or script.
        """
        head, *rows = _words_table(self.words)
        return write_feature_page(
            path, self.views, title=title, lead=str(self).split("\n", 1)[0], words=(head, rows) if rows else None
        )


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
    tests = [_test(activations, place, is_bad, held_out) for place in activations.places]
    from scipy.stats import false_discovery_control  # Benjamini and Hochberg; it takes a second to import

    adjusted = false_discovery_control(np.concatenate([test.p for test in tests]))
    q_values = np.split(adjusted, np.cumsum([len(test.p) for test in tests])[:-1])
    tests = [replace(test, q=q) for test, q in zip(tests, q_values)]
    chosen = _choose(tests, num_features, alpha)
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
    held = [_held_out_figures(activations, place, column, answers, held_out) for _, _, place, column in chosen]
    findings = [
        Finding(
            label=label,
            q=q,
            onset=starts[row] if starts else None,
            output=outputs[row],
            removal=removals[row] if removals else None,
            **held[row],
        )
        for row, (label, (q, *_)) in enumerate(zip(feature_set.labels, chosen))
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
        facts=[_facts(each) for each in findings],
    )
    return Diagnosis(feature_set, findings, words, counts, views)


def _require_enough(is_bad: Sequence[bool]) -> None:
    numbers = sum(is_bad), len(is_bad) - sum(is_bad)
    if min(numbers) < _FEWEST:
        raise ValueError(
            f"There are {numbers[0]} bad and {numbers[1]} good answers; at least {_FEWEST} of each are needed, since "
            "half of them judge, and a hundred of each are wanted."
        )


def divide_in_halves(answers: Sequence[Answer], keys: Sequence[str], seed: int) -> list[bool]:
    """
    Whether each answer is held out: half of them, all answers to a prompt and all copies of a text on one side.

    Raises:
        ValueError: If a half has fewer than two answers of a kind.
    """
    parent = list(range(len(answers)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, (answer, key) in enumerate(zip(answers, keys)):
        for mark in (f"text {key}", f"prompt {answer.pair}" if answer.pair else ""):
            if mark:
                parent[root(i)] = root(first.setdefault(mark, i))
    members = defaultdict(list)
    for i in range(len(answers)):
        members[root(i)].append(i)
    together = list(members.values())
    random.Random(seed).shuffle(together)
    together.sort(key=lambda group: (-len(group), -sum(answers[i].bad for i in group)))
    held_out = [False] * len(answers)
    sizes = np.zeros((2, 2), dtype=int)  # half, kind
    for group in together:
        added = np.array([sum(not answers[i].bad for i in group), sum(answers[i].bad for i in group)])
        half = int(((sizes[1] - sizes[0]) * added).sum() < 0)  # where its kinds are rarer
        sizes[half] += added
        for i in group:
            held_out[i] = bool(half)
    if sizes.min() < 2:
        raise ValueError(
            "The answers cannot be divided into two halves with two answers of each kind in both: answers to one "
            f"prompt and copies of a text stay together. There are {len(together)} such groups; give answers to more "
            "prompts."
        )
    return held_out


@dataclass(frozen=True)
class _Tests:
    """Tests of the features of a place that fire on the half that chooses."""

    place: Place
    columns: np.ndarray
    p: np.ndarray
    auroc: np.ndarray
    q: np.ndarray


def _test(activations: TextActivations, place: Place, is_bad: Sequence[bool], held_out: Sequence[bool]) -> _Tests:
    from scipy.stats import mannwhitneyu

    choosing = ~np.array(held_out)
    rows = activations.values[place][choosing].tocsc()
    bad = np.array(is_bad)[choosing]
    columns = np.flatnonzero(np.diff(rows.indptr))
    p, areas = [np.zeros(0)], [np.zeros(0)]
    per_part = max(1, _DENSE_ELEMENTS // max(1, rows.shape[0]))
    for start in range(0, len(columns), per_part):
        dense = rows[:, columns[start : start + per_part]].toarray()
        areas.append(auroc(torch.from_numpy(dense), torch.from_numpy(bad)).numpy())
        p.append(mannwhitneyu(dense[bad], dense[~bad], axis=0, method="asymptotic").pvalue)
    p_F = np.nan_to_num(np.concatenate(p), nan=1.0).clip(0, 1)
    return _Tests(place, columns, p_F, np.concatenate(areas), p_F)


def _choose(tests: Sequence[_Tests], num_features: int, alpha: float) -> list[tuple[float, float, Place, int]]:
    """Q-value, AUROC, place and column of the best features of those that fire more in bad answers."""
    found = [
        (float(q), float(area), test.place, int(column))
        for test in tests
        for q, area, column in zip(test.q, test.auroc, test.columns)
        if area > 0.5
    ]
    if not found:
        raise ValueError("No feature fires more in the bad answers than in the good ones. Try other blocks or SAEs.")
    best = sorted(found, key=lambda each: (each[0] > alpha, -each[1]))[:num_features]
    if all(q > alpha for q, *_ in best):
        logger.warning(
            "No feature differs at a false discovery rate of %g; the best have q = %.2g. Give more answers.",
            alpha,
            min(q for q, *_ in best),
        )
    return best


def _as_feature_set(
    saes: Sequence[FrozenSAE], activations: TextActivations, chosen: Sequence[tuple[float, float, Place, int]]
) -> FeatureSet:
    of_place = {place_of(sae): sae for sae in saes}
    sets = [FeatureSet.from_sae(of_place[place], [int(activations.feature_ids[place][column])])
            for _, _, place, column in chosen]  # fmt: skip
    return sets[0].merge(*sets[1:]) if len(sets) > 1 else sets[0]


def _held_out_figures(
    activations: TextActivations, place: Place, column: int, answers: Sequence[Answer], held_out: Sequence[bool]
) -> dict[str, Any]:
    judges = np.flatnonzero(held_out).tolist()
    pooled = activations.values[place][judges][:, [column]].toarray()[:, 0]
    bad = np.array([answers[i].bad for i in judges])
    fires = pooled > 0
    tallies = [(int(fires[side].sum()), int(side.sum())) for side in (~bad, bad)]
    rates = [number / of for number, of in tallies]
    pairs = _pairs([answers[i] for i in judges])
    if pairs:
        paired = paired_difference([fires[g] for _, g in pairs], [fires[b] for b, _ in pairs], num_resamples=2000)
        difference, interval = paired.difference, (paired.low, paired.high)
    else:
        difference, interval = rates[1] - rates[0], unpaired_difference(tallies[0], tallies[1])
    area = auroc(torch.from_numpy(pooled)[:, None], torch.from_numpy(bad))
    return {
        "bad": rates[1],
        "good": rates[0],
        "difference": difference,
        "interval": interval,
        "auroc": float(area),
        "mean_bad": float(pooled[bad].mean()),
        "mean_good": float(pooled[~bad].mean()),
    }


def _pairs(answers: Sequence[Answer]) -> list[tuple[int, int]]:
    """Number of the bad and the good answer of each prompt, if every prompt has just one of each; else nothing."""
    of_prompt: dict[str, dict[bool, list[int]]] = defaultdict(lambda: {True: [], False: []})
    for i, answer in enumerate(answers):
        of_prompt[answer.pair][answer.bad].append(i)
    if "" in of_prompt or any(len(kinds[True]) != 1 or len(kinds[False]) != 1 for kinds in of_prompt.values()):
        return []
    return [(kinds[True][0], kinds[False][0]) for kinds in of_prompt.values()]


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


def _facts(each: Finding) -> list[tuple[str, str]]:
    low, high = each.interval
    facts = [
        ("AUROC, held out", f"{each.auroc:.3f}"),
        ("Fires in answers", f"{_percent(each.bad)} of the bad, {_percent(each.good)} of the good ones"),
        ("Difference", f"{100 * each.difference:+.0f} points (95 % interval {100 * low:+.0f} to {100 * high:+.0f})"),
        ("q (Benjamini–Hochberg)", _p(each.q)),
        ("Mean activation", f"{each.mean_bad:.3g} in bad, {each.mean_good:.3g} in good answers"),
    ]
    if each.onset is not None:
        onset = each.onset
        when = "never fires there" if math.isnan(onset.distance) else f"{onset.distance:+.0f} tokens from the fault"
        facts.append(("Onset, median", f"{when} ({onset.num_answers} answers)"))
        facts.append(
            (
                "Share of tokens",
                f"{_percent(onset.before)} before the fault, {_percent(onset.inside)} in it, "
                f"{_percent(onset.good)} in good answers",
            )
        )
    if not math.isnan(each.output):
        facts.append(("Output score", f"{each.output:+.3f}"))
    if each.removal is not None:
        removal = each.removal
        facts.append(
            (
                "Removed",
                f"log-probability of the fault's tokens {removal.fault:+.3f} "
                f"({removal.fault_interval[0]:+.3f} to {removal.fault_interval[1]:+.3f}), of others "
                f"{removal.others:+.3f} ({removal.others_interval[0]:+.3f} to {removal.others_interval[1]:+.3f})",
            )
        )
    return facts


def _words_table(words: Sequence[NGram]) -> list[list[str]]:
    head = ["N-gram", "AUROC, held out", "In bad answers", "In good answers", "Log-odds"]
    return [head] + [
        [word.text, f"{word.auroc:.3f}", _percent(word.bad), _percent(word.good), f"{word.log_odds:+.2f}"]
        for word in words
    ]


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %" if 0 < rate < 0.1 else f"{100 * rate:.0f} %"


def _p(value: float) -> str:
    return f"{value:.1e}" if value < 0.001 else f"{value:.3f}"
