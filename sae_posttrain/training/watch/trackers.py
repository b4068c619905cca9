"""The answers of a watch as a table in the trackers that a training reports to, as TRL sends completions."""

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

_WITH_TABLES = ("wandb", "trackio")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|~])")


def send_answers(report_to: Sequence[str], watch: Mapping[str, Any], trainer: Any = None) -> None:
    """
    Send `watch/answers` to the trackers that the training reports to and whose run is open.

    Weights & Biases and Trackio get a table. TensorBoard has none: it gets a text that it shows as one, through the
    writer of the trainer.
    """
    for name in _WITH_TABLES:
        if name not in report_to:
            continue
        tracker = import_module(name)
        if name == "wandb" and tracker.run is None:  # on this process, or any more
            continue
        import pandas as pd

        tracker.log({"watch/answers": tracker.Table(dataframe=pd.DataFrame(_rows(watch)))})
    writer = _tensorboard_writer(trainer) if "tensorboard" in report_to else None
    if writer is not None:
        writer.add_text("watch/answers", markdown_table(_rows(watch)), watch["step"])


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same columns as a table in Markdown that shows every text as it is."""
    lines = [[_cell(name) for name in rows[0]], *([_cell(value) for value in row.values()] for row in rows)]
    lines.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    text = str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "<br>".join(_MARKDOWN.sub(r"\\\1", text).splitlines())


def _rows(watch: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "step": watch["step"],
            "lang": answer["lang"],
            "prompt": answer["prompt"],
            "answer": answer["answer"],
            **answer["flags"],
            "unexpected": " ".join(span["text"] for span in answer["spans"] if span["excused"] is None),
        }
        for answer in watch["answers"]
    ]


def _tensorboard_writer(trainer: Any) -> Any:
    from transformers.integrations import TensorBoardCallback

    callbacks = [] if trainer is None else trainer.callback_handler.callbacks
    return next((each.tb_writer for each in callbacks if isinstance(each, TensorBoardCallback)), None)
