"""
Behaviour on damaged and hostile SAE files and feature sets: how many are refused, the longest time, the largest
memory.

The cases are those of `tests/saes/test_fuzz.py`. `tests/saes/fuzz.py` defines the allowed result of each case and what
is measured. The script ends with an error if a case has a result that is not allowed.

    python benchmarks/fuzz_saes.py
"""

import argparse
import collections
import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType

from machine import versions

RESULTS = Path(__file__).parent / "results" / "fuzz_saes.json"


def load_fuzz() -> ModuleType:
    path = Path(__file__).parents[1] / "tests" / "saes" / "fuzz.py"
    spec = importlib.util.spec_from_file_location("fuzz", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_cases", type=int, default=10_000)
    args = parser.parse_args()
    fuzz = load_fuzz()
    start = time.perf_counter()
    outcomes = [fuzz.run_case(number) for number in range(args.num_cases)]
    seconds = time.perf_counter() - start

    counts: dict[str, dict[str, collections.Counter]] = {}
    for by in ("mutation", "target"):
        counts[by] = collections.defaultdict(collections.Counter)
        for outcome in outcomes:
            counts[by][getattr(outcome, by)]["accepted" if outcome.accepted else "refused"] += 1
    report = {
        "question": "What comes of loading damaged and hostile files?",
        "num_cases": len(outcomes),
        "num_refused": sum(not outcome.accepted for outcome in outcomes),
        "num_accepted": sum(outcome.accepted for outcome in outcomes),
        "faults": [{"case": outcome.number, "faults": outcome.faults} for outcome in outcomes if outcome.faults],
        "limits": {"seconds": fuzz.MAX_SECONDS, "bytes_above_files": fuzz.MAX_BYTES},
        "slowest": [case(fuzz, outcome) for outcome in sorted(outcomes, key=lambda o: -o.busy_seconds)[:10]],
        "largest": [case(fuzz, outcome) for outcome in sorted(outcomes, key=lambda o: -fuzz.above_files(o))[:10]],
        "by_mutation": counts["mutation"],
        "by_target": counts["target"],
        "seconds": seconds,
        "versions": versions("torch", "numpy", "safetensors"),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(fuzz.summary(outcomes))
    if report["faults"]:
        raise SystemExit(f"{len(report['faults'])} cases did what they should not: {RESULTS}")


def case(fuzz: ModuleType, outcome: tuple) -> dict[str, object]:
    names = ("number", "mutation", "target", "accepted", "seconds", "busy_seconds", "file_bytes", "peak_bytes")
    return {name: getattr(outcome, name) for name in names} | {"bytes_above_files": fuzz.above_files(outcome)}


if __name__ == "__main__":
    main()
