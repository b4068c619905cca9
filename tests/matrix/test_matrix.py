"""Every case of the covering set: the gradient of its first step is the plain one, single process, float32."""

import json
import os
from pathlib import Path

import pytest
import torch
import trl
from packaging.version import Version

CASES = json.loads(Path(__file__).with_name("pairs.json").read_text())


def name(case: dict[str, str]) -> str:
    return " | ".join(case.values())


def tolerance(case: dict[str, str]) -> float:
    """Largest ‖difference‖ / ‖plain gradient‖. In bf16 a number has 8 bits; FSDP2 keeps the weights in it too."""
    if case["precision"] == "fp32":
        return 1e-5
    return 0.15 if case["processes"] == "FSDP2" else 0.06


def difference(found: dict[str, torch.Tensor], plain: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Relative difference of the whole gradient, and the largest of one number."""
    assert found.keys() == plain.keys()
    between = torch.cat([(found[key] - plain[key]).flatten() for key in plain])
    length = torch.cat([grad.flatten() for grad in plain.values()]).norm()
    return (between.norm() / length).item(), between.abs().max().item()


def is_slow(case: dict[str, str]) -> bool:
    return case["processes"] != "one" or case["compilation"] != "eager"


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name(case), marks=pytest.mark.slow if is_slow(case) else ()) for case in CASES]
)
@pytest.mark.filterwarnings("ignore")  # advice of TRL and PEFT on combinations that are meant here
def test_first_step_has_the_plain_gradient(case, gradient, plain_gradient, record):
    if Version(trl.__version__) < Version("1.16") and not _kernels_run():
        pytest.skip("TRL 1.15 takes log-probabilities in a Triton kernel: it needs a GPU, or TRITON_INTERPRET=1")
    try:
        relative, largest = difference(gradient(case), plain_gradient(case))
    except Exception as error:
        record(kind="case", case=case, state="failed", reason=str(error)[:300])
        raise
    green = relative < tolerance(case)
    record(kind="case", case=case, state="green" if green else "wrong", relative=relative, largest=largest)
    assert green, (relative, largest)


def _kernels_run() -> bool:
    return torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"


PLAIN = dict(zip(CASES[0], ("SASFT", "full", "none", "padded", "nll", "fp32", "one", "eager")))
