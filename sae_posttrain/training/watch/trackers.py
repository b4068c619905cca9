"""The answers of a watch as a table of the trackers that have tables, as TRL sends completions."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

_WITH_TABLES = ("wandb", "trackio")


def send_answers(report_to: Sequence[str], watch: Mapping[str, Any]) -> None:
    """Send `watch/answers` to Weights & Biases and Trackio, if the training reports to them and their run is open."""
    for name in _WITH_TABLES:
        if name not in report_to:
            continue
        tracker = import_module(name)
        if name == "wandb" and tracker.run is None:  # on this process, or any more
            continue
        import pandas as pd

        rows = [
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
        tracker.log({"watch/answers": tracker.Table(dataframe=pd.DataFrame(rows))})
