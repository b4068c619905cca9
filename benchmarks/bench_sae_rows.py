"""
Reading four features, compared with the whole SAE, in every file format at 65536 x 4096: time and peak memory.

Each measurement is a fresh process. It measures the wall time and the processor time of the load alone (after the
imports), and the highest resident memory during the load minus the memory before. `tests/saes/layouts.py` writes the
files one at a time into a temporary folder, with random weights in the dtype of the published format. The files are in
the page cache. If other programs use the processor, the processor time is the better measure; the table shows it. The
column "plain load" is a load of the container: `torch.load(weights_only=True)`, safetensors' `load_file` (which maps
the file) with every tensor read once, or `numpy.load` of every array. SAELens loads its own files. It maps them too,
so every parameter is read once.

    pip install sae-lens   # left out if it is missing
    python benchmarks/bench_sae_rows.py

Linux only (it resets and reads the kernel's high-water mark); needs 3 GB of disk and 7 GB of memory.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

NUM_FEATURES, WIDTH = 65536, 4096
FEATURES = [17, 9000, 40000, 65535]
RESULTS = Path(__file__).parent / "results" / "bench_sae_rows.json"
LOADS = {
    "encoder_rows": "4 features, encoder only",
    "four_features": "4 features",
    "full": "all features",
    "plain": "plain load",
    "sae_lens": "SAELens",
}
LAYOUTS = (
    "qwen_scope",
    "gemma_scope",
    "gemma_scope_2",
    "llama_scope",
    "llamascopium_jumprelu",
    "saelens_standard",
    "saelens_gated",
    "sparsify_topk",
    "dictionary_learning_relu",
    "dictionary_learning_topk",
    "dictionary_learning_matryoshka",
    "goodfire",
    "openai_v5",
)
"""Of architectures that store the same matrices in the same way, one."""


def load_layouts() -> ModuleType:
    path = Path(__file__).parents[1] / "tests" / "saes" / "layouts.py"
    spec = importlib.util.spec_from_file_location("layouts", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def memory(field: str) -> int:
    """A line of `/proc/self/status`, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def plain_load(path: Path) -> Any:
    """All tensors of a file, as its container's own library reads them."""
    import numpy as np
    import torch
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        tensors = load_file(path)  # maps the file
        for tensor in tensors.values():
            tensor.sum()
        return tensors
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    return torch.load(path, weights_only=True)


def load_with_sae_lens(folder: Path) -> Any:
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder, device="cpu")  # maps the file
    for parameter in sae.parameters():
        parameter.data.sum()
    return sae


def loads_of(name: str) -> list[str]:
    """Loads that can read a layout."""
    theirs = name.startswith("saelens_") and importlib.util.find_spec("sae_lens") is not None
    return [load for load in LOADS if load != "sae_lens" or theirs]


def measure(load: str, name: str, folder: Path, arguments: dict[str, Any]) -> dict[str, float]:
    """Run one load in this process."""
    from sae_posttrain.saes import load_sae

    weights = folder / load_layouts().LAYOUTS[name].weights
    loads: dict[str, Callable[[], object]] = {
        "encoder_rows": lambda: load_sae(folder, **arguments, features=FEATURES, directions=False),
        "four_features": lambda: load_sae(folder, **arguments, features=FEATURES),
        "full": lambda: load_sae(folder, **arguments),
        "plain": lambda: plain_load(weights),
        "sae_lens": lambda: load_with_sae_lens(folder),
    }
    if load == "plain":  # imports are not part of the load
        import safetensors.torch  # noqa: F401
    if load == "sae_lens":
        import sae_lens  # noqa: F401
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = memory("VmRSS")
    start, started = time.perf_counter(), time.process_time()
    held = loads[load]()
    seconds, busy_seconds = time.perf_counter() - start, time.process_time() - started
    peak = memory("VmHWM") - before
    del held
    return {"seconds": seconds, "busy_seconds": busy_seconds, "peak_bytes": peak}


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def rows_lie_together(layout: Any) -> dict[str, bool]:
    """Whether a feature's weights are one stretch of the file, in the encoder and in the decoder."""
    matrices = {name.lower(): dims for name, dims in layout.tensors.items() if len(dims) == 2}
    encoder = next(name for name in matrices if name.startswith(("w_e", "encoder")))
    decoder = next(name for name in matrices if name.startswith(("w_d", "decoder")))
    return {"encoder": matrices[encoder] == "FD", "decoder": matrices[decoder] == "FD"}


