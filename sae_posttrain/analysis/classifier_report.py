"""
[`compare_classifiers`]: a classifier on features beside what costs less, on the same split, with intervals.

Shape suffixes: N texts to test on, C clusters of copies, R resamples.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..measure.statistics.intervals import require_confidence, wilson
from ..tables import align
from . import scikit_learn  # noqa: F401
from .classifier import FeatureClassifier
from .classifier_baselines import BASELINES, LabelledTexts, Predict, baselines_for
from .feature_rule import f1_score
from .rule_choice import rows_to_choose_by

RULE_NAMES = {
    "any": "SAE, any of K fires (published)",
    "top1_diff": "SAE, block by top1-diff",
    "logistic": "SAE, logistic on K features",
}
FEW_SHOT = (10, 30, 100, 300)


@dataclass(frozen=True)
class Measured:
    """
    How well one method does on the test rows.

    Attributes:
        f1, f1_low, f1_high (`float`):
            F1 of the positive label, with its bootstrap interval over texts.
        accuracy, accuracy_low, accuracy_high (`float`):
            Share of right labels, with its Wilson interval.
        precision, recall (`float`):
            Precision and recall of the positive label; 0 where nothing is predicted to be positive.
        difference, difference_low, difference_high (`float`):
            F1 minus that of the classifier that is compared, on the same resamples.
        how (`str`):
            The setting that was chosen, for a rule on features.
    """

    f1: float
    f1_low: float
    f1_high: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    precision: float
    recall: float
    difference: float
    difference_low: float
    difference_high: float
    how: str = ""


@dataclass(frozen=True)
class ClassifierReport:
    """
    What [`compare_classifiers`] measured. `str(report)` is a table.

    Attributes:
        num_train, num_test (`int`), pos_label:
            Texts that were learnt from and tested on, and the positive label.
        methods (`dict[str, Measured]`):
            Every method by name; the first is the classifier that is compared.
        few_shot (`dict[int, dict[str, tuple[float, float, float]]]`):
            For each number of training texts and each method: mean, least and largest F1 over the draws.
        num_draws (`int`):
            Random draws of each number of texts.
        top1_diff_loss (`float`):
            F1 that is lost on the test rows if the block is chosen by `top1-diff` and not on held-out rows.
    """

    num_train: int
    num_test: int
    pos_label: Any
    methods: dict[str, Measured]
    few_shot: dict[int, dict[str, tuple[float, float, float]]] = field(default_factory=dict)
    num_draws: int = 0
    top1_diff_loss: float = 0.0

    @property
    def best(self) -> str:
        """The method with the largest F1."""
        return max(self.methods, key=lambda name: self.methods[name].f1)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "best": self.best}

    def __str__(self) -> str:
        lines = [f"{self.num_train} texts to learn from, {self.num_test} to test on; positive: {self.pos_label!r}", ""]
        rows = [["", "F1", "95 %", "accuracy", "precision", "recall", "F1 minus the first"]]
        first = next(iter(self.methods))
        for name, each in self.methods.items():
            against = f"{each.difference:+.3f} [{each.difference_low:+.3f}, {each.difference_high:+.3f}]"
            rows.append(
                [
                    name,
                    f"{each.f1:.3f}",
                    f"[{each.f1_low:.3f}, {each.f1_high:.3f}]",
                    f"{each.accuracy:.3f}",
                    f"{each.precision:.3f}",
                    f"{each.recall:.3f}",
                    "" if name == first else against,
                ]
            )
        lines += [*align(rows, 1), ""]
        lines += [f"{name}: {each.how}" for name, each in self.methods.items() if each.how]
        lines.append(f"Block by top1-diff instead of held-out rows: {0 - self.top1_diff_loss:+.3f} F1.")
        lines.append(self._verdict())
        if self.few_shot:
            names = list(next(iter(self.few_shot.values())))
            table = [["texts", *names]]
            for number, scores in self.few_shot.items():
                table.append([str(number), *(f"{m:.3f} ({a:.2f} to {b:.2f})" for m, a, b in scores.values())])
            lines += ["", f"F1 by number of texts, mean (least to largest of {self.num_draws} draws):", *align(table)]
        return "\n".join(lines)

    def _verdict(self) -> str:
        first, best = next(iter(self.methods)), self.best
        if best == first:
            rest = {name: each for name, each in self.methods.items() if name != first}
            second = max(rest, key=lambda name: rest[name].f1)
            clear = rest[second].difference_high < 0
            return f"Best: {first}. {second} is next, and {'worse beyond' if clear else 'within'} the interval."
        clear = self.methods[best].difference_low > 0
        return f"Best: {best}. It beats {first}{'' if clear else ', but the interval of the difference includes 0'}."


def compare_classifiers(
    classifier: FeatureClassifier,
    train: LabelledTexts,
    test: LabelledTexts,
    *,
    few_shot: Sequence[int] = (),
    num_draws: int = 5,
    confidence: float = 0.95,
    num_resamples: int = 2000,
) -> ClassifierReport:
    """
    Fit a classifier's settings, the other rules, and baselines on the same rows, and test all on the same others.

    Every method chooses its settings on the same part of the training rows, never on the test rows.

    Args:
        classifier ([`FeatureClassifier`]):
            Its settings are used; it is not changed.
        train, test ([`LabelledTexts`]):
            Texts to learn from and to test on. Baselines on residuals need activations that were read with
            `residuals=True`, the one on words needs `texts`; others are left out.
        few_shot (`Sequence[int]`, *optional*):
            Numbers of training texts for a curve, e.g. [`FEW_SHOT`]; numbers beyond the training texts are left out,
            and all of them are added.
        num_draws (`int`, *optional*, defaults to `5`):
            Random draws of each of these numbers.
        confidence (`float`, *optional*, defaults to `0.95`), num_resamples (`int`, *optional*, defaults to `2000`):
            Coverage of the intervals, and samples of the bootstrap over texts. Copies of a text are drawn together.

    Returns:
        [`ClassifierReport`].

    Raises:
        ValueError: If a text of `test` is one of `train`, or labels occur in `test` that `train` has not.
    """
    require_confidence(confidence)
    shared = set(train.activations.keys) & set(test.activations.keys)
    if shared:
        raise ValueError(
            f"{len(shared)} of the texts to test on are among those to learn from (up to case and spaces). Leave them "
            "out of one side."
        )
    fitted = _unread(classifier).fit(train.activations, train.labels)
    unknown = sorted({str(label) for label in test.labels} - {str(label) for label in fitted.classes_.tolist()})
    if unknown:
        raise ValueError(f"The texts to test on have the label {unknown[0]!r}, which those to learn from have not.")
    rules = [classifier.rule, *(rule for rule in RULE_NAMES if rule != classifier.rule)]
    learnt = _learn(classifier, rules, train)
    truth = np.array([label == fitted.pos_label_ for label in test.labels])
    predicted = {name: predict(test) for name, (predict, _) in learnt.items()}
    methods = _measure(
        predicted,
        truth,
        test.activations.keys,
        {name: how for name, (_, how) in learnt.items()},
        confidence,
        num_resamples,
    )
    top1 = f1_score(truth, predicted[RULE_NAMES["top1_diff"]])
    return ClassifierReport(
        num_train=len(train),
        num_test=len(test),
        pos_label=fitted.pos_label_.item() if isinstance(fitted.pos_label_, np.generic) else fitted.pos_label_,
        methods=methods,
        few_shot=_few_shot(classifier, train, test, truth, few_shot, num_draws) if few_shot else {},
        num_draws=num_draws if few_shot else 0,
        top1_diff_loss=f1_score(truth, predicted[RULE_NAMES["any"]]) - top1,
    )


def transfer(
    classifier: FeatureClassifier, train: Mapping[str, LabelledTexts], test: Mapping[str, LabelledTexts]
) -> dict[str, dict[str, dict[str, float]]]:
    """
    F1 on each test set of every method learnt from each training set: over languages, or domains.

    A text and its translation must be on the same side; this cannot be seen from the texts.

    Args:
        classifier ([`FeatureClassifier`]):
            Its settings are used; it is not changed.
        train, test (`Mapping[str, LabelledTexts]`):
            Sets by name; a name may be in one of them only.

    Returns:
        `dict[str, dict[str, dict[str, float]]]`: by method, training set and test set.
    """
    matrix: dict[str, dict[str, dict[str, float]]] = {}
    for source, texts in train.items():
        positive_label = _unread(classifier).fit(texts.activations, texts.labels).pos_label_
        for name, (predict, _) in _learn(classifier, [classifier.rule, "logistic"], texts).items():
            for target, others in test.items():
                truth = np.array([label == positive_label for label in others.labels])
                cell = matrix.setdefault(name, {}).setdefault(source, {})
                cell[target] = f1_score(truth, predict(others))
    return matrix


def format_transfer(matrix: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The result of [`transfer`] as tables: a row for each training set, a column for each test set."""
    lines = []
    for name, sources in matrix.items():
        targets = list(next(iter(sources.values())))
        rows = [["learnt from", *targets], *([s, *(f"{row[t]:.3f}" for t in targets)] for s, row in sources.items())]
        lines += [f"{name}, F1", *align(rows, 1), ""]
    return "\n".join(lines).rstrip()


