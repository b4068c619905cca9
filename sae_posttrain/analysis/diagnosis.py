"""What [`diagnose`] finds: what is known of each feature, as a table, a feature set and a page."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..features.set.feature_set import FeatureSet
from ..tables import align
from .fault_position import Onset
from .feature_page import FeatureView, write_feature_page
from .ngrams import NGram
from .removal import Removal


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


def facts_of(each: Finding) -> list[tuple[str, str]]:
    """Name and value of what the page says of a feature."""
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