def run(*arguments: str) -> Any:
    """This script in a fresh process; what it prints."""
    output = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
    return json.loads(output.stdout)


def measure_layout(name: str, num_repeats: int) -> dict[str, Any]:
    """Write the file, measure each load in turn `num_repeats` times, and remove it."""
    layout = load_layouts().LAYOUTS[name]
    with tempfile.TemporaryDirectory() as folder:
        arguments = json.dumps(run("--write", name, folder))
        file_bytes = (Path(folder) / layout.weights).stat().st_size
        runs: dict[str, list[dict[str, float]]] = {load: [] for load in loads_of(name)}
        for _ in range(num_repeats):  # in turn: a busy moment of the machine meets all of them
            for load in runs:
                runs[load].append(run("--measure", load, name, folder, arguments))
    results = {load: {key: summary([run[key] for run in runs[load]]) for key in runs[load][0]} for load in runs}
    return {
        "format": layout.format,
        "file": layout.weights,
        "dtype": str(layout.dtype).removeprefix("torch."),
        "bytes": file_bytes,
        "rows_lie_together": rows_lie_together(layout),
        "results": results,
    }


def row_of_table(name: str, layout: dict[str, Any]) -> str:
    together = ", ".join(part for part, value in layout["rows_lie_together"].items() if value) or "none"
    cells = []
    for load in layout["results"]:
        seconds, peak = (layout["results"][load][key]["median"] for key in ("busy_seconds", "peak_bytes"))
        cells.append(f"{seconds:.3f} s, {peak / 1e6:,.0f} MB".rjust(24))
    return f"{name:32}{together:18}{layout['dtype']:10}{''.join(cells)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_repeats", type=int, default=3)
    parser.add_argument("--layouts", default=",".join(LAYOUTS), help="with commas; all if left out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--write", nargs=2, metavar=("LAYOUT", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument(
        "--measure", nargs=4, metavar=("LOAD", "LAYOUT", "FOLDER", "ARGUMENTS"), help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    if args.write:
        layouts = load_layouts()
        arguments = layouts.write(layouts.LAYOUTS[args.write[0]], Path(args.write[1]), NUM_FEATURES, WIDTH)
        print(json.dumps(arguments))
        return
    if args.measure:
        load, name, folder, arguments = args.measure
        print(json.dumps(measure(load, name, Path(folder), json.loads(arguments))))
        return

    from machine import hardware, versions

    print(f"{'layout':32}{'rows together':18}{'dtype':10}" + "".join(text.rjust(24) for text in LOADS.values()))
    layouts = {}
    for name in args.layouts.split(","):
        layouts[name] = measure_layout(name, args.num_repeats)
        print(row_of_table(name, layouts[name]), flush=True)
    libraries = ["sae-lens"] if importlib.util.find_spec("sae_lens") else []
    report = {
        "question": "Four features of an SAE against a full load, in every format: time and peak memory.",
        "load_of_machine": os.getloadavg(),
        "sizes": {"num_features": NUM_FEATURES, "width": WIDTH, "page_cache": "warm"},
        "features": FEATURES,
        "num_repeats": args.num_repeats,
        "hardware": hardware(),
        "versions": versions("torch", "numpy", "safetensors", *libraries),
        "loads": LOADS,
        "layouts": layouts,
    }
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
