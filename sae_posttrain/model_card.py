"""
Describe features and penalised tokens in the card of a trained model: which features, from which SAE, under which
licence, how they were used, and what was measured afterwards.

TRL writes the card at each checkpoint and when the model is pushed; a section is added to it. Names from files and
from the Hub are untrusted data. They are put in code spans, and characters that could end a span or cannot be printed
are replaced.
"""

import json
import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from inspect import get_annotations
from pathlib import Path
from typing import Any

from .features.set.card import code, source_lines, table_of
from .features.set.feature_set import FeatureSet
from .measure.answers.folder import EVALUATION_FILE
from .measure.answers.summary import format_evaluation
from .model_records import recorded_name, weights_fingerprint
from .shown import printable

logger = logging.getLogger(__name__)

_NO_MODEL = "[None](https://huggingface.co/None)"
_RATES = "### Measured rates"
_CITATION = "### Citation of the method"


@dataclass(frozen=True)
class Method:
    """A method, with or without features, as the card describes it."""

    description: str
    citation: str


_SASFT = """\
@article{deng2025sasft,
    title  = {{SASFT: Sparse Autoencoder-guided Supervised Finetuning to Mitigate Unexpected Code-Switching in LLMs}},
    author = {Boyi Deng and Yu Wan and Baosong Yang and Fei Huang and Wenjie Wang and Fuli Feng},
    year   = 2025,
    eprint = {arXiv:2507.14894},
}"""

METHODS = {
    "sasft": Method(
        "In addition to the token loss, training penalised the activity of these features on answers in which they "
        "should not be active ([SASFT](https://huggingface.co/papers/2507.14894)).",
        _SASFT,
    ),
    "token-penalty": Method(
        "In addition to the token loss, training penalised the probability of these tokens at positions of answers "
        'in which they do not belong. No sparse autoencoder is involved: it is the baseline "SFT+Penalty" of '
        "[SASFT](https://huggingface.co/papers/2507.14894).",
        _SASFT,
    ),
    "steered-grpo": Method(
        "Some rollouts of every prompt were steered along these features into a fault, so that training had a bad "
        "case to learn from ([Qwen-Scope](https://huggingface.co/papers/2605.11887), section 8).",
        """\
@article{deng2026qwenscope,
    title  = {{Qwen-Scope: Turning Sparse Features into Development Tools for Large Language Models}},
    author = {Boyi Deng and others},
    year   = 2026,
    eprint = {arXiv:2605.11887},
}""",
    ),
}
"""By the tag that a card gets."""


class FeatureCard:
    """
    Mixin that adds the section on features or on penalised tokens to the model's card.

    List it before a TRL trainer in the bases of a class.
    """

    # The trainer's own; declared for the type checker.
    args: Any
    model: Any
    accelerator: Any

    card_tag = "sasft"
    """How the trainer uses the features, one of [`METHODS`]."""

    feature_set: FeatureSet | None = None
    """The features in use. Without them and penalised tokens the card is as TRL writes it."""

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        evaluation: str | os.PathLike[str] | None = None,
    ) -> None:
        """
        Create the trainer's card with a section on the features. `push_to_hub` passes its further arguments here.
        `evaluation` is the `output_dir` of an [`evaluate`] of this model; by default, all evaluations of the current
        model in the run's folder and its subfolders are used.
        """
        num_tokens = self._num_penalised_tokens()
        if self.feature_set is None and not num_tokens and evaluation is not None:
            raise ValueError(
                f"`evaluation` is {os.fspath(evaluation)!r}, but this training uses no features, so the card is "
                "TRL's own. Leave it out."
            )
        if self.feature_set is None and not num_tokens:
            super().create_model_card(model_name, dataset_name, tags)  # type: ignore[misc]
            self._name_local_model()
            return
        tags = [tags] if isinstance(tags, str) else list(tags or ())
        measured = [_table_of_rates(Path(evaluation))] if evaluation is not None else self._measured_rates()
        used = [*([self.card_tag] if self.feature_set is not None else []), *(["token-penalty"] if num_tokens else [])]
        super().create_model_card(model_name, dataset_name, [*tags, *used])  # type: ignore[misc]
        self._name_local_model()
        if not self.is_world_process_zero():  # type: ignore[attr-defined]
            return
        unused = self._unused_settings()
        settings = {name: value for name, value in own_settings(self.args).items() if name not in unused}
        settings |= self._moved_settings()
        tokens = _token_description(num_tokens, settings) if num_tokens else None
        if self.feature_set is None:
            assert tokens is not None
            blocks = ["## Penalised tokens", tokens, *_closing(METHODS["token-penalty"], settings, measured)]
            section = "\n\n".join(blocks) + "\n"
        else:
            section = feature_section(self.feature_set, METHODS[self.card_tag], settings, measured, tokens)
        with (Path(self.args.output_dir) / "README.md").open("a", encoding="utf-8") as file:
            file.write(f"\n\n{section}")

    def _name_local_model(self) -> None:
        """Name the folder of a local base model. TRL would link the base model as `None`."""
        card = Path(self.args.output_dir) / "README.md"
        if not self.is_world_process_zero() or not card.is_file():  # type: ignore[attr-defined]
            return
        name = str(getattr(self.model.config, "_name_or_path", "") or "")
        text = card.read_text(encoding="utf-8")
        if _NO_MODEL in text:
            said = f"{code(recorded_name(name))}, a model in a local folder" if name else "a model without a name"
            card.write_text(text.replace(f"of {_NO_MODEL}", f"of {said}"), encoding="utf-8")

    def _moved_settings(self) -> dict[str, Any]:
        """Settings that training itself has changed."""
        return {}

    def _unused_settings(self) -> Collection[str]:
        """Settings that had no effect, which the card leaves out."""
        return ()

    def _num_penalised_tokens(self) -> int:
        """Tokens whose probability is penalised; 0 if none is."""
        return 0

    def _measured_rates(self) -> list[str]:
        # During training, evaluations belong to earlier weights, and the weights may be split over several processes.
        if getattr(self, "is_in_train", False) or not self.is_world_process_zero():  # type: ignore[attr-defined]
            return []
        folder = Path(self.args.output_dir)
        found = [path.parent for path in [*folder.glob(EVALUATION_FILE), *sorted(folder.glob(f"*/{EVALUATION_FILE}"))]]
        prints = [weights_fingerprint(folder)] if found else []
        if found and self.accelerator.num_processes == 1:
            prints.append(weights_fingerprint(self.model))
        tables = []
        for place in found:
            if place.name.startswith("checkpoint-"):
                continue
            try:
                evaluation = _read_evaluation(place)
                if evaluation["settings"].get("model_fingerprint") in prints:
                    tables.append(_table_of_rates(place))
                else:
                    logger.warning(
                        "The card leaves out %s: it was measured on other weights than the model has now. If it is of "
                        "this model, pass `evaluation=%r`.",
                        place / EVALUATION_FILE,
                        str(place),
                    )
            except ValueError as error:
                logger.warning("The card leaves out an evaluation: %s", error)
        return tables


