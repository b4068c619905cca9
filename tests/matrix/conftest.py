"""Runs cases of the matrix, and keeps what they came to for the page of compatibility."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))  # the modules beside this one, for the tests and their processes alike

import case as runner
import truth

RESULTS = "SAE_POSTTRAIN_COMPATIBILITY"
"""Variable with the path of a file that gets a line of JSON for each result; `benchmarks/compatibility.py` sets it."""


@pytest.fixture
def record() -> Callable[..., None]:
    """Keeps a result, if somebody asked for results."""

    def keep(**entry: object) -> None:
        if path := os.environ.get(RESULTS):
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    return keep


@pytest.fixture(scope="session")
def done() -> dict[str, object]:
    """What tests of one session share: the folder, and what launches of several processes left."""
    return {}


@pytest.fixture
def folder(done, tmp_path_factory, make_model, make_features, tokenizer) -> Path:
    """The tiny model with its tokenizer, and the features."""
    if "folder" not in done:
        folder = done["folder"] = tmp_path_factory.mktemp("matrix")
        make_model().save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        make_features().save(folder / "features")
    return done["folder"]


@pytest.fixture
def plain_gradient(make_model, make_features, tokenizer) -> Callable[[dict[str, str]], dict[str, Tensor]]:
    """The gradient a case should have."""

    def compute(case: dict[str, str]) -> dict[str, Tensor]:
        model = make_model()
        config = runner.peft_config(case["tuning"])
        if config is not None:
            model = get_peft_model(model, config)
            runner.settle(model)
        return truth.gradients(case, model, tokenizer, make_features())

    return compute


@pytest.fixture
def gradient(folder, done, request, tmp_path_factory) -> Callable[[dict[str, str]], dict[str, Tensor]]:
    """The gradient a case has. Cases of several processes are run together, one launch for all that were selected."""

    def run(case: dict[str, str]) -> dict[str, Tensor]:
        processes = case["processes"]
        if processes == "one":
            torch.set_num_threads(1)
            return runner.run(case, folder, folder / "run")
        if processes not in done:
            chosen = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
            cases = [params["case"] for params in chosen if params.get("case", {}).get("processes") == processes]
            done[processes] = cases, _launch(cases, folder, tmp_path_factory.mktemp(processes))
        cases, results = done[processes]
        number = cases.index(case)
        errors = [file.read_text() for file in sorted(results.glob(f"{number}.*.txt"))]
        assert not errors, "\n".join(errors)
        assert (results / f"{number}.safetensors").exists(), (results / "log").read_text()[-3000:]
        return load_file(results / f"{number}.safetensors")

    return run


def _launch(cases: list[dict[str, str]], folder: Path, results: Path) -> Path:
    (results / "cases.json").write_text(json.dumps(cases))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, runner.__file__, str(folder), str(results / "cases.json"), str(results)]
    with open(results / "log", "w") as log:
        subprocess.run(command, stdout=log, stderr=log, timeout=60 + 120 * len(cases), check=False)
    return results
