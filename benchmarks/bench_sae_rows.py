"""
Four features of a Qwen-Scope file of 32768 x 2048 float32 against a full load: time and peak memory.

Each measurement is a fresh process: the wall time of the load alone (after the imports) and the highest resident
memory during it, above what the process held before. The file (537 MB, random weights) is temporary and in the page
cache.

    python benchmarks/bench_sae_rows.py

Linux only (it resets and reads the kernel's high-water mark).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

NUM_FEATURES, WIDTH = 32768, 2048
FEATURES = [17, 9000, 20000, 32767]
RESULTS = Path(__file__).parent / "results" / "bench_sae_rows.json"
LOADS = {
    "four_features": "load_sae(features=[4 features])",
    "full": "load_sae()",
    "torch_load": "torch.load(weights_only=True)",
}


def memory(field: str) -> int:
    """A line of `/proc/self/status`, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measure(load: str, folder: Path) -> dict[str, float]:
    """Run one load in this process."""
    import torch

    from sae_posttrain.saes import load_sae

    loads: dict[str, Callable[[], object]] = {
        "four_features": lambda: load_sae(folder, block=0, features=FEATURES),
        "full": lambda: load_sae(folder, block=0),
        "torch_load": lambda: torch.load(folder / "layer0.sae.pt", weights_only=True),
    }
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = memory("VmRSS")
    start = time.perf_counter()
    held = loads[load]()
    seconds = time.perf_counter() - start
    peak = memory("VmHWM") - before
    del held
    return {"seconds": seconds, "peak_bytes": peak}


def hardware() -> dict[str, str | int | float]:
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": cpu.partition(":")[2].strip(), "cores": os.cpu_count() or 0, "ram_gb": round(ram / 1e9, 1)}


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_repeats", type=int, default=5)
    parser.add_argument("--measure", nargs=2, metavar=("LOAD", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure[0], Path(args.measure[1]))))
        return

    import numpy
    import torch

    runs: dict[str, list[dict[str, float]]] = {load: [] for load in LOADS}
    with tempfile.TemporaryDirectory() as folder:
        F, D = NUM_FEATURES, WIDTH
        weights = {"W_enc": torch.randn(F, D), "W_dec": torch.randn(D, F), "b_enc": torch.randn(F)}
        torch.save({**weights, "b_dec": torch.randn(D)}, Path(folder) / "layer0.sae.pt")
        del weights
        file_bytes = (Path(folder) / "layer0.sae.pt").stat().st_size
        for _ in range(args.num_repeats):  # in turn: a busy moment of the machine meets all of them
            for load in LOADS:
                command = [sys.executable, __file__, "--measure", load, folder]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                runs[load].append(json.loads(output))

    results = {
        load: {key: summary([run[key] for run in runs[load]]) for key in ("seconds", "peak_bytes")} for load in LOADS
    }
    few = results["four_features"]
    report = {
        "question": "Four features of a Qwen-Scope file against a full load: time and peak memory.",
        "file": {"num_features": F, "width": D, "dtype": "float32", "bytes": file_bytes, "page_cache": "warm"},
        "features": FEATURES,
        "num_repeats": args.num_repeats,
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__},
        "num_threads": torch.get_num_threads(),
        "results": results,
        "four_features_relative_to": {
            load: {key: few[key]["median"] / results[load][key]["median"] for key in ("seconds", "peak_bytes")}
            for load in ("full", "torch_load")
        },
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")

    print(f"{'load':32} {'seconds: median (min to max)':32} peak MB: median (min to max)")
    for load, name in LOADS.items():
        seconds, peak = results[load]["seconds"], results[load]["peak_bytes"]
        times = f"{seconds['median']:.3f} ({seconds['min']:.3f} to {seconds['max']:.3f})"
        peaks = f"{peak['median'] / 1e6:.1f} ({peak['min'] / 1e6:.1f} to {peak['max'] / 1e6:.1f})"
        print(f"{name:32} {times:32} {peaks}")


if __name__ == "__main__":
    main()