def add_measured_rates(model: str | os.PathLike[str], evaluation: str | os.PathLike[str]) -> None:
    """
    Put the rates of an evaluation into the card of a trained model, in place of its present rates.

    Args:
        model (`str` or path):
            Folder of the model, with the `README.md` that the training wrote.
        evaluation (`str` or path):
            `output_dir` of an [`evaluate`] of this model.

    Raises:
        ValueError: If the folder has no card of ours, or `evaluation` holds no evaluation.
    """
    card = Path(model) / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    before, heading, rest = text.rpartition(f"{_RATES}\n\n")
    _, next_heading, after = rest.partition(f"\n\n{_CITATION}\n\n")
    if not (heading and next_heading):
        raise ValueError(f"{card} is no card that a training with features wrote: it has no part {_RATES!r}.")
    card.write_text(f"{before}{heading}{_table_of_rates(Path(evaluation))}{next_heading}{after}", encoding="utf-8")


def feature_section(
    feature_set: FeatureSet,
    method: Method,
    settings: Mapping[str, Any],
    measured: list[str],
    tokens: str | None = None,
) -> str:
    """
    The section in Markdown, with tables of measured rates, and a description of tokens that were penalised in addition
    to the features.
    """
    targets = f" for {', '.join(map(code, feature_set.target_groups))}" if feature_set.target_groups else ""
    found_on = f", found on {code(recorded_name(feature_set.base_model))}" if feature_set.base_model else ""
    features = [
        [code(name), str(block), code(site), str(feature)]
        for name, block, site, feature in zip(
            feature_set.names, feature_set.blocks, feature_set.sites, feature_set.feature_ids
        )
    ]
    description = method.description
    if settings.get("penalty_weight") == 0:
        description = "In training they were only watched: the penalty's weight was 0."
    blocks = [
        "## Sparse-autoencoder features",
        f"{len(feature_set)} feature{'s' * (len(feature_set) > 1)}{targets}{found_on}. {description}",
        table_of(["feature", "block", "site", "number in the SAE"], features),
        *source_lines(feature_set, "this model"),
        *(["### Penalised tokens", tokens] if tokens is not None else []),
        *_closing(method, settings, measured),
    ]
    return "\n\n".join(blocks) + "\n"


def _token_description(num_tokens: int, settings: Mapping[str, Any]) -> str:
    named = code(settings["penalised_tokens"])
    which = f"{num_tokens} tokens, set with {named} (a language stands for the tokens of its script)."
    if settings["token_penalty_weight"] == 0:
        return f"{which} In training their probability was only watched: the weight was 0."
    return f"{which} {METHODS['token-penalty'].description}"


def _closing(method: Method, settings: Mapping[str, Any], measured: list[str]) -> list[str]:
    return [
        "### Settings",
        table_of(["setting", "value"], [[code(name), code(value)] for name, value in settings.items()]),
        _RATES,
        *(measured or ["None: `sae-posttrain evaluate` measures them."]),
        _CITATION,
        f"```bibtex\n{method.citation}\n```",
    ]


def own_settings(args: Any) -> dict[str, Any]:
    """Settings that are set in a config of ours and that TRL does not have, without local paths."""
    classes = [kind for kind in reversed(type(args).__mro__) if kind.__module__.startswith(f"{__package__}.")]
    names = dict.fromkeys(name for kind in classes for name in get_annotations(kind) if name != "features")
    values = {name: value for name in names if (value := getattr(args, name)) is not None}
    return {name: recorded_name(value) if isinstance(value, str) else value for name, value in values.items()}


def _read_evaluation(folder: Path) -> dict[str, Any]:
    path = folder if folder.is_file() else folder / EVALUATION_FILE
    try:
        evaluation = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is no evaluation that `sae-posttrain evaluate` wrote ({printable(error)})."
        ) from error
    if not isinstance(evaluation, dict) or not isinstance(evaluation.get("settings"), dict):
        raise ValueError(f"{path} is no evaluation that `sae-posttrain evaluate` wrote: it has no settings.")
    return evaluation


def _table_of_rates(folder: Path) -> str:
    evaluation = _read_evaluation(folder)
    try:
        table = format_evaluation(evaluation)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"The evaluation in {folder} is damaged ({printable(error)}).") from error
    # Indented text is code, and its content cannot end the code block.
    return "\n".join(f"    {printable(line)}" for line in table.splitlines())
