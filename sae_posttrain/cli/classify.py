"""The command `classify`."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..model_source import require_model
from .options import (
    TEXT_OPTIONS,
    add_batch_size,
    add_model,
    add_options,
    add_out,
    add_overwrite,
    add_sae_options,
    add_seed,
    add_template_kwargs,
    add_texts,
    flag,
    require_new,
    require_safetensors,
    say_written,
    write_whole,
)

_POSITIONS = ["response", "prompt", "all", "last"]


def add_classify(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Tell two kinds of texts apart by the features that fire on one of them. `fit` writes a classifier, and says "
        "what words and probes achieve on the same texts; `predict` labels texts."
    )
    parser.add_argument("action", choices=["fit", "predict"], help="fit a classifier, or label texts with one")
    add_model(parser)
    parser.add_argument("--sae", nargs="+", help="its SAEs: folder or Hub repository, one for all blocks or one each")
    parser.add_argument("--blocks", type=int, nargs="+", help="decoder blocks, counted from 0")
    add_texts(parser)
    add_out(parser, "file to write: for fit the classifier, ending in .safetensors; for predict JSONL")
    add_overwrite(parser)
    add_options(
        parser,
        {name: TEXT_OPTIONS[name] for name in ("text_column", "split", "max_length")},
    )
    parser.add_argument(
        "--positions",
        choices=_POSITIONS,
        default=argparse.SUPPRESS,
        help="tokens that are read: of the last answer, of the prompt, of both, or the last one (default: response)",
    )
    add_batch_size(parser, "texts", 16)
    add_template_kwargs(parser)
    add_sae_options(parser)
    add_seed(parser, "the divisions of the texts")
    fit = parser.add_argument_group("only with fit")
    add_options(fit, _OF_FIT)
    fit.add_argument("--num-features", type=int, nargs="+", default=argparse.SUPPRESS, help=_NUM_FEATURES)
    fit.add_argument(
        "--num-blocks", type=int, nargs="+", default=argparse.SUPPRESS, help="numbers of blocks to join (default: all)"
    )
    fit.add_argument(
        "--rule",
        choices=["any", "logistic", "top1_diff"],
        default=argparse.SUPPRESS,
        help="how a text is judged: any of the features fires (default), a regression on them, or the first fires",
    )
    predict = parser.add_argument_group("only with predict")
    add_options(predict, _OF_PREDICT)
    parser.set_defaults(run=_classify)


_NUM_FEATURES = "numbers of features to choose from (default: 1 2 5 10; with --rule logistic 10 30 100)"
_OF_FIT: dict[str, tuple[Any, str]] = {
    "label_column": (str, "column with the label of a text (default: label)"),
    "positive": (str, "label that the features stand for (default: the larger of the two)"),
    "labels": (str, "the two labels, joined by a comma; texts of others are left out"),
    "epsilon": (float, "activation above which a feature fires (default: 0)"),
    "dev_share": (float, "share of the texts to choose block and number of features by (default: 0.25)"),
    "test_texts": (str, "texts to test on, in the forms of --texts (default: a part of --texts)"),
    "test_share": (float, "share of --texts to test on, without --test-texts (default: 0.25)"),
    "cache": (Path, "file that keeps the activations of --texts, ending in .safetensors"),
    "few_shot": (bool, "measure with 10, 30, 100 and 300 texts too"),
    "transfer_column": (str, "column with a language or domain: learn from each, and test on each"),
    "id_column": (str, "column that a text and its translations share: they are divided together"),
}
_OF_PREDICT: dict[str, tuple[Any, str]] = {"classifier": (Path, "classifier that fit wrote; required")}


def _classify(arguments: argparse.Namespace) -> None:
    given = vars(arguments)
    of_fit, of_predict = (*_OF_FIT, "num_features", "num_blocks", "rule"), tuple(_OF_PREDICT)
    wrong = [name for name in (of_predict if arguments.action == "fit" else of_fit) if name in given]
    if wrong:
        raise ValueError(f"{flag(wrong[0])} does not belong to `classify {arguments.action}`.")
    (_fit if arguments.action == "fit" else _predict)(arguments, given)


def _text_options(arguments: argparse.Namespace, given: dict[str, Any], group_column: str) -> Any:
    from ..features.read.text_options import TextOptions

    return TextOptions(
        group_column=group_column,
        chat_template_kwargs=arguments.chat_template_kwargs,
        batch_size=arguments.batch_size,
        **{name: given[name] for name in ("text_column", "split", "max_length") if name in given},
    )


def _fit(arguments: argparse.Namespace, given: dict[str, Any]) -> None:
    require_safetensors(arguments.out)
    require_new(arguments.out, arguments.overwrite, (".txt", ".json"))
    for name in ("sae", "blocks"):
        if getattr(arguments, name) is None:
            raise ValueError(f"`classify fit` needs {flag(name)}.")
    if "test_texts" in given and "test_share" in given:
        raise ValueError("Give --test-texts or --test-share, not both.")
    require_model(arguments.model)
    import numpy as np

    from ..analysis.classifier import FeatureClassifier
    from ..analysis.classifier_report import FEW_SHOT, compare_classifiers, format_transfer, transfer
    from ..analysis.feature_rule import split_rows
    from ..features.read.loading import load_model_and_tokenizer, load_saes

    options = _text_options(arguments, given, given.get("label_column", "label"))
    rows = _labelled_rows(arguments.texts, options, given)
    test_rows = _labelled_rows(given["test_texts"], options, given) if "test_texts" in given else []
    saes = load_saes(
        arguments.sae,
        arguments.blocks,
        arguments.site,
        k=arguments.k,
        format=arguments.format,
        revision=arguments.revision,
    )
    settings: dict[str, Any] = {
        name: given[name] for name in ("rule", "epsilon", "dev_share", "positions") if name in given
    }
    for name in ("num_features", "num_blocks"):
        if name in given:
            settings[name] = tuple(given[name])
    model: Any = arguments.model
    tokenizer = None
    if "cache" not in given:  # with a cache, the model may not be needed
        model, tokenizer = load_model_and_tokenizer(model, None)
    classifier = FeatureClassifier(
        model,
        saes,
        pos_label=given.get("positive"),
        tokenizer=tokenizer,
        text_options=options,
        seed=arguments.seed,
        **settings,
    )
    texts = _read(classifier, rows, options, given.get("cache"))
    test = _read(classifier, test_rows, options, None) if test_rows else None
    classifier.fit(texts.activations, texts.labels)  # what cannot work is said here
    positive = np.array([label == classifier.pos_label_ for label in texts.labels])
    if test is None or "transfer_column" in given:
        keys = texts.activations.keys
        if "id_column" in given:
            keys = [str(row.get(given["id_column"])) for row in rows]
        learn, held = split_rows(keys, positive, given.get("test_share", 0.25), arguments.seed)
        parts = texts[learn], texts[held]
    if test is None:
        train, test = parts
        classifier.fit(train.activations, train.labels)
    else:
        train = texts
    report = compare_classifiers(classifier, train, test, few_shot=FEW_SHOT if "few_shot" in given else ())
    said = [str(report)]
    results: dict[str, Any] = {"report": report.as_dict()}
    if "transfer_column" in given:
        groups = np.array([str(row.get(given["transfer_column"])) for row in rows])
        sets = [
            {group: texts[side[groups[side] == group]] for group in sorted(set(groups[side]))}
            for side in (learn, held)
        ]
        results["transfer_f1"] = transfer(classifier, *sets)
        said += ["", format_transfer(results["transfer_f1"])]
    print("\n".join(said))
    written = [classifier.save(arguments.out, overwrite=arguments.overwrite)]
    results["choices"] = [{**asdict(each), "candidate": str(each.candidate)} for each in classifier.choices_]
    written.append(write_whole(arguments.out.with_suffix(".txt"), "\n".join(said) + "\n"))
    written.append(
        write_whole(arguments.out.with_suffix(".json"), json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    )
    say_written(written)


def _labelled_rows(texts: str, options: Any, given: dict[str, Any]) -> list[Any]:
    from ..features.read.texts import check_texts

    rows = check_texts(texts, options.split, group_column=None, text_column=options.text_column)
    wanted = None if "labels" not in given else {each.strip() for each in given["labels"].split(",")}
    if wanted is not None and len(wanted) != 2:
        raise ValueError(f"--labels names two labels, joined by a comma; got {given['labels']!r}.")
    kept = []
    for number, row in enumerate(rows, start=1):
        if options.group_column not in row or row[options.group_column] is None:
            raise ValueError(
                f"Row {number} of {texts} has no label in the column {options.group_column!r}; it has "
                f"{', '.join(map(str, row))}. Name the right one with --label-column."
            )
        if wanted is None or str(row[options.group_column]) in wanted:
            kept.append({**row, options.group_column: str(row[options.group_column])})
    if not kept:
        raise ValueError(f"No text of {texts} has one of the labels {given.get('labels')}.")
    return kept


def _read(classifier: Any, rows: list[Any], options: Any, cache: Path | None) -> Any:
    from ..analysis.classifier_baselines import LabelledTexts
    from ..analysis.reading import read_activations

    read = read_activations(
        classifier.model,
        classifier.saes,
        rows,
        positions=classifier.positions,
        residuals=True,
        cache=cache,
        tokenizer=classifier.tokenizer,
        text_options=options,
    )
    return LabelledTexts(read, [row[options.group_column] for row in rows], [_words(row, options) for row in rows])


def _words(row: Any, options: Any) -> str:
    """The text that is read of a row: itself, or its answer."""
    if isinstance(row.get(options.text_column), str):
        return row[options.text_column]
    answer = row["messages"] if isinstance(row.get("messages"), list) else row["completion"]
    return answer if isinstance(answer, str) else str(answer[-1].get("content") or "")


def _predict(arguments: argparse.Namespace, given: dict[str, Any]) -> None:
    if "classifier" not in given:
        raise ValueError("`classify predict` needs --classifier, the file that `classify fit` wrote.")
    if arguments.out.suffix != ".jsonl":
        raise ValueError(f"--out must end in .jsonl, got {arguments.out}.")
    require_new(arguments.out, arguments.overwrite, ())
    require_model(arguments.model)
    from ..analysis.classifier import FeatureClassifier
    from ..features.read.loading import load_saes
    from ..features.read.texts import check_texts

    loaded = FeatureClassifier.load(given["classifier"])
    if "max_length" not in given:
        given = {**given, "max_length": loaded.options.max_length}
    options = _text_options(arguments, given, "label")
    saes = None
    if arguments.sae is not None:
        blocks = arguments.blocks or sorted({block for block, _ in loaded.rule_.places})
        saes = load_saes(
            arguments.sae,
            blocks,
            arguments.site,
            k=arguments.k,
            format=arguments.format,
            revision=arguments.revision,
        )
    classifier = FeatureClassifier.load(
        given["classifier"], model=arguments.model, saes=saes, text_options=options
    ).set_params(positions=given.get("positions", loaded.positions))
    rows = check_texts(arguments.texts, options.split, group_column=None, text_column=options.text_column)
    if not rows:
        raise ValueError(f"{arguments.texts} holds no texts.")
    read = classifier.read(rows)
    labels, scores = classifier.predict(read).tolist(), classifier.decision_function(read).tolist()
    lines = [
        json.dumps({**row, "predicted": label, "score": round(score, 6)}, ensure_ascii=False, default=str) + "\n"
        for row, label, score in zip(rows, labels, scores)
    ]
    for label in classifier.classes_.tolist():
        print(f"{label}: {labels.count(label)} of {len(labels)}")
    say_written([write_whole(arguments.out, "".join(lines))])