def _learn(
    classifier: FeatureClassifier, rules: Sequence[str], train: LabelledTexts
) -> dict[str, tuple[Predict, str]]:
    """What predicts, by name, and its setting in words."""
    learnt: dict[str, tuple[Predict, str]] = {}
    for rule in dict.fromkeys(rules):
        fitted = _unread(classifier).set_params(rule=rule)
        if rule != classifier.rule:
            fitted.set_params(num_features=None)
        elif classifier.num_features is not None:  # of a few texts, no more features than texts of a label
            fitted.set_params(num_features=_up_to(classifier.num_features, train.labels))
        fitted.fit(train.activations, train.labels)
        learnt[RULE_NAMES[rule]] = _predictor(fitted), _how(fitted)
    positive = np.array([label == fitted.pos_label_ for label in train.labels])
    rows = rows_to_choose_by(train.activations.keys, positive, classifier.dev_share, classifier.seed)
    for name in baselines_for(train):
        learnt[name] = BASELINES[name](train, positive, *rows), ""
    return learnt


def _unread(classifier: FeatureClassifier) -> FeatureClassifier:
    """One with the same settings for texts that are read already; model and SAEs are not copied."""
    settings = classifier.get_params(deep=False)
    return FeatureClassifier(**(settings | {"model": None, "saes": None, "tokenizer": None}))


