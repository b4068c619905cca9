"""
What trains with what: runs `tests/matrix`, keeps the raw results, and writes `docs/compatibility.md` from them.

```
python benchmarks/compatibility.py                      # everything that this environment can run, about ten minutes
python benchmarks/compatibility.py --versions FOLDER    # also environments of other versions, made in FOLDER
python benchmarks/compatibility.py --page               # only the page, from the results that are there
```
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "compatibility.json"
PAGE = ROOT / "docs" / "compatibility.md"
PACKAGES = ("torch", "trl", "transformers", "peft", "accelerate", "datasets")

sys.path.insert(0, str(ROOT / "tests" / "matrix"))
from axes import AXES, EXCLUDED  # noqa: E402
from versions import environments  # noqa: E402

_VERSIONS = (
    "import importlib.metadata as m, json, platform; "
    f"print(json.dumps({{'python': platform.python_version(), **{{p: m.version(p) for p in {PACKAGES!r}}}}}))"
)


def run_tests(python: str, *arguments: str) -> list[dict[str, Any]]:
    """What the tests recorded under another interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "results.jsonl"
        environment = {**os.environ, "SAE_POSTTRAIN_COMPATIBILITY": str(lines), "OMP_NUM_THREADS": "1"}
        environment.setdefault("TRITON_INTERPRET", "1")  # kernels of TRL 1.15 and Liger, on a machine without a GPU
        environment.setdefault("DS_ACCELERATOR", "cpu")
        subprocess.run([python, "-m", "pytest", "-q", *arguments], cwd=ROOT, env=environment, check=False)
        return [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []


def versions_of(python: str) -> dict[str, str]:
    """Versions of Python and the packages under an interpreter."""
    return json.loads(subprocess.run([python, "-c", _VERSIONS], capture_output=True, text=True, check=True).stdout)


def measure(pythons: Sequence[str], extras: str) -> dict[str, Any]:
    """Run everything."""
    found = run_tests(sys.executable, "tests/matrix/test_matrix.py", "-m", "slow or not slow")
    corners = []
    for python in pythons:
        entries = run_tests(python, "tests/matrix/test_matrix.py")
        corners.append({"versions": versions_of(python), "cases": entries})
    return {
        "machine": {"processor": platform.machine(), "system": platform.system(), "cores": os.cpu_count()},
        "versions": versions_of(sys.executable),
        "cases": found,
        "extras": run_tests(extras, "tests/matrix/test_extras.py", "-m", "slow or not slow"),
        "corners": corners,
    }


def page(results: dict[str, Any]) -> str:
    """The page, in Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    machine = results["machine"]
    cases = results["cases"]
    lines = [
        "# What trains with what?",
        "`benchmarks/compatibility.py` writes this page from the records of `tests/matrix`; do not edit it.",
        "The raw results are in `benchmarks/results/compatibility.json`.",
        "",
        f"Run on {machine['cores']} cores ({machine['processor']}, {machine['system']}), no GPU, with {versions}.",
        "All models here are tiny and random: the page shows that the gradient is right, not how fast it is computed.",
        "",
        "## What was compared?",
        "Each case trains one step, with the trainer built as a user builds it.",
        "The gradient that it passes to the optimizer is compared with a plain one (`tests/matrix/truth.py`).",
        "The plain gradient comes from a few lines without the library's code for losses and hooks: one process, "
        "float32, one document at a time.",
        "Steered GRPO makes real, steered rollouts, which are then replaced by fixed ones.",
        "",
        "*Difference* is ‖gradient − plain‖ / ‖plain‖, and *largest* is the largest difference of one number.",
        "A case is green below 1e-5 in fp32, and below 0.06 in bf16, where a number has 8 bits.",
        "Under FSDP2 with bf16 the limit is 0.15, because the weights are in bf16 too.",
        "FSDP2 runs through accelerate, which has to be told that gloo counts as an accelerator.",
        "`torch_compile` uses the backend `aot_eager`, which needs no C compiler.",
        "",
        "Every pair of values of two axes occurs at least once, except for the pairs that are listed below "
        "(`tests/matrix/pairs.json`, made by `tests/matrix/pairs.py`).",
        "",
        "| axis | values: green cases of all |",
        "|---|---|",
    ]
    for axis, values in AXES.items():
        counts = []
        for value in values:
            of_value = [entry for entry in cases if entry["case"][axis] == value]
            counts.append(f"{value}: {sum(e['state'] == 'green' for e in of_value)} of {len(of_value)}")
        lines.append(f"| {axis} | {', '.join(counts)} |")
    lines += ["", "## Several processes against one", "| processes | cases in fp32 | difference | largest |"]
    lines.append("|---|---|---|---|")
    for processes in ("DDP", "FSDP2"):
        chosen = [e for e in cases if e["case"]["processes"] == processes and e["case"]["precision"] == "fp32"]
        lines.append(
            f"| {processes}, two over gloo | {len(chosen)} | {_largest(chosen, 'relative')} | "
            f"{_largest(chosen, 'largest')} |"
        )
    lines += ["", "## Every case", "| " + " | ".join(AXES) + " | result | difference | largest |"]
    lines.append("|---" * (len(AXES) + 3) + "|")
    for entry in cases:
        numbers = [f"{entry[name]:.1e}" if name in entry else "–" for name in ("relative", "largest")]
        lines.append("| " + " | ".join([*entry["case"].values(), entry["state"], *numbers]) + " |")
    lines += ["", "## What cannot be combined?", "| values | why |", "|---|---|"]
    for values, reason in EXCLUDED:
        lines.append(f"| {' with '.join(' or '.join(chosen) for chosen in values.values())} | {reason} |")
    lines += ["", "## What else was tried?", "| what | result | difference | remark |", "|---|---|---|---|"]
    for entry in results["extras"]:
        number = f"{entry['relative']:.1e}" if "relative" in entry else "–"
        lines.append(f"| {entry['what']} | {entry['state']} | {number} | {_cell(entry.get('remark', ''))} |")
    lines += [
        "",
        "## Which versions?",
        "The cases of one process without compilation, in environments of their own.",
        "",
    ]
    lines += [
        "| TRL | transformers | peft | accelerate | green | largest difference in fp32 |",
        "|---|---|---|---|---|---|",
    ]
    for corner in results["corners"]:
        entries, version = corner["cases"], corner["versions"]
        green = f"{sum(entry['state'] == 'green' for entry in entries)} of {len(entries)}"
        names = " | ".join(version[name] for name in ("trl", "transformers", "peft", "accelerate"))
        lines.append(f"| {names} | {green} | {_largest(entries, 'relative')} |")
    lines += [
        "",
        "TRL 1.16.0 and transformers 5.23.0 are the newest on the package index.",
        "TRL 1.15 computes its log-probabilities in a Triton kernel, which ran in Triton's interpreter here.",
        "Without a GPU and without the interpreter, TRL 1.15 does not train.",
        "",
        "## What do real models have that random ones do not?",
        "`tests/test_real_architectures.py` takes tiny models of SmolLM2's and Gemma 3's kind through finding "
        "features, the penalty, steering, `evaluate` and the pass that stops early.",
        "",
        "- A first token that is an outlier: it counts in no statistic, and neither does padding.",
        "- No token for padding, or one that also ends answers: both train, and both are asked for answers.",
        "- No chat template: give plain prompts, and `prompt` and `completion` for training.",
        "- A sliding window shorter than the text: a push reaches the tokens behind it too.",
        "- Tied embeddings, embeddings scaled by the square root of the width, more embeddings than tokens, bfloat16.",
        "- A large vocabulary: `inspect` and the drift callback hold the logits of a whole batch, 4 bytes × tokens × "
        "vocabulary in float32, so that 8 texts of 128 tokens take 1.1 GB at 262,144 tokens.",
        "  Lower `--batch-size`, or `batch_size` of `TextOptions`.",
        "  Commands that only read activations compute no logits.",
        "- A large vocabulary and frozen weights on CPU, as under LoRA.",
        "  torch multiplies the strided state of a prompt's last token with frozen bfloat16 weights "
        "[row by row](https://github.com/pytorch/pytorch/issues/151934).",
        "  With Gemma's 262,144 tokens the first token of 16 prompts took 36 s, and takes 0.07 s when the states lie "
        "together.",
        "  Steered and cold rollouts, `generate`, `evaluate` and `calibrate` put them together; plain rollouts "
        "(`num_steered: 0` without cold ones) are TRL's own and wait.",
        "",
        "## What should I know?",
        "- DDP with an adapter and reentrant checkpointing needs `ddp_find_unused_parameters=False`, as in plain TRL.",
        "  The reason: transformers turns the search on for PEFT's models, and DDP then meets some parameters twice.",
        "- In prompt and prefix tuning with GRPO, virtual tokens stand in front of the left padding.",
        "  So the gradient depends on how a batch is padded, as in plain TRL; the plain gradient is padded alike.",
        "",
    ]
    return "\n".join(lines)


def _largest(entries: list[dict[str, Any]], name: str) -> str:
    numbers = [entry[name] for entry in entries if name in entry and entry["case"]["precision"] == "fp32"]
    return f"{max(numbers):.1e}" if numbers else "–"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write, or only write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="only write the page again")
    parser.add_argument("--versions", type=Path, help="folder to make environments of other versions in")
    parser.add_argument("--python", nargs="*", default=[], help="interpreters of environments that are there already")
    parser.add_argument("--extras", default=sys.executable, help="interpreter that has DeepSpeed, bitsandbytes, Liger")
    args = parser.parse_args(arguments)
    if not args.page:
        pythons = [*args.python, *(environments(args.versions) if args.versions else [])]
        RESULTS.write_text(json.dumps(measure(pythons, args.extras), indent=1) + "\n")
    PAGE.write_text(page(json.loads(RESULTS.read_text())), encoding="utf-8")


if __name__ == "__main__":
    main()
