"""
Time of `import sae_posttrain` and `sae-posttrain --help`, compared with `import trl`: each in fresh processes, in
turn.

The reference is `import torch` alone, which neither of the two needs before it is used.

    python benchmarks/bench_start.py
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import hardware, versions

RESULTS = Path(__file__).parent / "results" / "bench_start.json"
PROGRAMS = {
    "python alone": ["-c", "pass"],
    "import sae_posttrain": ["-c", "import sae_posttrain"],
    "sae-posttrain --help": ["-m", "sae_posttrain.cli", "--help"],
    "sae-posttrain sft --help": ["-m", "sae_posttrain.cli", "sft", "--help"],
    "from sae_posttrain import SASFTTrainer": ["-c", "from sae_posttrain import SASFTTrainer"],
    "import trl": ["-c", "import trl"],
    "from trl import SFTTrainer": ["-c", "from trl import SFTTrainer"],
    "import torch": ["-c", "import torch"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for turn in range(arguments.repeats + 1):  # the first reads the files into the page cache
        for name, program in PROGRAMS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *program], check=True, stdout=subprocess.DEVNULL)
            if turn:
                taken[name].append(time.perf_counter() - started)
    medians = {name: round(statistics.median(values), 3) for name, values in taken.items()}
    report = {
        "question": "How long importing and `--help` take, beside `import trl`.",
        "median_seconds": medians,
        "seconds": {name: [round(value, 3) for value in values] for name, values in taken.items()},
        "hardware": hardware(),
        "versions": versions("torch", "transformers", "trl", "sae_posttrain"),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    for name, values in taken.items():
        print(f"{name:40} {medians[name]:.3f} s ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