def _up_to(num_features: int | Sequence[int], labels: Sequence[Any]) -> tuple[int, ...]:
    fewest = min(Counter(labels).values())
    numbers = (num_features,) if isinstance(num_features, int) else tuple(num_features)
    return tuple(dict.fromkeys(min(number, fewest) for number in numbers))


def _predictor(fitted: FeatureClassifier) -> Predict:
    return lambda texts: fitted.decision_function(texts.activations) > 0


def _how(fitted: FeatureClassifier) -> str:
    rule, choice = fitted.rule_, fitted.choices_[0]
    shown = ", ".join(f"{block}:{feature}" for (block, _), feature in list(zip(rule.places, rule.feature_ids))[:10])
    more = "" if len(rule) <= 10 else f" and {len(rule) - 10} more"
    on_dev = "" if choice.f1 is None else f", F1 {choice.f1:.3f} on the rows to choose by"
    return f"{choice.candidate}{on_dev} ({shown}{more})"


def _few_shot(
    classifier: FeatureClassifier,
    train: LabelledTexts,
    test: LabelledTexts,
    truth: np.ndarray,
    numbers: Sequence[int],
    num_draws: int,
) -> dict[int, dict[str, tuple[float, float, float]]]:
    positive_label = _unread(classifier).fit(train.activations, train.labels).pos_label_
    positive = np.array([label == positive_label for label in train.labels])
    curve = {}
    for number in [*(n for n in sorted(numbers) if n < len(train)), len(train)]:
        scores: dict[str, list[float]] = {}
        for draw in range(num_draws if number < len(train) else 1):
            part = train[_draw(positive, number, draw)]
            for name, (predict, _) in _learn(classifier, [classifier.rule, "logistic"], part).items():
                if name != "majority":
                    scores.setdefault(name, []).append(f1_score(truth, predict(test)))
        curve[number] = {name: (float(np.mean(each)), min(each), max(each)) for name, each in scores.items()}
    return curve


def _draw(positive: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Numbers of a random part of the rows, both labels as often as in all of them, one of each at least."""
    rng = np.random.default_rng(seed)
    num_positive = min(max(1, round(number * positive.mean())), number - 1)
    parts = [
        rng.choice(np.flatnonzero(positive == kind), size=min(size, int((positive == kind).sum())), replace=False)
        for kind, size in ((True, num_positive), (False, number - num_positive))
    ]
    return np.sort(np.concatenate(parts))


def _measure(
    predicted: Mapping[str, np.ndarray],
    truth: np.ndarray,
    keys: Sequence[str],
    how: Mapping[str, str],
    confidence: float,
    num_resamples: int,
) -> dict[str, Measured]:
    cluster = np.unique(list(keys), return_inverse=True)[1]
    num_clusters = int(cluster.max()) + 1
    drawn_RC = np.random.default_rng(0).multinomial(
        num_clusters, np.full(num_clusters, 1 / num_clusters), num_resamples
    )
    samples: dict[str, np.ndarray] = {}
    for name, answer in predicted.items():
        both, total = truth & answer, truth.astype(int) + answer.astype(int)
        sums = [drawn_RC @ np.bincount(cluster, weights=each, minlength=num_clusters) for each in (both, total)]
        samples[name] = np.divide(2 * sums[0], sums[1], out=np.zeros(num_resamples), where=sums[1] > 0)
    first = next(iter(predicted))
    measured = {}
    for name, answer in predicted.items():
        right, both = int((truth == answer).sum()), int((truth & answer).sum())
        f1, base = f1_score(truth, answer), f1_score(truth, predicted[first])
        low, high = _bounds(samples[name], confidence, num_clusters)
        less, more = _bounds(samples[name] - samples[first], confidence, num_clusters) if name != first else (0.0, 0.0)
        accuracy = wilson(right, len(truth), confidence)
        measured[name] = Measured(
            f1, max(0.0, low), min(1.0, high),
            right / len(truth), *accuracy,
            both / max(1, int(answer.sum())), both / max(1, int(truth.sum())),
            f1 - base, less, more,
            how.get(name, ""),
        )  # fmt: skip
    return measured


def _bounds(samples: np.ndarray, confidence: float, num_clusters: int) -> tuple[float, float]:
    """Percentiles; resamples that are all equal get the width of no event in as many texts."""
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    margin = wilson(0, num_clusters, confidence)[1] if np.ptp(samples) < 1e-12 else 0.0
    return float(low - margin), float(high + margin)
