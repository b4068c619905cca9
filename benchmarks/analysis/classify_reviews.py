"""
Negative against positive hotel reviews: the published rule on SAE features, beside what costs less.

SmolLM2-135M-Instruct with the SAEs of blocks 9 and 14, at most 256 tokens of each review. English: 600 reviews to
learn from and 400 to test on, as many of each label; block and K are chosen on a quarter of the 600. Other languages
have 100 to learn from and 200 to test on. The same review is on the same side in every language. The passes are kept
in `--kept`; figures take a minute from there.

    python benchmarks/analysis/classify_reviews.py --data data/bigbench/multiemo --model smollm2-135m-instruct \
        --saes models/real/smollm2-135m-instruct --kept kept
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from reviews import BLOCKS, LANGUAGES, activations_of, review_sets

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import hardware, seconds, versions

from sae_posttrain.analysis.classifier import FeatureClassifier
from sae_posttrain.analysis.classifier_baselines import LabelledTexts
from sae_posttrain.analysis.classifier_report import FEW_SHOT, compare_classifiers, format_transfer, transfer

RESULTS = Path(__file__).parents[1] / "results" / "classify_reviews.json"


def read(arguments: argparse.Namespace, domain: str, language: str, side: str) -> LabelledTexts:
    rows = review_sets(arguments.data, language, domain)[side]
    name = f"{domain}.{language}.{side}"
    read = activations_of(rows, name, arguments.model, arguments.saes, arguments.kept)
    return LabelledTexts(read, [row["label"] for row in rows], [row["text"] for row in rows])


def _without_nan(value: Any) -> Any:
    """`None` for what was not measured: JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    return None if isinstance(value, float) and value != value else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "model", "saes", "kept"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--languages", nargs="*", default=list(LANGUAGES))
    parser.add_argument(
        "--learn-from", nargs="*", default=list(LANGUAGES), help="languages to learn from, beside English"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    classifier = FeatureClassifier(pos_label="negative")
    train, test = (read(arguments, "hotels", "en", side) for side in ("train", "test"))
    started = seconds()
    report = compare_classifiers(classifier, train, test, few_shot=FEW_SHOT)
    spent = seconds() - started
    print(report, flush=True)
    fitted = FeatureClassifier(pos_label="negative").fit(train.activations, train.labels)
    sets: dict[str, dict[str, LabelledTexts]] = {"train": {"en": train}, "test": {"en": test}}
    for language in arguments.languages:
        for side in ("train", "test") if language in arguments.learn_from else ("test",):
            sets[side][language] = read(arguments, "hotels", language, side)
    sets["test"]["products"] = read(arguments, "products", "en", "test")
    matrix = transfer(classifier, sets["train"], sets["test"])
    products = {"products": sets["test"].pop("products")}  # too few to divide: learnt from all, tested on hotels
    for method, rows in transfer(classifier, products, sets["test"]).items():
        matrix[method] |= {"products": rows["products"] | {"products": float("nan")}}
    sets["test"] |= products
    print(format_transfer(matrix))
    results: dict[str, Any] = {
        "model": "SmolLM2-135M-Instruct",
        "blocks": BLOCKS,
        "report": report.as_dict(),
        "choices": [
            {"candidate": str(each.candidate), "f1": each.f1, "top1_difference": each.top1_difference}
            for each in fitted.choices_
        ],
        "transfer_f1": matrix,
        "num_texts": {side: {name: len(each) for name, each in held.items()} for side, held in sets.items()},
        "seconds_of_report": round(spent, 1),
        "machine": hardware(),
        "versions": versions("scikit-learn", "scipy", "torch", "transformers"),
    }
    arguments.out.write_text(json.dumps(_without_nan(results), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
